"""What a tracker is, and what every tracker can know of the run that it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

import yaml

from onpolicy.types import Metrics
from onpolicy.utils.credentials import without_secrets
from onpolicy.utils.disk import atomic_write


class Tracker(Protocol):
    """Shows a run. When it is made, the run's config is already in ``run_dir``, as ``config.yaml``."""

    def log(self, step: int, metrics: Metrics) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class SampleTracker(Tracker, Protocol):
    """A tracker that also shows rollouts."""

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Some rollouts of a step, as in samples.jsonl; called after ``log``, in the steps whose tokens are recorded."""
        ...


@dataclass(frozen=True)
class TrackedRun:
    """How a run is called where it stands beside others."""

    name: str
    """Like ``sdpo/seed-0`` for a run of a sweep; other runs may have the same."""
    group: str | None
    """The runs that it belongs to: its arm in a sweep."""
    config: Mapping[str, Any]
    """Without secrets."""


def config_text(run_dir: Path) -> str:
    """The run's config as YAML, without secrets; empty where there is none."""
    file = run_dir / "config.yaml"
    text = file.read_text() if file.exists() else ""
    config = yaml.safe_load(text)
    shown = without_secrets(config)
    return text if shown == config else str(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True))


def tracked_run(run_dir: Path) -> TrackedRun:
    """The names that ``logging`` gives to the run; without one, its folder's."""
    config = yaml.safe_load(config_text(run_dir)) or {}
    logging = config.get("logging") or {}
    return TrackedRun(logging.get("name") or run_dir.resolve().name, logging.get("group"), config)


class Continued:
    """What a service has been sent of a run, kept in the run folder: a run that is resumed goes on there under the same id, without
    sending a step twice. A run that begins anew has none of it, and is one of its own."""

    FILE = "trackers.json"

    def __init__(self, run_dir: Path, service: str) -> None:
        """
        Args:
            run_dir: the run's folder
            service: the tracker, and whatever else its ids depend on
        """
        self._path, self._service = run_dir / self.FILE, service
        known = self._read().get(service)
        self.resumed = known is not None
        self.id: str = known["id"] if known else uuid4().hex[:16]
        self.step: int = known["step"] if known else -1
        """The last step that was sent."""
        self.sent_before = self.step
        """The last one that was sent before this was made: what comes after a step's metrics is sent after that one alone."""

    def begin(self, id_: str | None = None) -> None:
        """Keeps the id, or the one that the service has given."""
        self.id = id_ or self.id
        self._write()

    def sent(self, step: int) -> None:
        self.step = step
        self._write()

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def _write(self) -> None:
        entries = self._read() | {self._service: {"id": self.id, "step": self.step}}
        atomic_write(self._path, json.dumps(entries, indent=1) + "\n")


def as_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows; what is nested is a text of JSON."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[_cell(row.get(name)) for name in columns] for row in rows]


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list | tuple) else value
