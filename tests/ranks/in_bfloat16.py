"""One rank of a trainer over DeepSpeed in bfloat16, under the flag that a GPU would show DeepSpeed; rank 0 writes what it found.

torchrun --nproc-per-node N -m tests.ranks.in_bfloat16 FOLDER STAGES
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from onpolicy.trainer.deepspeed import deepspeed
from onpolicy.trainer.head import head_error
from onpolicy.trainer.reversible import make_change, reversible_change, undo_change
from onpolicy.trainer.teacher_rules import WeightRule, ema, frozen
from onpolicy.trainer.trainer import PolicyTrainer, local
from tests.ranks.against_local import _largest, batch, make
from tests.tiny import tiny_model
from tests.trainer.test_frozen_weights import rounded
from tests.trainer.test_trainer import distill_term

COLLECTIVES = (
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
    "all_reduce",
    "reduce",
    "all_gather",
    "reduce_scatter",
)


EXCHANGED: Counter[str] = Counter()
"""Bytes that ranks have exchanged, by dtype; a gather counts what it yields, a reduction what goes in."""


def count_exchanges() -> None:
    """Before DeepSpeed is loaded, which keeps some of these functions."""

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            given = [t for a in (*arguments, *options.values()) for t in (a if isinstance(a, list) else [a])]
            tensors = [t for t in given if isinstance(t, Tensor) and t.is_floating_point()]
            if tensors:
                largest = max(tensors, key=lambda t: t.numel())
                EXCHANGED[str(largest.dtype)] += largest.numel() * largest.element_size()
            return function(*arguments, **options)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counted(getattr(dist, name)))


def exchanged_in(step: Callable[[], Any]) -> dict[str, int]:
    EXCHANGED.clear()
    step()
    return dict(EXCHANGED)


def ranked(stage: int, rule: WeightRule, folder: Path, **options: Any) -> PolicyTrainer:
    config = folder / f"stage{stage}-{dist.get_rank() if dist.is_initialized() else 0}.json"
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    config.write_text(json.dumps({"zero_optimization": zero}))
    return make(deepspeed, rule, config=str(config), **{"precision": "bfloat16", "family": "llama", **options})


def masters(one: PolicyTrainer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in one.weights()}


def found_in(stage: int, folder: Path) -> dict[str, Any]:
    rule = ema(ema_decay=0.9)
    one = ranked(stage, rule, folder)
    plain = make(local, rule, precision="bfloat16", family="llama")
    before = masters(one)
    found: dict[str, Any] = {"read": _largest(before, masters(plain))}
    found["head"], _ = head_error(one.student, torch.tensor([[5, 9, 77, 3, 8]], device=one.device))
    change = reversible_change(one)
    make_change(one, change)
    found["changed"] = _largest(before, masters(one))
    undo_change(one, change)
    found["undone"] = _largest(before, masters(one))
    steps: list[Any] = []
    found["bytes"] = exchanged_in(lambda: steps.append(one.step(batch())))
    (mine,) = steps
    found |= {"dtypes": sorted(one.engine.computed.values())}  # type: ignore[attr-defined]
    theirs = plain.step(batch())
    found["metrics"] = max(
        abs(mine[n] - theirs[n]) / max(1.0, abs(theirs[n])) for n in ("train/loss", "train/grad_norm")
    )
    found["moved"] = _largest(before, masters(one))
    found["gradient"] = relative_distance(dict(one.engine.optimizer_state()), dict(plain.engine.optimizer_state()))
    saved = folder / "saved"
    saved.mkdir(exist_ok=True)
    one.save(saved)()
    again = ranked(stage, rule, folder)
    again.load_state(saved, one.state())
    found["resumed"] = max(
        _largest(masters(one), masters(again)),
        _largest(dict(one.teacher_scorer.weights()), dict(again.teacher_scorer.weights())),
    )
    first, second = one.step(batch(seed=1)), again.step(batch(seed=1))
    found["next"] = max(abs(first[n] - second[n]) for n in ("train/loss", "train/grad_norm"))
    (_, found["zero"]), (found["frozen"], found["frozen_zero"]) = (
        zero_loss(stage, folder, student) for student in (tiny_model("llama"), rounded(tiny_model("llama")))
    )
    return found


def relative_distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Of the first moments, which after one step are a tenth of the gradient."""
    assert one.keys() == other.keys()
    pairs = [(one[name]["exp_avg"].double().cpu(), other[name]["exp_avg"].double()) for name in one]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)) ** 0.5


def zero_loss(stage: int, folder: Path, student: PreTrainedModel) -> tuple[list[str], float]:
    """What a frozen teacher that reads what the student reads is kept in, and the loss under it."""
    same = ranked(stage, frozen(), folder, objective=(distill_term(),), student=student)
    twins = [replace(e, teacher_prompt_ids={"teacher": e.rollout.prompt_ids}) for e in batch()]
    return list(same.forward_report.frozen_weights), abs(same.step(twins)["train/loss"])


def in_float32(stage: int, folder: Path) -> dict[str, int]:
    """What ranks exchange in the same step in float32."""
    one = ranked(stage, ema(ema_decay=0.9), folder, precision="float32")
    return exchanged_in(lambda: one.step(batch()))


def main(folder: Path, stages: str) -> None:
    torch.set_num_threads(1)
    count_exchanges()
    real = torch.is_autocast_enabled
    # without an argument it answers for CUDA, whatever the device in use is
    torch.is_autocast_enabled = lambda *device: real(*(device or ("cpu",)))  # type: ignore[assignment]
    for stage in map(int, stages.split(",")):
        found = found_in(stage, folder) | {"float32": in_float32(stage, folder)}
        if dist.get_rank() == 0:
            (folder / f"bfloat16-{stage}.json").write_text(json.dumps(found))
            print(stage, json.dumps(found), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
