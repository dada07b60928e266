"""Whether a weight sync sends the student's adapters alone: decided before the generator is made, the same in every process."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from onpolicy.config.registry import defaults_and
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.models import ModelHandle, engine_dtype, model_skeleton
from onpolicy.protocols import AdapterShape
from onpolicy.trainer.lora import LoraSettings, NotOnLinearLayers, adapter_shape


@dataclass(frozen=True)
class AdapterPlan:
    """What a weight sync sends of a student."""

    shape: AdapterShape | None = None
    """Of the adapters that are sent alone; None: all weights are sent, adapters merged in."""
    said: str = ""
    """For the user; empty where the student has no adapters."""


def adapter_plan(resolved: ResolvedConfig, model: ModelHandle) -> AdapterPlan:
    """A generator takes adapters by themselves if its plug-in has a function ``why_no_adapter`` that gives no reason against it
    (``onpolicy.rollout.vllm_lora``). Those on other layers than linear ones, as on experts, and those on the head are merged for all.

    Raises:
        ConfigError: as ``onpolicy.trainer.lora.add_adapter``.
    """
    options = dict(defaults_and(resolved.trainer.plugin.function, resolved.trainer.plugin.options))
    rank = options.get("lora_rank") or 0
    if not rank:
        return AdapterPlan()
    plugin = resolved.generator.plugin
    why_no_adapter = getattr(plugin.function, "why_no_adapter", None)
    if why_no_adapter is None:
        return _merged(f"generator.name={plugin.name} takes no adapters")
    skeleton = model_skeleton(resolved, model.path)
    architecture = (skeleton.config.architectures or [type(skeleton).__name__])[0]
    try:
        shape = adapter_shape(skeleton, LoraSettings(rank, targets=options.get("lora_targets")))
    except NotOnLinearLayers as found:
        return _merged(f"{found} is not a linear layer below the head")
    on_gpu = torch.cuda.is_available()
    dtype = engine_dtype(resolved, model.path, on_gpu=on_gpu)
    if reason := why_no_adapter(architecture, shape, dtype=dtype, on_gpu=on_gpu):
        return _merged(reason)
    return AdapterPlan(shape, f"weight syncs send the adapters alone (rank {rank})")


def _merged(reason: str) -> AdapterPlan:
    return AdapterPlan(None, f"weight syncs send all weights, adapters merged: {reason}")
