"""One rank of verl's engine with our loss beside a local trainer on the same rollouts; rank 0 writes how far they are apart.

torchrun --nproc-per-node N -m tests.integrations.verl.against_local FOLDER [CASE...]
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "tests.integrations.verl.rig",
    "VERL_ENGINE_VENDOR": "onpolicy",
}

import verl  # noqa: F401, I001 first, as it imports the rig and our plug-in in its own order
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup, local as local_trainer
from onpolicy.trainer.collectives import ProcessGroup
from onpolicy.trainer.prefix_sharing import PackedTrees
from onpolicy.integrations.verl.bridge import PREFIX, Bridge
from onpolicy.integrations.verl.rows import columns
from onpolicy.integrations.verl.teacher_server import realign
from onpolicy.integrations.verl.teachers import Teachers
from onpolicy.integrations.verl.worker import with_own_rollouts
from onpolicy.utils.errors import ModelError
from onpolicy.utils.timer import PhaseTimer
from onpolicy.config.schema import TrainerSettings
from onpolicy.losses.divergences import forward_kl, jsd
from onpolicy.losses.supports import student_topk, teacher_topk
from onpolicy.epistemic.ids import span_name
from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.losses.objective import Objective, Term
from onpolicy.losses.token_weights import entropy_in_update, normalized_in_update, teacher_certainty
from onpolicy.losses.terms.base import spec_of
from onpolicy.losses.terms.distill import distill
from onpolicy.models import load_causal_lm
from onpolicy.losses.terms.policy_gradient import policy_gradient
from onpolicy.losses.terms.ref_kl import ref_kl
from onpolicy.losses.terms.teacher_advantage import teacher_advantage
from onpolicy.trainer.teacher_rules import WeightRule, ema, frozen, live, model, snapshot, trust_region_logits
from onpolicy.types import Example
from tests.trainer.test_trainer import distill_term, plain_term
from tests.integrations.verl.rig.flash_attention import calls
from tests.tiny import byte_tokenizer, example, random_examples, tiny_model_dir
from onpolicy.utils.live_bytes import LiveBytes

NAMES = ("hedge", "other")
MARKERS = {"hedge": [5, 9, 77]}
VOCABULARY = 264
FP32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}


def batch(n: int = 8, *, seed: int = 0) -> list[Example]:
    rows = random_examples(n, seed=seed)
    marks = [tuple(i % 3 == 0 for i in range(len(e.rollout.completion_ids))) for e in rows]
    return [replace(e, spans={span_name(name): m for name in NAMES}) for e, m in zip(rows, marks, strict=True)]


def methods() -> dict[str, tuple[Term, ...]]:
    """SDPO, OPSD, the sampled token alone, everything at once, and what compares a token with all others of the update."""
    sdpo = replace(distill_term(partial(jsd, beta=0.5), partial(student_topk, k=20)), normalize="all_sequences")
    return {
        "sdpo": (sdpo,),
        "opsd": (distill_term(partial(forward_kl, entry_clip=0.05)),),
        "sampled": (replace(plain_term(teacher_advantage), contexts=("teacher",)),),
        "mixed": (distill_term(weight=0.7), plain_term(policy_gradient), plain_term(ref_kl, 0.1)),
        "survey": survey_terms(),
    }


def survey_terms() -> tuple[Term, ...]:
    """SRPO's weight, which is normalised over the update, and REOPOLD's second phase: the update's tokens of highest entropy."""
    divergence, support = partial(jsd, beta=0.5), partial(student_topk, k=20)
    weights = partial(normalized_in_update, token_weights=teacher_certainty)
    weighted = partial(distill, divergence=divergence, support=support, token_weights=weights)
    return (
        replace(distill_term(divergence, support), function=weighted, normalize="all_sequences", reads_update=True),
        Term(
            "sampled", 0.1, partial(teacher_advantage, importance_cap=None), spec_of(teacher_advantage), ("teacher",),
            select=partial(entropy_in_update, share=0.3), temperature=1.1, reads_update=True,
        ),
    )  # fmt: skip


