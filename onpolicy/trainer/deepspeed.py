"""The engine for several ranks: DeepSpeed ZeRO 0 to 3 under the same trainer.

Each rank of a process group holds one engine and computes its shard of a step's rollouts. The loss is divided by the
denominators of all ranks, so gradients are summed over ranks and never averaged: DeepSpeed averages, hence the loss is
multiplied by the number of ranks. Weights, optimizer and gradients are float32 in every stage; ``precision`` is what the
forward pass runs in, so an EMA teacher loses nothing to rounding.

DeepSpeed switches an autocast that was opened outside of its engine off, and asks CUDA's flag to know. So ours is opened inside
(``Body``), and DeepSpeed has its own section ``torch_autocast``, whose state is the process's: student and teachers have the same.
In bfloat16 the linear layers' matrices are also gathered, and their gradients reduced, in bfloat16, at half the bytes (ZeRO 1 to 3).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from onpolicy.config.bounds import NOT_NEGATIVE, POSITIVE
from onpolicy.config.schema import TrainerSettings
from onpolicy.config.shipped import find_config
from onpolicy.trainer.body_runner import BodyRunner
from onpolicy.trainer.collectives import ProcessGroup, SingleProcess
from onpolicy.trainer.compiler_lock import abandoned_locks_removed
from onpolicy.trainer.forward import Layout
from onpolicy.trainer.forward_settings import ForwardSettings, Precision
from onpolicy.trainer.head import head_weights
from onpolicy.trainer.lora import LoraSettings
from onpolicy.trainer.moments import MOMENTS, float32_moment
from onpolicy.trainer.optimizer import (
    OptimizerState,
    adamw,
    fuse,
    load_state_by_name,
    moment_bytes,
    set_lr,
    state_by_name,
)
from onpolicy.trainer.process_group import join_process_group
from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup
from onpolicy.trainer.zero3 import gathered, gathered_for_write, travel_in
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.lacks import lacks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OURS = {
    "optimizer": "trainer.lr, betas and weight_decay",
    "scheduler": "trainer.lr_schedule and warmup_steps",
    "gradient_clipping": "trainer.max_grad_norm",
    "train_batch_size": "data.prompts_per_step and generator.group_size",
    "train_micro_batch_size_per_gpu": "trainer.micro_batch_tokens",
    "gradient_accumulation_steps": "trainer.micro_batch_tokens",
    "managed_gradient_accumulation": "trainer.micro_batch_tokens",
    "bf16": "trainer.precision",
    "fp16": "trainer.precision",
    "torch_autocast": "trainer.precision",
}
"""DeepSpeed's keys that a key of our config sets."""
PERSISTENCE = ("stage3_param_persistence_threshold", "param_persistence_threshold")
"""DeepSpeed's names for one key: how many numbers a parameter has at most that stays gathered in ZeRO-3."""


