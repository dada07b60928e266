"""The folder of a run: its name, its config, and whether a run may be continued in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from onpolicy.config.canonical import canonicalize
from onpolicy.config.compare import ABSENT, ConfigDifference, config_differences, fingerprint
from onpolicy.config.keys import under
from onpolicy.config.load import to_yaml
from onpolicy.config.registry import defaults_and
from onpolicy.config.resolve import load_resolved, section
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schema import Config
from onpolicy.run.inputs import model_content
from onpolicy.trainer.forward_settings import LEFT_TO_DEVICE, ForwardReport
from onpolicy.trainer.learning_rate import same_rates
from onpolicy.types import Metrics
from onpolicy.utils.disk import atomic_write, is_full
from onpolicy.utils.errors import ConfigError, UserError
from onpolicy.utils.hashes import short_hash
from onpolicy.utils.json_lines import read_json_lines

RESUMABLE = (
    *("steps", "run_dir", "logging", "checkpoint", "preflight", "distributed"),
    *(
        "trainer.name",
        "trainer.config",
        "trainer.devices",
        "trainer.micro_batch_tokens",
        "trainer.gradient_checkpointing",
        "trainer.moments",
    ),
)
"""Keys that may change when a run is resumed: how long it runs, where, and what it keeps, but not what a step computes; moments in 8 bits
are rounded, and still a run may move to a machine where others do not fit."""

EVALUATED = (
    "model",
    "rendering",
    "generator",
    "environment",
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


def prepare_folder(folder: Path, resolved: ResolvedConfig) -> None:
    """Creates the run folder and writes the config into it.

    Raises:
        ConfigError: the folder holds a run with other settings.
    """
    refuse_other_settings(folder, resolved)
    _write_first(folder / "config.yaml", to_yaml(resolved.config))


def with_precision_of(folder: Path, resolved: ResolvedConfig) -> ResolvedConfig:
    """The config with the precision of the run that the folder holds, where the config leaves it to the device.

    A run that goes on, on whatever device, computes as it began: in what ``write_choices`` has written, or in float32, which runs had that
    say nothing.
    """
    saved = folder / "config.yaml"
    if not saved.exists() or not (folder / "checkpoints").is_dir() or not _left_to_device(resolved, "precision"):
        return resolved
    trainer = yaml.safe_load(saved.read_text()).get("trainer") or {}
    config = _with_trainer(resolved, precision=trainer.get("precision", "float32"))
    # the other sections stay: the settled config no longer says why a plug-in was chosen
    return dataclasses.replace(resolved, config=config, trainer=section("trainer", config.trainer, "trainer"))


def write_choices(folder: Path, resolved: ResolvedConfig, report: ForwardReport) -> None:
    """Writes into the run's config what became of the trainer's settings that were left to the device."""
    chosen = {name: getattr(report.settings, name) for name in LEFT_TO_DEVICE if _left_to_device(resolved, name)}
    if chosen:
        atomic_write(folder / "config.yaml", to_yaml(_with_trainer(resolved, **chosen)))


def _left_to_device(resolved: ResolvedConfig, name: str) -> bool:
    options = dict(defaults_and(resolved.trainer.plugin.function, resolved.trainer.plugin.options))
    return name in options and options[name] in ("auto", None)


def _with_trainer(resolved: ResolvedConfig, **settings: Any) -> Config:
    return dataclasses.replace(resolved.config, trainer={**resolved.config.trainer, **settings})


def begin_evaluation(folder: Path, resolved: ResolvedConfig) -> None:
    """Creates the folder of an evaluation, or continues in one that was cut off.

    Raises:
        ConfigError: the folder holds an evaluation of another model, or with other settings.
    """
    settings = resolved.config.model
    decisive = {key: value for key, value in canonicalize(resolved).items() if key in EVALUATED}
    now = json.loads(json.dumps(decisive, default=str)) | {
        "weights": model_content(
            settings.path, trust_remote_code=settings.trust_remote_code, revision=settings.revision
        )
    }
    saved = folder / EVALUATION
    if saved.exists():
        differing = _shown_differences(config_differences(json.loads(saved.read_text()), now, RESUMABLE))
        if differing:
            raise ConfigError(
                f"run_dir: {str(folder)!r} holds another evaluation ({'; '.join(differing)}). "
                "Give the same settings to go on with it, or another run_dir."
            )
    _write_first(saved, json.dumps(now, indent=1) + "\n")


def _write_first(path: Path, text: str) -> None:
    """Creates the run folder with its first file in it.

    Raises:
        ConfigError: it cannot be created, or nothing can be written into it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text)
    except OSError as error:
        if is_full(error):
            raise
        reason = "there is a file of that name" if path.parent.is_file() else error.strerror
        raise ConfigError(
            f"run_dir: cannot write into the folder {str(path.parent)!r}: {reason}. Give a folder that can be created, run_dir=FOLDER."
        ) from error


