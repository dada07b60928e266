"""What a GPU holds in a run on verl, from its config and the model's: arithmetic, and passes on fake tensors.

Bytes of N parameters, T of them trained, over the R ranks that share them (``fsdp_size``, or all), in a model_dtype of b bytes:

    weights bN/R   gradients bT/R   two moments 2bT/R   a reference engine bN/R of its own N and b
    gathered       2 (head + 3 layers): FSDP2 holds one layer, fetches the next, and copies it from its buffer; 2N if nothing is resharded
    on their way   4 (head, or 2 layers) + 2 layers of gradients, which are reduced in float32
    kept head      2 x vocabulary x width of a teacher with weights of its own
    states         2 x tokens x width of each reader but the student, of all ranks that share a packed batch

and on top of that whichever is most: a micro-batch of the student with its head, a pass of a teacher, the optimizer's temporaries (bT/R).
What is offloaded is back on the GPU for the time of an update, but under ``offload_policy``. Buffers of a weight sync and of NCCL, and what
the allocator cannot use, are not counted: it is a lower bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from omegaconf import OmegaConf

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.experiments.forecast.activations import (
    NotMeasurable,
    PassBytes,
    PassSettings,
    Rows,
    TeacherHeads,
    head_pass,
    learning_pass,
    rows_of,
    scoring_pass,
)
from onpolicy.experiments.forecast.at_hand import folder_at_hand
from onpolicy.experiments.forecast.hardware import GIB
from onpolicy.experiments.forecast.memory import Memory
from onpolicy.experiments.forecast.shape import ModelShape, shape_of
from onpolicy.experiments.forecast.trainer_memory import largest
from onpolicy.integrations.verl.names import ESTIMATOR, MODE
from onpolicy.integrations.verl.refusals import (
    has_adapters,
    is_served,
    needs_reference,
    sequence_parallel,
    served_tokens,
)
from onpolicy.trainer.build import build_objective, teacher_rule
from onpolicy.types import REF

BF16, FP32 = 2.0, 4.0
TRAINING, SAMPLING, SCORING = "each GPU, training", "each GPU, sampling", "each GPU, verl's old log-probabilities"
HOST = "the host, for each GPU"


@dataclass(frozen=True)
class Models:
    """The sizes of a run's models."""

    student: ModelShape
    other: ModelShape | None = None
    """Another model that teaches beside it."""

    @property
    def copied(self) -> ModelShape:
        """What the reference engine holds, where there is one."""
        return self.other or self.student


def models_at_hand(config: Any, resolved: ResolvedConfig) -> Models:
    """Read from the configs of the models; no weights, no network.

    Raises:
        NotMeasurable: a config is not on this machine.
        ModelError: a path does not exist, or holds no model.
    """
    settings, path = resolved.config.model, teacher_rule(resolved).path
    beside = path if path is not None and not is_served(config) else None
    given = OmegaConf.select(config, "actor_rollout_ref.model.hf_config_path") or settings.path
    found = []
    for name in [given, *filter(None, [beside])]:
        folder = folder_at_hand(replace(settings, path=name))
        if folder is None:
            raise NotMeasurable(
                f"the config of {name!r} is not on this machine; a folder with its config.json is enough, as "
                "actor_rollout_ref.model.path or hf_config_path"
            )
        found.append(shape_of(str(folder), trust_remote_code=settings.trust_remote_code))
    return Models(*found)


def verl_memory(config: Any, resolved: ResolvedConfig, models: Models) -> Memory:
    """When -> part -> GiB; vLLM's share of the GPU, which is not known here, is left out (``memory_in_words``).

    Raises:
        NotMeasurable: the model does not run on fake tensors.
    """
    passes = _Passes(config, resolved, models)
    here, there = _staying(config, resolved, models, passes.learned.trained)
    needs = needs_reference(config, resolved)
    kept = _table(models.copied) * needs
    update = here | {
        "the teacher's head": kept,
        "gathered weights": passes.gathered(models.student),
        "gradients on their way": _on_their_way(models.student) * (not has_adapters(config)),
    }
    training = update | largest(
        states=passes.states(),
        activations=passes.learned.kept,
        learning=max(passes.learned.most, passes.learned.kept + passes.head()),
        scoring=passes.scored(),
        update=here["gradients"],
    )
    offloaded = _offloaded(config)
    asleep = {part: 0.0 if part in offloaded else held for part, held in here.items() if part != "gradients"}
    found = {TRAINING: training, SAMPLING: asleep}
    if _old_logprobs(config):
        logits = BF16 * config.actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu * models.student.vocabulary
        moments = 0.0 if "moments" in offloaded else here["moments"]
        at = {part: here[part] for part in ("weights", "teacher and reference model")}
        found[SCORING] = at | {
            "moments": moments, "gathered weights": passes.gathered(models.student), "logits": logits
        }  # fmt: skip
    found[HOST] = there | {f"{part}, while it samples": here[part] for part in offloaded}
    return {when: {part: held / GIB for part, held in parts.items()} for when, parts in found.items()}


