"""A run's folder: its name, its config, and whether a run may be continued in it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from onpolicy.config.registry import ConfigError
from onpolicy.config.schema import Config, to_yaml
from onpolicy.types import Metrics
from onpolicy.utils.disk import atomic_write

RESUMABLE = (
    *("steps", "run_dir", "logging", "checkpoint", "preflight", "roles"),
    *("trainer.name", "trainer.config", "trainer.micro_batch_tokens"),
)
"""What may change when a run is resumed: how long it runs, where, and what is kept of it, not what a step computes."""

EVALUATED = ("model", "rendering", "generator", "rewards", "correctness", "lexicons", "epistemic", "eval", "seed")
"""What decides an evaluation's numbers."""
EVALUATION = "evaluation.json"


def prepare_folder(folder: Path, config: Config) -> None:
    """Makes the run folder and writes the config into it.

    Raises:
        ConfigError: the folder holds a run with other settings.
    """
    refuse_other_settings(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "config.yaml", to_yaml(config))


def begin_evaluation(folder: Path, config: Config) -> None:
    """Makes the folder of an evaluation, or goes on in one that was cut off.

    Raises:
        ConfigError: the folder holds an evaluation of another model, or with other settings.
    """
    now = {k: v for k, v in yaml.safe_load(to_yaml(config)).items() if k in EVALUATED}
    now |= {"weights": _weights(Path(config.model.path))}
    saved = folder / EVALUATION
    if saved.exists():
        differing = _differences(json.loads(saved.read_text()), now)
        if differing:
            raise ConfigError(
                f"run_dir: {str(folder)!r} holds another evaluation ({'; '.join(differing)}). "
                "Give the same settings to go on with it, or another run_dir."
            )
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(saved, json.dumps(now, indent=1) + "\n")


def _weights(path: Path) -> dict[str, list[float]]:
    """Size and time of a local model's weights: another model may come to stand under the same path."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    return {file.name: [file.stat().st_size, file.stat().st_mtime] for file in files}


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
