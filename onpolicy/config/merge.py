"""Given values over the defaults of a schema, field by field: a mistake in one does not hide a mistake in another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from onpolicy.config.keys import remove, replace
from onpolicy.config.problems import Problems

UNKNOWN = "?"
"""Stands where a value was that cannot be used, until all problems are reported."""


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
            key = str(error.full_key)
            problems.add(f"{prefix}{key}: {reason(error)}")
        except ValueError as error:  # a check of the settings' own, which names the full key
            key = str(error).partition(": ")[0].removeprefix(prefix)
            problems.add(str(error))
        attempts[key] = attempts.get(key, 0) + 1
        if not (
            (attempts[key] == 1 and replace(given, key, UNKNOWN)) or (attempts[key] <= 2 and remove(given, key))
        ):  # the stand-in may be of a wrong type, then the field goes
            return None


def reason(error: OmegaConfBaseException) -> str:
    """What a message says after the key."""
    if isinstance(error, MissingMandatoryValue):
        return "missing. Give it in the file or as an override."
    return str(error).splitlines()[0]
