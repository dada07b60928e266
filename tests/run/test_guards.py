"""Guards against collapse: when they speak, how often, and what they do to a run."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from onpolicy.cli import main
from onpolicy.config.schema import GuardSettings
from onpolicy.run.guards import Guards, Watched, falls, rises, sync_failed
from tests.runs import metrics, run_here, write_config


def said(guard: Any, values: list[float | None]) -> list[bool]:
    guards = Guards([Watched("g", guard, GuardSettings(), "m")])
    return [bool(guards.check(step, {} if v is None else {"m": v})) for step, v in enumerate(values, start=1)]


def test_a_drop_is_said_once_until_it_has_recovered() -> None:
    # mean of the first two is 10: alarm below 4, recovered at 7
    drop = partial(falls, metric="m", below_fraction=0.4, warmup=2)
    assert said(drop, [8, None, 12, 5, 3, 2, 7, 3]) == [False] * 4 + [True, False, False, True]
    assert said(drop, [8, 12, 3, 6, 3, 6.9, 3]) == [False] * 2 + [True] + [False] * 4, "it hovers about the threshold"
    now_and_then: list[float | None] = [10, None, 1, None, 1, None, 9, None, 1]
    assert said(partial(falls, metric="m", warmup=1), now_and_then) == [False, False, True] + [False] * 5 + [True], (
        "steps that do not log it are neither an alarm nor its end"
    )
    assert said(partial(falls, metric="m", warmup=1), [0, 0, 0]) == [False] * 3, "nothing to lose"


def test_a_rise() -> None:
    rise = partial(rises, metric="m", by=0.3, warmup=1)
    assert said(rise, [0.1, 0.3, 0.5]) == [False, False, True]
    assert said(rise, [0.1, 0.5, 0.3, 0.5, 0.2, 0.5]) == [False, True, False, False, False, True], "back at .25"


def test_the_reason_has_both_numbers() -> None:
    guards = Guards([Watched("g", partial(falls, metric="m", warmup=1), GuardSettings("stop"))])
    guards.check(1, {"m": 10.0})
    ((reason, settings),) = guards.check(2, {"m": 2.5})
    assert reason == "m fell from 10 to 2.5, below 40% of where it began" and settings.action == "stop"


def test_the_start_model_is_what_counts_where_it_is_known() -> None:
    guards = Guards([Watched("g", partial(rises, metric="m", by=1.0), GuardSettings())])
    assert not guards.check(0, {"m": 1.0}) and not guards.check(1, {"m": 1.9}) and guards.check(2, {"m": 2.1}), (
        "no warm-up behind step 0"
    )


GUARD = {"name": "rises", "metric": "rollout/tokens", "by": -1e9, "warmup": 1}
"""Speaks in the second step, whatever happens."""


def test_a_guard_stops_a_run_with_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, guards=[{**GUARD, "action": "stop"}], checkpoint={"every": 0})
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "steps=5") == 130
    output = " ".join(capsys.readouterr().out.split())
    assert "step 2: rollout/tokens rose" in output and "stopped after step 2" in output
    assert (tmp_path / "run/checkpoints/step-000002").is_dir() and len(metrics(tmp_path / "run")) == 2
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "steps=5") == 0, "said once: a run that is resumed goes on"


def test_a_gap_stops_a_run_in_its_third_step_with_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write_config(tmp_path, checkpoint={"every": 0}), f"run_dir={tmp_path / 'run'}"
    own = ["preflight.enabled=false", "steps=5"]
    assert run_here(config, run, *own, "preflight.logprob_tolerance=1e-12") == 130
    output = " ".join(capsys.readouterr().out.split())
    assert "step 1: generator and trainer disagree by" in output, "told of at once"
    assert "for 3 steps by more than preflight.logprob_tolerance = 1e-12. Did a weight sync fail? [stop]" in output
    assert "stopped after step 3" in output and (tmp_path / "run/checkpoints/step-000003").is_dir()
    assert run_here(config, run, *own) == 0 and len(metrics(tmp_path / "run")) == 5


def test_a_gap_of_a_step_or_two_stops_nothing() -> None:
    memory: dict[str, Any] = {}
    gaps = (0.1, 0.1, 0.01, 0.1, float("nan"), 0.1)
    said = [sync_failed(i, {"rollout/logprob_gap": gap}, memory, tolerance=0.05) for i, gap in enumerate(gaps)]
    assert [bool(reason) for reason in said] == [False] * 5 + [True], "one that is not a number counts"


def test_a_gap_that_is_still_there_stops_the_run_that_goes_on_too() -> None:
    """A run that stopped saved what its guards know; the one that resumes it loads that."""

    def guards() -> Guards:
        return Guards(
            [Watched("gap", partial(sync_failed, tolerance=0.05), GuardSettings("stop"), "rollout/logprob_gap")]
        )

    def alarms(of: Guards, steps: range) -> list[int]:
        return [step for step in steps if of.check(step, {"rollout/logprob_gap": 0.1})]

    first, again, third = guards(), guards(), guards()
    assert alarms(first, range(1, 4)) == [3]
    again.load_state(first.state())
    assert alarms(again, range(4, 7)) == [6]
    third.load_state(again.state())
    assert alarms(third, range(7, 13)) == [9, 12]


def test_the_printed_command_resumes_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pasted as it stands, also from a pipe that is 40 columns wide, whatever the names."""
    monkeypatch.setenv("COLUMNS", "40")
    (folder := tmp_path / "my configs [red] #1").mkdir()
    config = write_config(folder, guards=[{**GUARD, "action": "stop"}], checkpoint={"every": 0})
    config = config.rename(folder / "tiny run: it's.yaml")
    run, template = folder / "run #2", "contexts.teacher.template=[{solution}] {question} # say"
    assert run_here(config, f"run_dir={run}", "steps=5", template) == 130
    (command,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("  ") and "onpolicy train" in line
    ]
    assert main((words := shlex.split(command))[words.index("train") :]) == 0
    assert len(metrics(run)) == 5 and sorted(folder.glob("run*")) == [run]


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


