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
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from .awaiting import await_all

Message = Mapping[str, Any]


@dataclass(frozen=True)
class TrainerState:
    """TRL's ``trainer_state``, as far as it is known here."""

    global_step: int
    """Updates that the model had seen when it sampled the rollout."""
    max_steps: int
    """Updates of the whole run."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"trainer_state has global_step and max_steps here, and no {name!r}")


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
    """The reference answer as text, where the row has one."""
    ground_truth: object = None
    """The reference answer as it stands in the row, of whatever type."""
    environment: Mapping[str, Any] | None = None
    """What the environment says that the rollout was a conversation with: ``reward``, a number or None, ``metrics`` by name, ``feedback``
    and ``turns``; None where there was no environment."""
    trainer_state: TrainerState | None = None
    """How far the run is; None where that is not known."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """All columns of the dataset row, as they stand there."""


RewardFn = Callable[..., Any]
REFERENCE = ("answer", "ground_truth")
GIVEN_TO_SAMPLES = (*(f.name for f in fields(RewardInput)), "sample", "data_source", "solution_str", "extra_info")
GIVEN_TO_GROUPS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Parameters that are filled whatever columns a row has: of functions of one sample, and of TRL's."""


@dataclass(frozen=True)
class Log:
    """What functions of TRL's shape log about the samples of one group."""

    reward: str
    logged: Sequence[dict[str, float]]
    """By sample."""

    def metric(self, name: str, value: float) -> None:
        """TRL's ``log_metric``: a number about the group, which counts for each of its samples."""
        for own in self.logged:
            own[name] = _finite(value)

    def extra(self, column: str, values: Sequence[Any]) -> None:
        """TRL's ``log_extra``: one value for each sample; what is no number is not logged."""
        for own, value in zip(self.logged, values, strict=True):
            try:
                own[column] = _finite(value)
            except (TypeError, ValueError):
                warnings.warn(
                    f"reward {self.reward}: log_extra({column!r}) holds {value!r}; numbers alone are logged",
                    stacklevel=2,
                )
                return


class RewardError(RuntimeError):
    """A reward function failed; the message names it and the sample."""


def score(
    function: RewardFn,
    samples: Sequence[RewardInput],
    logged: Sequence[dict[str, float]] | None = None,
    feedback: list[str | None] | None = None,
) -> list[float | None]:
    """The reward of each sample of one group; None where the function does not apply. Asynchronous functions are run to their values.

    Args:
        function: of any shape
        samples: of one group
        logged: one for each sample; gets what a function of TRL's shape logs (``log_metric``, ``log_extra``)
        feedback: one place for each sample; gets the text that a function returns beside the score (``{"score": 0.0, "feedback": "..."}``)

    Raises:
        RewardError: the function raised, needs a column that the row does not have, or returned no finite number.
    """
    parameters, feedback = _filled(function), [None] * len(samples) if feedback is None else feedback
    if "completions" in parameters:
        log = Log(name_of(function), logged or [{} for _ in samples])
        return _score_group(function, parameters, samples, log, feedback)
    pending: list[Any] = []
    try:
        for sample in samples:
            with _named(function, repr(sample.id)):
                pending.append(function(**_arguments(function, parameters, known(sample))))
    except RewardError:
        for value in pending:
            if inspect.iscoroutine(value):
                value.close()
        raise
    found = []
    for place, (sample, value) in enumerate(zip(samples, await_all(pending), strict=True)):
        with _named(function, repr(sample.id)):
            found.append(_number(value))
            feedback[place] = _feedback(value)
    return found


def needed_references(function: RewardFn) -> list[str]:
    """The names in ``REFERENCE`` that a function of single samples cannot do without: it fails on a row that has no such value."""
    parameters = _filled(function)
    required = [n for n in REFERENCE if n in parameters and parameters[n].default is inspect.Parameter.empty]
    return [] if "completions" in parameters else required


def missing_columns(function: RewardFn, columns: Collection[str]) -> list[str]:
    """Parameters that would stay empty, and may not, on a row with these columns; reference answers apart (``needed_references``)."""
    return [
        name
        for name, parameter in _filled(function).items()
        if parameter.kind is not parameter.VAR_KEYWORD
        and parameter.default is parameter.empty
        and name not in (*given_besides(function), *columns, *REFERENCE)
    ]


