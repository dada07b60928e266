"""A config with everything spelled out: what decides a run, so that two runs can be told apart by their settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from onpolicy.config.builtins import TABLES
from onpolicy.config.registry import Plugin, defaults_and
from onpolicy.config.resolved import ResolvedConfig, Section, unbound
from onpolicy.config.schedules import Coefficient
from onpolicy.config.schema import INJECTED

LISTS = {"rewards": "reward", "objective": "term", "guards": "guard"}
TABLES_OF = {"contexts": "context", "spans": "span"}


def canonicalize(resolved: ResolvedConfig) -> dict[str, Any]:
    """Nested dictionaries and lists: every default of every plug-in filled in, each plug-in under its shortest name, numbers as numbers."""
    tree = dataclasses.asdict(resolved.config)
    for key in ("data", "generator", "trainer"):
        tree[key] = _section(key, getattr(resolved, key))
    for key in ("teacher", "credit"):
        tree[key] = _plugin(key, getattr(resolved, key))
    for key, kind in LISTS.items():
        tree[key] = [_section(kind, section) for section in getattr(resolved, key)]
    for key, kind in TABLES_OF.items():
        tree[key] = {name: _plugin(kind, plugin) for name, plugin in getattr(resolved, key).items()}
    tree["eval"]["sets"] = {name: _section("data", section) for name, section in resolved.eval_sets.items()}
    tree["eval"]["graders"] = [_plugin("reward", plugin) for plugin in resolved.graders]
    return tree


def _section(kind: str, section: Section) -> dict[str, Any]:
    settings = {name: _value(name, value) for name, value in vars(section.settings).items()}
    return {**settings, **_plugin(kind, section.plugin)}


def _plugin(kind: str, plugin: Plugin) -> dict[str, Any]:
    return _function(kind, plugin.function, plugin.options)


def _function(kind: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    name = f"{function.__module__}:{getattr(function, '__qualname__', '?')}"
    name = next((short for short, target in TABLES[kind].items() if target == name), name)
    own = {k: _value(k, v) for k, v in defaults_and(function, options) if k not in INJECTED.get(kind, ())}
    return {"name": name, **own}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, Coefficient):
        return _function("schedule", *unbound(value.schedule))
    if callable(value) and name in TABLES:
        return _function(name, *unbound(value))
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
