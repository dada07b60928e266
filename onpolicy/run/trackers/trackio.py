"""Trackio: a dashboard on this machine, or in a Space of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onpolicy.run.trackers.base import Continued, Tracker, as_table, tracked_run
from onpolicy.types import Metrics
from onpolicy.utils.ready import extra, installed, ready_if


class _Trackio:
    def __init__(self, run_dir: Path, project: str, space: str | None) -> None:
        import trackio

        self._known, shown = Continued(run_dir, f"trackio {project} {space}"), tracked_run(run_dir)
        self._table = trackio.Table
        self._run = trackio.init(
            project=project, space_id=space, resume="allow", embed=False,
            name=f"{shown.name} {self._known.id[:6]}",  # trackio finds a run again by its name
            group=shown.group, config=dict(shown.config), auto_log_cpu=False, auto_log_gpu=False,
        )  # fmt: skip
        self._known.begin()

    def log(self, step: int, metrics: Metrics) -> None:
        if step > self._known.step:
            self._run.log(dict(metrics), step=step)
            self._known.sent(step)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        import pandas

        if step > self._known.sent_before:
            columns, data = as_table(rows)
            self._run.log({"samples": self._table(dataframe=pandas.DataFrame(data, columns=columns))}, step=step)

    def close(self) -> None:
        self._run.finish()


@ready_if(installed("trackio", f"{extra('trackio')}, or logging.trackers=[jsonl]"))
def trackio(run_dir: Path, resume_at: int, *, project: str = "onpolicy", space: str | None = None) -> Tracker:
    """Trackio, for `trackio show`, with the config and tables of samples; the arm of a sweep is the group.

    Args:
        project: trackio's project
        space: Space of the Hugging Face Hub, `name` or `owner/name`; null: on this machine, in `TRACKIO_DIR` if it is set
    """
    return _Trackio(run_dir, project, space)