def given_besides(function: RewardFn) -> tuple[str, ...]:
    """What a parameter may name besides columns of the dataset."""
    return GIVEN_TO_GROUPS if "completions" in _filled(function) else GIVEN_TO_SAMPLES


def name_of(function: RewardFn) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return f"{function.__module__}:{getattr(function, '__name__', type(function).__name__)}"


def _score_group(
    function: RewardFn,
    parameters: Mapping[str, inspect.Parameter],
    samples: Sequence[RewardInput],
    log: Log,
    feedback: list[str | None],
) -> list[float | None]:
    with _named(function, f"the group of {samples[0].id!r}"):
        (values,) = await_all([function(**_arguments(function, parameters, _known_group(samples, log)))])
        if isinstance(values, BaseException):
            raise values
        if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
            raise ValueError(f"returned {values!r}, expected a list of {len(samples)} numbers, one for each completion")
        values = await_all(list(values))
        if len(values) != len(samples):
            raise ValueError(f"returned {len(values)} numbers for {len(samples)} completions, expected one for each")
        numbers = [_number(value) for value in values]
        feedback[:] = map(_feedback, values)
        return numbers


@contextmanager
def _named(function: RewardFn, what: str) -> Iterator[None]:
    """Says of an error which reward it is from, and on what."""
    try:
        yield
    except Exception as error:
        raise RewardError(f"reward {name_of(function)} failed on {what}: {type(error).__name__}: {error}") from error


def known(sample: RewardInput) -> dict[str, Any]:
    """All values that a parameter of a per-sample reward may name; our own names take precedence over columns of the dataset."""
    ours = {f.name: getattr(sample, f.name) for f in fields(sample)}
    verl = {
        "data_source": sample.fields.get("data_source"),
        "solution_str": sample.completion,
        "ground_truth": sample.answer if sample.ground_truth is None else sample.ground_truth,
        "extra_info": sample.fields.get("extra_info") or {},
    }
    return {**sample.fields, **ours, **verl, "sample": sample}


def _known_group(samples: Sequence[RewardInput], log: Log) -> dict[str, Any]:
    """The arguments that TRL passes: lists, with completions as messages where the prompt is messages, and each column by its name."""
    columns = dict.fromkeys(name for sample in samples for name in sample.fields)
    return {
        **{name: [sample.fields.get(name) for sample in samples] for name in columns},
        "prompts": [sample.prompt for sample in samples],
        "completions": [_as_trl(sample) for sample in samples],
        "completion_ids": [list(sample.completion_ids) for sample in samples],
        "trainer_state": next((s.trainer_state for s in samples), None),
        "log_extra": log.extra,
        "log_metric": log.metric,
    }


def _as_trl(sample: RewardInput) -> str | list[Message]:
    if isinstance(sample.prompt, str):
        return sample.completion
    return [{"role": "assistant", "content": sample.completion}]


def _arguments(
    function: RewardFn, parameters: Mapping[str, inspect.Parameter], values: Mapping[str, Any]
) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            chosen = {**{k: v for k, v in values.items() if k not in _bound(function)}, **chosen}
        elif values.get(name) is None and name in REFERENCE and parameter.default is inspect.Parameter.empty:
            raise TypeError(f"it wants {name!r}, but this row has no reference answer")
        elif name in values and not (values[name] is None and parameter.default is not inspect.Parameter.empty):
            chosen[name] = values[name]
        elif parameter.default is inspect.Parameter.empty:
            raise TypeError(f"it wants {name!r}, but the row has only: {', '.join(sorted(values))}")
    return chosen


def _filled(function: RewardFn) -> Mapping[str, inspect.Parameter]:
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
    if isinstance(value, BaseException):
        raise value
    if isinstance(value, Mapping):
        if "score" not in value:
            keys = ", ".join(map(repr, value)) or "none"
            raise ValueError(f"returned a mapping with the keys {keys}; the key that is read is 'score'")
        value = value["score"]
    if value is None:
        return None
    return _finite(value)


def _feedback(value: Any) -> str | None:
    """The text beside a score, in a mapping; None where there is none, or an empty one."""
    text = value.get("feedback") if isinstance(value, Mapping) else None
    if text is not None and not isinstance(text, str):
        raise ValueError(f"returned the feedback {text!r}, expected a text or None")
    return text or None


def _finite(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"returned {value!r}, expected a number") from error
    if not math.isfinite(number):
        raise ValueError(f"returned {value!r}, expected a finite number")
    return number
