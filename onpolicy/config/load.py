"""How a file plus overrides becomes a ``Config``: merged onto the defaults, with every key and type checked.

Loading a config imports no torch and touches no model.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onpolicy.config.merge import merged, reason
from onpolicy.config.problems import Problems, collected
from onpolicy.config.renamed import renamed_key
from onpolicy.config.schema import SHARED_FIELDS, Config
from onpolicy.config.shipped import find_config
from onpolicy.config.yaml_io import leftovers, read_value, read_yaml, without_functions
from onpolicy.utils.errors import ConfigError, suggest

ConfigSource = str | Path | Mapping[str, Any] | Config
"""A YAML file, the name of a shipped config, a mapping of the same form, or a config that was loaded before."""


def load(source: ConfigSource, overrides: Sequence[str] = (), problems: Problems | None = None) -> Config:
    """Reads a config and applies ``a.b=value`` overrides (``objective[0].weight=2`` reaches into lists).

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
            raw = without_functions(raw, found)
        return build(raw, found)


def _raw(source: ConfigSource, problems: Problems) -> DictConfig:
    if isinstance(source, str | Path):
        return read_yaml(find_config(source), problems=problems)
    return OmegaConf.create(dataclasses.asdict(source) if isinstance(source, Config) else dict(source))


def build(raw: DictConfig | Mapping[str, Any], problems: Problems | None = None) -> Config:
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


def _built(raw: DictConfig | Mapping[str, Any], problems: Problems) -> Config:
    plain: Any = OmegaConf.to_container(raw, resolve=False) if isinstance(raw, DictConfig) else dict(raw)
    given = without_functions(OmegaConf.create(plain), problems)
    _drop_unknown(given, Config, "", problems)
    # a named section replaces its default whole: options of one plug-in mean nothing to another
    schema = OmegaConf.structured(Config)
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


def _override(raw: DictConfig, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value")
    try:
        OmegaConf.update(raw, key, read_value(value), merge=False, force_add=True)
    except (OmegaConfBaseException, yaml.YAMLError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"override {override!r}: {str(error).splitlines()[0]}") from error


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
        hint = suggest(str(name), fields) or (f" There is {', '.join(elsewhere)}." if elsewhere else "")
        renamed = renamed_key(key, OmegaConf.to_container(raw, resolve=False)[name])  # type: ignore[index, call-overload]
        raise ConfigError(renamed or f"{key}: unknown key.{hint} Known here: {', '.join(fields)}.")
    make = fields[str(name)].default_factory
    if make is dataclasses.MISSING:
        return
    kind, expected = (ListConfig, "a list") if isinstance(make(), list) else (DictConfig, "keys and values")
    try:
        value = raw[name]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {reason(error)}") from error
    if not isinstance(value, kind):
        raise ConfigError(f"{key}: got {value!r}, expected {expected}.")


def _all_keys() -> Iterator[str]:
    for f in dataclasses.fields(Config):
        settings = f.default_factory if dataclasses.is_dataclass(f.default_factory) else SHARED_FIELDS.get(f.name)
        yield from [f"{f.name}.{sub.name}" for sub in dataclasses.fields(settings)] if settings else [f.name]


def to_yaml(config: Config, sections: Sequence[str] | None = None) -> str:
    """The config as YAML, defaults included; whole, or some of its sections."""
    whole = OmegaConf.structured(config)
    return OmegaConf.to_yaml(whole if sections is None else OmegaConf.masked_copy(whole, list(sections)))
