"""What GPUs hold on verl (docs/verl.md): build/verl/bin/python scripts/verl_memory.py > docs/results/verl_memory.json

Each case also as it would be with logits: at the peak four times tokens x vocabulary in 16 bits, as was measured of the engine that had
them, in the place of the states and of what the chunked head holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import verl  # noqa: F401, TID253 first, as it imports our plug-in in its own order

from onpolicy.experiments.forecast.hardware import GIB
from onpolicy.experiments.forecast.shape import shape_of
from onpolicy.integrations.verl.command import compose
from onpolicy.integrations.verl.memory import TRAINING, Models, verl_memory
from onpolicy.integrations.verl.settings import method

ROOT = Path(__file__).parent.parent
CASES = {
    "Qwen3-8B, 8 GPUs": ("qwen3_8b", ["trainer.n_gpus_per_node=8"]),
    "Qwen3-32B, 32 GPUs": ("qwen3_32b", ["trainer.n_gpus_per_node=8", "trainer.nnodes=4"]),
}
LOGITS = 4.0
"""Times that tokens x vocabulary were there in 16 bits, with one context."""
REPLACED = ("states that teachers left", "the teacher's head", "temporaries of a pass")


def found() -> dict[str, dict[str, Any]]:
    """Case -> its overrides, its memory, and the training GPU's parts with logits."""
    cases = {}
    for case, (shape, overrides) in CASES.items():
        given = ["data.train_files=x", "data.val_files=x", *overrides]
        config = compose(ROOT / "configs" / "verl" / "sdpo_qwen3_8b.yaml", given)
        model = shape_of(str(ROOT / "tests" / "experiments" / "shapes" / f"{shape}.json"))
        memory = verl_memory(config, method(config), Models(model))
        tokens = config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
        logits = {"logits": LOGITS * 2.0 * tokens * model.vocabulary / GIB}
        before = {part: gib for part, gib in memory[TRAINING].items() if part not in REPLACED} | logits
        cases[case] = {"overrides": overrides, "memory": memory, "with logits": before}
    return cases


if __name__ == "__main__":
    print(json.dumps(found(), indent=1))