def refuse_other_settings(folder: Path, resolved: ResolvedConfig) -> None:
    """Raises ConfigError where the folder holds a run with other settings, or one whose learning rates would be others."""
    saved = folder / "config.yaml"
    if not saved.exists() or not (folder / "checkpoints").is_dir():
        return
    before, resolved = yaml.safe_load(saved.read_text()), with_precision_of(folder, resolved)
    differing = _shown_differences(_setting_differences(before, saved, resolved))
    if differing:
        raise ConfigError(
            f"run_dir: {str(folder)!r} holds a run with other settings ({'; '.join(differing)}{_choice(resolved)}). "
            "Give the same settings to resume it, or another run_dir."
        )
    trainer, steps = resolved.trainer.settings, resolved.config.steps
    if not same_rates(trainer, before["steps"], steps):
        raise ConfigError(
            f"steps: {str(folder)!r} holds a run of {before['steps']} steps, got {steps}. Its learning rate falls over all steps "
            f"(trainer.lr_schedule={trainer.lr_schedule}), so that those already done would have had other rates. Give "
            f"steps={before['steps']} to resume it; or begin another run, with its last checkpoint as model.path to go on from there."
        )


NOT_HASHED = ("run_dir", "logging")
"""Keys of a config that ``config_hash`` leaves out."""


def config_hash(folder: Path) -> str:
    """A short hash of the run's config.yaml without ``run_dir`` and ``logging``: equal for equal settings and seed, wherever the run is."""
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    return short_hash(fingerprint(settings, NOT_HASHED).encode())


def logged(folder: Path) -> list[Metrics]:
    """What a run has logged so far, one row a step; an incomplete last line is ignored."""
    return read_json_lines(folder / "metrics.jsonl")


def _setting_differences(before: Any, saved: Path, resolved: ResolvedConfig) -> list[ConfigDifference]:
    """What differs both as it is written and once every default is filled in.

    The one alone would take ``1e-4`` and ``0.0001`` for two values; the other alone would compare options that only one of two
    trainers has.
    """
    written = list(config_differences(before, yaml.safe_load(to_yaml(resolved.config)), RESUMABLE))
    try:
        then = canonicalize(with_precision_of(saved.parent, load_resolved(saved)))
    except UserError:  # e.g. a plug-in that is not there any more
        return written
    return [
        d
        for d in config_differences(then, canonicalize(resolved), RESUMABLE)
        if any(under(d.key, [w.key]) or under(w.key, [d.key]) for w in written)
    ]


def _shown_differences(found: Iterable[ConfigDifference]) -> list[str]:
    """What is not the same now; a setting that is not set is the same as one that is not there."""
    changed = [d for d in found if not (d.one in UNSET and d.other in UNSET)]
    return [f"{d.key}: {_shown(d.one)} there, {_shown(d.other)} here" for d in changed]


def _choice(resolved: ResolvedConfig) -> str:
    """Why the generator is the one that it is, where the config leaves that open."""
    reason = resolved.generator.plugin.chosen_because
    return f"; {resolved.generator.plugin.name} was chosen here: {reason}" if reason else ""


def _shown(value: Any) -> str:
    return "nothing" if value is ABSENT else repr(value)


def default_folder(config_path: Path) -> Path:
    """``runs/<config>-<time>``, for runs without ``run_dir``."""
    return Path("runs") / f"{config_path.stem}-{datetime.now():%Y%m%d-%H%M%S}"