class Side:
    """verl's worker as it trains on one rank, with the reference engine that a teacher may need."""

    def __init__(
        self,
        folder: Path,
        rule: WeightRule,
        terms: Sequence[Term],
        *,
        packed: bool = True,
        budget: int = 60,
        shares: bool = False,
        **more: Any,
    ) -> None:
        self.packed, self.budget = packed, budget
        ranks = ProcessGroup(torch.distributed.get_rank(), torch.distributed.get_world_size())
        objective = Objective(tuple(terms))
        kept, teacher, self.served = more.pop("kept", False), more.pop("teacher", folder), more.pop("served", None)
        self.worker = worker(folder, **more)
        self.together = with_own_rollouts(self.worker.engine)
        wanted = rule.copies or objective.needs_ref
        self.reference = (
            worker(teacher, forward_only=True, reshard_after_forward=not kept, **more)
            if wanted and not more.get("lora_rank") and self.served is None
            else None
        )
        self.teachers = Teachers(
            self.worker.engine,
            self.reference.engine if self.reference else None,
            rule,
            contexts=("teacher",),
            needs_ref=objective.needs_ref,
            together=ranks,
            served=self.served is not None,
        )
        spans, markers = [span_name(name) for name in NAMES], {n: torch.tensor(ids) for n, ids in MARKERS.items()}
        self.bridge = Bridge(
            objective, contexts=("teacher",), spans=spans, marker_ids=markers, telemetry=TokenTelemetry("hedge", NAMES),
            together=self.together, sequence_parallel=more.get("ulysses", 1),
        )  # fmt: skip
        if shares:
            for engine in {self.worker.engine, self.reference.engine if self.reference else self.worker.engine}:
                assert (why := engine.share_prompts()) is None, why
        self.worker.engine.learn(self.bridge, self.teachers)
        self.worker.set_loss_fn(self.bridge.loss)

    def data(self, examples: Sequence[Example], *, synthetic: int = 0) -> TensorDict:
        """This rank's part of the rollouts, and rows that verl would make up to fill the batch."""
        mine: list[Example | None] = [*examples[self.together.rank :: self.together.size], *([None] * synthetic)]
        more = {} if self.served is None else teacher_columns(self.served, mine)
        return rows_of(mine, self.bridge, packed=self.packed, budget=self.budget, more=more)

    def gradient(
        self, examples: Sequence[Example], *, synthetic: int = 0
    ) -> tuple[float, dict[str, Tensor], dict[str, float]]:
        """Loss, gradient and metrics of one update, without the update."""
        engine = self.worker.engine
        with engine.train_mode():
            engine.optimizer_zero_grad()
            output = engine.forward_backward_batch(self.data(examples, synthetic=synthetic), self.bridge.loss)
            found = {n: _whole(p.grad).clone() for n, p in engine.module.named_parameters() if p.grad is not None}
            engine.optimizer_zero_grad()
        world = torch.distributed.get_world_size()
        loss = torch.tensor(sum(output["loss"]) * self.together.size / world**2)
        torch.distributed.all_reduce(loss)
        return float(loss), found, {name.removeprefix(PREFIX): value[0] for name, value in output["metrics"].items()}

    def step(self, examples: Sequence[Example]) -> None:
        """As ``TeacherScorer.update_actor`` does it."""
        engine = self.worker.engine
        with engine.train_mode():
            engine.train_batch(self.data(examples), self.bridge.loss)
        self.teachers.update()

    def weights(self, engine: Any = None) -> dict[str, Tensor]:
        module = (engine or self.worker.engine).module
        return {name: _whole(p).detach().clone() for name, p in module.named_parameters()}


