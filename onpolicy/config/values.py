"""Config values held to the annotations of the parameters that take them, by OmegaConf's rules (``1`` is a float, ``"x"`` is not).

Where an annotation has text, the text counts that was typed.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onpolicy.config.bounds import Rule
from onpolicy.config.plain import NULLS, Plain, text_of, valued
from onpolicy.utils.errors import ConfigError


def typed(value: Any, annotation: Any, key: str) -> Any:
    """``value`` as ``annotation``.

    Raises:
        ConfigError: it is of another type, none of the choices of a ``Literal``, or not a number where one is expected.
    """
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *marks = typing.get_args(annotation)
        found = typed(value, annotation, key)
        beyond = [problem for mark in marks if isinstance(mark, Rule) for problem in mark.problems(key, found)]
        if beyond:
            raise ConfigError(*beyond)
        return found
    given, value = value, as_written(value, annotation, key)
    if choices := _choices(annotation):
        if value not in choices:
            raise ConfigError(f"{key}: got {given!r}, expected one of {', '.join(map(repr, choices))}.")
        return value
    value = valued(value, key)
    try:
        found = value if _is_plainly(value, annotation) else _by_omegaconf(value, annotation)
        if not _fits(found, annotation):
            raise ValueError("a list among a list's numbers")
    except (OmegaConfBaseException, TypeError, ValueError) as error:  # ValueError: a list for a mapping, or the reverse
        raise ConfigError(f"{key}: got {given!r}, expected {type_name(annotation)}.") from error
    if not_numbers(found):
        raise ConfigError(f"{key}: got {given!r}, expected a number.")
    return found


def _is_plainly(value: Any, annotation: Any) -> bool:
    """Whether OmegaConf would return the value as it is: most are, and it takes milliseconds to say so."""
    return type(value) is annotation and (
        annotation in (bool, int, float) or (annotation is str and not {"$", "?"} & set(value))
    )


def _by_omegaconf(value: Any, annotation: Any) -> Any:
    schema = dataclasses.make_dataclass("Option", [("value", annotation if _omegaconf_knows(annotation) else Any)])
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), {"value": value})).value  # type: ignore[union-attr]


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values that a ``Literal``, or one beside None, allows."""
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    parts = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    literal = [part for part in parts if part is not type(None)]
    return (*_choices(literal[0]), None) if len(literal) == 1 and len(parts) == 2 and _choices(literal[0]) else ()


def as_written(value: Any, annotation: Any, key: str) -> Any:
    """The tree with the text, or the value, of each ``Plain`` whose annotation says which; the others stay.

    Raises:
        ConfigError: a value is expected, and YAML makes nothing of the text.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _of_union(value, inner, key)
    if origin is typing.Literal:
        return str(value) if isinstance(value, Plain) and str(value) in inner else valued(value, key)
    if annotation is str:
        return str(value) if isinstance(value, Plain) else text_of(value) if isinstance(value, int | float) else value
    if annotation in (int, float, bool):
        if annotation is float and isinstance(value, str) and _overflows(value):
            raise ConfigError(f"{key}: got {value!r}, expected a number of at most {sys.float_info.max:.0e}.")
        return valued(value, key)
    if isinstance(value, Plain) and annotation is not Any:
        value = value.value(key)
    if origin is list and isinstance(value, list):
        return [as_written(item, inner[0], f"{key}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {name: as_written(item, inner[1], f"{key}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(annotation) and isinstance(value, Mapping):
        fields = typing.get_type_hints(annotation)
        at = f"{key}." if key else ""
        return {name: as_written(item, fields.get(name, Any), f"{at}{name}") for name, item in value.items()}
    return value


def _of_union(value: Any, members: tuple[Any, ...], key: str) -> Any:
    """Nothing, a list or a mapping where one is among the members and is meant; else text, where that is among them."""
    if type(None) in members and (value == "" or (isinstance(value, Plain) and str(value) in NULLS)):
        return None
    meant = value.value(key) if isinstance(value, Plain) and value.problem is None else value
    others = [member for member in members if member is not type(None)]
    for member in others:
        if len(others) == 1 or isinstance(meant, typing.get_origin(member) or ()):
            return as_written(value, member, key)
    return str(value) if isinstance(value, Plain) and str in others else value


def _overflows(text: str) -> bool:
    try:
        return math.isinf(float(text)) and "inf" not in text.lower()
    except ValueError:
        return False


def not_numbers(value: Any) -> bool:
    """Whether a value is NaN, or holds one."""
    if isinstance(value, Mapping | list):
        return any(map(not_numbers, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, float) and math.isnan(value)


def type_name(annotation: Any) -> str:
    """An annotation as messages write it."""
    if typing.get_origin(annotation) is typing.Annotated:
        return type_name(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(annotation)))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def is_number(annotation: Any) -> bool:
    """Whether a parameter takes a float, so that a schedule may stand for it."""
    return annotation is float or float in typing.get_args(annotation)


def _fits(value: Any, annotation: Any) -> bool:
    """Whether lists and mappings stand where the annotation has them: OmegaConf does not check the items of a list for this."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    return annotation not in (int, float, str, bool) or not isinstance(value, list | dict)


def _omegaconf_knows(annotation: Any) -> bool:
    """Whether OmegaConf 2.3 and 2.4 both take this annotation."""
    if annotation in (int, float, bool, str, type(None), Any):
        return True
    origin = typing.get_origin(annotation)
    if origin in (list, dict) or origin in (typing.Union, types.UnionType):
        return all(_omegaconf_knows(a) for a in typing.get_args(annotation))
    return dataclasses.is_dataclass(annotation)
