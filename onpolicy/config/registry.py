"""Names to functions: the one way in which a config reaches code, ours or a user's.

A plug-in is a plain function. Its positional parameters are what the framework passes, its keyword-only parameters
are its options: **the signature is the schema**. Built-ins stand in ``onpolicy.config.builtins``; anything else is written
``module:function`` in the config and imported when the config is checked. Nothing registers itself, so every process that
can import the module finds the plug-in.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from onpolicy.config.builtins import TABLES
from onpolicy.config.other_names import name_elsewhere
from onpolicy.config.own_code import own_function, why_not_imported
from onpolicy.config.plain import meant
from onpolicy.config.problems import Problems, collected
from onpolicy.config.renamed import renamed_key, renamed_name
from onpolicy.config.schedules import Bound, Coefficient
from onpolicy.config.values import is_number, type_name, typed
from onpolicy.utils.choice import Choice
from onpolicy.utils.errors import ConfigError, nearest, suggest
from onpolicy.utils.lacks import what_instead


@dataclass(frozen=True)
class Plugin:
    """A plug-in found and checked."""

    kind: str
    name: str
    key: str
    """Where it stands in the config, e.g. ``objective[0].divergence``."""
    function: Callable[..., Any]
    options: Mapping[str, Any]
    """Those given in the config, converted; nested plug-ins already bound."""
    chosen_because: str = ""
    """Why it is this one, where the config leaves the choice to a plug-in such as ``auto``."""

    @property
    def with_reason(self) -> str:
        """The name, and why it is this one where that was left open."""
        return f"{self.name} (chosen here: {self.chosen_because})" if self.chosen_because else self.name

    @property
    def found(self) -> bool:
        """False for the stand-in of a plug-in that could not be found: it lets the rest of the config be checked."""
        return self.function is not _not_found

    def bind(self) -> Callable[..., Any]:
        """The function with its options filled in; of a module-level function, so it can be pickled."""
        return Bound(self.function, **self.options) if self.options else self.function


def _not_found(*arguments: Any) -> None:
    """Stands for the function of a plug-in that could not be found."""


def stand_in(kind: str, spec: Any, key: str) -> Plugin:
    """A plug-in without a function, under the name that the config gives."""
    name = spec.get("name") if isinstance(spec, Mapping) else spec
    return Plugin(kind, str(name), key, _not_found, {})


def find_function(kind: str, name: str, key: str) -> Callable[..., Any]:
    """The function that a name stands for.

    Raises:
        ConfigError: the name is neither in the table of this kind nor an importable ``module:function``.
    """
    table = TABLES[kind]
    target = table.get(name, name)
    if ":" not in target:
        likely = _as_data(kind, name, key) or suggest(name, table)
        known = f"{likely} Known: {', '.join(sorted(table))}. For your own, write 'module:function'."
        raise ConfigError(f"{key}: unknown {kind} {name!r}.{renamed_name(kind, name) or own_function(name) or known}")
    module_name, _, attribute = target.partition(":")
    names_file = module_name.endswith(".py")
    if names_file or not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ConfigError(f"{key}: got {name!r}, expected 'module:function' as Python writes them.{own_function(name)}")
    try:
        module = importlib.import_module(module_name) if name in table else _import_users(module_name)
    except (Exception, SystemExit) as error:  # of a user's module anything
        if name in table and not isinstance(error, ImportError):
            raise
        why = why_not_imported(module_name, error) + own_function(name)
        raise ConfigError(f"{key}: cannot import {module_name!r} for {kind} {name!r}: {why}") from error
    try:
        function = getattr(module, attribute)
    except AttributeError:
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        hint = renamed_name(kind, name) or suggest(attribute, names)
        raise ConfigError(f"{key}: module {module_name!r} has no {attribute!r}.{hint}") from None
    if not callable(function):
        raise ConfigError(f"{key}: {target!r} is a {type(function).__name__}, expected a function")
    return function


def _as_data(kind: str, name: str, key: str) -> str:
    """How to read what a data section gives in place of a source's name."""
    if kind != "data" or not ("/" in name or "." in name):
        return ""
    section, source = key.removesuffix(".name"), "file" if Path(name).suffix or Path(name).exists() else "hub"
    return f" To read it: {section}.name={source} {section}.path={name}."


