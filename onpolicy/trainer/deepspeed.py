"""The engine for several ranks: DeepSpeed ZeRO 0 to 3 under the same trainer.

Each rank of a process group holds one engine and computes its shard of a step's rollouts. The loss is divided by the
denominators of all ranks, so gradients are summed over ranks and never averaged: DeepSpeed averages, hence the loss is
multiplied by the number of ranks. Weights, optimizer and gradients are float32 in every stage; ``precision`` is what the
forward pass runs in, so an EMA teacher loses nothing to rounding.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import socket
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from onpolicy.config.schema import TrainerSettings
from onpolicy.config.shipped import find_config
from onpolicy.trainer.collectives import ProcessGroup, SingleProcess
from onpolicy.trainer.engine import OptimizerState, adamw, load_state_by_name, set_lr, state_by_name
from onpolicy.trainer.forward import Layout
from onpolicy.trainer.head import head_weights
from onpolicy.trainer.lora import LoraSettings
from onpolicy.trainer.trainer import ForwardSettings, PolicyTrainer, TrainerSetup
from onpolicy.trainer.zero3 import gathered, gathered_for_write
from onpolicy.utils.errors import ConfigError

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
COLLECTIVE_TIMEOUT = timedelta(hours=6)
"""How long a rank waits for another, which may be saving a checkpoint or sampling for an evaluation."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine:
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
        self.device = torch.device(init_process_group())
        import torch.distributed as dist

        self.collectives: SingleProcess = ProcessGroup(dist.get_rank(), dist.get_world_size())

    @property
    def stage(self) -> int:
        return int(self._config["zero_optimization"].get("stage", 0))

    @property
    def body(self) -> Callable[..., Any]:
        return lambda **inputs: _run(self._zero, self.device, inputs)

    def prepare_frozen(self, model: PreTrainedModel) -> Callable[..., Any] | None:
        """A teacher is sharded, and offloaded, as the student is; no parameter of it stays whole, so its shards are all it holds."""
        if self.stage < 3:
            model.to(self.device)
            return None
        import deepspeed

        zero = {**self._config["zero_optimization"], "stage3_param_persistence_threshold": 0}
        zero.pop("offload_optimizer", None)
        engine, *_ = deepspeed.initialize(model=Body(model), config=self._full_config(zero))
        return lambda **inputs: _run(engine, self.device, inputs)

    def prepare_student(self, student: PreTrainedModel) -> None:
        import deepspeed

        self.student, zero = student, self._config["zero_optimization"]
        if self.stage < 3:
            student.to(self.device)
        self._adamw = adamw(student, self.settings)
        if "offload_optimizer" in zero:  # which then runs on the CPU, in one pass over its tensors
            self._adamw.defaults["fused"] = self._adamw.param_groups[0]["fused"] = True
            self._adamw.param_groups[0]["foreach"] = False
        self._zero, _, _, _ = deepspeed.initialize(
            model=Body(student), optimizer=self._adamw, config=self._full_config(zero)
        )
        self._guard(self._adamw)

    def set_lr(self, lr: float) -> None:
        set_lr(self._zero.optimizer, lr)

    def backward(self, loss: Tensor) -> None:
        with gathered(*head_weights(self.student)):  # until its gradient has been added up: no module of its own runs
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
        return float(torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.max_grad_norm))

    def _guard(self, optimizer: torch.optim.Optimizer) -> None:
        """A gradient that is 0 or not finite changes nothing, as under ``TorchEngine``; Adam's momentum alone would move the weights."""
        apply = optimizer.step

        def step(closure: Any = None) -> Any:
            self._norm = self._clipped()
            return apply(closure) if math.isfinite(self._norm) and self._norm > 0.0 else None

        optimizer.step = step  # type: ignore[method-assign]

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Gathered parameter by parameter; only rank 0 keeps them."""
        if self.stage == 0:
            return state_by_name(self.student, self._zero.optimizer)
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = {float(state["step"]) for state in self._adamw.state.values() if "step" in state}
        found: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.student.named_parameters() if steps else ():
            if parameter.requires_grad:
                full = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
                if self.collectives.rank == 0:
                    found[name] = {"step": torch.tensor(max(steps)), **{k: v.cpu() for k, v in full.items()}}
        return found

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
            self._adamw.state[flat] = {"step": torch.tensor(step), **zeros}
        if self.stage < 3:
            inner._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.student.named_parameters():
            if name in state:
                for key in MOMENTS:
                    safe_set_full_optimizer_state(parameter, state[name][key].to(self.device), key)

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self.student.named_parameters():
            if parameter.requires_grad:
                with gathered_for_write(parameter):
                    parameter.copy_(weights[name])
                if self.stage:  # the optimizer has a copy of its own
                    safe_set_full_fp32_param(parameter, weights[name].to(self.device, torch.float32))

    def _full_config(self, zero: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **self._config,
            "zero_optimization": dict(zero),
            "train_micro_batch_size_per_gpu": 1,  # has no effect here, but DeepSpeed requires it
            "managed_gradient_accumulation": False,  # as many micro-batches as it takes, then step
            "gradient_clipping": self.settings.max_grad_norm if self.stage else 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
        }


def deepspeed(
    *,
    setup: TrainerSetup,
    config: str | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    layout: Layout | None = None,
    gradient_checkpointing: bool = False,
    lora_rank: int = 0,
    lora_alpha: int = 32,
    lora_targets: list[str] | None = None,
) -> PolicyTrainer:
    """The trainer of one rank among several, sharded by DeepSpeed ZeRO.

    Args:
        config: path of a DeepSpeed config (JSON) with `zero_optimization` and anything else that no key here sets, e.g.
            deepspeed/zero3_offload; null: ZeRO stage 2
        precision: dtype of the forward pass; weights, optimizer and log-probabilities stay float32
        layout: `packed` runs a micro-batch as one row without padding, and a prompt that several rollouts share only once;
            `padded` pads every rollout to a row of its own; null: packed if the model's attention is transformers' sdpa
        gradient_checkpointing: recompute the layers in the backward pass: saves memory, takes a third more time
        lora_rank: rank of low-rank adapters, the only weights then trained; 0: all weights are trained
        lora_alpha: the adapters' output is scaled by lora_alpha / lora_rank
        lora_targets: suffixes of the names of the layers that get an adapter; null: every linear layer but the head
    """
    return PolicyTrainer(
        setup,
        DeepSpeedEngine(setup.settings, config),
        ForwardSettings(precision, layout, gradient_checkpointing),
        LoraSettings(lora_rank, lora_alpha, lora_targets),
    )


class Body(torch.nn.Module):
    """A model without its head, as a module whose forward pass DeepSpeed can follow."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model.base_model(**inputs)


def _run(engine: Any, device: torch.device, inputs: Mapping[str, Any]) -> Any:
    """Runs a DeepSpeed engine on inputs from whatever device."""
    return engine(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()})


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


def init_process_group(init_method: str | None = None) -> str:
    """Joins the process group that the environment describes, or a group of one; returns this rank's device.

    Args:
        init_method: torch's ``init_method``, by which the ranks find each other; None: the launcher's environment variables
    """
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    else:
        torch.cuda.set_device(device)
    import deepspeed
    import torch.distributed as dist

    if dist.is_initialized():
        return device
    if "RANK" not in os.environ or (init_method is None and "MASTER_PORT" not in os.environ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    where = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])} if init_method else {}
    warnings.filterwarnings("ignore", r"`torch.distributed.*is deprecated", FutureWarning)  # DeepSpeed's own calls
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it compiles
        deepspeed.init_distributed(
            "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
            init_method=init_method,
            timeout=COLLECTIVE_TIMEOUT,
            auto_mpi_discovery=False,
            verbose=False,
            **where,
        )
    return device
