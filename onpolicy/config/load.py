"""How a file plus overrides becomes a ``Config``: merged onto the defaults, with every key and type checked.

Loading a config imports no torch and touches no model.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onpolicy.config.keys import find_value, parts, put_value
from onpolicy.config.merge import OBJECTS, UNKNOWN, merged, reason, schema_of
from onpolicy.config.other_names import name_elsewhere
from onpolicy.config.plain import Plain, valued
from onpolicy.config.problems import Problems, collected
from onpolicy.config.renamed import renamed_key
from onpolicy.config.schema import PLUGIN_SECTIONS, SHARED_FIELDS, Config
from onpolicy.config.shipped import config_argument, find_config
from onpolicy.config.values import as_written
from onpolicy.config.yaml_io import leftovers, mapped, read_value, read_yaml, without_functions
from onpolicy.utils.errors import ConfigError, suggest

REFERENCE = re.compile(r"\$\{([\w.\[\]]+)\}")
"""A value that is another one's."""
LISTS: dict[str, Callable[[], list[Any]]] = {
    f.name: f.default_factory
    for f in dataclasses.fields(Config)
    if f.default_factory is not dataclasses.MISSING and isinstance(f.default_factory(), list)
}
"""Sections that are lists -> makes their defaults."""
ConfigSource = str | Path | Mapping[str, Any] | Config
"""A YAML file, the name of a shipped config, a mapping of the same form, or a config that was loaded before."""


def load(source: ConfigSource, overrides: Sequence[str] = (), problems: Problems | None = None) -> Config:
    """Reads a config and applies ``a.b=value`` overrides (``objective[0].weight=2`` reaches into lists).

    Where an option is text, it is the text as it stands in file and override. Options of plug-ins are known once their plug-ins are:
    until ``resolve`` such a value may be a ``Plain``, which keeps its text.

    Args:
        source: a file, the name of a shipped config (``sdpo``, ``lab/sdpo``), a mapping, or a config
        overrides: ``key=value``, applied in their order
        problems: where problems are reported; what is sound is then returned

    Raises:
        ConfigError: no such file, not YAML, unknown key, wrong type, missing value, a call such as ``${oc.env:HOME}``;
            all of them, if ``problems`` is not given.
    """
    with collected(problems) as found:
        raw = _raw(source, found)
        for override in overrides:
            with found.collect():
                _override(raw, override)
            raw = _in_full(without_functions(raw, found))
        return build(raw, found)


def _raw(source: ConfigSource, problems: Problems) -> dict[str, Any]:
    if isinstance(source, str | Path):
        raw = read_yaml(path := find_config(source), problems=problems)
        if raw.keys() >= {"config", "arms"}:
            name = config_argument(path)
            raise ConfigError(f"{name!r}: this is a grid: onpolicy sweep {name}")
        return _in_full(raw)
    tree = dataclasses.asdict(source) if isinstance(source, Config) else dict(source)
    return _in_full(mapped(tree, "", lambda key, value: value))


def _in_full(raw: dict[str, Any]) -> dict[str, Any]:
    """Sections of a plug-in that are given by its name alone, e.g. ``teacher: frozen``, as mappings."""
    alone = {key: raw[key] for key in PLUGIN_SECTIONS if isinstance(raw.get(key), str) and "${" not in raw[key]}
    return raw | {key: {"name": name} for key, name in alone.items()}


def build(raw: Mapping[str, Any], problems: Problems | None = None) -> Config:
    """Merges onto the defaults; unknown keys and wrong types are refused with their full key.

    Raises:
        ConfigError: with every problem, if ``problems`` is not given.
    """
    with collected(problems) as found:
        try:
            return _built(raw, found)
        except OmegaConfBaseException as error:
            found.add(f"{error.full_key}: {reason(error)}")
        except RecursionError:
            found.add("the config is nested too deeply, or a value refers to itself")
        found.refuse()
        raise AssertionError


def _built(raw: Mapping[str, Any], problems: Problems) -> Config:
    plain = _in_full(_followed(without_functions(dict(raw), problems)))
    typed = {name: _typed(str(name), value, problems) for name, value in plain.items()}
    given = OmegaConf.create(typed, flags=OBJECTS)
    _drop_unknown(given, Config, "", problems)
    # a named section replaces its default whole: options of one plug-in mean nothing to another
    schema = copy.deepcopy(schema_of(Config))
    for key in given:
        with contextlib.suppress(OmegaConfBaseException):  # the merge reports it
            if OmegaConf.is_dict(given[key]) and "name" in given[key]:
                schema[key] = {}
    tree = OmegaConf.to_container(given, resolve=False)
    assert isinstance(tree, dict)
    config = merged(schema, tree, "", problems)  # type: ignore[arg-type]
    if config is None:
        problems.refuse()
    assert isinstance(config, Config)
    problems.add(*leftovers(dataclasses.asdict(config)))
    return config