def _import_users(module_name: str) -> ModuleType:
    """Imports a user's module. The current folder comes first while it is imported: an installed module of the same name must
    not hide the user's own. Afterwards the folder stays last on the path, for what the module imports later."""
    here = str(Path.cwd())
    if here not in sys.path:  # a console script has its own folder there instead
        sys.path.append(here)
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def options_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Keyword-only parameters by name, with annotations resolved to types."""
    target: Any = function.__init__ if inspect.isclass(function) else function
    return {
        name: parameter.replace(annotation=_evaluated(parameter.annotation, getattr(target, "__globals__", {})))
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    """One that exists for type checkers only, or is missing, accepts anything."""
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return eval(annotation, dict(names)) if isinstance(annotation, str) else annotation
    except NameError:
        return Any


def resolve_plugin(
    kind: str, spec: Any, key: str, *, supplied: Iterable[str] = (), problems: Problems | None = None
) -> Plugin:
    """Finds the plug-in that a config entry names and checks its options against its signature.

    Args:
        kind: a key of TABLES
        spec: a bare name or a mapping with ``name`` and options
        key: full key, for messages
        supplied: keyword-only parameters that the framework fills and the config may not
        problems: where problems are reported; the plug-in is then returned with the options that are sound

    Raises:
        ConfigError: unknown name or option, missing option, wrong type; all of them, if ``problems`` is not given.
    """
    with collected(problems) as found:
        with found.collect():
            spec = meant(spec, key)
        name_key = key if isinstance(spec, str) else f"{key}.name"
        if isinstance(spec, str):
            spec = {"name": spec}
        if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
            found.add(
                f"{key}: expected a name or a mapping with 'name' and options, got {spec!r}{_without_colon(spec)}"
            )
            return stand_in(kind, "", key)
        with found.collect():
            name, reason, function = _chosen(kind, spec["name"], name_key)
            known = _signature(function, name, name_key, supplied)
            given = {option: value for option, value in spec.items() if option != "name"}
            options = _checked_options(kind, name, given, known, key, found, reason)
            return Plugin(kind, name, key, function, options, reason)
        return stand_in(kind, spec, key)


def _chosen(kind: str, name: str, key: str) -> tuple[str, str, Callable[..., Any]]:
    """The name, or the one that it leaves the choice to; why it was chosen, and its function."""
    function = find_function(kind, name, key)
    if not getattr(function, "chooses", False):
        return name, "", function
    choice: Choice = function()
    return choice.name, choice.reason, find_function(kind, choice.name, key)


def _without_colon(spec: Any) -> str:
    """What to say of ``module: function``, which YAML takes for a mapping."""
    names = [*next(iter(spec.items()))] if isinstance(spec, Mapping) and len(spec) == 1 else []
    return f'; without a space it is a name: "{":".join(names)}"' if names and all(map(_is_name, names)) else ""


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()


def _signature(
    function: Callable[..., Any], name: str, key: str, supplied: Iterable[str]
) -> dict[str, inspect.Parameter]:
    try:
        inspect.signature(function)
        return {n: p for n, p in options_of(function).items() if n not in set(supplied)}
    except ValueError as error:  # some written in C keep their parameters to themselves
        raise ConfigError(f"{key}: {name!r} has no signature to be read; wrap it in a function.") from error


def _checked_options(
    kind: str,
    name: str,
    given: Mapping[str, Any],
    known: Mapping[str, inspect.Parameter],
    key: str,
    problems: Problems,
    reason: str,
) -> dict[str, Any]:
    """The options that are sound, converted; the others are reported. ``reason`` says why the plug-in was chosen, if it was."""
    options: dict[str, Any] = {}
    meant: set[str | None] = set(given)
    for option, value in given.items():
        if option in known:
            with problems.collect():
                options[option] = _convert(value, known[option].annotation, f"{key}.{option}", problems)
            continue
        meant |= {nearest(option, known)}
        problems.add(renamed_key(f"{key}.{option}", value) or _unknown_option(kind, name, option, known, key, reason))
    for option, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and option not in meant:
            known_ones = ", ".join(sorted(TABLES.get(option, ())))
            kind = f"one of {known_ones}, or 'module:function'" if known_ones else type_name(parameter.annotation)
            problems.add(f"{key}.{option}: missing; {name!r} needs it ({kind}).")
    return options


def _unknown_option(
    kind: str, name: str, option: str, known: Mapping[str, inspect.Parameter], key: str, reason: str
) -> str:
    if instead := what_instead(find_function(kind, name, key), option):
        return f"{key}.{option}: {name!r} has no such option: {instead}."
    choices = ", ".join(sorted(known)) or "none"
    others = _with_option(kind, name, option)
    hint = ("" if others else name_elsewhere(f"{key}.{option}")) or ("" if others else suggest(option, known))
    chosen = f" (chosen here: {reason})" if reason else ""
    message = f"{key}.{option}: {name!r}{chosen} has no such option.{hint} Its options: {choices}."
    if not others:
        return message
    if reason:
        return f"{message} {' and '.join(map(repr, others))} has it."
    needed = (f", {n}: …" for n, p in known.items() if p.default is inspect.Parameter.empty)
    return (
        f"{message} {' and '.join(map(repr, others))} has it: where {key}.name alone is overridden, the options beside the old name stay. "
        f"Override the section as a whole, e.g. '{key}={{name: {name}{''.join(needed)}}}'; what that leaves out has its default."
    )


def _with_option(kind: str, name: str, option: str) -> list[str]:
    """The other plug-ins of a kind that have an option of this name."""
    found = []
    for other in TABLES[kind]:
        with contextlib.suppress(ConfigError):  # one whose packages are missing
            if other != name and option in options_of(find_function(kind, other, other)):
                found.append(other)
    return found


def _convert(value: Any, annotation: Any, key: str, problems: Problems) -> Any:
    option = key.rpartition(".")[2]
    if is_number(annotation) and is_schedule(spec := meant(value, key)):
        return coefficient(spec, key)
    if option in TABLES and annotation is not str:
        spec = meant(value, key)
        if spec is None or isinstance(spec, str | Mapping):
            return None if spec is None else resolve_plugin(option, spec, key, problems=problems).bind()
    return typed(value, annotation, key)


def is_schedule(value: Any) -> bool:
    """Whether a config value describes how a number changes instead of naming it."""
    return isinstance(value, Mapping) and isinstance(value.get("name"), str)


def coefficient(spec: Any, key: str) -> Coefficient:
    """The scheduled number that a config entry describes."""
    try:
        return Coefficient(key, resolve_plugin("schedule", spec, key).bind())
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from None


def defaults_and(function: Callable[..., Any], options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A plug-in's options as given, or as they are by default; those that are missing are left out."""
    defaults = {name: parameter.default for name, parameter in options_of(function).items()}
    for name, value in (defaults | dict(options)).items():
        if value is not inspect.Parameter.empty:
            yield name, value
