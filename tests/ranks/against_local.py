"""One rank of a trainer over DeepSpeed next to one over plain torch on the same batch; rank 0 writes how far they are apart.

torchrun --nproc-per-node N -m tests.ranks.against_local FOLDER STAGE
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onpolicy.config.schema import TrainerSettings
from onpolicy.epistemic.ids import span_name
from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.losses.advantages import whitened_logratio_to_go
from onpolicy.losses.objective import Objective, Term
from onpolicy.losses.terms.base import TermSpec, spec_of
from onpolicy.losses.terms.policy_gradient import policy_gradient
from onpolicy.losses.terms.ref_kl import ref_kl
from onpolicy.losses.terms.teacher_advantage import teacher_advantage
from onpolicy.losses.token_weights import (
    entropy_in_update,
    logratio_above,
    normalized_in_update,
    teacher_certainty,
)
from onpolicy.trainer import batching
from onpolicy.trainer.deepspeed import deepspeed
from onpolicy.trainer.teacher_rules import WeightRule, ema, frozen, live, trust_region_logits, trust_region_weights
from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup, local
from onpolicy.types import Example, LossInputs, TermOutput
from onpolicy.utils.timer import PhaseTimer
from tests.tiny import random_examples, tiny_model
from tests.trainer.test_trainer import distill_term, plain_term

NAMES = ("hedge", "other")


def batch(n: int = 9, *, seed: int = 0, groups: int = 5) -> list[Example]:
    """Rollouts of several groups, with marked tokens."""
    rows = random_examples(n, seed=seed)
    marks = [tuple(i % 3 == 0 for i in range(len(e.rollout.completion_ids))) for e in rows]
    return [
        replace(e, group_id=i % groups, spans={span_name(name): m for name in NAMES})
        for i, (e, m) in enumerate(zip(rows, marks, strict=True))
    ]


def terms() -> tuple[Term, ...]:
    return distill_term(weight=0.7), plain_term(policy_gradient), plain_term(ref_kl, 0.1)


def make(
    plugin: Callable[..., PolicyTrainer], rule: WeightRule, objective: Sequence[Term] = (), **options: Any
) -> PolicyTrainer:
    names: dict[str, Any] = {
        f: options.pop(f) for f in ("lr", "max_grad_norm", "updates_per_step", "weight_decay") if f in options
    }
    family, student = options.pop("family", "qwen3"), options.pop("student", None)
    setup = TrainerSetup(
        student=student or tiny_model(family), objective=Objective(tuple(objective) or terms()), rule=rule,
        settings=TrainerSettings(**{"lr": 1e-3, "micro_batch_tokens": 60, "max_grad_norm": 1e9, **names}), total_steps=10,
        contexts=("teacher",), clock=PhaseTimer(), spans=[span_name(n) for n in NAMES], marker_ids={"hedge": [5, 9, 77]},
        telemetry=TokenTelemetry("hedge", NAMES),
    )  # fmt: skip
    return plugin(setup=setup, **options)


class Pair:
    """The two trainers, and how far apart."""

    def __init__(self, stage: int, rule: Callable[[], WeightRule], folder: Path, **options: Any) -> None:
        config = (
            folder / f"stage{stage}-{torch.distributed.get_rank() if torch.distributed.is_initialized() else 0}.json"
        )
        config.write_text(json.dumps({"zero_optimization": {"stage": stage, **options.pop("zero", {})}}))
        self.ranked = make(deepspeed, rule(), config=str(config), **options)
        self.local = make(local, rule(), **options)

    def step(self, examples: Sequence[Example], *, window: int | None = None) -> float:
        """Both take it; the largest difference among their metrics.

        Args:
            examples: the step's
            window: of the ranks, in micro-batches; None: the module's own
        """
        batching.WINDOW_FACTOR, whole = window or batching.WINDOW_FACTOR, batching.WINDOW_FACTOR
        one = self.ranked.step(examples)
        batching.WINDOW_FACTOR = whole
        other = self.local.step(examples)
        assert one.keys() == other.keys(), one.keys() ^ other.keys()
        return max(_distance(one[name], other[name]) for name in one)

    def weights(self) -> float:
        return _largest(dict(self.ranked.weights()), dict(self.local.weights()))

    def teacher(self) -> float:
        return _largest(dict(self.ranked.teacher_scorer.weights()), dict(self.local.teacher_scorer.weights()))

    def moments(self) -> float | None:
        """Where the first step leaves (1 - beta) times the gradient; None on other ranks than 0."""
        one, other = dict(self.ranked.engine.optimizer_state()), dict(self.local.engine.optimizer_state())
        if torch.distributed.get_rank():
            return None
        assert one.keys() == other.keys()
        assert all(float(one[n]["step"]) == float(other[n]["step"]) for n in one)
        return max(float((one[n][k] - other[n][k]).abs().max()) for n in one for k in ("exp_avg", "exp_avg_sq"))


def equal(stage: int, folder: Path) -> dict[str, Any]:
    """Gradient, moving teacher, metrics and the loss over ten steps."""
    pair = Pair(stage, lambda: ema(ema_decay=0.9), folder)
    first = pair.step(batch())
    found: dict[str, Any] = {"metrics": first, "gradient_by_10": pair.moments(), "ema": pair.teacher()}
    losses = [pair.step(batch(seed=seed)) for seed in range(1, 10)]
    return found | {"curve": max(losses), "weights": pair.weights(), "ema_later": pair.teacher()}


def surveyed_terms() -> tuple[Term, ...]:
    """Terms whose tokens, weights and divisors are known only once all ranks have read the update; divided logits."""
    long = partial(teacher_advantage, advantage=whitened_logratio_to_go)
    weights = partial(normalized_in_update, token_weights=teacher_certainty)
    chosen = replace(distill_term(weight=0.7), select=partial(entropy_in_update, share=0.3), reads_update=True)
    hot = Term("hot", 1.0, partial(teacher_advantage, temperature=1.5, token_weights=weights), spec_of(teacher_advantage),
               ("teacher",), select=partial(logratio_above, threshold=0.0), reads_update=True, temperature=1.5)  # fmt: skip
    whitened = Term("whitened", 0.5, long, spec_of(teacher_advantage), ("teacher",), "sequences", reads_update=True)
    return chosen, hot, whitened


def rules(stage: int, folder: Path) -> dict[str, Any]:
    """Other teachers, several updates a step, clipping, untied weights, adapters anywhere (under an EMA too), terms over the whole update,
    offload."""
    several = Pair(stage, live, folder, family="llama", updates_per_step=2, max_grad_norm=0.5, weight_decay=0.1)
    region = Pair(stage, lambda: trust_region_weights(student_share=0.3), folder)
    adapters = Pair(stage, frozen, folder, lora_rank=4, lr=1e-2)
    on_head = Pair(stage, frozen, folder, family="llama", lora_rank=4, lora_targets=["q_proj", "lm_head"], lr=1e-2)
    on_tied = Pair(stage, live, folder, lora_rank=4, lora_targets=["embed_tokens"], lr=1e-3)
    on_experts = Pair(stage, frozen, folder, family="qwen3_moe", lora_rank=4, lr=1e-3)
    surveyed = Pair(stage, frozen, folder, objective=surveyed_terms())
    moving = Pair(stage, lambda: ema(ema_decay=0.9), folder, lora_rank=4, lr=1e-2)
    found = {
        name: max(*(pair.step(batch(seed=seed)) for seed in range(3)), pair.weights())
        for name, pair in {
            "updates": several,
            "trust_region": region,
            "adapters": adapters,
            "adapter_on_head": on_head,
            "adapter_on_tied": on_tied,
            "adapters_on_experts": on_experts,
            "surveyed": surveyed,
        }.items()
    }
    found["adapters_alone"] = _largest(*(dict(one.weights().adapter()) for one in (adapters.ranked, adapters.local)))
    found["moving"] = max(*(moving.step(batch(seed=seed)) for seed in range(3)), moving.weights(), moving.teacher())
    if stage >= 2:
        zero = {"offload_optimizer": {"device": "cpu"}} | ({"offload_param": {"device": "cpu"}} if stage == 3 else {})
        away = Pair(stage, lambda: ema(ema_decay=0.9), folder, zero=zero)
        found["offload"] = max(*(away.step(batch(seed=seed)) for seed in range(3)), away.weights(), away.teacher())
    return found


def windowed(stage: int, folder: Path) -> dict[str, Any]:
    """Teachers that read in windows, on one rank in more than on the other; one process reads all at once."""
    (long, *_), rest = batch(1), batch(24, seed=1, groups=24)
    rollout = replace(long.rollout, completion_ids=(7,) * 240, rollout_logprobs=(0.0,) * 240)
    marks = dict.fromkeys(long.spans, (False,) * 240)
    examples = [replace(long, rollout=rollout, spans=marks, group_id=99), *rest]
    surveyed = (*surveyed_terms(), plain_term(ref_kl, 0.1))
    pairs = {
        "live": Pair(stage, live, folder),
        "ema": Pair(stage, lambda: ema(ema_decay=0.9), folder),
        "two_readers": Pair(stage, lambda: trust_region_logits(student_share=0.3), folder),
        "surveyed": Pair(stage, frozen, folder, objective=surveyed),
        "adapters": Pair(stage, frozen, folder, lora_rank=4, objective=surveyed),
    }
    found: dict[str, Any] = {
        name: max(pair.step(examples, window=1), pair.step(batch(seed=2), window=1), pair.weights())
        for name, pair in pairs.items()
    }
    ranked = pairs["live"].ranked
    batching.WINDOW_FACTOR, whole = 1, batching.WINDOW_FACTOR
    own = ranked.batching.windows(ranked.collectives.shard(examples))
    batching.WINDOW_FACTOR = whole
    return found | {"windows": ranked.collectives.all_gather(len(own))}


def poisoned(inputs: LossInputs) -> TermOutput:
    """Not finite where the advantage is above 5."""
    return TermOutput(per_token=inputs.logprobs * torch.where(inputs.advantages > 5, math.nan, 1.0))


def faults(stage: int, folder: Path) -> dict[str, Any]:
    """A gradient that is not finite on one rank, one that is 0, fewer rollouts than ranks."""
    term = Term("poisoned", 1.0, poisoned, TermSpec("sampled_mask"))
    pair = Pair(stage, live, folder, objective=[term, plain_term(policy_gradient)])
    good, found = batch(), {}
    pair.step(good)
    before = {name: tensor.clone() for name, tensor in pair.ranked.weights()}
    bad = [replace(good[0], advantage=9.0), *good[1:]]
    metrics = pair.ranked.step(bad)
    pair.local.step(bad)
    found["skipped"] = metrics["train/skipped_updates"]
    found["moved_by_nan"] = _largest(before, dict(pair.ranked.weights()))
    found["after_nan"] = max(pair.step(good), pair.weights())
    silent = Pair(stage, live, folder, objective=[plain_term(policy_gradient)])
    silent.step(good)
    before = {name: tensor.clone() for name, tensor in silent.ranked.weights()}
    found["empty"] = silent.ranked.step([replace(e, advantage=0.0) for e in good])["train/empty_updates"]
    found["moved_by_nothing"] = _largest(before, dict(silent.ranked.weights()))
    silent.local.step([replace(e, advantage=0.0) for e in good])
    found["single"] = max(silent.step(good[:1]), silent.weights())
    return found


def resumed(stage: int, folder: Path) -> dict[str, Any]:
    """A state goes over to another stage and to the local trainer, and back, as if nothing had happened; one in 8 bits, dequantised."""
    pair = Pair(stage, lambda: ema(ema_decay=0.9), folder)
    for seed in range(3):
        pair.step(batch(seed=seed))
    saved, state = folder / "saved", pair.ranked.state()
    saved.mkdir(exist_ok=True)
    pair.ranked.save(saved)()
    found: dict[str, Any] = {"files": len(list(saved.glob("state/rank-*.safetensors")))}
    for other in (0, 2, 3):
        again = Pair(other, lambda: ema(ema_decay=0.9), folder)
        again.ranked.load_state(saved, state)
        again.local.load_state(saved, state)
        found[f"to_{other}"] = max(
            *(again.step(batch(seed=seed)) for seed in range(3, 6)), again.weights(), again.teacher()
        )
    eight, again = make(local, live(), moments="8bit"), Pair(stage, live, folder)
    eight.step(batch())
    saved = folder / f"eight-{torch.distributed.get_rank()}"
    saved.mkdir(exist_ok=True)
    eight.save(saved)()
    again.ranked.load_state(saved, eight.state())
    again.local.load_state(saved, eight.state())
    found["from_8bit"] = max(again.step(batch(seed=1)), again.weights())
    return found


def _largest(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    return max((float((one[n].detach().cpu() - other[n].detach().cpu()).abs().max()) for n in one), default=0.0)


def _distance(one: float, other: float) -> float:
    return 0.0 if one == other or (math.isnan(one) and math.isnan(other)) else abs(one - other) / max(1.0, abs(other))


CASES = {"equal": equal, "rules": rules, "windowed": windowed, "faults": faults, "resumed": resumed}


def main(folder: Path, stages: str, cases: str) -> None:
    torch.set_num_threads(1)
    for stage in map(int, stages.split(",")):
        for case in cases.split(","):
            found = CASES[case](stage, folder)
            if torch.distributed.get_rank() == 0:
                (folder / f"{case}-{stage}.json").write_text(json.dumps(found))
                print(case, stage, json.dumps(found), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
