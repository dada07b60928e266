"""Confirmation of arms on a frontier: shares of gain and loss by hand, controls at equal tokens, several arms, and what is undefined."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from onpolicy.experiments.sweep.confirmation import RESAMPLES, Confirmation, Resamples, confirmations
from onpolicy.experiments.sweep.figures import write_figures
from onpolicy.experiments.sweep.grid import Cell, Grid, read_grid
from onpolicy.utils.errors import ConfigError
from tests.experiments.test_figures import AXES, GROUPS, evaluated

YES, NO = True, False
START = {"new": [YES, NO, NO, NO, NO, NO, NO, NO], "map": [YES] * 4, "sums": [YES] * 4}
LEARNED = [YES, YES, YES, YES, YES, YES, NO, NO]
LOST = {"new": LEARNED, "map": [NO] * 4, "sums": [NO] * 4}
KEPT = {"new": LEARNED, "map": [YES] * 4, "sums": [YES] * 4}
HALF = {"new": LEARNED, "map": [NO] * 4, "sums": [YES] * 4}
NOTHING = {"new": START["new"], "map": [YES] * 4, "sums": [YES] * 4}
Sets = Mapping[str, Sequence[float]]


def runs(folder: Path, arms: Mapping[str, Sets], seeds: int = 10, tokens: int = 10) -> list[tuple[str, str, int, Path]]:
    return [
        (arm, "", seed, evaluated(folder / f"{arm}{seed}", {0: START, 4: end}, tokens))
        for arm, end in arms.items()
        for seed in range(seeds)
    ]


def confirmed(folder: Path, arms: Mapping[str, Sets], confirm: Mapping[str, Sequence[str]]) -> list[Confirmation]:
    return confirmations(runs(folder, arms), GROUPS, AXES, confirm, "plain")


def test_an_arm_that_keeps_both(tmp_path: Path) -> None:
    found = confirmed(
        tmp_path, {"plain": LOST, "kept": KEPT, "half": HALF, "other": LOST}, {"kept": ["other"], "half": []}
    )
    kept, half = found
    assert (kept.gain_kept.value, kept.loss_kept.value, kept.seeds) == (1.0, 0.0, 10)
    assert kept.beats["other"].value == pytest.approx(0.5), "as good in domain, 1 better out of domain"
    assert kept.verdict == "holds" and kept.p_value < kept.holm < 0.05
    assert (half.loss_kept.value, half.verdict) == (0.5, "fails"), "half of the loss is more than a tenth"
    assert 0 < half.loss_kept.low < 0.5 < half.loss_kept.high < 1, "other problems could have been asked"
    assert (kept.samples, kept.pass_at_samples.value) == (1, 0.0) and half.pass_at_samples.value == pytest.approx(-0.5)


def test_an_arm_has_to_beat_each_control_and_to_learn(tmp_path: Path) -> None:
    arms = {"plain": LOST, "kept": KEPT, "twin": KEPT, "idle": NOTHING}
    alone, with_twin = (
        confirmed(tmp_path / control, {**arms, "other": LOST}, {"kept": [control]})[0] for control in ("other", "twin")
    )
    assert (alone.verdict, with_twin.verdict) == ("holds", "fails") and with_twin.p_value == 1.0
    idle = confirmed(tmp_path / "d", arms, {"idle": []})[0]
    assert (idle.gain_kept.value, idle.loss_kept.value, idle.verdict) == (0.0, 0.0, "fails")


def test_controls_are_read_when_they_had_sampled_as_many_tokens(tmp_path: Path) -> None:
    def beats(middle: Sets, tokens: int) -> float:
        folder = tmp_path / f"{tokens}"
        cheap = runs(folder, {"plain": LOST, "kept": KEPT})
        dear = [
            ("control", "", seed, evaluated(folder / f"c{seed}", {0: START, 2: middle, 4: KEPT}, tokens))
            for seed in range(10)
        ]
        return confirmations([*cheap, *dear], GROUPS, AXES, {"kept": ["control"]}, "plain")[0].beats["control"].value

    assert beats(LOST, 20) == pytest.approx(0.5), "40 tokens after two of its steps, where it had lost everything"
    assert beats(LOST, 10) == pytest.approx(0.0), "40 tokens at its end"
    # 20 tokens at its end; the arm had learned half of its 5 of 8 problems by then
    assert beats(LOST, 5) == pytest.approx((0.125 + 0.3125 - 0.75) / 2)


def test_without_a_gain_shares_are_undefined_and_several_arms_are_corrected(tmp_path: Path) -> None:
    (found,) = confirmed(tmp_path / "a", {"plain": {**LOST, "new": START["new"]}, "kept": KEPT}, {"kept": []})
    assert found.verdict == "undefined"
    one, *_ = confirmed(tmp_path / "b", {"plain": LOST, "x": KEPT, "y": KEPT}, {"x": []})
    first, second = confirmed(tmp_path / "c", {"plain": LOST, "x": KEPT, "y": KEPT}, {"x": [], "y": []})
    assert one.holm == one.p_value and first.holm == second.holm == pytest.approx(2 * one.p_value)
    (early,) = confirmed(tmp_path / "e", {"plain": LOST, "x": KEPT}, {"x": [], "y": []})
    assert early.holm == pytest.approx(2 * one.p_value), "the arm that has not run yet counts too"
    assert (
        confirmations(runs(tmp_path / "d", {"plain": LOST, "x": KEPT}, seeds=9), GROUPS, AXES, {"x": []}, "plain") == []
    )


def test_runs_that_lack_something_are_no_ones_reference(tmp_path: Path) -> None:
    whole = runs(tmp_path, {"plain": LOST, "kept": KEPT, "other": KEPT}, seeds=11)
    (found,) = confirmations(whole[1:], GROUPS, AXES, {"kept": ["other"]}, "plain")
    assert (found.seeds, found.loss_kept.value) == (10, 0.0), (
        "the first arm's seed 0 is missing, and no other arm takes its place"
    )
    shutil.rmtree(whole[-1][-1] / "eval/step-000000")
    (found,) = confirmations(whole, GROUPS, AXES, {"kept": ["other"]}, "plain")
    assert found.seeds == 10, "without a start nothing is known of a seed"
    assert confirmations([], GROUPS, AXES, {"kept": []}, "plain") == []
    lines = (whole[11][-1] / "eval/step-000004/map.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"id": "0", "right": [YES, None]})
    for *_, folder in whole[:22]:
        for step in (0, 4):
            for name in ("map", "sums"):
                path = folder / f"eval/step-{step:06d}/{name}.jsonl"
                rows = [json.loads(line) for line in path.read_text().splitlines()]
                path.write_text("".join(json.dumps(row | {"right": row["right"] * 2}) + "\n" for row in rows))
    (whole[11][-1] / "eval/step-000004/map.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (found,) = confirmations(whole, GROUPS, AXES, {"kept": []}, "plain")
    assert found.samples == 2, "a problem that was not graded as often is left out of pass@2"


def test_draws_are_of_seeds_and_of_problems() -> None:
    draws = Resamples(2)
    by_seed, by_problem = (
        draws.means(np.array([[0.0] * 50, [1.0] * 50])),
        draws.means(np.array([[0.0] * 25 + [1.0] * 25] * 2)),
    )
    assert (by_seed[0], by_problem[0], len(by_seed)) == (0.5, 0.5, 1 + RESAMPLES)
    assert {round(float(v), 6) for v in by_seed[1:]} == {0.0, 0.5, 1.0}, "two seeds, drawn with replacement"
    assert by_problem[1:].std() == pytest.approx((0.25 / 50) ** 0.5, rel=0.05), "the standard error of a mean of fifty"
    both = draws.means(np.array([[0.0] * 50, [1.0] * 50])) - by_seed
    assert not both.any(), "the same draws for every array"


def test_a_grid_asks_for_it(tmp_path: Path) -> None:
    cells = [
        Cell(arm, factor, seed, Path(), (), run, None, {})  # type: ignore[arg-type]
        for arm, factor, seed, run in runs(tmp_path / "runs", {"plain": LOST, "kept": KEPT})
    ]
    console = Console(width=200, record=True, file=io.StringIO())
    grid = Grid(config="", arms={"plain": {}, "kept": {}}, eval_groups=GROUPS, frontier=AXES, confirm={"kept": []})
    write_figures(cells, grid, tmp_path, console)
    said = console.export_text()
    assert "gain kept" in said and "1.00 (1.00 to 1.00)" in said and "holds" in said
    assert "> 0.9" in said and "< 0.1" in said and "10 seeds" in said, "what is asked stands beside it"
    assert json.loads((tmp_path / "confirmation.json").read_text())["arms"][0]["arm"] == "kept"
    write_figures(cells[:5], grid, tmp_path, console)
    assert "confirm: needs 10 finished seeds of an arm, of plain and of its controls" in console.export_text()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("confirm: {kept: []}", "confirm: expected a frontier"),
        ("frontier: {in_domain: x, out_of_domain: y}\nconfirm: {kpet: []}", r"confirm.kpet: got 'kpet', .* mean 'kept'"),
        ("frontier: {in_domain: x, out_of_domain: y}\nconfirm: {kept: [kept]}", "confirm.kept: got 'kept', expected arms other"),
        ("frontier: {in_domain: x, out_of_domain: y}\nconfirm: {plain: []}", "confirm.plain: got 'plain'"),
    ],
)  # fmt: skip
def test_what_cannot_be_confirmed_is_refused(tmp_path: Path, given: str, expected: str) -> None:
    (tmp_path / "grid.yaml").write_text(f"config: quickstart.yaml\narms: {{plain: {{}}, kept: {{}}}}\n{given}\n")
    with pytest.raises(ConfigError, match=expected):
        read_grid(tmp_path / "grid.yaml")
