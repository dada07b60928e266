"""``onpolicy lab reproduce``: the findings of arXiv 2603.24472 as claims about the reasoner, each tested with a 95 % t interval.

A claim holds where its whole interval lies on the side that the paper's finding names, fails where it lies on the other, and is open
where it includes zero. Nothing here is tuned to make a claim hold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from onpolicy.config.resolve import load_resolved
from onpolicy.config.shipped import SHIPPED
from onpolicy.experiments.analysis.contexts import measure_contexts
from onpolicy.experiments.analysis.pass_rates import ANY_PASS_RATE
from onpolicy.experiments.lab.claims import (
    claims_table,
    fine_tuned,
    narrowest,
    ordered_contexts,
    other_arms,
    out_of_domain,
    shortened,
)
from onpolicy.experiments.lab.curves import curves_by_step
from onpolicy.experiments.lab.readout import kept, rounded, versions
from onpolicy.experiments.sft.sft import Training, prepare_sweep
from onpolicy.experiments.sft.traces import UNGUIDED, TraceRequest
from onpolicy.experiments.sweep.compare import Difference, compare, differences
from onpolicy.experiments.sweep.grid import cells, read_grid
from onpolicy.experiments.sweep.sweep import sweep
from onpolicy.utils.signals import resumable

CONTEXTS, COVERAGE = SHIPPED / "lab/contexts.yaml", SHIPPED / "lab/coverage.yaml"
PROBLEMS = 100
"""Problems answered under each context."""
EXAMPLES = 400
"""Problems whose answers are fine-tuned on."""


@resumable()
def reproduce(output: Path, jobs: int) -> int:
    """Runs everything that is not finished and writes ``reproduce.json``."""
    output.mkdir(parents=True, exist_ok=True)
    console = Console()
    grid = read_grid(COVERAGE)
    contexts = [kept(output / f"contexts-{s}.json", partial(_contexts, s)) for s in grid.seeds]
    code = sweep(COVERAGE, output / "coverage", (), jobs)
    off_policy = _off_policy(grid.seeds, output / "off_policy", jobs, console)
    finished = [cell for cell in cells(COVERAGE, output / "coverage") if cell.finished()]
    found = compare([cell.run for cell in finished], grid.eval_groups, reference=next(iter(grid.arms)))
    claims = [
        *ordered_contexts(contexts),
        *shortened(finished),
        *out_of_domain(found),
        *narrowest(finished, found, grid.eval_groups),
        *other_arms(finished, found),
        *fine_tuned(off_policy),
    ]
    report = {
        "versions": versions(),
        "seeds": grid.seeds,
        "claims": [asdict(c) | {"verdict": c.verdict} for c in claims],
        "contexts": contexts,
        "from_start": [asdict(d) for d in found.from_start],
        "curves": curves_by_step(finished),
        "off_policy": [asdict(d) for d in off_policy],
    }
    (output / "reproduce.json").write_text(json.dumps(rounded(report)) + "\n")
    console.print(claims_table(claims))
    console.print(f"all numbers: {output / 'reproduce.json'}", soft_wrap=True)
    return code


def _contexts(seed: int) -> list[dict[str, Any]]:
    own = (f"seed={seed}", f"data.coverage={{problems: {PROBLEMS}, seed: {seed}}}")  # other problems with each seed
    rows: list[dict[str, Any]] = measure_contexts(load_resolved(CONTEXTS, own), PROBLEMS, ANY_PASS_RATE).as_json()[
        "rows"
    ]
    return [{k: v for k, v in row.items() if k != "by_problem"} for row in rows]


def _off_policy(seeds: Sequence[int], output: Path, jobs: int, console: Console) -> list[Difference]:
    """Each arm of ``onpolicy sft`` minus the unguided one."""
    grid = read_grid(COVERAGE)
    overrides = (f'data.coverage={{problems: {EXAMPLES}, seed: "${{seed}}"}}', "trainer.lr=3e-4")
    request, training = TraceRequest(EXAMPLES, ANY_PASS_RATE, "teacher"), Training(3, 32, seeds)
    made = prepare_sweep(COVERAGE.parent / grid.config, overrides, request, training, output, console)
    sweep(made, output, (), jobs)
    return differences([c.run for c in cells(made, output) if c.finished()], grid.eval_groups, UNGUIDED)
