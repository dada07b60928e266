"""What ``sweep --slurm`` is given: ``key=value,key=value``, or a YAML file with the same keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from onpolicy.config.yaml_io import read_yaml
from onpolicy.utils.errors import ConfigError, suggest

TIME = re.compile(r"(?:(\d+)-)?(\d+(?::[0-5]?\d){0,2})")
TIMES = "minutes, M:SS, H:MM:SS, D-H, D-H:MM or D-H:MM:SS"
SBATCH = "sbatch."
"""Before any other option of sbatch."""


@dataclass(frozen=True)
class SlurmSettings:
    """What each run asks Slurm for; what is None is left to the cluster."""

    time: int = 60
    """Minutes, given as sbatch takes a time; a run that needs longer is queued again and goes on."""
    gpus: int = 0
    cpus: int = 1
    mem: str | None = None
    """As sbatch takes it, e.g. 64G."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    at_once: int | None = None
    """Runs at a time; None: as many as the cluster lets."""
    grace: int = 300
    """Seconds before the end of its time at which a run is told to finish its step and save."""
    requeues: int = 20
    """How often a run that was stopped by the cluster is queued again."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the run, e.g. ``module load cuda``."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch, without their dashes."""

    def parameters(self, cluster: str) -> dict[str, Any]:
        """For submitit's executor."""
        whole = {"timeout_min": self.time, "cpus_per_task": self.cpus, "gpus_per_node": self.gpus, "name": "onpolicy"}
        own = {
            "slurm_mem": self.mem,
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
            "slurm_constraint": self.constraint,
            "slurm_setup": list(self.setup) or None,
            "slurm_additional_parameters": self.sbatch or None,
        }
        if cluster == "slurm":
            whole["slurm_signal_delay_s"] = self.grace
        return whole | {name: value for name, value in own.items() if value is not None}


def read_settings(given: Sequence[str]) -> SlurmSettings:
    """The settings in all that ``--slurm`` was given, later ones before earlier ones.

    Raises:
        ConfigError: a key or value that is not known.
    """
    found: dict[str, Any] = {}
    for text in given:
        if "=" not in text:
            file = Path(text)
            if not file.is_file():
                raise ConfigError(
                    f"--slurm: got {text!r}, expected key=value,key=value or a YAML file; keys: {_keys()}"
                )
            found |= {str(key): value for key, value in read_yaml(file, "Slurm settings").items()}
            continue
        for part in text.split(","):
            key, equals, value = part.partition("=")
            if not equals:
                raise ConfigError(f"--slurm: got {part!r} in {text!r}, expected key=value")
            found[key.strip()] = value.strip()
    return _checked(found)


def _checked(found: Mapping[str, Any]) -> SlurmSettings:
    others = found.get("sbatch") or {}
    if not isinstance(others, Mapping):
        raise ConfigError(
            f"--slurm: sbatch: got {others!r}, expected a mapping of options, or {SBATCH}OPTION=value for each"
        )
    settings: dict[str, Any] = {"sbatch": dict(others)}
    for key, value in found.items():
        if key.startswith(SBATCH):
            settings["sbatch"][key.removeprefix(SBATCH)] = str(value)
        elif key not in READERS and key != "sbatch":
            known = [*READERS, f"{SBATCH}OPTION"]
            raise ConfigError(f"--slurm: {key}: unknown key; expected {', '.join(known)}.{suggest(key, known)}")
        elif key != "sbatch":
            try:
                settings[key] = READERS[key](value)
            except ValueError as error:
                raise ConfigError(f"--slurm: {key}: got {value!r}, expected {error}") from None
    made = SlurmSettings(**settings)
    if made.grace >= 60 * made.time:
        raise ConfigError(f"--slurm: grace: got {made.grace} s, expected less than time, {made.time} min")
    return made


def _keys() -> str:
    return ", ".join(f.name for f in fields(SlurmSettings))


def _minutes(value: Any) -> int:
    """As sbatch reads a time: what follows days are hours, and of two numbers without days the first are minutes."""
    if found := TIME.fullmatch(str(value)):
        numbers = [int(number) for number in found[2].split(":")]
        if not found[1] and len(numbers) < 3:
            numbers.insert(0, 0)
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        total = (int(found[1] or 0) * 24 + hours) * 60 + minutes + (seconds > 0)
    else:
        total = 0
    if not total:
        raise ValueError(TIMES)
    return total


def _whole(least: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not re.fullmatch(r"\d+", str(value)) or int(value) < least:
            raise ValueError(f"a whole number from {least} on")
        return int(value)

    return read


def _lines(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


READERS: dict[str, Callable[[Any], Any]] = {
    "time": _minutes,
    "gpus": _whole(0),
    "cpus": _whole(1),
    "mem": str,
    "partition": str,
    "account": str,
    "qos": str,
    "constraint": str,
    "at_once": _whole(1),
    "grace": _whole(1),
    "requeues": _whole(0),
    "setup": _lines,
}
"""Key -> what makes its value of what was given; a ValueError says what is expected."""