def engine_bytes(numbers: float, config: Any, ranks: int, *, forward_only: bool = False) -> float:
    """Bytes of an engine's parameters on one rank, or of their gradients; the optimizer's moments are twice as many.

    Args:
        numbers: in the parameters
        config: the engine's section ``fsdp_config``
        ranks: all ranks that train
        forward_only: whether it is the reference engine, whose default dtype is another
    """
    from verl.utils.torch_dtypes import PrecisionType

    given = OmegaConf.select(config, "model_dtype")
    size = PrecisionType.to_dtype(given).itemsize if given else BF16 if forward_only else FP32
    group = int(OmegaConf.select(config, "fsdp_size") or -1)
    return size * numbers / (group if 0 < group < ranks else ranks)


def memory_in_words(config: Any, memory: Memory) -> str:
    """In a line: the largest parts of each kind of GPU, and vLLM's share."""
    told = [
        f"{when} {sum(parts.values()):.3g} GiB ({', '.join(f'{part} {gib:.2g}' for part, gib in _largest_first(parts))})"
        for when, parts in memory.items()
        if any(parts.values())
    ]
    rollout = config.actor_rollout_ref.rollout
    share = f"{rollout.name} takes {rollout.gpu_memory_utilization:.0%} of each GPU"
    if not OmegaConf.select(config, "actor_rollout_ref.hybrid_engine"):
        share = f"{rollout.name} has GPUs of its own"
    elif rollout.free_cache_engine:
        share += " while it samples, and gives it back for training"
    else:
        share += " at all times (rollout.free_cache_engine=false)"
    return "; ".join([*told, share, "a lower bound: nothing was fitted to a GPU"])