LOWER = {**GUARD, "action": "lower", "target": "objective[1].weight", "scale": 0.25}


def test_a_guard_lowers_a_weight_for_good(tmp_path: Path) -> None:
    config = write_config(tmp_path, guards=[LOWER])
    assert run_here(config, f"run_dir={tmp_path / 'whole'}", "steps=5") == 0
    assert run_here(config, f"run_dir={tmp_path / 'parts'}", "steps=3") == 0
    assert run_here(config, f"run_dir={tmp_path / 'parts'}", "steps=5") == 0
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    weights = [row["schedule/objective[1].weight"] for row in metrics(tmp_path / "whole")]
    assert weights == [0.1, 0.1, 0.025, 0.025, 0.025], "spoke after the second step"


def test_a_guard_lowers_what_a_schedule_gives(tmp_path: Path) -> None:
    schedule = {"name": "linear", "initial": 1.0, "final": 0.0, "begin": 1, "end": 5}
    terms = [{"name": "distill", "divergence": "forward_kl", "weight": schedule}]
    config = write_config(tmp_path, objective=terms, guards=[{**LOWER, "target": "objective[0].weight"}])
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "steps=4") == 0
    weights = [row["schedule/objective[0].weight"] for row in metrics(tmp_path / "run")]
    assert weights == pytest.approx([1.0, 0.75, 0.125, 0.0625])


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ({**LOWER, "target": "objective[2].weight"}, "guards[0].target: got 'objective[2].weight', expected one of"),
        ({**LOWER, "target": None}, "guards[0].target: got 'None', expected one of rewards[0].weight"),
        ({**LOWER, "action": "warn"}, "guards[0].target: has no effect with action=warn"),
        (
            {**GUARD, "action": "pray"},
            "guards[0].action: got 'pray', expected one of warn, lower, freeze_teacher, stop",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(
    tmp_path: Path, guard: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(write_config(tmp_path, guards=[guard])) == 2
    assert message in capsys.readouterr().err
