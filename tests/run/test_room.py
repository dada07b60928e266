"""Room for checkpoints is asked for before the first step: on the disk and in the host's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from onpolicy.config.load import load
from onpolicy.config.schema import Config
from onpolicy.run import room
from onpolicy.run.room import check_room, num_checkpoints
from onpolicy.utils.errors import ConfigError
from tests.runs import run_here, write_config

GIB = 1 << 30


def config(folder: Path, **checkpoint: object) -> Config:
    return load(write_config(folder, checkpoint=checkpoint, steps=100))


@pytest.mark.parametrize(
    ("checkpoint", "number"),
    [({"every": 10}, 3), ({"every": 10, "keep_last": 1, "best_metric": "reward/mean"}, 3), ({"every": 0}, 1), ({"every": 70}, 2),
     ({"every": 200}, 1), ({"every": 10, "keep_last": 50}, 10)],
)  # fmt: skip
def test_how_many_are_there_at_a_time(tmp_path: Path, checkpoint: dict[str, object], number: int) -> None:
    assert num_checkpoints(config(tmp_path, **checkpoint)) == number


def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(room, "available_memory", lambda: 20 * GIB)
    given = config(tmp_path, every=10, keep_last=3)
    check_room((10 * GIB, 2 * GIB, True), given, tmp_path, notes.append, free=48 * GIB)
    assert notes == []
    with pytest.raises(
        ConfigError,
        match=r"has 47\.0 GiB .* expected 48\.0: 4 of 12\.0 GiB .*; give it checkpoint\.keep_last=2 or a larger disk",
    ):
        check_room((10 * GIB, 2 * GIB, True), given, tmp_path, notes.append, free=47 * GIB)
    with pytest.raises(ConfigError, match="give it a larger disk"):
        check_room((10 * GIB, 2 * GIB, True), given, tmp_path, notes.append, free=13 * GIB)
    with pytest.raises(ConfigError, match=r"holds the model in the host's memory, 21\.0 GiB, and 20\.0 are free"):
        check_room((10 * GIB, 21 * GIB, False), given, tmp_path, notes.append, free=1000 * GIB)
    check_room((10 * GIB, 2 * GIB, False), given, tmp_path, notes.append, free=48 * GIB)
    assert notes == ["a checkpoint of 12.0 GiB is written while training waits (20.0 GiB of host memory are free)"]


def test_a_resumed_run_has_the_room_of_its_own_checkpoints(tmp_path: Path) -> None:
    given = config(tmp_path, every=0)
    saved = tmp_path / "checkpoints" / "step-000001"
    saved.mkdir(parents=True)
    (saved / "model.safetensors").write_bytes(b"x" * 5000)
    check_room((4000, 2000, True), given, tmp_path, print, free=1000)
    with pytest.raises(ConfigError):
        check_room((4000, 2001, True), given, tmp_path, print, free=1000)


def test_a_run_is_refused_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        free = 100_000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Full)
    assert run_here(write_config(tmp_path), f"run_dir={tmp_path / 'run'}") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "run_dir" in said and "0.0 GiB of disk for checkpoints" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_checkpoints_are_periodic_unless_told_otherwise() -> None:
    assert Config().checkpoint.every > 0