def worker(
    folder: Path,
    *,
    forward_only: bool = False,
    lora_rank: int = 0,
    lora_targets: Sequence[str] = (),
    reshard_after_forward: bool = True,
    param_dtype: str = "fp32",
    fused: bool = False,
    ulysses: int = 1,
    recomputed: bool = False,
) -> TrainingWorker:
    attention = "sdpa" if ulysses == 1 else "flash_attention_2"
    loaded = HFModelConfig(
        path=str(folder / "model"), use_remove_padding=True, enable_gradient_checkpointing=recomputed, lora_rank=lora_rank,
        lora_alpha=16, override_config={"attn_implementation": attention}, target_modules=list(lora_targets) or "all-linear",
        use_fused_kernels=fused,
    )  # fmt: skip
    engine = FSDPEngineConfig(
        strategy="fsdp2", model_dtype="fp32", use_torch_compile=False, mixed_precision=FP32 | {"param_dtype": param_dtype},
        forward_only=forward_only, use_dynamic_bsz=True, max_token_len_per_gpu=60, reshard_after_forward=reshard_after_forward,
        ulysses_sequence_parallel_size=ulysses,
    )  # fmt: skip
    optimizer = FSDPOptimizerConfig(lr=1e-3, clip_grad=1e9, weight_decay=0.0, total_training_steps=10)
    made = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model", model_config=loaded, engine_config=engine, optimizer_config=optimizer,
            checkpoint_config=CheckpointConfig(),
        )
    )  # fmt: skip
    made.reset()
    return made


def rows_of(
    examples: Sequence[Example | None], bridge: Bridge, *, packed: bool, budget: int, more: Mapping[str, list[Tensor]]
) -> TensorDict:
    """Rollouts as verl's workers get them."""
    prompts = [torch.tensor(e.rollout.prompt_ids if e else (2, 2, 2)) for e in examples]
    responses = [torch.tensor(e.rollout.completion_ids if e else (2,)) for e in examples]
    ids = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    masks = [torch.full((len(r),), int(e is not None)) for e, r in zip(examples, responses, strict=True)]
    advantages = [m.float() * (e.advantage if e else 0.0) for e, m in zip(examples, masks, strict=True)]
    ours = columns(
        examples,
        [len(r) for r in responses],
        contexts=bridge.contexts,
        terms=bridge.objective.routes,
        spans=bridge.spans,
    )
    given = {
        "input_ids": ids, "position_ids": [torch.arange(len(i)) for i in ids], "prompts": prompts, "responses": responses,
        "response_mask": masks, "loss_mask": masks, "advantages": advantages,
        "rollout_log_probs": [torch.zeros(len(r)) for r in responses], **ours, **more,
    }  # fmt: skip
    data = TensorDict(
        {n: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for n, rows in given.items()},
        batch_size=len(examples),
    )
    tu.assign_non_tensor(
        data, use_remove_padding=packed, use_dynamic_bsz=True, max_token_len_per_gpu=budget, use_fused_kernels=False,
        temperature=1.0, global_batch_size=len(examples), update_lr_scheduler=False,
    )  # fmt: skip
    return data


def local(folder: Path, rule: WeightRule, terms: Sequence[Term], *, teacher_model: Any = None) -> PolicyTrainer:
    setup = TrainerSetup(
        student=load_causal_lm(str(folder / "model"), dtype="float32"), objective=Objective(tuple(terms)), rule=rule,
        settings=TrainerSettings(lr=1e-3, micro_batch_tokens=60, max_grad_norm=1e9), total_steps=10,
        contexts=("teacher",), clock=PhaseTimer(),
        spans=[span_name(n) for n in NAMES], marker_ids=MARKERS, telemetry=TokenTelemetry("hedge", NAMES),
        teacher_model=teacher_model,
    )  # fmt: skip
    return local_trainer(setup=setup)


def local_gradient(trainer: PolicyTrainer, examples: Sequence[Example]) -> tuple[float, dict[str, Tensor]]:
    from onpolicy.losses.objective import MetricAccumulator

    loss = trainer._accumulate(examples, None, MetricAccumulator())
    found = {n: p.grad.clone() for n, p in trainer.student.named_parameters() if p.grad is not None}
    trainer.engine.discard_gradient()
    return float(loss or 0.0), found


