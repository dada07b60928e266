"""Config values held to the annotations of the parameters that take them, by OmegaConf's rules (``1`` is a float, ``"x"`` is not)."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onpolicy.utils.errors import ConfigError


def typed(value: Any, annotation: Any, key: str) -> Any:
    """``value`` as ``annotation``.

    Raises:
        ConfigError: it is of another type, or none of the choices of a ``Literal``.
    """
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        if value not in choices:
            raise ConfigError(f"{key}: got {value!r}, expected one of {', '.join(map(repr, choices))}.")
        return value
    schema = dataclasses.make_dataclass("Option", [("value", annotation if _omegaconf_knows(annotation) else Any)])
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), {"value": value})).value  # type: ignore[union-attr]
        if not _fits(found, annotation):
            raise ValueError("a list among a list's numbers")
    except (OmegaConfBaseException, TypeError, ValueError) as error:  # ValueError: a list for a mapping, or the reverse
        raise ConfigError(f"{key}: got {value!r}, expected {type_name(annotation)}.") from error
    return found


def type_name(annotation: Any) -> str:
    """An annotation as messages write it."""
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
