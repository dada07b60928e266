"""A run in some fifteen lines: its method in words, its inputs, the size of a step, and what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onpolicy.config.registry import defaults_and
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.experiments.forecast.forecast import Assumptions, Forecast
from onpolicy.experiments.forecast.hardware import GPUS
from onpolicy.experiments.forecast.memory import RESERVED
from onpolicy.run.axes import short
from onpolicy.run.first_rows import first_rows
from onpolicy.run.method_in_words import method_in_words
from onpolicy.trainer.forward_settings import left_to_device
from onpolicy.utils.timer import in_words

LONGEST = 160
"""Characters of a path."""


def summarize_run(resolved: ResolvedConfig, foreseen: Forecast | None) -> dict[str, str]:
    """What a run does -> in a line of text; ``foreseen`` is None where the model's size is not known."""
    return dict([*method_in_words(resolved), *_inputs(resolved), *_sizes(resolved), *_needs(foreseen)])


def _inputs(resolved: ResolvedConfig) -> Iterator[tuple[str, str]]:
    config, shared = resolved.config, vars(resolved.data.settings)
    yield "model", config.model.path
    options = (f"{k}={_whole(v)}" for k, v in config.data.items() if k not in (*shared, "name"))
    yield "data", f"{resolved.data.plugin.name} {', '.join(options)}".rstrip()
    if read := first_rows(resolved.data):
        places = ", ".join(f"{role} from {where}" for role, where in read.reading.columns.items())
        yield "columns", f"{places} (of {'the first ' if read.reading.more else ''}{len(read)} rows)"
    if resolved.data.settings.completions_column is None:
        yield (
            "generator",
            f"{resolved.generator.plugin.with_reason}, temperature {resolved.generator.settings.temperature:g}",
        )


def _whole(value: Any) -> str:
    """A path is of use only whole; a prompt is known by its beginning."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= LONGEST else short(value)


def _sizes(resolved: ResolvedConfig) -> Iterator[tuple[str, str]]:
    config, data, sampling = resolved.config, resolved.data.settings, resolved.generator.settings
    trainer = resolved.trainer.settings
    if data.completions_column is None:
        most = data.prompts_per_step * sampling.group_size * sampling.max_tokens
        step = (
            f"{data.prompts_per_step} prompts × group of {sampling.group_size} × at most {sampling.max_tokens} tokens "
            f"= {most:,} tokens"
        )
    else:
        step = f"{data.prompts_per_step} prompts with the completion in the column {data.completions_column!r}"
    yield "each step", f"{step}, {trainer.updates_per_step} optimizer updates" if trainer.updates_per_step > 1 else step
    yield "steps", str(config.steps)
    warmup = f" after {trainer.warmup_steps} steps of warm-up" if trainer.warmup_steps else ""
    yield "learning rate", f"{trainer.lr:g}, {trainer.lr_schedule}{warmup}"
    options = dict(defaults_and(resolved.trainer.plugin.function, resolved.trainer.plugin.options))
    if "precision" in options:
        chosen = left_to_device(options).get("precision", options["precision"])
        yield "precision", f"{chosen}; weights and updates float32"
    if config.eval.every and config.eval.sets:
        yield "evaluation", f"every {config.eval.every} steps on {', '.join(config.eval.sets)}"


def _needs(foreseen: Forecast | None) -> Iterator[tuple[str, str]]:
    if foreseen is None:
        unknown = "not known before the model is on this machine; `onpolicy forecast` asks the hub"
        yield from (("memory", unknown), ("time", unknown))
        return
    on = f"on {foreseen.gpus} {Assumptions.gpu}, by the forecast"
    held = ", ".join(f"{kind} {_held(parts)}" for kind, parts in foreseen.memory.items())
    refused = "".join(f"; does not fit: {reason}" for reason in foreseen.refusals)
    yield "memory", f"{held}, of {GPUS[Assumptions.gpu].gib:.0f} {on}{refused}"
    took = in_words(foreseen.hours * 3600) if foreseen.hours > 1 / 60 else "under a minute, beside what starting takes,"
    yield "time", f"{took} {on}; `onpolicy forecast` has the parts and other GPUs"


def _held(parts: Mapping[str, float]) -> str:
    """What a run needs, and apart from it what vLLM takes in any case."""
    needed, reserved = sum(gib for part, gib in parts.items() if part != RESERVED), parts.get(RESERVED, 0.0)
    return f"{needed:.1f} GiB" + (f" + {reserved:.1f} that vLLM reserves for keys and values" if reserved else "")
