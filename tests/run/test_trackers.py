"""What trackers get, and what becomes of a run whose tracker fails; those of other projects: tests/integrations/trackers.

1. the config lies in the folder when a tracker is made, and rollouts come in the steps whose tokens are recorded; 2. a tracker that fails
costs its numbers; one that cannot be opened stops a run that begins, and not one that goes on; 3. a missing package is named with its
extra; 4. what was sent of a run is known again, and a run that begins anew is another one; 5. names: of the folder, or given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy.cli import main
from onpolicy.run.trackers.base import Continued, as_table, tracked_run
from tests.runs import metrics, run_here, write_config

HERE = "tests.run.test_trackers"


class Shown:
    """Keeps what it gets; ``fails_at`` is a step that it cannot take."""

    def __init__(self, run_dir: Path, fails_at: int) -> None:
        self.lr = yaml.safe_load((run_dir / "config.yaml").read_text())["trainer"]["lr"]
        self.fails_at = fails_at
        self.steps: list[int] = []
        self.samples: dict[int, Sequence[Mapping[str, Any]]] = {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if step == self.fails_at:
            raise OSError("the line is busy")
        self.steps.append(step)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.samples[step] = rows

    def close(self) -> None:
        pass


MADE: list[Shown] = []


def shown(run_dir: Path, resume_at: int, *, fails_at: int = -1) -> Shown:
    MADE.append(Shown(run_dir, fails_at))
    return MADE[-1]


def away(run_dir: Path, resume_at: int) -> Shown:
    raise ConnectionError("nobody answers")


def test_a_tracker_gets_the_config_metrics_and_rollouts(tmp_path: Path) -> None:
    config = write_config(tmp_path, logging={"trackers": ["jsonl", f"{HERE}:shown"], "tokens_every": 3, "samples": 2})
    assert run_here(config, f"run_dir={tmp_path / 'run'}") == 0
    made = MADE.pop()
    assert (made.lr, made.steps, list(made.samples)) == (1e-3, [1, 2, 3], [1, 3])
    assert [len(rows) for rows in made.samples.values()] == [2, 2]
    assert {"completion", "teacher_prompts", "reward"} <= set(made.samples[1][0])


def test_a_tracker_that_fails_costs_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = {"name": f"{HERE}:shown", "fails_at": 2}
    config = write_config(tmp_path, logging={"trackers": ["jsonl", tracker], "tokens_every": 1})
    assert run_here(config, f"run_dir={tmp_path / 'run'}") == 0
    made = MADE.pop()
    assert (made.steps, list(made.samples)) == ([1, 3], [1, 3]) and len(metrics(tmp_path / "run")) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert (
        said.count(
            "step 2: logging.trackers[1] failed (OSError: the line is busy); the run goes on without its numbers"
        )
        == 1
    )


def test_a_tracker_that_cannot_be_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, steps=1)
    tracked = (f"logging.trackers=[jsonl, '{HERE}:away']", f"run_dir={tmp_path / 'run'}")
    assert run_here(config, *tracked) == 2
    said = capsys.readouterr().err
    assert "logging.trackers[1]: " in said and "could not be opened (ConnectionError: nobody answers)" in said
    assert run_here(config, tracked[1]) == 0
    assert run_here(config, *tracked, "steps=2") == 0
    assert "logging.trackers[1] failed (ConnectionError: nobody answers)" in " ".join(capsys.readouterr().out.split())
    assert len(metrics(tmp_path / "run")) == 2


@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_a_missing_package_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onpolicy.utils.ready.is_installed", lambda package: package != name)
    assert main(["check", str(write_config(tmp_path)), f"logging.trackers=[jsonl, {name}]"]) == 2
    said = capsys.readouterr().err
    assert f"logging.trackers[1]: needs the package {name}" in said
    assert f"pip install 'onpolicy-distill[{name}]', or logging.trackers=[jsonl]" in said


def test_what_was_sent_is_known_again(tmp_path: Path) -> None:
    first = Continued(tmp_path, "one", -1)
    first.begin()
    first.sent(7)
    other = Continued(tmp_path, "other", -1)
    other.begin("given by the service")
    again = Continued(tmp_path, "one", 5)
    assert (again.id, again.step, again.resumed) == (first.id, 7, True)
    assert Continued(tmp_path, "other", 5).id == "given by the service"
    anew = Continued(tmp_path, "one", -1)
    assert anew.id != first.id and (anew.step, anew.resumed) == (-1, False)
    (tmp_path / Continued.FILE).write_text("{")
    assert not Continued(tmp_path, "one", 5).resumed


def test_names(tmp_path: Path) -> None:
    run = tmp_path / "seed-0"
    run.mkdir()
    assert (tracked_run(run).name, tracked_run(run).group) == ("seed-0", None)
    (run / "config.yaml").write_text("logging: {name: sdpo/seed-0, group: sdpo}\n")
    assert (tracked_run(run).name, tracked_run(run).group) == ("sdpo/seed-0", "sdpo")


def test_a_table() -> None:
    columns, rows = as_table([{"a": 1, "b": {"c": "é"}}, {"a": None, "d": [1]}])
    assert columns == ["a", "b", "d"] and rows == [[1, '{"c": "é"}', None], [None, None, "[1]"]]
