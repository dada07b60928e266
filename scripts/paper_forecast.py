"""What the runs of docs/paper.md would cost on GPUs: python scripts/paper_forecast.py > docs/results/paper/forecast.json

The lengths are assumed: near those that the paper reports for its models, capped as its training caps them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.experiments.forecast.forecast import Assumptions, forecast
from onpolicy.experiments.forecast.shape import shape_of

SHAPES = Path("tests/experiments/shapes")
CASES = {
    "R1-Distill-Qwen-7B": ("r1_distill_7b", 10000, []),
    "Qwen3-8B, thinking": ("qwen3_8b", 10000, []),
    "Qwen3-8B, no thinking": ("qwen3_8b", 2000, []),
    "Qwen3-1.7B, thinking": ("qwen3_1.7b", 10000, []),
    "Olmo-3-7B-Instruct": ("olmo3_7b", 4000, []),
    "section 6 (64 problems a step)": ("qwen3_8b", 2000, ["data.prompts_per_step=64"]),
}
GRPO = ["contexts={}", "teacher.name=live", "objective=[{name: policy_gradient, importance_cap: 2.0}]"]

found = []
for case, (shape, tokens, overrides) in CASES.items():
    for arm, own in (("sdpo", []), ("grpo", GRPO)):
        resolved = resolve(load(Path("configs/paper/math.yaml"), ["model.path=x", "data.path=x", *overrides, *own]))
        for gpu in ("h100", "b200"):
            assumed = Assumptions(gpu, completion_tokens=tokens)
            foreseen = forecast(resolved, shape_of(str(SHAPES / f"{shape}.json")), assumed)
            found.append({"case": case, "arm": arm, "assumed": asdict(assumed), **asdict(foreseen)})
print(json.dumps(found, indent=1))
