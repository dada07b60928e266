"""What is done with a group as soon as it is whole, with nothing but the group: rewards, and what its texts say.

Scorer and annotator do the same with the same functions (``evaluate_reward``, ``TextReader.read``) where nobody has done it before.
"""

from __future__ import annotations

import functools
import inspect
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import Any, ClassVar

from onpolicy.annotation.reading import ReadText, TextReader
from onpolicy.annotation.scoring import Evaluated, evaluate_reward, reward_inputs
from onpolicy.config.schedules import Coefficients, coefficients_in
from onpolicy.rewards import lexicon
from onpolicy.types import RolloutGroup

LIBRARIES_OF_MODELS = frozenset({"torch", "transformers", "vllm", "sentence_transformers"})
"""A reward beside which one of these is used may hold a model: one in each process would be too many."""


@dataclass(frozen=True)
class GroupTask:
    """One group, with the parts after the thinking told apart, and the scheduled options of the rewards as they are now."""

    group: RolloutGroup
    values: Mapping[str, float]


@dataclass(frozen=True)
class GroupDone:
    """What does not need the group's siblings in the step. Small beside the group."""

    rewards: Mapping[str, Sequence[Evaluated]]
    """Reward -> its part of each rollout's breakdown, and its feedback."""
    texts: tuple[ReadText, ...] | None
    """By rollout; None where the texts are left to the annotator."""


@dataclass(frozen=True)
class GroupWork:
    """Can be pickled; a process that unpickles it knows the lexicons of the one that made it, and loads no torch."""

    unwanted_modules: ClassVar[frozenset[str]] = LIBRARIES_OF_MODELS
    """Where ``can_leave`` did not see that a reward uses them."""
    rewards: Mapping[str, Callable[..., Any]]
    reader: TextReader | None
    steps: int | None = None
    """Of the run, where it is known."""
    lexicons: Mapping[str, Sequence[str]] = field(default_factory=lambda: dict(lexicon.LEXICONS))

    def __call__(self, task: GroupTask) -> GroupDone:
        """Raises what a reward raises, and ValueError if the texts are not what the reader's decoder makes of the tokens."""
        group = task.group
        self._scheduled.load_values(task.values)
        samples = reward_inputs(group, str, self.steps)
        return GroupDone(
            {name: evaluate_reward(name, function, samples) for name, function in self.rewards.items()},
            None if self.reader is None else tuple(_read(self.reader, group)),
        )

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        for name, words in self.lexicons.items():
            lexicon.add(name, words)

    @functools.cached_property
    def _scheduled(self) -> Coefficients:
        return Coefficients([c for function in self.rewards.values() for c in coefficients_in(function)])


def _read(reader: TextReader, group: RolloutGroup) -> Iterator[ReadText]:
    for index, rollout in enumerate(group.rollouts):
        if not reader.alignment.reads(rollout.sampled_ids, rollout.text):
            raise ValueError("the tokens of a completion read differently here")
        yield reader.read(group, index)


def can_leave(function: Callable[..., Any]) -> bool:
    """Whether another process can evaluate a reward: a plain function of a module, as are the functions among its options.

    Objects, bound methods and closures may have a state that is this process's own; what an asynchronous one awaits may belong to this
    process's event loop; what uses torch may hold a model.
    """
    try:
        pickle.dumps(function)
    except Exception:  # pickle raises what the objects raise
        return False
    return all(map(_is_plain, _functions(function)))


def _functions(function: Any) -> Iterator[Any]:
    """A function and those among its options."""
    if isinstance(function, functools.partial):
        for inner in (function.func, *function.args, *function.keywords.values()):
            if callable(inner):
                yield from _functions(inner)
    else:
        yield function


def _is_plain(function: Any) -> bool:
    return (
        isinstance(function, FunctionType)
        and function.__closure__ is None
        and not inspect.iscoroutinefunction(function)
        and not inspect.isasyncgenfunction(function)
        and function.__module__ != "__main__"
        and function.__module__ in sys.modules
        and LIBRARIES_OF_MODELS.isdisjoint(_used_by(function.__module__))
    )


def _used_by(name: str) -> set[str]:
    """What a module uses, and what those modules use that it takes something from and that lie in the same package at the top."""
    found, seen, left = set[str](), set[str](), [name]
    while left:
        module = left.pop()
        if module in sys.modules and module not in seen:
            seen.add(module)
            used = set(_names(sys.modules[module]))
            found.update(full.partition(".")[0] for full in used)
            left += [full for full in used if full.partition(".")[0] == name.partition(".")[0]]
    return found


def _names(module: ModuleType) -> Iterator[str]:
    """Modules that a module's objects come from, and names in the code of its functions, where they may import."""
    for value in vars(module).values():
        origin = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(origin, str):
            yield origin
        for function in [value, *(vars(value).values() if isinstance(value, type) else ())]:
            if isinstance(function, FunctionType):
                yield from _names_in(function.__code__)


def _names_in(code: CodeType) -> Iterator[str]:
    """Of a function and of those inside of it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
