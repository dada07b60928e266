"""What of a config may be shown to everybody: no place on the machine where it ran, and no secret."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from onpolicy.config.schema import Config, DistributedSettings, LoggingSettings

SECRET = re.compile(r"(?i)(?:.*_)?(?:api_?key|secret|password|access_?key|token)")
"""Keys whose values are for one user alone."""
CREDENTIAL = re.compile(r"\b(?:hf_|sk-)[A-Za-z0-9_-]{8,}")
PLACE = re.compile(
    r"(?<![\w:/.])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"`,;:()\[\]{}<>|]+[/\\])*([^\s/\\'\"`,;:()\[\]{}<>|]+)[/\\]?"
)
"""An absolute path, and its last part; URLs are none."""
HIDDEN = "<hidden>"


def public_config(config: Config) -> Config:
    """The config with the last part in place of absolute paths, without secrets, and without where it ran and what it logged to."""
    parts = {f.name: _public(f.name, getattr(config, f.name)) for f in dataclasses.fields(config)}
    return Config(**parts | {"run_dir": None, "logging": LoggingSettings(), "distributed": DistributedSettings()})


def public_text(text: str) -> str:
    """A text with the last part in place of absolute paths, and without what looks like a credential."""
    return PLACE.sub(r"\1", CREDENTIAL.sub(HIDDEN, text))


def _public(name: str, value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: _public(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **own)
    if isinstance(value, Mapping):
        return {key: _public(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_public(name, inner) for inner in value]
    if isinstance(value, str):
        return HIDDEN if SECRET.fullmatch(name) else public_text(value)
    return value
