"""A config with each value as its option takes it, so that what is saved, printed and compared is what the run has."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from onpolicy.config.plain import Plain, text_of
from onpolicy.config.registry import Plugin
from onpolicy.config.resolved import ResolvedConfig, Section, unbound
from onpolicy.config.schedules import Coefficient
from onpolicy.config.schema import Config
from onpolicy.config.values import as_written

UNKNOWN = object()
"""In place of what an option became, where nothing is known of it."""


def settled(resolved: ResolvedConfig) -> Config:
    """The config, as it was given, with the values that its plug-ins and settings were made of."""
    config = resolved.config
    privileged, environment = resolved.privileged_rollouts, resolved.environment
    return dataclasses.replace(
        config,
        data=_spec(config.data, resolved.data),
        generator=_spec(config.generator, resolved.generator),
        environment=_spec(config.environment, environment) if environment else config.environment,
        rewards=_specs(config.rewards, resolved.rewards),
        contexts=_table(config.contexts, resolved.contexts),
        privileged_rollouts=_spec(config.privileged_rollouts, privileged) if privileged else config.privileged_rollouts,
        custom_lexicons=as_written(config.custom_lexicons, dict[str, list[str]], "custom_lexicons"),
        spans=_table(config.spans, resolved.spans),
        teacher=_spec(config.teacher, resolved.teacher),
        credit=_spec(config.credit, resolved.credit),
        objective=_specs(config.objective, resolved.objective),
        trainer=_spec(config.trainer, resolved.trainer),
        eval=dataclasses.replace(
            config.eval,
            sets=_table(config.eval.sets, resolved.eval_sets),
            graders=_specs(config.eval.graders, resolved.graders),
        ),
        guards=_specs(config.guards, resolved.guards),
        logging=dataclasses.replace(config.logging, trackers=_specs(config.logging.trackers, resolved.trackers)),
    )


def _specs(given: Sequence[Any], found: Sequence[Section | Plugin]) -> list[Any]:
    return [_spec(spec, each) for spec, each in zip(given, found, strict=True)]


def _table(given: Mapping[str, Any], found: Mapping[str, Section | Plugin]) -> dict[str, Any]:
    return {name: _spec(spec, found[name]) for name, spec in given.items()}


def _spec(given: Any, found: Section | Plugin) -> Any:
    plugin, settings = (found.plugin, vars(found.settings)) if isinstance(found, Section) else (found, {})
    value = _settled(given, settings | dict(plugin.options))
    if not plugin.chosen_because:
        return value
    return {**value, "name": plugin.name} if isinstance(value, Mapping) else plugin.name


def _settled(given: Any, became: Any) -> Any:
    """A value of the config, nested ones too, as the option has it that was made of it."""
    if isinstance(became, Plugin):
        became = became.options
    elif isinstance(became, Coefficient):
        became = unbound(became.schedule)[1]
    elif isinstance(became, functools.partial):
        became = became.keywords
    elif dataclasses.is_dataclass(became):
        became = vars(became)
    if isinstance(given, Plain):
        if isinstance(became, str | int | float | None):
            return became
        return str(given) if given.problem is not None else _settled(given.value(""), became)
    if isinstance(given, Mapping):
        inner = became if isinstance(became, Mapping) else {}
        return {
            name: value if name == "name" else _settled(value, inner.get(name, UNKNOWN))
            for name, value in given.items()
        }
    if isinstance(given, list):
        items = became if isinstance(became, list) and len(became) == len(given) else [UNKNOWN] * len(given)
        return [_settled(value, item) for value, item in zip(given, items, strict=True)]
    if isinstance(given, bool) and isinstance(became, str):
        return text_of(given)
    alike = isinstance(given, str) == isinstance(became, str)
    return given if alike or not isinstance(became, str | int | float) else became