def gradients(folder: Path) -> dict[str, float]:
    """Each method in both layouts, with rows that verl made up, by the distance of loss and gradient."""
    found = {}
    for name, terms in methods().items():
        loss, gradient = local_gradient(local(folder, frozen(), terms), batch())
        for packed in (True, False):
            side = Side(folder, frozen(), terms, packed=packed)
            own, theirs, _ = side.gradient(batch(), synthetic=1)
            found[f"{name}/{'packed' if packed else 'padded'}"] = max(abs(own - loss), _largest(theirs, gradient))
        found[f"{name}/size"] = max(float(g.abs().max()) for g in gradient.values())
    return found


def grouped(seed: int = 0) -> list[Example]:
    """Groups of five, four and three, whose teachers see one of two siblings; one row has no teacher, one group is over the budget."""
    rows, found = batch(12, seed=seed), list[Example]()
    for number, size in enumerate((5, 4, 3)):
        own = rows[len(found) : len(found) + size]
        prompt = tuple(5 + (number * 7 + i * i) % 200 for i in range(300))
        seen = [(*prompt, *own[i].rollout.completion_ids[:6], *range(30, 40)) for i in (0, 1)]
        for i, row in enumerate(own):
            found.append(
                replace(
                    row,
                    group_id=number,
                    rollout=replace(row.rollout, prompt_ids=prompt),
                    teacher_prompt_ids={"teacher": seen[i == 0]} if i < size - 1 or number else {},
                )
            )
    return found


def shared(folder: Path) -> dict[str, float]:
    """Rows that share prompts, which are read once, beside the local trainer: methods and layouts, rules, adapters, recomputation."""
    found: dict[str, float] = {}
    rows = grouped()
    for name, terms in methods().items():
        loss, gradient = local_gradient(local(folder, frozen(), terms), rows)
        alike = Side(folder, frozen(), terms, budget=340).gradient(rows, synthetic=1)[2]
        for packed in (True, False):
            side = Side(folder, frozen(), terms, packed=packed, shares=True, budget=340)
            own, theirs, metrics = side.gradient(rows, synthetic=1)
            found[f"{name}/{'packed' if packed else 'padded'}"] = max(abs(own - loss), _largest(theirs, gradient))
        for reader in ("student", "teacher"):
            found[f"{name}/{reader}"] = metrics[f"{reader}/tokens_saved"]
            assert alike[f"{reader}/tokens_saved"] == 0.0
        found[f"{name}/metrics"] = max(
            abs(metrics[n] - alike[n]) / max(1.0, abs(alike[n])) for n in alike if "/tokens_" not in n
        )
        found[f"{name}/size"] = max(float(g.abs().max()) for g in gradient.values())
    return found


def shared_variants(folder: Path) -> dict[str, float]:
    """Sharing under a teacher that moves, layers that are computed again, adapters, the student's own prompt; and models that cannot."""
    rows, terms = grouped(), methods()["sdpo"]
    same = [replace(e, teacher_prompt_ids={"teacher": e.rollout.prompt_ids}) for e in rows]
    side, other = (
        Side(folder, ema(ema_decay=0.9), terms, shares=True, budget=340),
        local(folder, ema(ema_decay=0.9), terms),
    )
    for seed in range(3):
        side.step(grouped(seed))
        other.step(grouped(seed))
    found = {"steps": _largest(side.weights(), dict(other.student.named_parameters()))}
    loss, gradient = local_gradient(local(folder, frozen(), terms), rows)
    own, theirs, _ = Side(folder, frozen(), terms, shares=True, budget=340, recomputed=True).gradient(rows)
    found["recomputed"] = max(abs(own - loss), _largest(theirs, gradient))
    for name, rule, rank in (("identical", live(), 0), ("adapters", frozen(), 4)):
        found[name], theirs, metrics = Side(
            folder, rule, methods()["opsd"], shares=True, budget=340, lora_rank=rank
        ).gradient(same)
        found[f"{name}/gradient"] = max(float(g.abs().max()) for g in theirs.values())
        found[f"{name}/saved"] = metrics["teacher/tokens_saved"]
    attend = PackedTrees.attend
    for name, broken in (("fails", _fails), ("differs", lambda trees, query, key, value, **options: value.flip(2))):
        side = Side(folder, frozen(), terms)
        try:
            PackedTrees.attend = broken  # type: ignore[assignment,method-assign]
            why = side.worker.engine.share_prompts()
        finally:
            PackedTrees.attend = attend  # type: ignore[method-assign]
        assert why is not None and ("nobody knows" if name == "fails" else "hidden states are off by") in why, why
        own, theirs, _ = side.gradient(batch())
        loss, gradient = local_gradient(local(folder, frozen(), terms), batch())
        found[name] = max(abs(own - loss), _largest(theirs, gradient))
    return found