def _typed(name: str, value: Any, problems: Problems) -> Any:
    """A section with text where its settings have text."""
    with problems.collect():
        # what refers to other values is resolved with the config, before plug-ins say what is text
        return mapped(as_written({name: value}, Config, "")[name], name, _opened)
    return UNKNOWN


def _opened(key: str, value: Any) -> Any:
    if not isinstance(value, Plain) or "${" not in str(value):
        return value
    return str(value) if value.problem is not None else value.value(key)


def _followed(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with what ``${section.option}`` leads to in place of it, where that is a ``Plain``, or a setting's default."""

    def followed(key: str, value: Any, limit: int = 9) -> Any:
        if limit and isinstance(value, str) and (reference := REFERENCE.fullmatch(value)):
            if (default := _default(tree, reference[1])) is not None:
                return default[0]
            there = followed(key, find_value(tree, reference[1]), limit - 1)
            return there if isinstance(there, Plain) else value
        return value

    return mapped(tree, "", followed)  # type: ignore[no-any-return]


def _default(tree: Mapping[str, Any], key: str) -> tuple[Any] | None:
    """The default of a shared setting of a section, e.g. ``data.coverage``, that the config does not write; None for any other key."""
    path = parts(key)
    if len(path) < 2 or path[0] not in PLUGIN_SECTIONS or path[0] not in SHARED_FIELDS:
        return None
    value, written, missing = dataclasses.asdict(SHARED_FIELDS[str(path[0])]()), tree.get(str(path[0])), False
    for name in path[1:]:
        if not isinstance(value, dict) or name not in value:
            return None
        missing = not isinstance(written, Mapping) or name not in written
        value, written = value[name], None if missing or written is None else written[name]
    return (value,) if missing else None


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value in one word, e.g. steps=10")
    match parts(key):
        case [str(section), int(), *_] if section in LISTS:  # a list that is there by default
            raw.setdefault(section, LISTS[section]())
    try:
        put_value(raw, key, read_value(value))
    except (ValueError, IndexError) as error:
        raise ConfigError(f"override {override!r}: {error}") from error


def _drop_unknown(raw: DictConfig, schema: type, prefix: str, problems: Problems) -> None:
    """Removes keys that the schema does not have, and values that are no sections where it has sections."""
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for name in list(raw):
        with problems.collect():
            _refuse_unknown(raw, name, fields, prefix)
            make = fields[str(name)].default_factory
            if isinstance(make, type) and dataclasses.is_dataclass(make):
                _drop_unknown(raw[name], make, f"{prefix}{name}.", problems)
            continue
        del raw[name]


def _refuse_unknown(raw: DictConfig, name: Any, fields: Mapping[str, dataclasses.Field[Any]], prefix: str) -> None:
    key = f"{prefix}{name}"
    if str(name) not in fields:
        elsewhere = [k for k in _all_keys() if k.rpartition(".")[2] == str(name)]
        value = OmegaConf.to_container(raw, resolve=False)[name]  # type: ignore[index, call-overload]
        hint = (
            name_elsewhere(key, value)
            or suggest(str(name), fields)
            or (f" There is {', '.join(elsewhere)}." if elsewhere else "")
        )
        renamed = renamed_key(key, value)
        raise ConfigError(renamed or f"{key}: unknown key.{hint} Known here: {', '.join(fields)}.")
    make = fields[str(name)].default_factory
    if make is dataclasses.MISSING:
        return
    is_list = isinstance(make(), list)
    kind, expected = (ListConfig, "a list") if is_list else (DictConfig, "keys and values")
    try:
        value = raw[name]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {reason(error)}") from error
    if not isinstance(value, kind):
        raise ConfigError(f"{key}: got {value!r}, expected {expected}{_example(key, value, is_list, make())}.")


def _example(key: str, value: Any, is_list: bool, default: Any) -> str:
    """How a value that stands in place of a list or a section is written there."""
    if is_list:
        return f", e.g. '{key}=[{value}]'"
    inner = [f.name for f in dataclasses.fields(default)] if dataclasses.is_dataclass(default) else []
    return f", e.g. {key}.{inner[0]}={value}" if inner else ""


def _all_keys() -> Iterator[str]:
    for f in dataclasses.fields(Config):
        settings = f.default_factory if dataclasses.is_dataclass(f.default_factory) else SHARED_FIELDS.get(f.name)
        yield from [f"{f.name}.{sub.name}" for sub in dataclasses.fields(settings)] if settings else [f.name]


def to_yaml(config: Config, sections: Sequence[str] | None = None) -> str:
    """The config as YAML, defaults included; whole, or some of its sections."""
    whole = OmegaConf.create(valued(dataclasses.asdict(config), ""))
    return OmegaConf.to_yaml(whole if sections is None else OmegaConf.masked_copy(whole, list(sections)))