def _largest_first(parts: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(((part, gib) for part, gib in parts.items() if gib >= 0.05), key=lambda item: -item[1])


class _Passes:
    """What passes hold, of which every rank makes as many tokens as its budget allows."""

    def __init__(self, config: Any, resolved: ResolvedConfig, models: Models) -> None:
        self.config, self.resolved, self.models = config, resolved, models
        self.rule, self.objective = teacher_rule(resolved), build_objective(resolved)
        self.served, self.sharing = is_served(config), sequence_parallel(config, "actor")
        self.rows = self._rows()
        self.settings = self._settings()
        self.learned: PassBytes = learning_pass(self.settings, self.rows)

    def _rows(self) -> Rows:
        """Of a micro-batch on one rank, which holds a part of each where several share it."""
        data, actor = self.config.data, self.config.actor_rollout_ref.actor
        longest = data.max_prompt_length + data.max_response_length
        rollouts = max(actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n // ranks_of(self.config), 1)
        tokens = actor.ppo_max_token_len_per_gpu
        if not actor.use_dynamic_bsz:
            tokens = (actor.ppo_micro_batch_size_per_gpu or 1) * longest // self.sharing
        tokens = min(tokens, max(rollouts, 1) * longest)
        return rows_of(tokens, data.max_prompt_length // self.sharing, data.max_response_length // self.sharing)

    def _settings(self) -> PassSettings:
        model, student = self.config.actor_rollout_ref.model, self.models.student
        if student.source is None:
            raise NotMeasurable("the model cannot be built from its sizes")
        targets = model.target_modules
        return PassSettings(
            model=student.source,
            device="cuda",
            precision="bfloat16",
            recomputed=bool(model.enable_gradient_checkpointing),
            packed=student.packable and bool(model.use_remove_padding),
            lora_rank=int(model.lora_rank or 0),
            lora_targets=None if isinstance(targets, str) else tuple(targets),
            rounded=True,
            all_rounded=True,
        )

    @property
    def _sampled(self) -> int:
        return sum(completion for _, completion in self.rows)

    @property
    def _reads(self) -> bool:
        """Whether anything is read beside the student."""
        return bool(self.resolved.contexts and not self.served) or self.objective.needs_ref

    def states(self) -> float:
        """Bytes of the teachers' states."""
        tokens = self._sampled * self.sharing
        if self.served:
            return tokens * 2 * (1 + served_tokens(self.config)) * FP32
        student, copied = self.models.student.hidden, self.models.copied.hidden
        each = copied * self.rule.copies + student * (not self.rule.copies or bool(self.rule.student_share))
        return tokens * BF16 * (len(self.resolved.contexts) * each + copied * self.objective.needs_ref)

    def scored(self) -> float:
        """Bytes of a pass without a graph: a prompt over the budget is read alone."""
        source = self.models.copied.source
        if not self._reads or source is None:
            return 0.0
        tokens = sum(map(sum, self.rows))
        if self.resolved.contexts and not self.served:
            informed = self.resolved.config.rendering.max_teacher_prompt_tokens
            tokens = max(tokens, (informed + self.config.data.max_response_length) // self.sharing)
        plain = replace(self.settings, model=source, lora_rank=0, lora_targets=None, recomputed=False)
        return scoring_pass(plain, rows_of(tokens, tokens - self._sampled, self._sampled))

    def head(self) -> float:
        """Bytes of the chunked head; of the student's width and vocabulary, whatever another model's are."""
        own: Literal["student", "bfloat16"] = "bfloat16" if needs_reference(self.config, self.resolved) else "student"
        heads = dict.fromkeys(self.resolved.contexts, own if self.rule.copies and not self.served else "student")
        if self.objective.needs_ref:
            heads[REF] = own
        student = self.models.student
        return head_pass(
            self.objective,
            TeacherHeads(tuple(heads.items()), self.rule.student_share or 0.0),
            (student.vocabulary, student.hidden, self._sampled),
            trained=not has_adapters(self.config),
            bfloat16=True,
            device="cuda",
            rounded=True,
        )

    def gathered(self, shape: ModelShape) -> float:
        whole = not self.config.actor_rollout_ref.actor.fsdp_config.reshard_after_forward
        return BF16 * shape.parameters if whole else _table(shape) + 3 * BF16 * _layer(shape)


def ranks_of(config: Any) -> int:
    """All ranks that train."""
    return int(config.trainer.nnodes * config.trainer.n_gpus_per_node)


def _staying(
    config: Any, resolved: ResolvedConfig, models: Models, trained: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes for the whole of an update: on the GPU, and on the host."""
    role, ranks = config.actor_rollout_ref, ranks_of(config)
    numbers = float(models.student.parameters)
    trained, numbers = (trained, numbers + trained) if has_adapters(config) else (numbers, numbers)
    actor, ref = role.actor.fsdp_config, role.ref.fsdp_config
    gradients = engine_bytes(trained, actor, ranks)
    own = {"weights": engine_bytes(numbers, actor, ranks), "gradients": gradients, "moments": 2 * gradients}
    reference = engine_bytes(models.copied.parameters, ref, ranks, forward_only=True) * needs_reference(
        config, resolved
    )
    beside = {"teacher and reference model": reference}
    nothing = dict.fromkeys(own, 0.0)
    here, there = (nothing, own) if actor.offload_policy else (own, {})
    if ref.param_offload or ref.offload_policy:
        return here | dict.fromkeys(beside, 0.0), there | beside
    return here | beside, there


def _offloaded(config: Any) -> tuple[str, ...]:
    """Parts that are on the host but for the time of an update."""
    actor = config.actor_rollout_ref.actor.fsdp_config
    if actor.offload_policy:
        return ()
    return ("weights",) * bool(actor.param_offload) + ("moments",) * bool(actor.optimizer_offload)


def _old_logprobs(config: Any) -> bool:
    """Whether verl makes its own pass for the old log-probabilities, and holds all logits in it."""
    actor, algorithm = config.actor_rollout_ref.actor, config.algorithm
    if config.actor_rollout_ref.model.use_fused_kernels:
        return False
    own = algorithm.adv_estimator == ESTIMATOR and not algorithm.rollout_correction.bypass_mode
    one = config.data.train_batch_size <= actor.ppo_mini_batch_size and actor.ppo_epochs == 1
    return not (own and one and config.trainer.v1.trainer_mode == MODE)


def _table(shape: ModelShape) -> float:
    """Bytes of a head as FSDP2 gathers it."""
    return BF16 * shape.vocabulary * shape.hidden


def _layer(shape: ModelShape) -> float:
    """Numbers in a layer."""
    return (shape.parameters - shape.vocabulary * shape.hidden * (1 if shape.tied else 2)) / shape.layers


def _on_their_way(shape: ModelShape) -> float:
    layer = _layer(shape)
    return FP32 * max(shape.vocabulary * shape.hidden, 2 * layer) + BF16 * layer