def _fails(*arguments: Any, **options: Any) -> Tensor:
    raise NotImplementedError("an option that nobody knows")


def alone(folder: Path) -> dict[str, float]:
    """One rollout for all ranks: the others have nothing but rows that verl made up, in this micro-batch or in all."""
    found = {}
    for name in ("sdpo", "mixed", "survey"):
        terms = methods()[name]
        loss, gradient = local_gradient(local(folder, frozen(), terms), batch()[:1])
        own, theirs, _ = Side(folder, frozen(), terms).gradient(batch()[:1], synthetic=20)
        found[name] = max(abs(own - loss), _largest(theirs, gradient))
    return found


def identical(folder: Path) -> dict[str, float]:
    """A teacher that reads the student's own prompt."""
    same = [replace(e, teacher_prompt_ids={"teacher": e.rollout.prompt_ids}) for e in batch()]
    found: dict[str, float] = {}
    for name, terms in methods().items():
        if name not in ("mixed", "survey"):
            loss, gradient, _ = Side(folder, live(), terms).gradient(same)
            found |= {f"{name}/loss": abs(loss), name: max(float(g.abs().max()) for g in gradient.values())}
    return found


RULES: dict[str, Callable[[], WeightRule]] = {
    "live": live,
    "frozen": frozen,
    "ema": partial(ema, ema_decay=0.9),
    "snapshot": partial(snapshot, every=2),
    "trust_region": partial(trust_region_logits, student_share=0.3),
}


def steps(folder: Path) -> dict[str, float]:
    """Five steps under every rule: student and teacher beside the local ones; checkpoint and resume of one that moves."""
    found = {}
    for name, rule in RULES.items():
        side, other = Side(folder, rule(), methods()["sdpo"]), local(folder, rule(), methods()["sdpo"])
        for seed in range(5):
            side.step(batch(seed=seed))
            other.step(batch(seed=seed))
        found[name] = _largest(side.weights(), dict(other.student.named_parameters()))
        if rule().update is not None:
            assert side.reference is not None
            teacher = dict(other.teacher_scorer.teacher.model.named_parameters())
            found[f"{name}/teacher"] = _largest(side.weights(side.reference.engine), teacher)
            found |= {f"{name}/{what}": value for what, value in resumed(folder, side, rule()).items()}
    return found


def special(folder: Path) -> dict[str, float]:
    """An update in which no term has a token moves nothing, as in the local trainer; a reference engine whose layers FSDP keeps whole."""
    found = {}
    for name in ("sdpo", "survey"):
        side, other = Side(folder, live(), methods()[name]), local(folder, live(), methods()[name])
        silent = [replace(e, teacher_prompt_ids={}) for e in batch(seed=1)]
        for examples in (batch(), silent):
            before = side.weights()
            side.step(examples)
            other.step(examples)
        found[f"{name}/moved"] = _largest(side.weights(), before)
        found[f"{name}/silent"] = _largest(side.weights(), dict(other.student.named_parameters()))
    side, other = (
        Side(folder, ema(ema_decay=0.9), methods()["sdpo"], kept=True),
        local(folder, ema(ema_decay=0.9), methods()["sdpo"]),
    )
    for seed in range(2):
        side.step(batch(seed=seed))
        other.step(batch(seed=seed))
    assert side.reference is not None
    return found | {
        "kept": _largest(
            side.weights(side.reference.engine), dict(other.teacher_scorer.teacher.model.named_parameters())
        )
    }


