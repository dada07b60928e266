"""What DeepSpeed ZeRO holds beside shards, from its config and its defaults."""

from __future__ import annotations

import json
from typing import Any

from onpolicy.config.registry import options_of
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.shipped import find_config
from onpolicy.experiments.forecast.shape import ModelShape


def zero_of(resolved: ResolvedConfig) -> dict[str, Any]:
    """DeepSpeed's ``zero_optimization`` section; empty without DeepSpeed."""
    plugin = resolved.trainer.plugin
    if "config" not in options_of(plugin.function):  # a trainer without DeepSpeed has no such option
        return {}
    path = plugin.options.get("config")
    found: dict[str, Any] = (
        json.loads(find_config(path, ".json").read_text()) if path else {"zero_optimization": {"stage": 2}}
    )
    return dict(found.get("zero_optimization", {}))


def zero_buckets(zero: dict[str, Any], *, bfloat16: bool) -> float:
    """Bytes of the buckets in which gradients are reduced: one for each dtype that travels, two where reducing overlaps in ZeRO 1 and 2."""
    stage = int(zero.get("stage", 0))
    if not stage or not zero.get("contiguous_gradients", True):
        return 0.0
    buffers = 2 if stage < 3 and zero.get("overlap_comm") else 1
    return buffers * float(zero.get("reduce_bucket_size", 5e8)) * (4.0 + 2.0 * bfloat16)


def gathered_bytes(zero: dict[str, Any], shape: ModelShape, *, bfloat16: bool) -> float:
    """Bytes of the weights that are whole at one time under ZeRO-3: those that DeepSpeed lets live, and the head until it has its gradient.

    Linear layers' matrices are gathered in what the passes compute in, but for one that is the embedding too.
    """
    if int(zero.get("stage", 0)) < 3:
        return 0.0
    live = min(float(zero.get("stage3_max_live_parameters", zero.get("max_live_parameters", 1e9))), shape.parameters)
    table = shape.vocabulary * shape.hidden
    return live * (2.0 if bfloat16 else 4.0) + table * (2.0 if bfloat16 and not shape.tied else 4.0)
