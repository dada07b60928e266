"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from onpolicy.run.trackers.base import Continued, Tracker, as_table, tracked_run
from onpolicy.types import Metrics
from onpolicy.utils.ready import extra, installed, ready_if


class _Wandb:
    def __init__(self, run_dir: Path, project: str, mode: Any) -> None:
        import wandb

        self._known, shown = Continued(run_dir, f"wandb {project}"), tracked_run(run_dir)
        self._table = wandb.Table
        self._run = wandb.init(
            project=project, dir=run_dir, id=self._known.id, resume="allow", mode=mode,
            name=shown.name, group=shown.group, config=dict(shown.config), allow_val_change=True,
        )  # fmt: skip
        self._known.begin()

    def log(self, step: int, metrics: Metrics) -> None:
        if step > self._known.step:
            self._run.log(metrics, step=step)
            self._known.sent(step)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if step > self._known.sent_before:
            columns, data = as_table(rows)
            self._run.log({"samples": self._table(columns=columns, data=data, allow_mixed_types=True)}, step=step)

    def close(self) -> None:
        self._run.finish()


@ready_if(installed("wandb", f"{extra('wandb')}, or logging.trackers=[jsonl]"))
def wandb(
    run_dir: Path,
    resume_at: int,
    *,
    project: str = "onpolicy",
    mode: Literal["online", "offline", "disabled"] | None = None,
) -> Tracker:
    """Weights & Biases, with the config and tables of samples; the arm of a sweep is the group.

    Args:
        project: W&B project
        mode: `online`, `offline` or `disabled`; null: what `WANDB_MODE` says, else online
    """
    return _Wandb(run_dir, project, mode)