def resumed(folder: Path, side: Side, rule: WeightRule) -> dict[str, float]:
    """The teacher goes into a checkpoint and comes back into another process's engines."""
    where = folder / "checkpoint"
    where.mkdir(exist_ok=True)
    torch.distributed.barrier()
    side.teachers.save(where, {"more": 3})
    again = Side(folder, rule, methods()["sdpo"])
    assert side.reference is not None and again.reference is not None
    before = _largest(again.weights(again.reference.engine), side.weights(side.reference.engine))
    more = again.teachers.load(where)
    after = _largest(again.weights(again.reference.engine), side.weights(side.reference.engine))
    return {
        "was_moved": before,
        "resumed": after,
        "state": float(abs(more["more"] - 3) + abs(again.teachers.steps - 5)),
    }


def adapters(folder: Path) -> dict[str, float]:
    """Under LoRA the frozen teacher is the student without its adapters: after some steps the gap to a live one shows."""
    found = {}
    same = [replace(e, teacher_prompt_ids={"teacher": e.rollout.prompt_ids}) for e in batch()]
    for name, rule in (("live", live), ("frozen", frozen)):
        for where, targets in (("layers", ()), ("head", ("lm_head",))):
            side = Side(folder, rule(), methods()["opsd"], lora_rank=4, lora_targets=targets)
            found[f"{name}/{where}/start"] = abs(side.gradient(same)[0])
            for seed in range(3):
                side.step(batch(seed=seed))
            found[f"{name}/{where}"] = abs(side.gradient(same)[0])
    return found


def untied(folder: Path) -> dict[str, float]:
    """A head with a weight of its own, which FSDP shards apart from the model."""
    folder = folder / "untied"
    if torch.distributed.get_rank() == 0:
        tiny_model_dir(folder / "model", "llama")
    torch.distributed.barrier()
    found = {}
    for name, rule in (("mixed", frozen), ("sdpo", live)):
        loss, gradient = local_gradient(local(folder, rule(), methods()[name]), batch())
        own, theirs, _ = Side(folder, rule(), methods()[name]).gradient(batch(), synthetic=1)
        found[name] = max(abs(own - loss), _largest(theirs, gradient))
        found[f"{name}/head"] = float(theirs["lm_head.weight"].abs().max())
    return found


def other(folder: Path) -> dict[str, float]:
    """Another model as the teacher: wider, its vocabulary padded further, its head not tied."""
    path = folder / "other" / "model"
    if torch.distributed.get_rank() == 0:
        tiny_model_dir(path, "llama", seed=3, vocab_size=VOCABULARY + 8, width=96)
    torch.distributed.barrier()
    found, rule = {}, model(path=str(path))
    for name in ("sdpo", "opsd", "sampled"):
        theirs = load_causal_lm(str(path), dtype="float32")
        loss, gradient = local_gradient(local(folder, rule, methods()[name], teacher_model=theirs), batch())
        own, got, _ = Side(folder, rule, methods()[name], teacher=path.parent).gradient(batch(), synthetic=1)
        found[name] = max(abs(own - loss), _largest(got, gradient))
    return found


def served(folder: Path) -> dict[str, float]:
    """What verl's teacher servers would return of another model, beside that model in the embedded trainer; padded too."""
    path, found = folder / "other" / "model", {}
    theirs = load_causal_lm(str(path), dtype="float32")
    top = distill_term(forward_kl, partial(teacher_topk, k=5))
    for name, terms in (("sampled", methods()["sampled"]), ("top", (top, *methods()["sampled"]))):
        loss, gradient = local_gradient(local(folder, model(path=str(path)), terms, teacher_model=theirs), batch())
        for packed in (True, False):
            side = Side(folder, model(path=str(path)), terms, packed=packed, served=theirs)
            own, got, _ = side.gradient(batch(), synthetic=1)
            found[f"{name}/{packed}"] = max(abs(own - loss), _largest(got, gradient))
    return found


