"""MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onpolicy.run.trackers.base import Continued, Tracker, as_table, config_text, tracked_run
from onpolicy.types import Metrics
from onpolicy.utils.ready import extra, installed, ready_if

LONGEST = 500
"""Characters of a parameter that every store takes."""
AT_ONCE = 100
"""Parameters that a server takes in one call."""
GROUP = "onpolicy.group"
"""The tag with the run's group."""


class _Mlflow:
    def __init__(self, run_dir: Path, experiment: str, uri: str | None) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, mlflow.MlflowClient(tracking_uri=uri)
        self._known, shown = Continued(run_dir, f"mlflow {experiment} {uri}"), tracked_run(run_dir)
        if self._known.resumed:
            self._client.update_run(self._known.id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        tags = {GROUP: shown.group} if shown.group else {}
        self._known.begin(self._client.create_run(number, run_name=shown.name, tags=tags).info.run_id)
        params = [Param(name, value[:LONGEST]) for name, value in _flat(shown.config)]
        for begin in range(0, len(params), AT_ONCE):
            self._client.log_batch(self._known.id, params=params[begin : begin + AT_ONCE])
        self._client.log_text(self._known.id, config_text(run_dir), "config.yaml")

    def log(self, step: int, metrics: Metrics) -> None:
        if step > self._known.step:
            now = int(1000 * time.time())
            sent = [self._metric(_allowed(name), value, now, step) for name, value in metrics.items()]
            self._client.log_batch(self._known.id, metrics=sent)
            self._known.sent(step)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if step > self._known.sent_before:
            columns, data = as_table(rows)
            self._client.log_dict(self._known.id, {"columns": columns, "data": data}, f"samples/step-{step:06d}.json")

    def close(self) -> None:
        self._client.set_terminated(self._known.id)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Each setting under its whole key, as ``rewards.0.name``."""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, own in inner:
        yield from _flat(own, f"{name}.{key}" if name else str(key))
    if not isinstance(value, Mapping | list):
        yield _allowed(name), str(value)


def _allowed(name: str) -> str:
    """A name without the characters that MLflow refuses, e.g. the @ of ``avg@8``."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)


@ready_if(installed("mlflow", f"{extra('mlflow')}, or logging.trackers=[jsonl]"))
def mlflow(run_dir: Path, resume_at: int, *, experiment: str = "onpolicy", uri: str | None = None) -> Tracker:
    """MLflow: metrics, the config as parameters, samples as tables; the arm of a sweep is the tag `onpolicy.group`.

    Args:
        experiment: MLflow's experiment; it is created if there is none of that name
        uri: of the tracking server; null: what `MLFLOW_TRACKING_URI` says
    """
    return _Mlflow(run_dir, experiment, uri)
