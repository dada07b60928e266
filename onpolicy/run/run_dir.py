"""The folder of a run: its name, its config, and whether a run may be continued in it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from onpolicy.config.compare import ABSENT, config_differences
from onpolicy.config.load import to_yaml
from onpolicy.config.schema import Config
from onpolicy.types import Metrics
from onpolicy.utils.disk import atomic_write
from onpolicy.utils.errors import ConfigError

RESUMABLE = (
    *("steps", "run_dir", "logging", "checkpoint", "preflight", "distributed"),
    *("trainer.name", "trainer.config", "trainer.micro_batch_tokens"),
)
"""Keys that may change when a run is resumed: how long it runs, where, and what it keeps, but not what a step computes."""

EVALUATED = (
    "model",
    "rendering",
    "generator",
    "rewards",
    "correctness",
    "custom_lexicons",
    "epistemic",
    "eval",
    "seed",
)
"""Sections that decide the numbers of an evaluation."""
EVALUATION = "evaluation.json"
UNSET = (ABSENT, None)


def prepare_folder(folder: Path, config: Config) -> None:
    """Creates the run folder and writes the config into it.

    Raises:
        ConfigError: the folder holds a run with other settings.
    """
    refuse_other_settings(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "config.yaml", to_yaml(config))


def begin_evaluation(folder: Path, config: Config) -> None:
    """Creates the folder of an evaluation, or continues in one that was cut off.

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
    """Size and modification time of a local model's weights, since another model may later have the same path."""
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
    """What a run has logged so far, one row a step; an incomplete last line is ignored."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _differences(before: Any, after: Any) -> list[str]:
    """What is not the same now; a setting that is not set is the same as one that is not there."""
    found = config_differences(before, after, RESUMABLE)
    changed = [d for d in found if not (d.one in UNSET and d.other in UNSET)]
    return [f"{d.key}: {_shown(d.one)} there, {_shown(d.other)} here" for d in changed]


def _shown(value: Any) -> str:
    return "nothing" if value is ABSENT else repr(value)


def default_folder(config_path: Path) -> Path:
    """``runs/<config>-<time>``, for runs without ``run_dir``."""
    return Path("runs") / f"{config_path.stem}-{datetime.now():%Y%m%d-%H%M%S}"