class DeepSpeedEngine(BodyRunner):
    """One rank; ZeRO-3 shards student and teachers."""

    student: PreTrainedModel
    _zero: Any
    """DeepSpeed's engine around the student."""

    def __init__(self, settings: TrainerSettings, config: str | None = None) -> None:
        """Joins the process group, or a group of one.

        Args:
            settings: learning rate, AdamW's constants and the largest norm of a gradient
            config: path of a DeepSpeed config (JSON); None: ZeRO stage 2
        """
        self._config, self.settings = read_config(config), settings
        super().__init__(torch.device(join_process_group()))
        import torch.distributed as dist

        self.collectives: SingleProcess = ProcessGroup(dist.get_rank(), dist.get_world_size())

    @property
    def stage(self) -> int:
        return int(self._config["zero_optimization"].get("stage", 0))

    def copies(self, parameter: Tensor) -> bool:
        return self.stage == 3 or parameter.device.type != self.device.type

    @property
    def body(self) -> Callable[..., Any]:
        return lambda **inputs: self.run(self.student, self._zero, moved_to(self.device, inputs))

    def prepare_frozen(self, model: PreTrainedModel) -> Callable[..., Any]:
        """A teacher is sharded, and offloaded, as the student is; no parameter of it stays whole, so its shards are all it holds."""
        if self.stage < 3:
            body: Callable[..., Any] = Body(model.to(self.device), self.autocast)
        else:
            own = ("offload_optimizer", *PERSISTENCE)
            zero = {key: value for key, value in self._config["zero_optimization"].items() if key not in own}
            zero[PERSISTENCE[0]] = 0
            body = self._initialized(model, zero)
        return lambda **inputs: self.run(model, body, moved_to(self.device, inputs))

    def prepare_student(self, student: PreTrainedModel) -> None:
        self.student, zero = student, self._config["zero_optimization"]
        if self.stage < 3:
            student.to(self.device)
        self._adamw = adamw(student, self.settings, self.device)
        if "offload_optimizer" in zero:  # which then runs on the CPU
            fuse(self._adamw)
        self._zero = self._initialized(student, zero, optimizer=self._adamw)
        self._guard(self._adamw)

    def set_lr(self, lr: float) -> None:
        set_lr(self._zero.optimizer, lr)

    def backward(self, loss: Tensor) -> None:
        self.alive()
        with gathered(
            *head_weights(self.student), rounded=True
        ):  # until its gradient has been added up: no module of its own runs
            self._zero.backward(loss * self.collectives.size)

    def step(self) -> float:
        self._norm = math.inf
        self._zero.step()
        return self._norm

    def discard_gradient(self) -> bool:
        """Never: the other ranks wait in a collective. This rank fails, and the job starts again."""
        return False

    def _clipped(self) -> float:
        """The norm of the gradient that the optimizer is about to use. Stage 0 of DeepSpeed would clip what is not finite."""
        if self.stage:
            return float(self._zero.optimizer._global_grad_norm)
        return float(torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip_norm))

    def _guard(self, optimizer: torch.optim.Optimizer) -> None:
        """A gradient that is 0 or not finite changes nothing, as under ``TorchEngine``; Adam's momentum alone would move the weights."""
        apply = optimizer.step

        def step(closure: Any = None) -> Any:
            self._norm = self._clipped()
            return apply(closure) if math.isfinite(self._norm) and self._norm > 0.0 else None

        optimizer.step = step  # type: ignore[method-assign]

    def optimizer_state(self) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        if self.stage == 0:
            yield from state_by_name(self.student, self._zero.optimizer)
            return
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = {float(state["step"]) for state in self._adamw.state.values() if "step" in state}
        for name, parameter in self.student.named_parameters() if steps else ():
            if parameter.requires_grad:
                full = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
                yield name, {"step": torch.tensor(max(steps)), **full}

    def moment_bytes(self) -> int:
        return moment_bytes(self.student, self._adamw)

    def load_optimizer_state(self, state: OptimizerState) -> None:
        if self.stage == 0:
            return load_state_by_name(self.student, self._zero.optimizer, state)
        from deepspeed.utils import safe_set_full_optimizer_state

        if not state:
            return
        step = max(float(moments["step"]) for moments in state.values())
        inner = self._zero.optimizer
        for flat in inner.fp32_partitioned_groups_flat if self.stage == 3 else inner.single_partition_of_fp32_groups:
            zeros = {key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS}
            where = flat.device if self._adamw.param_groups[0].get("fused") else "cpu"
            self._adamw.state[flat] = {"step": torch.tensor(step, device=where), **zeros}
        if self.stage < 3:
            inner._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.each(self.student.named_parameters()):
            if name in state:
                moments = state[name]
                for key in MOMENTS:
                    safe_set_full_optimizer_state(parameter, float32_moment(moments, key).to(self.device), key)

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self.each(self.student.named_parameters()):
            if parameter.requires_grad:
                saved = weights[name]
                with gathered_for_write(parameter):
                    parameter.copy_(saved)
                if self.stage:  # the optimizer has a copy of its own
                    safe_set_full_fp32_param(parameter, saved.to(self.device, torch.float32))

    def _initialized(self, model: PreTrainedModel, zero: Mapping[str, Any], **more: Any) -> Any:
        """DeepSpeed's engine around the model's body."""
        import deepspeed

        if self.precision == "bfloat16":  # before DeepSpeed makes a bucket for each dtype that travels
            travel_in(torch.bfloat16, model, more_than=persistent_size(zero))
        config = self._full_config(zero)
        with abandoned_locks_removed():
            if self.stage == 3:  # parameter by parameter; DeepSpeed would first put all of it on the device
                deepspeed.zero.Init(module=model, config_dict_or_path=config, dtype=torch.float32)
                move_buffers(model, self.device)
            engine, *_ = deepspeed.initialize(model=Body(model, self.autocast), config=config, **more)
        return engine

    def _full_config(self, zero: Mapping[str, Any]) -> dict[str, Any]:
        max_norm = self.settings.clip_norm
        return {
            **self._config,
            "zero_optimization": dict(zero),
            "train_micro_batch_size_per_gpu": 1,  # has no effect here, but DeepSpeed requires it
            "managed_gradient_accumulation": False,  # as many micro-batches as it takes, then step
            "gradient_clipping": max_norm if self.stage and math.isfinite(max_norm) else 0.0,  # 0: off
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
            "torch_autocast": {
                "enabled": self.precision == "bfloat16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # travel_in has marked those whose rounding changes nothing
            },
        }


