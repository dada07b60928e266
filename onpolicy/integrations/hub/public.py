"""What of a config may be shown to everybody: no place on the machine where it ran, and no secret."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onpolicy.config.schema import Config, DistributedSettings, LoggingSettings
from onpolicy.utils.credentials import without_secrets

OF_A_PLACE = re.compile(r"(?i)(?:.*_)?(?:paths?|files?|folders?|dirs?|directory|root|config)")
"""Keys whose values are places, where they are absolute or exist here."""
ABSOLUTE = re.compile(r"/(?!/)|[\\~]|[A-Za-z]:[/\\]")
SCHEME = re.compile(r"file:(?://[^/]*)?(?=/)|[A-Za-z][\w+.-]+:(?:/{2,3}(?=[/~]))?(?=[/\\~.])|")
"""Before a place, as in ``file:///data``."""
NO_PART = r"/\\()|^$<>{}\[\]\"`"
LOCAL = re.compile(
    rf"(?:\.\.?|~[\w.-]*|/[^\s{NO_PART}]+)(?:/[^\s{NO_PART}][^\n{NO_PART}]*)+/?|[A-Z]:[/\\][\w .-]{{2,}}(?:[/\\][\w .-]+)*[/\\]?"
)
"""A local path by its form alone. One name behind a slash is none: it may be a word to the model, as ``/no_think`` is."""


def public_config(config: Config) -> Config:
    """The config with the last part in place of local paths, without secrets, and without where it ran and what it logged to."""
    parts = {f.name: _public(f.name, getattr(config, f.name)) for f in dataclasses.fields(config)}
    shown = Config(**parts | {"run_dir": None, "logging": LoggingSettings(), "distributed": DistributedSettings()})
    return without_secrets(shown)  # type: ignore[no-any-return]


def _public(name: str, value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: _public(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **own)
    if isinstance(value, Mapping):
        return {key: _public(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_public(name, inner) for inner in value]
    return _last_part(name, value) if isinstance(value, str) else value


def _last_part(name: str, text: str) -> str:
    """Of a text that is a local path as a whole; any other text as it is."""
    scheme = SCHEME.match(text)[0]  # type: ignore[index]  # it matches nothing as well
    place = text.removeprefix(scheme)
    absolute, of_a_place = ABSOLUTE.match(place), OF_A_PLACE.fullmatch(name)
    if LOCAL.fullmatch(place) or (of_a_place and absolute) or ((of_a_place or absolute) and _exists(place)):
        return scheme + (re.split(r"[/\\]", place.rstrip("/\\"))[-1] or place)
    return text


def _exists(place: str) -> bool:
    try:
        return Path(place).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # a text that no path can be
        return False