@torch.no_grad()
def teacher_columns(teacher: Any, examples: Sequence[Example | None], k: int = 5) -> dict[str, list[Tensor]]:
    """What ``ServedTeacherWorker`` adds to verl's rows: the sampled token and the k most likely ones, realigned to the student's prompt."""
    found: dict[str, list[Tensor]] = {"teacher_ids": [], "teacher_logprobs": []}
    for row in examples:
        privileged = row.teacher_prompt_ids.get("teacher") if row else None
        prompt = torch.tensor(row.rollout.prompt_ids if row else (2, 2, 2))
        answer = torch.tensor(row.rollout.completion_ids if row else (2,))
        read = prompt if privileged is None else torch.tensor(privileged)
        ids = torch.cat([read, answer])
        logprobs = teacher(ids[None]).logits[0, :, :VOCABULARY].log_softmax(-1)
        asked = torch.cat([ids.roll(-1)[:, None], logprobs.topk(k).indices], -1)
        for name, numbers in (("teacher_ids", asked.int()), ("teacher_logprobs", logprobs.gather(-1, asked))):
            found[name].append(realign(numbers, len(read), len(prompt)))
    return found


def rounded(folder: Path) -> dict[str, float]:
    """In bfloat16: a live teacher with the student's prompt, and how far the gradient is from the one in float32."""
    same = [replace(e, teacher_prompt_ids={"teacher": e.rollout.prompt_ids}) for e in batch()]
    loss, _, _ = Side(folder, live(), methods()["opsd"], param_dtype="bf16").gradient(same)
    _, exact = local_gradient(local(folder, frozen(), methods()["mixed"]), batch())
    _, theirs, _ = Side(folder, frozen(), methods()["mixed"], param_dtype="bf16").gradient(batch())
    one, other = (torch.cat([g[name].flatten().float() for name in sorted(exact)]) for g in (exact, theirs))
    return {"identical": abs(loss), "cosine": float(torch.cosine_similarity(one, other, 0))}


def heads(folder: Path) -> dict[str, float]:
    """Whether the head of a family is understood: one that divides its logits is, one that multiplies them is not and says so."""
    found = {}
    for family, scale in (("granite", 4.0), ("hyperclovax", 0.25)):
        path = folder / family / "model"
        if torch.distributed.get_rank() == 0:
            shape = {
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "head_dim": 32,
            }
            config = AutoConfig.for_model(family, vocab_size=VOCABULARY, pad_token_id=0, logits_scaling=scale, **shape)
            AutoModelForCausalLM.from_config(config).save_pretrained(path)
            byte_tokenizer().save_pretrained(path)
        torch.distributed.barrier()
        try:
            worker(path.parent).engine.check_head()
            found[family] = 1.0
        except ModelError as error:
            found[family] = 0.0 if "scales them in a way not known here" in str(error) else -1.0
    return found


def fused(folder: Path) -> dict[str, float]:
    """Beside verl's fused kernels, which replace the forward pass of the model's class: its own log-probabilities, and our gradient."""
    loss, gradient = local_gradient(local(folder, frozen(), methods()["mixed"]), batch())
    side = Side(folder, frozen(), methods()["mixed"], fused=True)
    own, theirs, _ = side.gradient(batch(), synthetic=1)
    return {"distance": max(abs(own - loss), _largest(theirs, gradient))}


def ulysses(folder: Path) -> dict[str, float]:
    """Two ranks share each packed batch; the all-to-all in the middle of attention leaves each with all tokens and half of the heads."""
    size = torch.distributed.get_world_size()
    found: dict[str, float] = {}
    for name, terms in methods().items():
        loss, gradient = local_gradient(local(folder, frozen(), terms), batch())
        side = Side(folder, frozen(), terms, ulysses=size)
        calls.clear()
        own, theirs, metrics = side.gradient(batch(), synthetic=1)
        found[name] = max(abs(own - loss), _largest(theirs, gradient))
        found[f"{name}/heads"] = max((heads for _, heads in calls), default=2)  # of two; one rank takes sdpa
        alike = Side(folder, frozen(), terms).gradient(batch(), synthetic=1)[2]
        found[f"{name}/metrics"] = max(
            abs(metrics[n] - alike[n]) / max(1.0, abs(alike[n])) for n in alike if "/tokens_" not in n
        )  # each rank that has rows of its own got one that verl made up
    rule = ema(ema_decay=0.9)
    side, here = Side(folder, rule, methods()["sdpo"], ulysses=size), local(folder, rule, methods()["sdpo"])
    for seed in range(3):
        side.step(batch(seed=seed))
        here.step(batch(seed=seed))
    found["steps"] = _largest(side.weights(), dict(here.student.named_parameters()))
    return found


