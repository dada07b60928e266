"""A run's folder: its name, its config, and whether a run may be continued in it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from onpolicy.config import Config, to_yaml
from onpolicy.registry import ConfigError
from onpolicy.room import write_whole
from onpolicy.types import Metrics

RESUMABLE = (
    *("steps", "run_dir", "logging", "checkpoint", "preflight", "roles"),
    *("trainer.name", "trainer.config", "trainer.micro_batch_tokens"),
)
"""What may change when a run is resumed: how long it runs, where, and what is kept of it, not what a step computes."""


def prepare_folder(folder: Path, config: Config) -> None:
    """Makes the run folder and writes the config into it.

    Raises:
        ConfigError: the folder holds a run with other settings.
    """
    refuse_other_settings(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", to_yaml(config))


def refuse_other_settings(folder: Path, config: Config) -> None:
    """Raises ConfigError where the folder holds a run with other settings."""
    saved = folder / "config.yaml"
    if saved.exists() and (folder / "checkpoints").is_dir():
        differing = _differences(yaml.safe_load(saved.read_text()), yaml.safe_load(to_yaml(config)))
        if differing:
            raise ConfigError(
                f"run_dir: {str(folder)!r} holds a run with other settings ({'; '.join(differing)}). "
                "Give the same settings to resume it, or another run_dir."
            )


def logged(folder: Path) -> list[Metrics]:
    """What a run has logged so far, one row a step; a line that is just being written is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _differences(before: Any, after: Any, key: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = {k: f"{key}.{k}" if key else k for k in [*before, *after]}
        return [
            d
            for k, name in keys.items()
            if name not in RESUMABLE
            for d in _differences(before.get(k), after.get(k), name)
        ]
    return [] if before == after else [f"{key}: {before!r} there, {after!r} here"]


def default_folder(config_path: Path) -> Path:
    return Path("runs") / f"{config_path.stem}-{datetime.now():%Y%m%d-%H%M%S}"
