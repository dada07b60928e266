"""The trainer for several ranks: DeepSpeed ZeRO 0 to 3 around the same steps as the local trainer's.

Each rank of a process group holds one of these and computes its share of a step's rollouts. The loss is divided by what all
ranks have together, so gradients are added up over ranks and never averaged: DeepSpeed averages, hence the loss times the
number of ranks. Weights, optimizer and gradients are float32 in every stage; ``precision`` is what the forward pass runs in,
so a teacher that follows slowly loses nothing to rounding.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import socket
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from onpolicy.config.schema import TrainerSettings
from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.losses.objective import Objective
from onpolicy.trainer.collectives import ProcessGroup, SingleProcess
from onpolicy.trainer.forward import Layout, head_weights
from onpolicy.trainer.teacher_rules import WeightRule
from onpolicy.trainer.trainer import LocalTrainer, adamw
from onpolicy.trainer.zero3 import whole, written
from onpolicy.types import Example
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.timer import PhaseTimer

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
"""Keys of DeepSpeed's config that say what a key of ours says."""
WAIT = timedelta(hours=6)
"""A rank waits so long for another, which may be saving, or sampling for an evaluation."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedTrainer(LocalTrainer):
    """One rank of a trainer; ZeRO-3 shards student and teachers."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        objective: Objective,
        teacher: WeightRule,
        settings: TrainerSettings,
        total_steps: int,
        contexts: Sequence[str],
        clock: PhaseTimer,
        spans: Sequence[str] = (),
        marker_ids: Mapping[str, Sequence[int]] | None = None,
        teacher_model: PreTrainedModel | None = None,
        telemetry: TokenTelemetry | None = None,
        config: str | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
        layout: Layout | None = None,
        gradient_checkpointing: bool = False,
        lora_rank: int = 0,
        lora_alpha: int = 32,
        lora_targets: list[str] | None = None,
    ) -> None:
        """
        Args:
            config: a DeepSpeed config (JSON) for its `zero_optimization` and whatever else no key here sets, e.g.
                configs/deepspeed/zero3_offload.json; null: ZeRO stage 2
            precision: what the forward pass runs in; weights, optimizer and log-probabilities stay float32
            layout: `packed` runs a micro-batch as one row without padding, a prompt that several rollouts share only once;
                `padded` runs it row by row; null: packed where the model's attention is transformers' sdpa
            gradient_checkpointing: recompute the model's layers in the backward pass: less memory, a third more time
            lora_rank: rank of low-rank adapters, which then are all that learns; 0: every weight learns
            lora_alpha: the adapters' output counts lora_alpha / lora_rank
            lora_targets: ends of the names of the layers that get one; null: every linear layer but the head
        """
        self._config, self._max_grad_norm = read_config(config), settings.max_grad_norm
        super().__init__(
            model=model,
            objective=objective,
            teacher=teacher,
            settings=settings,
            total_steps=total_steps,
            contexts=contexts,
            clock=clock,
            spans=spans,
            marker_ids=marker_ids,
            teacher_model=teacher_model,
            telemetry=telemetry,
            device=join(),
            precision=precision,
            layout=layout,
            gradient_checkpointing=gradient_checkpointing,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_targets=lora_targets,
        )

    @property
    def stage(self) -> int:
        return int(self._config["zero_optimization"].get("stage", 0))

    def _together(self) -> SingleProcess:
        import torch.distributed as dist

        return ProcessGroup(dist.get_rank(), dist.get_world_size())

    def _place(self, model: PreTrainedModel) -> Any:
        """A teacher is sharded, and offloaded, as the student is; none of it stays whole, so that its shards are all there is."""
        if self.stage < 3:
            return super()._place(model)
        import deepspeed

        zero = {**self._config["zero_optimization"], "stage3_param_persistence_threshold": 0}
        zero.pop("offload_optimizer", None)
        engine, *_ = deepspeed.initialize(model=Body(model), config=self._whole_config(zero))
        return _Runner(engine, self.device)

    def _optimizer(self) -> Any:
        import deepspeed

        zero = self._config["zero_optimization"]
        if self.stage < 3:
            self.student.to(self.device)
        self._own = adamw(self.student, self.settings)
        if "offload_optimizer" in zero:  # which then runs on the CPU, in one pass over its tensors
            self._own.defaults["fused"] = self._own.param_groups[0]["fused"] = True
            self._own.param_groups[0]["foreach"] = False
        self.engine, _, _, _ = deepspeed.initialize(
            model=Body(self.student), optimizer=self._own, config=self._whole_config(zero)
        )
        self._guard(self._own)
        return self.engine.optimizer

    def _body(self, **inputs: Any) -> Any:
        return _Runner(self.engine, self.device)(**inputs)

    def _backward(self, loss: Tensor) -> None:
        with whole(*head_weights(self.student)):  # until its gradient has been added up: no module of its own runs
            self.engine.backward(loss * self.together.size)

    def _apply(self) -> float:
        self._norm = math.inf
        self.engine.step()
        return self._norm

    def _clipped(self) -> float:
        """The norm of the gradient that the optimizer is about to use. Stage 0 of DeepSpeed would clip what is not finite."""
        if self.stage:
            return float(self.engine.optimizer._global_grad_norm)
        return float(torch.nn.utils.clip_grad_norm_(self.student.parameters(), self._max_grad_norm))

    def _guard(self, optimizer: torch.optim.Optimizer) -> None:
        """What is not finite moves nothing, nor does a gradient of exactly 0, as in the local trainer; Adam's momentum alone would."""
        moving = optimizer.step

        def step(closure: Any = None) -> Any:
            self._norm = self._clipped()
            return moving(closure) if math.isfinite(self._norm) and self._norm > 0.0 else None

        optimizer.step = step  # type: ignore[method-assign]

    def _halve(self, examples: Sequence[Example]) -> bool:
        """The other ranks wait in a collective: this one ends, and the job starts again."""
        return False

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        """Gathered one by one; only rank 0 keeps them."""
        if self.stage == 0:
            return super()._moments()
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = {float(state["step"]) for state in self._own.state.values() if "step" in state}
        found: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.student.named_parameters() if steps else ():
            if parameter.requires_grad:
                full = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
                if self.together.rank == 0:
                    found[name] = {"step": torch.tensor(max(steps)), **{k: v.cpu() for k, v in full.items()}}
        return found

    def _load_moments(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        if self.stage == 0:
            return super()._load_moments(moments)
        from deepspeed.utils import safe_set_full_optimizer_state

        if not moments:
            return
        step = max(float(kept["step"]) for kept in moments.values())
        inner = self.engine.optimizer
        for flat in inner.fp32_partitioned_groups_flat if self.stage == 3 else inner.single_partition_of_fp32_groups:
            zeros = {key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS}
            self._own.state[flat] = {"step": torch.tensor(step), **zeros}
        if self.stage < 3:
            inner._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.student.named_parameters():
            if name in moments:
                for key in MOMENTS:
                    safe_set_full_optimizer_state(parameter, moments[name][key].to(self.device), key)

    def _assign(self, weights: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self.student.named_parameters():
            if parameter.requires_grad:
                with written(parameter):
                    parameter.copy_(weights[name])
                if self.stage:  # the optimizer has a copy of its own
                    safe_set_full_fp32_param(parameter, weights[name].to(self.device, torch.float32))

    def _whole_config(self, zero: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **self._config,
            "zero_optimization": dict(zero),
            "train_micro_batch_size_per_gpu": 1,  # of no meaning here, but DeepSpeed wants one
            "managed_gradient_accumulation": False,  # as many micro-batches as it takes, then step
            "gradient_clipping": self._max_grad_norm if self.stage else 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
        }


class Body(torch.nn.Module):
    """A model without its head, as a module whose forward pass DeepSpeed can follow."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model.base_model(**inputs)


class _Runner:
    """Runs an engine on whatever device its inputs come from."""

    def __init__(self, engine: Any, device: torch.device) -> None:
        self.engine, self.device = engine, device

    def __call__(self, **inputs: Any) -> Any:
        return self.engine(**{k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in inputs.items()})


def read_config(path: str | None) -> dict[str, Any]:
    """DeepSpeed's config with a ``zero_optimization`` section.

    Raises:
        ConfigError: no such file, not JSON, or a key that a key of ours sets.
    """
    if path is None:
        return {"zero_optimization": {"stage": 2}}
    if not Path(path).is_file():
        raise ConfigError(f"trainer.config: file {path!r} does not exist; wanted a DeepSpeed config (JSON)")
    try:
        config = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ConfigError(f"trainer.config: {path!r} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"trainer.config: {path!r} holds a {type(config).__name__}, wanted an object")
    for key, ours in OURS.items():
        if key in config:
            raise ConfigError(f"trainer.config: {path!r} sets {key!r}, which is set by {ours}; take it out")
    zero = config.setdefault("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f"trainer.config: {path!r} has zero_optimization {zero!r}, wanted an object")
    stage = zero.setdefault("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"trainer.config: {path!r} has zero_optimization.stage {stage!r}, wanted 0, 1, 2 or 3")
    return config


def join(meeting_point: str | None = None) -> str:
    """Enters the process group that the environment describes, or a group of one; returns this rank's device.

    Args:
        meeting_point: where its ranks find each other, as torch's ``init_method``; None: where the launcher said
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
    if "RANK" not in os.environ or (meeting_point is None and "MASTER_PORT" not in os.environ):
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
    where = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])} if meeting_point else {}
    warnings.filterwarnings("ignore", r"`torch.distributed.*is deprecated", FutureWarning)  # DeepSpeed's own calls
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it compiles
        deepspeed.init_distributed(
            "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
            init_method=meeting_point,
            timeout=WAIT,
            auto_mpi_discovery=False,
            verbose=False,
            **where,
        )
    return device