@lacks(
    moments="DeepSpeed shards the moments in ZeRO 1 to 3, and keeps them on the host by an offload of its own; expected "
    "trainer.config=deepspeed/zero3_offload, or deepspeed/zero2_offload, and no trainer.moments"
)
def deepspeed(
    *,
    setup: TrainerSetup,
    config: str | None = None,
    precision: Precision = "auto",
    layout: Layout | None = None,
    gradient_checkpointing: bool | None = None,
    lora_rank: Annotated[int, NOT_NEGATIVE] = 0,
    lora_alpha: Annotated[int, POSITIVE] = 32,
    lora_targets: list[str] | None = None,
) -> PolicyTrainer:
    """The trainer of one rank among several, sharded by DeepSpeed ZeRO.

    Args:
        config: path of a DeepSpeed config (JSON) with `zero_optimization` and anything else that no key here sets, e.g.
            deepspeed/zero3_offload; null: ZeRO stage 2
        precision: dtype of the forward pass; trained weights, optimizer and log-probabilities stay float32. `auto`: bfloat16 on a CUDA GPU,
            else float32. In bfloat16, ranks exchange the linear layers' weights and gradients in it too (ZeRO 1 to 3)
        layout: `packed` runs a micro-batch as one row without padding, and a prompt that several rollouts share only once;
            `padded` pads every rollout to a row of its own; null: packed if the model's attention is transformers' sdpa
        gradient_checkpointing: recompute the layers in the backward pass: saves memory, takes a third more time; null: on a CUDA GPU
        lora_rank: rank of low-rank adapters, the only weights then trained; 0: all weights are trained
        lora_alpha: the adapters' output is scaled by lora_alpha / lora_rank
        lora_targets: suffixes of the names of the layers that get an adapter; null: every linear layer, and every expert, but the
            head; an embedding's adapter is added to a head that is tied to it as well
    """
    return PolicyTrainer(
        setup,
        DeepSpeedEngine(setup.settings, config),
        ForwardSettings(precision, layout, gradient_checkpointing),
        LoraSettings(lora_rank, lora_alpha, lora_targets),
    )


deepspeed.on_several_ranks = True  # type: ignore[attr-defined]


class Body(torch.nn.Module):
    """A model without its head, as a module whose forward pass DeepSpeed can follow."""

    def __init__(self, model: PreTrainedModel, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.model, self._autocast = model, autocast

    def forward(self, **inputs: Any) -> Any:
        with self._autocast():  # inside of DeepSpeed's forward, which would switch one that is opened outside off
            return self.model.base_model(**inputs)


def moved_to(device: torch.device, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs from whatever device."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def move_buffers(model: torch.nn.Module, device: torch.device) -> None:
    """Moves what a model has beside its parameters."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            persistent = name not in module._non_persistent_buffers_set
            module.register_buffer(name, buffer.to(device), persistent=persistent)


def persistent_size(zero: Mapping[str, Any]) -> int:
    """How many numbers a parameter has at most that stays gathered, as DeepSpeed reads it from ``zero_optimization``; 0 before ZeRO-3."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    if zero.get("stage", 0) != 3:
        return 0
    return int(DeepSpeedZeroConfig(**zero).param_persistence_threshold)


def read_config(path: str | None) -> dict[str, Any]:
    """DeepSpeed's config with a ``zero_optimization`` section.

    Raises:
        ConfigError: no such file, not JSON, or a key that a key of ours sets.
    """
    if path is None:
        return {"zero_optimization": {"stage": 2}}
    try:
        file = find_config(path, ".json")
    except ConfigError as error:
        raise ConfigError(
            f"trainer.config: expected a DeepSpeed config (JSON) or the name of a shipped one: {error}"
        ) from None
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"trainer.config: {path!r} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"trainer.config: {path!r} holds a {type(config).__name__}, expected an object")
    for key, ours in OURS.items():
        if key in config:
            raise ConfigError(f"trainer.config: {path!r} sets {key!r}, which is set by {ours}; take it out")
    zero = config.setdefault("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f"trainer.config: {path!r} has zero_optimization {zero!r}, expected an object")
    stage = zero.setdefault("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"trainer.config: {path!r} has zero_optimization.stage {stage!r}, expected 0, 1, 2 or 3")
    return config
