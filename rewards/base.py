"""Calls reward functions.

Its positional parameters are filled **by name** from the fields of a sample: ``completion``, ``answer``, ``final``,
``num_tokens`` and the other fields of ``RewardInput``; ``sample`` (all of it); any column of the dataset row; and the
names verl uses (``data_source``, ``solution_str``, ``ground_truth``, ``extra_info``). A function with a parameter
``completions`` is called once for a whole group with lists, as TRL does. Keyword-only parameters are its options.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardInput:
    """One sampled answer, as a reward sees it."""

    id: str
    """The sample's name in errors, e.g. ``gsm/3 rollout 1``."""
    prompt: str | Sequence[Message]
    """Text or messages, as in the dataset."""
    completion: str
    """The whole completion, thinking included, special tokens removed."""
    final: str
    """The part after the thinking."""
    completion_ids: tuple[int, ...] = ()
    """Sampled tokens."""
    num_tokens: int = 0
    """Sampled tokens, the end of the turn included."""
    finish_reason: str = "stop"
    """``stop``, ``length`` (cut off) or ``abort``."""
    answer: str | None = None
    """The reference answer, where the row has one."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """All columns of the dataset row."""


RewardFn = Callable[..., Any]
REFERENCE = ("answer", "ground_truth")


class RewardError(RuntimeError):
    """A reward function failed; the message names it and the sample."""


def score(function: RewardFn, samples: Sequence[RewardInput]) -> list[float | None]:
    """The reward of each sample of one group; None where the function does not apply.

    Raises:
        RewardError: the function raised, needs a column that the row does not have, or returned no finite number.
    """
    if "completions" in _wanted(function):
        return _score_group(function, samples)
    return [_score_one(function, sample) for sample in samples]


def name_of(function: RewardFn) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return f"{function.__module__}:{getattr(function, '__name__', type(function).__name__)}"


def _score_one(function: RewardFn, sample: RewardInput) -> float | None:
    try:
        return _number(function(**_arguments(function, known(sample))))
    except Exception as error:
        raise RewardError(
            f"reward {name_of(function)} failed on {sample.id!r}: {type(error).__name__}: {error}"
        ) from error


def _score_group(function: RewardFn, samples: Sequence[RewardInput]) -> list[float | None]:
    try:
        values = list(function(**_arguments(function, _known_group(samples))))
        if len(values) != len(samples):
            raise ValueError(f"returned {len(values)} numbers for {len(samples)} completions")
        return [_number(value) for value in values]
    except Exception as error:
        raise RewardError(
            f"reward {name_of(function)} failed on the group of {samples[0].id!r}: {type(error).__name__}: {error}"
        ) from error


def known(sample: RewardInput) -> dict[str, Any]:
    """All values that a parameter of a per-sample reward may name; our own names take precedence over columns of the dataset."""
    ours = {f.name: getattr(sample, f.name) for f in fields(sample)}
    verl = {
        "data_source": sample.fields.get("data_source"),
        "solution_str": sample.completion,
        "ground_truth": sample.answer,
        "extra_info": sample.fields.get("extra_info") or {},
    }
    return {**sample.fields, **verl, **ours, "sample": sample}


def _known_group(samples: Sequence[RewardInput]) -> dict[str, Any]:
    """The arguments that TRL passes: lists, with completions as messages where the prompt is messages, and each column by its name."""
    columns = dict.fromkeys(name for sample in samples for name in sample.fields)
    return {
        **{name: [sample.fields.get(name) for sample in samples] for name in columns},
        "prompts": [sample.prompt for sample in samples],
        "completions": [_as_trl(sample) for sample in samples],
        "completion_ids": [list(sample.completion_ids) for sample in samples],
        "trainer_state": None,
        "log_extra": _log_nothing,
        "log_metric": _log_nothing,
    }


def _as_trl(sample: RewardInput) -> str | list[Message]:
    if isinstance(sample.prompt, str):
        return sample.completion
    return [{"role": "assistant", "content": sample.completion}]


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _arguments(function: RewardFn, values: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, parameter in _wanted(function).items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            chosen = {**{k: v for k, v in values.items() if k not in _bound(function)}, **chosen}
        elif values.get(name) is None and name in REFERENCE and parameter.default is inspect.Parameter.empty:
            raise TypeError(f"it wants {name!r}, but this row has no reference answer")
        elif name in values and not (values[name] is None and parameter.default is not inspect.Parameter.empty):
            chosen[name] = values[name]
        elif parameter.default is inspect.Parameter.empty:
            raise TypeError(f"it wants {name!r}, but the row has only: {', '.join(sorted(values))}")
    return chosen


@functools.lru_cache(maxsize=256)
def _wanted(function: RewardFn) -> Mapping[str, inspect.Parameter]:
    """The parameters to fill: all but the options (keyword-only) and those that a partial has bound."""
    bound = _bound(function)
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in bound
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.POSITIONAL_ONLY, parameter.VAR_KEYWORD)
    }


def _bound(function: RewardFn) -> frozenset[str]:
    return frozenset(function.keywords) if isinstance(function, functools.partial) else frozenset()


def _number(value: Any) -> float | None:
    """verl's functions may return a mapping with ``score``; TRL's may return None."""
    if isinstance(value, Mapping):
        value = value["score"]
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"returned {value!r}, expected a finite number")
    return number
