"""Given values over the defaults of a schema, field by field: a mistake in one does not hide a mistake in another."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from onpolicy.config.keys import find_value, remove, replace
from onpolicy.config.problems import Problems

UNKNOWN = "?"
"""Stands where a value was that cannot be used, until all problems are reported."""
EXPECTED = {
    "not be converted to Integer": "a whole number",
    "not be converted to Float": "a number",
    "not a valid bool": "true or false",
}
"""What OmegaConf says of a value of the wrong type -> what was expected."""
OBJECTS = {"allow_objects": True}
"""What OmegaConf has to be told where a ``Plain`` may stand."""


@cache
def schema_of(settings: type) -> Any:
    """The defaults of a dataclass, as OmegaConf has them; a merge copies them."""
    return OmegaConf.structured(settings, flags=OBJECTS)


def merged(schema: Any, given: Mapping[str, Any], prefix: str, problems: Problems) -> Any:
    """The object that a schema and the given values come to; None where nothing sound could be made of them.

    Args:
        schema: as ``OmegaConf.structured`` makes it
        given: plain dictionaries and lists; values with a mistake are replaced
        prefix: what full keys begin with, e.g. ``trainer.``
        problems: where mistakes are reported; their fields keep their defaults
    """
    attempts: dict[str, int] = {}
    while True:
        try:
            return OmegaConf.to_object(OmegaConf.merge(schema, given))
        except OmegaConfBaseException as error:
            key = str(error.full_key or _refused(schema, given))
            full = f"{prefix}{key}"
            said = _no_container(schema, given, key, full) or _no_number(error, given, key) or reason(error, full)
            problems.add(f"{full}: {said}")
        except ValueError as error:  # a check of the settings' own, which names the full key
            key = str(error).partition(": ")[0].removeprefix(prefix)
            problems.add(str(error))
        attempts[key] = attempts.get(key, 0) + 1
        if not (
            (attempts[key] == 1 and replace(given, key, UNKNOWN)) or (attempts[key] <= 2 and remove(given, key))
        ):  # the stand-in may be of a wrong type, then the field goes
            return None


def _refused(schema: Any, given: Mapping[str, Any]) -> str | None:
    """The field that cannot be merged, for errors of OmegaConf's that do not name it: a section in whose place something else stands."""
    for key, value in given.items():
        try:
            OmegaConf.merge(schema, {key: value})
        except OmegaConfBaseException:
            return key
    return None


def _no_container(schema: Any, given: Mapping[str, Any], key: str, full_key: str) -> str | None:
    """What to say of a value that stands in place of a list or of a section."""
    expected, value = OmegaConf.select(schema, key), find_value(given, key)
    if OmegaConf.is_list(expected) and not isinstance(value, list):
        return f"got {value!r}, expected a list{f', e.g. {list(expected)}' if expected else ''}."
    if OmegaConf.is_dict(expected) and not isinstance(value, Mapping):
        first = f", e.g. {full_key}.{next(iter(expected))}={value}" if expected else ""
        return f"got {value!r}, expected keys and values{first}."
    return None


def _no_number(error: OmegaConfBaseException, given: Mapping[str, Any], key: str) -> str | None:
    """What to say of a value that stands in place of a number or a truth value."""
    expected = (what for type_, what in EXPECTED.items() if type_ in str(error).splitlines()[0])
    return f"got {find_value(given, key)!r}, expected {what}." if (what := next(expected, None)) else None


def reason(error: OmegaConfBaseException, key: str = "KEY") -> str:
    """What a message says after the key."""
    if isinstance(error, MissingMandatoryValue):
        return f"missing. Give it in the file, or as an override: {key}=VALUE."
    return str(error).splitlines()[0]
