"""Guards against collapse: when they speak, how often, and what they do to a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from onpolicy.guards import Guards, Watched, falls, rises
from tests.runs import metrics, run_here, write_config


def said(guard: Any, values: list[float | None]) -> list[bool]:
    guards = Guards([Watched("g", guard, "warn")])
    return [bool(guards(step, {} if v is None else {"m": v})) for step, v in enumerate(values, start=1)]


def test_a_drop_is_said_once_until_it_has_recovered() -> None:
    # mean of the first two is 10: alarm below 4
    assert said(partial(falls, metric="m", share=0.4, warmup=2), [8, None, 12, 5, 3, 2, 6, 3]) == [False] * 4 + [
        True,
        False,
        False,
        True,
    ]
    assert said(partial(falls, metric="m", warmup=1), [0, 0, 0]) == [False] * 3, "nothing to lose"


def test_a_rise() -> None:
    assert said(partial(rises, metric="m", by=0.3, warmup=1), [0.1, 0.3, 0.5]) == [False, False, True]


def test_the_reason_has_both_numbers() -> None:
    guards = Guards([Watched("g", partial(falls, metric="m", warmup=1), "stop")])
    guards(1, {"m": 10.0})
    (alarm,) = guards(2, {"m": 2.5})
    assert alarm.reason == "m fell from 10 to 2.5, below 40% of where it began" and alarm.action == "stop"


GUARD = {"name": "rises", "metric": "rollout/tokens", "by": -1e9, "warmup": 1}
"""Speaks in the second step, whatever happens."""


def test_a_guard_stops_a_run_with_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, guards=[{**GUARD, "action": "stop"}], checkpoint={"every": 0})
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "steps=5") == 130
    output = " ".join(capsys.readouterr().out.split())
    assert "step 2: rollout/tokens rose" in output and "stopped after step 2" in output
    assert (tmp_path / "run/checkpoints/step-000002").is_dir() and len(metrics(tmp_path / "run")) == 2
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "steps=5") == 0, "said once: a run that is resumed goes on"


def test_a_guard_freezes_a_moving_teacher_for_good(tmp_path: Path) -> None:
    freeze = write_config(
        tmp_path, guards=[{**GUARD, "action": "freeze_teacher"}], teacher={"name": "ema", "ema_decay": 0.0}
    )
    assert run_here(freeze, f"run_dir={tmp_path / 'whole'}", "steps=5") == 0
    assert run_here(freeze, f"run_dir={tmp_path / 'parts'}", "steps=3") == 0
    assert run_here(freeze, f"run_dir={tmp_path / 'parts'}", "steps=5") == 0
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert run_here(freeze, f"run_dir={tmp_path / 'moving'}", "steps=5", "guards=[]") == 0
    whole, moving = metrics(tmp_path / "whole"), metrics(tmp_path / "moving")
    assert whole[2]["train/loss"] == moving[2]["train/loss"] and whole[3]["train/loss"] != moving[3]["train/loss"]
