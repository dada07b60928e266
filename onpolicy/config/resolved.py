"""A resolved config: every name found, every option checked; and what other packages ask of it."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onpolicy.config.registry import Plugin, defaults_and
from onpolicy.config.schedules import Coefficient, coefficients_in
from onpolicy.config.schema import Config
from onpolicy.rewards.uncertainty import SPACING


@dataclass(frozen=True)
class Section:
    """A plug-in, and the settings that every plug-in of its kind has."""

    plugin: Plugin
    settings: Any


@dataclass(frozen=True)
class ResolvedConfig:
    """A config with every name found and every option checked."""

    config: Config
    data: Section
    generator: Section
    rewards: tuple[Section, ...]
    contexts: Mapping[str, Plugin]
    spans: Mapping[str, Plugin]
    teacher: Plugin
    credit: Plugin
    objective: tuple[Section, ...]
    trainer: Section
    guards: tuple[Section, ...]
    trackers: tuple[Plugin, ...]
    eval_sets: Mapping[str, Section]
    graders: tuple[Plugin, ...]
    privileged_rollouts: Section | None = None
    """What the model reads when it samples further rollouts for groups that failed whole; None where none are sampled."""
    environment: Section | None = None
    """What answers in rollouts of several turns; None where there is none."""

    @property
    def coefficients(self) -> list[Coefficient]:
        """Every scheduled number of the run."""
        plugins = [*self.contexts.values(), *self.spans.values(), self.teacher, self.credit]
        plugins += [*(r.plugin for r in self.rewards), *self.loss_plugins]
        found = [s.settings.weight for s in (*self.rewards, *self.objective)] + [p.bind() for p in plugins]
        return [c for value in found for c in coefficients_in(value)]

    @property
    def querying_plugins(self) -> dict[str, Plugin]:
        """What may ask the model during a step: contexts, span finders, and what samples privileged rollouts; by their keys."""
        found = {f"contexts.{k}": p for k, p in self.contexts.items()} | {
            f"spans.{k}": p for k, p in self.spans.items()
        }
        asking = {
            key: plugin
            for key, plugin in found.items()
            if any(map(inspect.isgeneratorfunction, plug_ins_in(plugin.function, plugin.options)))
        }
        privileged = self.privileged_rollouts
        return asking if privileged is None else asking | {privileged.plugin.key: privileged.plugin}

    @property
    def ref_rate_readers(self) -> list[Plugin]:
        """Rewards that compare with the reference model's own rate."""
        return [r.plugin for r in self.rewards if "ref_rate" in inspect.signature(r.plugin.function).parameters]

    @property
    def ref_spacing(self) -> int:
        """Words that must lie between two markers of the reference model for both to count: as the rewards that compare with it."""
        return next((int(value) for p in self.ref_rate_readers for value in mentioned(p, "spacing")), SPACING)

    @property
    def lexicons(self) -> tuple[str, ...]:
        """The lexicons whose markers' probability the objective reads."""
        return tuple(dict.fromkeys(value for p in self.loss_plugins for value in mentioned(p, "lexicon")))

    @property
    def loss_plugins(self) -> list[Plugin]:
        """The terms, and what selects their tokens."""
        return [plugin for term in self.objective for plugin in term_plugins(term)]

    def temperature_of(self, term: Section) -> Any:
        """What a term divides logits by: a number, or a schedule where somebody wrote one."""
        return dict(defaults_and(term.plugin.function, term.plugin.options)).get("temperature", 1.0)

    @property
    def tempered_old_readers(self) -> list[Plugin]:
        """Terms at a temperature other than 1 that read log-probabilities of the start of a step, which are kept at 1."""
        return [
            term.plugin
            for term in self.objective
            if self.temperature_of(term) != 1
            and any(
                getattr(function, "reads_old", False)
                for plugin in term_plugins(term)
                for function in plug_ins_in(plugin.function, plugin.options)
            )
        ]

    @property
    def correctness_name(self) -> str:
        """The reward that decides which answers are correct: ``correctness``, else the first one; "" without rewards."""
        return self.config.correctness or next((r.plugin.name for r in self.rewards), "")

    @property
    def term_names(self) -> list[str]:
        """The terms' names in metrics: the plug-in's, with a number where a plug-in is used again."""
        return unique_names([t.plugin.name.rpartition(":")[2] for t in self.objective])


def unique_names(names: Sequence[str]) -> list[str]:
    """``distill, distill`` -> ``distill, distill_2``."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result


def term_plugins(term: Section) -> list[Plugin]:
    """A term's own plug-in, and the one that selects its tokens."""
    return [term.plugin] if term.settings.select is None else [term.plugin, term.settings.select]


def contexts_of(plugin: Plugin) -> dict[str, str]:
    """The contexts that a term and the plug-ins among its options read, each with the key of the option that names it."""
    return {v: key for option in ("_contexts", "_context", "context") for v, key in mentioned(plugin, option).items()}


def mentioned(plugin: Plugin, option: str) -> dict[str, str]:
    """The values of an option, given or by default, of a plug-in and of those among its options: value -> full key.

    An option that begins with an underscore stands for all names that end with it; a list counts by its items.
    """
    found: dict[str, str] = {}
    for key, value in _all_options(plugin.function, plugin.options, plugin.key):
        name = key.rpartition(".")[2]
        if name == option or (option.startswith("_") and name.endswith(option)):
            found |= dict.fromkeys(value if isinstance(value, list | tuple) else [value], key)
    return found


def plug_ins_in(function: Callable[..., Any], options: Mapping[str, Any]) -> Iterator[Callable[..., Any]]:
    """A plug-in and all that stand among its options, given or by default."""
    yield function
    for _, value in defaults_and(function, options):
        if callable(value):
            yield from plug_ins_in(*unbound(value))


def unbound(value: Callable[..., Any]) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    """A plug-in among the options of another, and its own options."""
    return (value.func, value.keywords) if isinstance(value, functools.partial) else (value, {})


def _all_options(function: Callable[..., Any], options: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    for name, value in defaults_and(function, options):
        yield f"{key}.{name}", value
        if callable(value):
            yield from _all_options(*unbound(value), f"{key}.{name}")
