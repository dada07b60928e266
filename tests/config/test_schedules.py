"""Coefficients that change: by hand, in a config, in a run, and across a restart.

1. each schedule's values; 2. the Schmitt gate closes, stays closed between its thresholds, opens again; 3. the multiplier of a
constraint rises while it is broken and retires; 4. a number anywhere in a config, also of a nested plug-in, can be scheduled;
5. what cannot be scheduled, or reads a metric that nobody logs, is named; 6. a run with schedules resumes to the last bit.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy.config.load import build
from onpolicy.config.registry import resolve_plugin
from onpolicy.config.resolve import resolve
from onpolicy.config.schedules import (
    Bound,
    Coefficient,
    Coefficients,
    ScheduleError,
    dual_ascent,
    linear,
    phases,
    schmitt_gate,
    trapezoid,
)
from onpolicy.utils.errors import ConfigError
from tests.runs import metrics, run_here, write_config


def values(schedule: Any, steps: list[int]) -> list[float]:
    return [schedule(step, {}, {}) for step in steps]


def test_functions_of_the_step_by_hand() -> None:
    assert values(partial(linear, initial=0.5, final=0.0, begin=10, end=40), [1, 10, 25, 40, 99]) == pytest.approx(
        [0.5, 0.5, 0.25, 0, 0]
    )
    steps = [1, 2, 4, 7, 8, 12, 99]
    assert values(partial(trapezoid, value=2.0, rise=4, hold=3, fall=5), steps) == pytest.approx(
        [0.5, 1, 2, 2, 1.6, 0, 0]
    )
    assert values(partial(trapezoid, value=2.0, rise=0, hold=3, fall=0), [1, 3, 4]) == [2.0, 2.0, 0.0]
    assert values(partial(phases, values=[1.0, 0.0, 3.0], switch=[2, 4]), [1, 2, 3, 4, 5]) == [1, 1, 0, 0, 3]
    with pytest.raises(ScheduleError, match="one fewer than values"):
        phases(1, {}, {}, values=[1.0], switch=[3])


def test_the_gate_has_two_thresholds() -> None:
    gate = Coefficient("key", partial(schmitt_gate, metric="entropy", value=0.7, close=0.9, reopen=1.0, warmup=2))
    seen = []
    for step, entropy in enumerate([None, 1.0, 3.0, 1.9, 1.7, 1.9, 2.0, 1.85], start=1):
        gate.set(step, {} if entropy is None else {"entropy": entropy})
        seen.append(gate.value)
    # warm-up mean (1 + 3) / 2 = 2: closes under 1.8, opens again from 2
    assert seen == [0.7, 0.7, 0.7, 0.7, 0.0, 0.0, 0.7, 0.7]


def test_the_gate_can_be_closed_while_it_learns_the_level() -> None:
    gate = Coefficient(
        "key", partial(schmitt_gate, metric="entropy", value=0.7, close=0.9, warmup=2, open_in_warmup=False)
    )
    seen = []
    for step, entropy in enumerate([None, 1.0, 3.0, 1.7], start=1):
        gate.set(step, {} if entropy is None else {"entropy": entropy})
        seen.append(gate.value)
    assert seen == [0.0, 0.0, 0.7, 0.0], "two steps of warm-up; then open, and closed under 1.8"


def test_a_multiplier_rises_while_its_constraint_is_broken_and_retires() -> None:
    multiplier = Coefficient("key", partial(dual_ascent, metric="rate", level=5.0, rate=0.1, initial=0.2, maximum=0.5))
    seen = []
    for step, rate in enumerate([0.0, 4.0, 0.0, 6.0, 20.0], start=1):
        multiplier.set(step, {"rate": rate})
        seen.append(multiplier.value)
    assert seen == pytest.approx([0.2, 0.3, 0.5, 0.4, 0.0])
    above = Coefficient("key", partial(dual_ascent, metric="rate", level=5.0, rate=0.1, keep="below"))
    above.set(2, {"rate": 7.0})
    assert above.value == pytest.approx(0.2)


def test_a_multiplier_may_hold_a_share_of_the_start() -> None:
    floor = Coefficient("key", partial(dual_ascent, metric="rate", share=0.8, rate=0.1))
    seen = []
    for step, rate in enumerate([10.0, 6.0, 9.0], start=1):
        floor.set(step, {"rate": rate})  # step 1 is set with what step 0 logged
        seen.append(floor.value)
    assert seen == pytest.approx([0.0, 0.2, 0.1]), "held at 8"
    late = Coefficient("key", partial(dual_ascent, metric="rate", share=0.8, rate=0.1))
    late.set(1, {})
    late.set(2, {"rate": 10.0})
    assert late.value == 0.0, "without a step 0 the first step is the start"
    wrongs: list[dict[str, Any]] = [{}, {"level": 1.0, "share": 0.5}]
    for wrong in wrongs:
        with pytest.raises(ScheduleError, match="either a level or a share"):
            Coefficient("key", partial(dual_ascent, metric="rate", rate=0.1, **wrong))


def test_a_metric_that_nobody_logs_is_named() -> None:
    gate = Coefficient("objective[0].weight", partial(schmitt_gate, metric="nothing"))
    with pytest.raises(ScheduleError, match=r"objective\[0\]\.weight: reads the metric 'nothing'.*there are: a, b"):
        gate.set(2, {"b": 0.0, "a": 0.0})


def test_a_bound_function_reads_its_coefficients_at_each_call() -> None:
    coefficient = Coefficient("x", partial(linear, initial=1.0, final=3.0, end=2))
    function = Bound(lambda y, *, x, z=0: (y, x, z), x=coefficient, z=7)
    assert function(5) == (5, 2.0, 7)
    coefficient.set(2, {})
    assert function(5) == (5, 3.0, 7) and function(5, z=8) == (5, 3.0, 8)


def test_coefficients_of_nested_plug_ins_are_found_and_saved() -> None:
    fading = {"name": "linear", "initial": 1.0, "final": 0.0, "end": 10}
    multiplier = {"name": "dual_ascent", "metric": "reward/mean", "level": 1.0, "rate": 0.5}
    config = build({
        "model": {"path": "m"}, "data": {"name": "file", "path": "d"}, "contexts": {"teacher": {"name": "partial", "share": fading}},
        "rewards": [{"name": "math_answer"}, {"name": "brier", "weight": fading}], "teacher": {"name": "ema", "ema_decay": fading},
        "objective": [{"name": "policy_gradient", "weight": multiplier, "advantage": {"name": "multiply", "share": fading}},
                      {"name": "distill", "divergence": {"name": "jsd", "beta": {**fading, "initial": 0.9, "final": 0.1}}}],
    })  # fmt: skip
    found = resolve(config).coefficients
    keys = {c.key for c in found}
    assert keys == {"contexts.teacher.share", "rewards[1].weight", "teacher.ema_decay", "objective[0].weight",
                    "objective[0].advantage.share", "objective[1].divergence.beta"}  # fmt: skip
    one, other = Coefficients(found), Coefficients(resolve(config).coefficients)
    for step in (1, 2, 3):
        one.set(step, {"reward/mean": 0.0})
    assert one.metrics()["schedule/objective[0].weight"] == 1.0 and one.metrics()[
        "schedule/rewards[1].weight"
    ] == pytest.approx(0.7)
    other.load_state(one.state())
    other.set(4, {"reward/mean": 0.0})
    assert other.metrics()["schedule/objective[0].weight"] == 1.5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"name": "linar", "initial": 1},
            r"objective\[0\]\.weight\.name: unknown schedule 'linar'.*Did you mean 'linear'",
        ),
        ({"name": "linear", "initial": 1.0}, r"objective\[0\]\.weight\.final: missing"),
        (
            {"name": "phases", "values": [1], "switch": [2]},
            r"objective\[0\]\.weight: phases: expected rising switch steps",
        ),
    ],
)
def test_a_wrong_schedule_is_named(spec: dict[str, Any], message: str) -> None:
    config = {"model": {"path": "m"}, "data": {"name": "file", "path": "d"}, "contexts": {"teacher": "none"},
              "objective": [{"name": "distill", "divergence": "forward_kl", "weight": spec}]}  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        resolve(build(config))


def test_an_option_that_is_read_once_cannot_be_scheduled() -> None:
    config = {"model": {"path": "m"}, "data": {"name": "file", "path": "d"}, "contexts": {"teacher": "none"},
              "generator": {"name": "vllm", "gpu_memory_utilization": {"name": "linear", "initial": 0.1, "final": 0.4, "end": 3}},
              "objective": [{"name": "distill", "divergence": "forward_kl"}]}  # fmt: skip
    with pytest.raises(ConfigError, match=r"generator\.gpu_memory_utilization: a schedule has no effect here"):
        resolve(build(config))


def test_only_numbers_can_be_scheduled() -> None:
    with pytest.raises(ConfigError, match=r"support\.k: got"):
        resolve_plugin(
            "support", {"name": "student_topk", "k": {"name": "linear", "initial": 1, "final": 2, "end": 3}}, "support"
        )


SCHEDULED: dict[str, Any] = yaml.safe_load("""
teacher: {name: ema, ema_decay: {name: linear, initial: 1.0, final: 0.5, end: 3}}
objective:
  - {name: distill, divergence: forward_kl, weight: {name: dual_ascent, metric: policy/entropy, level: 9.0, rate: 0.1}}
  - name: policy_gradient
    advantage: {name: bounded_reversal, coefficient: {name: schmitt_gate, metric: teacher/teacher/entropy, warmup: 1}}
""")


def test_a_run_with_schedules_resumes_to_the_last_bit(tmp_path: Path) -> None:
    config = write_config(tmp_path, **SCHEDULED)
    assert run_here(config, f"run_dir={tmp_path / 'whole'}", "steps=4") == 0
    assert run_here(config, f"run_dir={tmp_path / 'parts'}", "steps=2") == 0
    assert run_here(config, f"run_dir={tmp_path / 'parts'}", "steps=4") == 0
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    assert whole == parts
    weights = [row["schedule/objective[0].weight"] for row in whole]
    assert weights[0] == 0.0 and weights == sorted(weights) and weights[3] > 0
    assert [row["schedule/teacher.ema_decay"] for row in whole] == pytest.approx([5 / 6, 4 / 6, 0.5, 0.5])


def test_a_run_whose_controller_reads_nothing_stops_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = {"name": "dual_ascent", "metric": "epistemic/rate", "level": 1.0, "rate": 1.0}
    config = write_config(tmp_path, objective=[{"name": "distill", "divergence": "forward_kl", "weight": lost}])
    assert run_here(config, f"run_dir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert "objective[0].weight: reads the metric 'epistemic/rate'" in error and "teacher/teacher/entropy" in error
