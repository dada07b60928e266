"""What trackers get, and what becomes of a run whose tracker fails; those of other projects: tests/integrations/trackers.

1. the config lies in the folder when a tracker is made, and rollouts come in the steps whose tokens are recorded; 2. a tracker that fails
costs its numbers; one that cannot be opened stops a run that begins, and not one that goes on; 3. a missing package is named with its
extra; 4. what was sent of a run is known again, also where it goes back to its beginning, and a run that begins anew is another one; 5.
names: of the folder, or given; 6. no secrets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy.cli import main
from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.run.run_dir import prepare_folder
from onpolicy.run.trackers.base import Continued, as_table, config_text, tracked_run
from onpolicy.run.trackers.logs import open_logs
from onpolicy.utils.credentials import HIDDEN
from onpolicy.utils.errors import ConfigError
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
    first = Continued(tmp_path, "one")
    first.begin()
    first.sent(7)
    other = Continued(tmp_path, "other")
    other.begin("given by the service")
    assert (first.sent_before, first.resumed) == (-1, False)
    again = Continued(tmp_path, "one")
    assert (again.id, again.step, again.sent_before, again.resumed) == (first.id, 7, 7, True)
    again.sent(8)
    assert (again.step, again.sent_before) == (8, 7)
    assert Continued(tmp_path, "other").id == "given by the service"
    (tmp_path / Continued.FILE).write_text("{")
    assert not Continued(tmp_path, "one").resumed


class Known(Shown):
    """As the trackers of other projects are; ``down`` is a file that exists while the service is away."""

    def __init__(self, run_dir: Path, down: Path) -> None:
        super().__init__(run_dir, -1)
        if down.exists():
            raise ConnectionError("nobody answers")
        self.known = Continued(run_dir, "known")
        self.known.begin()


def known(run_dir: Path, resume_at: int, *, down: str) -> Known:
    MADE.append(made := Known(run_dir, Path(down)))
    return made


def test_a_run_that_goes_back_to_its_beginning_has_begun(tmp_path: Path) -> None:
    """As it does after a rank was lost before the first step: the same run there, and a service that is away then does not end it."""
    down, run = tmp_path / "down", tmp_path / "run"
    resolved = resolve(
        load(write_config(tmp_path, logging={"trackers": [{"name": f"{HERE}:known", "down": str(down)}]}))
    )
    prepare_folder(run, resolved)

    def opened(*, begins: bool) -> Any:
        logs = open_logs(resolved, run, -1, begins=begins)
        logs.samples.close()
        logs.tokens.close()
        return logs.trackers[0]

    first = opened(begins=True)
    assert opened(begins=False).known.id == first.known.id
    down.touch()
    with pytest.raises(ConnectionError):
        opened(begins=False).log(1, {})
    with pytest.raises(ConfigError, match=r"logging.trackers\[0\]: .* could not be opened \(ConnectionError"):
        opened(begins=True)
    down.unlink()
    assert opened(begins=True).known.id != first.known.id
    MADE.clear()


def test_what_is_shown_of_the_config_has_no_secrets(tmp_path: Path) -> None:
    assert config_text(tmp_path) == ""
    (tmp_path / "config.yaml").write_text(
        "model: {path: /srv/m}\ngrader: {hub_token: abc, uri: 'http://bob:abc@host'}\n"
    )
    expected = {"model": {"path": "/srv/m"}, "grader": {"hub_token": HIDDEN, "uri": f"http://{HIDDEN}@host"}}
    assert tracked_run(tmp_path).config == expected == yaml.safe_load(config_text(tmp_path))


def test_names(tmp_path: Path) -> None:
    run = tmp_path / "seed-0"
    run.mkdir()
    assert (tracked_run(run).name, tracked_run(run).group) == ("seed-0", None)
    (run / "config.yaml").write_text("logging: {name: sdpo/seed-0, group: sdpo}\n")
    assert (tracked_run(run).name, tracked_run(run).group) == ("sdpo/seed-0", "sdpo")


def test_a_table() -> None:
    columns, rows = as_table([{"a": 1, "b": {"c": "é"}}, {"a": None, "d": [1]}])
    assert columns == ["a", "b", "d"] and rows == [[1, '{"c": "é"}', None], [None, None, "[1]"]]
