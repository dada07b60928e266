"""From a config to a resolved config: every name found, every option checked, before anything is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from onpolicy.config.checks import CHECKS
from onpolicy.config.load import ConfigSource, load
from onpolicy.config.merge import merged, schema_of
from onpolicy.config.plain import meant
from onpolicy.config.problems import Problems, collected
from onpolicy.config.registry import Plugin, coefficient, is_schedule, options_of, resolve_plugin, stand_in
from onpolicy.config.resolved import ResolvedConfig, Section
from onpolicy.config.schema import INJECTED, SHARED_FIELDS, Config, EvalSetSettings, PrivilegedSettings
from onpolicy.config.settle import settled
from onpolicy.config.values import as_written
from onpolicy.config.yaml_io import file_name
from onpolicy.rewards import lexicon
from onpolicy.utils.errors import suggest
from onpolicy.utils.lacks import what_instead

SCHEDULED = ("weight",)
"""Shared settings that a schedule may stand for."""


def load_resolved(source: ConfigSource, overrides: Sequence[str] = ()) -> ResolvedConfig:
    """``load`` and ``resolve`` in one, so that the problems of both are reported together.

    Raises:
        ConfigError: with every problem of the config.
    """
    with collected(None) as problems:
        return resolve(load(source, overrides, problems), problems)


def resolve(config: Config, problems: Problems | None = None) -> ResolvedConfig:
    """Finds every plug-in the config names and checks what can be checked without a model.

    The config of the result has each value as its option takes it: ``1e-6`` as that number, a commit ``0123456`` as text.

    Args:
        problems: where problems are reported; stand-ins then take the place of what is not sound

    Raises:
        ConfigError: unknown names or options, values out of range, sections that contradict each other; all of them, if
            ``problems`` is not given.
    """
    with collected(problems) as found:
        if not config.data:
            found.add("data: missing. Name a source, e.g. data.name=file data.path=problems.jsonl")
        if not config.objective:
            found.add(
                "objective: empty. Name at least one term, e.g. objective: [{name: distill, divergence: forward_kl}]"
            )
        resolved = _sections(config, found)
        for check in CHECKS:
            found.add(*check(resolved, found))
        return dataclasses.replace(resolved, config=settled(resolved))


def _sections(config: Config, problems: Problems) -> ResolvedConfig:
    def plugin(kind: str, spec: Any, key: str) -> Plugin:
        return resolve_plugin(kind, spec, key, problems=problems)

    lowered, guards = lowered_keys(config), [_with_lexicon(spec, config.epistemic.lexicon) for spec in config.guards]
    return ResolvedConfig(
        config=config,
        data=section("data", config.data, "data", problems=problems),
        generator=section("generator", config.generator, "generator", problems=problems),
        rewards=reward_sections(config, problems),
        contexts={name: plugin("context", spec, f"contexts.{name}") for name, spec in config.contexts.items()},
        spans={name: plugin("span", spec, f"spans.{name}") for name, spec in config.spans.items()},
        teacher=plugin("teacher", config.teacher, "teacher"),
        credit=plugin("credit", config.credit, "credit"),
        objective=tuple(_term(spec, f"objective[{i}]", lowered, problems) for i, spec in enumerate(config.objective)),
        trainer=section("trainer", config.trainer, "trainer", problems=problems),
        guards=tuple(section("guard", spec, f"guards[{i}]", problems=problems) for i, spec in enumerate(guards)),
        trackers=tuple(plugin("tracker", s, f"logging.trackers[{i}]") for i, s in enumerate(config.logging.trackers)),
        eval_sets={name: _eval_set(name, spec, problems) for name, spec in config.eval.sets.items()},
        privileged_rollouts=_privileged(config, problems),
        environment=section("environment", config.environment, "environment", problems=problems)
        if config.environment
        else None,
        graders=tuple(plugin("reward", s, f"eval.graders[{i}]") for i, s in enumerate(config.eval.graders)),
    )


def reward_sections(config: Config, problems: Problems | None = None) -> tuple[Section, ...]:
    """The rewards, with the lexicons they may count; imports nothing else that the config names."""
    with collected(problems) as found:
        for name, words in config.custom_lexicons.items():
            try:
                words = as_written(words, list[str], f"custom_lexicons.{name}")
                if not isinstance(words, list):
                    raise ValueError(f"got {words!r}, expected a list of words or phrases")
                lexicon.add(name, words)
            except ValueError as error:
                found.add(f"custom_lexicons.{name}: {error}")
        lowered = lowered_keys(config)
        specs = enumerate(config.rewards)
        return tuple(section("reward", s, f"rewards[{i}]", lowered=lowered, problems=found) for i, s in specs)


def lowered_keys(config: Config) -> list[str]:
    """Keys of the numbers that guards may lower."""
    specs = [meant(spec, f"guards[{i}]") for i, spec in enumerate(config.guards)]
    return [str(spec["target"]) for spec in specs if isinstance(spec, Mapping) and spec.get("target")]


def _with_lexicon(guard: Any, lexicon_name: str) -> Any:
    """A guard with the name of ``epistemic.lexicon`` where its metric says ``{lexicon}``."""
    if not isinstance(guard, Mapping) or not isinstance(guard.get("metric"), str):
        return guard
    return {**guard, "metric": guard["metric"].replace("{lexicon}", lexicon_name)}


def section(
    kind: str,
    spec: Any,
    key: str,
    settings: type | None = None,
    lowered: Sequence[str] = (),
    problems: Problems | None = None,
) -> Section:
    """Splits a section into the settings that every plug-in of its kind has and the plug-in's own options, and checks both.

    Args:
        settings: the dataclass of the shared settings, if not that of the kind
        lowered: keys of numbers that a guard may lower
        problems: where problems are reported
    """
    settings = settings or SHARED_FIELDS[kind]
    names = {f.name for f in dataclasses.fields(settings)}
    with collected(problems) as found:
        with found.collect():
            spec = meant(spec, key)
        if not isinstance(spec, str | Mapping):
            found.add(f"{key}: expected a name or a mapping with 'name' and options, got {spec!r}")
            return Section(stand_in(kind, "", key), settings())
        given = spec if isinstance(spec, Mapping) else {}
        shared = _settings(settings, {k: v for k, v in given.items() if k in names}, key, lowered, found)
        rest = {k: v for k, v in given.items() if k not in names} if isinstance(spec, Mapping) else spec
        own = Problems()
        plugin = resolve_plugin(kind, rest, key, supplied=INJECTED.get(kind, ()), problems=own)
        for text in (text for error in own.errors for text in error.problems):
            found.add(_with_settings(text, plugin, names))
        return Section(plugin=plugin, settings=shared)


def _settings(settings: type, given: Mapping[str, Any], key: str, lowered: Sequence[str], problems: Problems) -> Any:
    scheduled: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for name, value in given.items():
        with problems.collect():
            if name in SCHEDULED and is_schedule(spec := meant(value, f"{key}.{name}")):
                scheduled[name] = coefficient(spec, f"{key}.{name}")
            else:
                plain |= as_written({name: value}, settings, key)
    found = merged(schema_of(settings), plain, f"{key}.", problems) or settings()
    for name in SCHEDULED:
        if f"{key}.{name}" in lowered and name not in scheduled:
            scheduled[name] = coefficient({"name": "constant", "value": getattr(found, name)}, f"{key}.{name}")
    return dataclasses.replace(found, **scheduled)


def _with_settings(problem: str, plugin: Plugin, names: set[str]) -> str:
    """A misspelled setting looks like an unknown option of the plug-in: the message then names the settings, too."""
    option = problem.partition(": ")[0].removeprefix(f"{plugin.key}.")
    known = option in options_of(plugin.function) or what_instead(plugin.function, option)
    if known or not suggest(option, names):
        return problem
    return f"{problem} Fields of every {plugin.kind}: {', '.join(sorted(names))}.{suggest(option, names)}"


def _term(spec: Any, key: str, lowered: Sequence[str], problems: Problems) -> Section:
    found = section("term", spec, key, lowered=lowered, problems=problems)
    route = resolve_plugin("route", found.settings.route, f"{key}.route", problems=problems).bind()
    select = found.settings.select
    if select is not None:
        select = resolve_plugin("token_weights", select, f"{key}.select", problems=problems)
    return Section(found.plugin, dataclasses.replace(found.settings, route=route, select=select))


def _privileged(config: Config, problems: Problems) -> Section | None:
    if not config.privileged_rollouts:
        return None
    return section("context", config.privileged_rollouts, "privileged_rollouts", PrivilegedSettings, problems=problems)


def _eval_set(name: str, spec: Any, problems: Problems) -> Section:
    with problems.collect():
        file_name(name, f"eval.sets.{name}")
    return section("data", spec, f"eval.sets.{name}", EvalSetSettings, problems=problems)