def logits(folder: Path) -> dict[str, float]:
    """The most bytes of logits at a time, over those of all tokens of a micro-batch at once."""
    found = {}
    for tokens in (500, 1000):
        side = Side(folder, frozen(), methods()["mixed"], budget=1100)
        answer = [5 + i % 200 for i in range(tokens)]
        marks = dict.fromkeys(batch()[0].spans, (True,) * tokens)
        rows = [replace(example([4, 5, 6], answer, teacher=[7, 8, 4, 5, 6]), spans=marks)] * side.together.size
        with LiveBytes(counted=lambda tensor: tensor.shape[-1:] == (VOCABULARY,)) as live_bytes:
            side.gradient(rows)
        found[str(tokens)] = live_bytes.peak / (tokens * VOCABULARY * 4)
    return found


def shards(folder: Path) -> dict[str, float]:
    """Bytes on this rank: of the student in an update, of its reference engine, and of the head that is kept of that."""
    side = Side(folder, frozen(), methods()["sdpo"])
    assert side.reference is not None
    engine, reference = side.worker.engine, side.reference.engine
    with engine.train_mode():
        engine.forward_backward_batch(side.data(batch()), side.bridge.loss)
        gradients = [p.grad for p in engine.module.parameters()]
        engine.optimizer_step()
        moments = [t for state in engine.optimizer.state.values() for t in state.values() if t.dim()]
        side.teachers.read(side.data(batch()))
    return {
        "parameters": sum(p.numel() for p in engine.module.parameters()),
        "weights": _bytes(engine.module.parameters()),
        "gradients": _bytes(gradients),
        "moments": _bytes(moments),
        "reference": _bytes(reference.module.parameters()),
        "head": _bytes([reference.head.weight]),
    }


def metrics(folder: Path) -> dict[str, float]:
    """What is logged is what the local trainer logs, but for the optimizer's numbers and the tokens that teachers read, which verl counts
    in its own way."""
    side, other = Side(folder, frozen(), methods()["mixed"]), local(folder, frozen(), methods()["mixed"])
    _, _, theirs = side.gradient(batch(), synthetic=2)
    ours = {n: v for n, v in other.step(batch()).items() if not n.startswith("train/") and n != "teacher/tokens"}
    theirs = {n: v for n, v in theirs.items() if "/tokens_" not in n}
    assert theirs.keys() == ours.keys(), theirs.keys() ^ ours.keys()
    return {"distance": max(abs(theirs[n] - ours[n]) / max(1.0, abs(ours[n])) for n in ours)}


def _whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)


def _largest(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    return max(float((one[n] - other[n].detach()).abs().max()) for n in one)


CASES = {
    case.__name__: case
    for case in (
        gradients,
        shared,
        shared_variants,
        alone,
        identical,
        special,
        steps,
        adapters,
        metrics,
        shards,
        untied,
        other,
        served,
        rounded,
        heads,
        fused,
        ulysses,
        logits,
    )
}


def main(folder: Path, *cases: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    if torch.distributed.get_rank() == 0:
        tiny_model_dir(folder / "model")
    torch.distributed.barrier()
    for name in cases or CASES:
        case = CASES[name]
        found = case(folder)
        if torch.distributed.get_rank() == 0:
            (folder / f"{case.__name__}.json").write_text(json.dumps(found))
            print(case.__name__, json.dumps(found), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
