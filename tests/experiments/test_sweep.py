"""Sweeps: what runs, what does not run again, what is compared, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from onpolicy.cli import main
from onpolicy.experiments.lab import lab_command
from onpolicy.experiments.sweep import processes
from onpolicy.experiments.sweep.compare import compare, differences, equal_budgets, pass_rates_at
from onpolicy.experiments.sweep.grid import cells, chosen
from onpolicy.experiments.sweep.live_curves import curves_table, sparkline, standing
from onpolicy.experiments.sweep.processes import STOPPED, Processes, StopRequest, run_cell
from onpolicy.experiments.sweep.sweep import drawn
from onpolicy.run.run_dir import config_hash
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.stats import detectable_difference, two_way_t_ci
from tests.runs import metrics, write_config


def grid(folder: Path, **changes: Any) -> Path:
    sets = {"sums": {"name": "file", "path": str(folder / "data.jsonl"), "problems": 4}}
    write_config(
        folder, steps=2, checkpoint={"every": 1}, logging={"trackers": ["jsonl"], "tokens_every": 0},
        rewards=[{"name": "tests.experiments.test_probes:lucky"}],
        eval={"every": 2, "sets": sets, "samples_per_problem": 2, "pass_at": [2]},
    )  # fmt: skip
    whole: dict[str, Any] = {
        "config": "config.yaml", "seeds": [0, 1], "eval_groups": {"both": ["sums"]},
        "arms": {"plain": {}, "slow": {"trainer.lr": 1e-6, "objective[1].weight": 0.5}},
        "axes": ["objective"], "confounds": ["trainer.lr"],
    }  # fmt: skip
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(whole | changes, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a whole sweep, and what it said; to read, or to copy runs from that need not run again."""
    folder, said = tmp_path_factory.mktemp("swept"), io.StringIO()
    with redirect_stdout(said):
        assert main(["sweep", str(grid(folder)), "--output", str(folder / "out"), "--jobs", "2"]) == 0
    return folder, said.getvalue()


def already_run(swept: tuple[Path, str], names: Sequence[str], folder: Path, output: Path) -> None:
    """These runs of the whole sweep as runs of a grid in another folder."""
    for name in names:
        shutil.copytree(swept[0] / "out" / name, output / name)
        config = output / name / "config.yaml"
        config.write_text(config.read_text().replace(str(swept[0]), str(folder)))


@pytest.mark.process
def test_a_sweep_runs_what_is_missing_and_compares(
    swept: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output, said = swept[0] / "grid.yaml", swept[0] / "out", swept[1]
    assert "4 runs, 0 finished" in said and "slow" in said
    assert "arm slow differs in trainer.lr as well: 1e-06, in the first arm 0.001" in said
    assert "tokens per run" in said and "scored" in said
    finished = {p: p.stat().st_mtime_ns for p in output.glob("*/*/metrics.jsonl")}
    assert len(finished) == 4
    shutil.rmtree(output / "slow/seed-1/checkpoints/step-000002")
    assert main(["sweep", str(path), "--output", str(output)]) == 0
    assert "4 runs, 3 finished" in capsys.readouterr().out
    assert not [c for c in json.loads((output / "comparison.json").read_text())["confounds"] if "content" in c["key"]]
    monkeypatch.setattr(lab_command, "GRID", path)
    assert main(["lab", "--output", str(output)]) == 0
    report, reproduce = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert report in said and shlex.split(report)[-2:] == ["report", str(output / "slow/seed-0")]
    assert main(shlex.split(report)[-2:]) == 0 and reproduce.endswith("onpolicy lab reproduce")
    changed = {p for p in finished if p.stat().st_mtime_ns != finished[p]}
    assert changed == {output / "slow/seed-1/metrics.jsonl"}, "nothing finished is run again"
    assert main(["sweep", str(path), "trainer.lr=0.5", "--output", str(output)]) == 2
    assert "holds a run with other settings (trainer.lr" in capsys.readouterr().err
    rows = list(csv.DictReader((output / "runs.csv").open()))
    assert [(r["arm"], r["seed"]) for r in rows] == [
        ("plain", "0.0"),
        ("slow", "0.0"),
        ("plain", "1.0"),
        ("slow", "1.0"),
    ]
    hashes = [r["config"] for r in rows]
    assert len(set(hashes)) == 4 and hashes[0] == config_hash(
        shutil.copytree(output / "plain/seed-0", tmp_path / "moved")
    )
    assert "found in 80 % of repetitions with as many seeds and problems: a difference of both " in said
    assert "slow (2 seeds)" in (output / "report.html").read_text()
    assert all(float(r["tokens/generated"]) >= float(r["tokens/trained"]) > 0 for r in rows)
    found = json.loads((output / "comparison.json").read_text())
    assert found["axes"] == ["objective"] and [(c["arm"], c["key"]) for c in found["confounds"]] == [
        ("slow", "trainer.lr")
    ]
    totals = {(b["arm"], b["kind"]): b["total"] for b in found["budgets"]}
    for kind in ("generated", "scored", "trained"):
        for arm in ("plain", "slow"):
            assert totals[arm, kind] == sum(float(r[f"tokens/{kind}"]) for r in rows if r["arm"] == arm) > 0
    for name in ("differences", "from_start", "at_equal_tokens"):
        assert sorted((d["arm"], d["set"], d["seeds"], d["problems"]) for d in found[name]) == [
            ("plain", "both", 2, 4),
            ("plain", "sums", 2, 4),
            ("slow", "both", 2, 4),
            ("slow", "sums", 2, 4),
        ]


def fake(folder: Path, right: dict[str, list[bool]], tokens: int = 10, step: int = 2) -> Path:
    (folder / f"eval/step-{step:06d}").mkdir(parents=True)
    rows = "".join(json.dumps({"id": name, "right": r}) + "\n" for name, r in right.items())
    (folder / f"eval/step-{step:06d}/set.jsonl").write_text(rows)
    lines = [{"step": s, "rollout/sampled_tokens": tokens, "rollout/tokens": tokens - 1, "m": s} for s in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder


def test_differences_by_hand(tmp_path: Path) -> None:
    plain = [fake(tmp_path / f"a{s}", {"p": [True, False], "q": [False, False]}) for s in (0, 1)]
    better = [fake(tmp_path / f"b{s}", {"p": [True, True], "q": [s == 1, s == 1]}) for s in (0, 1)]
    runs = [("plain", "x", s, plain[s]) for s in (0, 1)] + [("better", "x", s, better[s]) for s in (0, 1)]
    found = compare(runs)
    own, other = found.differences
    assert own.mean == 0.25 and (own.difference, own.low, own.high, own.spread) == (0.0, 0.0, 0.0, 0.0)
    # seed 0: +.5 and 0; seed 1: +.5 and +1
    assert other.mean == 0.75 and other.difference == 0.5
    # means .25 and .75 over seeds, .5 and .5 over problems: +-12.706 x .25
    assert (other.low, other.high) == pytest.approx((0.5 - 12.7062 * 0.25, 0.5 + 12.7062 * 0.25), abs=1e-3)
    assert other.spread == pytest.approx(0.3535533906)
    assert found.runs[0] | {"arm": 0} == {"arm": 0, "config": config_hash(plain[0]), "factor": "x", "seed": 0.0, "step": 2,
        "rollout/sampled_tokens": 10, "rollout/tokens": 9, "m": 2, "tokens/generated": 20.0, "tokens/trained": 18.0}  # fmt: skip


def test_from_the_start_and_pooled_by_hand(tmp_path: Path) -> None:
    folder = fake(tmp_path / "a", {"p": [True, True], "q": [True, False]})
    (folder / "eval/step-000002/other.jsonl").write_text('{"id": "p", "right": [false]}\n')
    fake(folder, {"p": [True, False], "q": [False, False]}, step=0)
    (folder / "eval/step-000000/other.jsonl").write_text('{"id": "p", "right": [true]}\n')
    found = {d.set: d for d in compare([("plain", "", 0, folder)], {"all": ["set", "other"]}).from_start}
    assert {name: d.difference for name, d in found.items()} == {"set": 0.5, "other": -1.0, "all": 0.0}
    assert found["all"].problems == 3, "a problem counts in each set it stands in"
    assert compare([("plain", "", 0, fake(tmp_path / "b", {"p": [True]}))]).from_start == []


def test_equal_tokens_by_hand(tmp_path: Path) -> None:
    cheap, dear = fake(tmp_path / "a", {"p": [True]}, tokens=10), fake(tmp_path / "b", {"p": [True]}, tokens=16)
    fake(dear, {"p": [False]}, tokens=16, step=0)
    runs = [("cheap", "", 0, cheap), ("dear", "", 0, dear)]
    budgets = equal_budgets(runs)
    assert budgets == {cheap: 20.0, dear: 20.0}, "the cheaper one ends at 20"
    assert pass_rates_at(dear, 20.0) == {"set": {"p": 0.625}}, "20 of the 32 tokens between its two evaluations"
    assert pass_rates_at(dear, 99.0) == {"set": {"p": 1.0}} and pass_rates_at(dear, 0.0) == {"set": {"p": 0.0}}
    (_, other) = differences(runs, {}, read=lambda folder: pass_rates_at(folder, budgets[folder]))
    assert other.difference == -0.375
    found = compare(runs)
    assert found.equal_tokens == {"": 20.0} and [d.difference for d in found.at_equal_tokens] == [0.0, -0.375]
    late = fake(tmp_path / "c", {"p": [False]}, tokens=16)
    found = compare([runs[0], ("late", "", 0, late)])
    assert [d.arm for d in found.at_equal_tokens] == ["cheap"], "nothing is known of the other at 20 tokens"
    shutil.rmtree(late / "eval")
    found = compare([("late", "", 0, late)])
    assert found.equal_tokens == {} and not found.differences and len(found.budgets) == 2, "a grid without evaluations"


def test_an_interval_for_other_seeds_and_problems() -> None:
    # one seed: a t-interval over its problems; no spread over problems: one over seeds
    assert two_way_t_ci(np.array([[1.0, 2.0, 3.0]])) == pytest.approx(
        (2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4
    )
    assert two_way_t_ci(np.array([[1.0] * 5, [2.0] * 5, [3.0] * 5])) == pytest.approx(
        (2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4
    )
    assert two_way_t_ci(np.array([[1.0, 1.0], [1.0, 1.0]])) == (1.0, 1.0)
    draw, hits = np.random.default_rng(0), 0
    for _ in range(400):
        low, high = two_way_t_ci(draw.normal(size=(3, 1)) + draw.normal(size=(1, 40)) + draw.normal(size=(3, 40)))
        hits += low <= 0 <= high
    assert 0.94 <= hits / 400 <= 0.99, "covers the truth as often as it says"


def test_a_difference_that_is_found_in_four_of_five_repetitions() -> None:
    # one seed, three problems: t = 4.30265 and, for 80 %, 1.06066
    assert detectable_difference(np.array([[1.0, 2.0, 3.0]])) == pytest.approx((4.30265 + 1.06066) / 3**0.5, abs=1e-4)
    assert np.isnan(detectable_difference(np.array([[1.0]])))
    draw = np.random.default_rng(0)

    def measured() -> np.ndarray:
        return draw.normal(size=(5, 1)) + draw.normal(size=(1, 40)) + draw.normal(size=(5, 40))

    difference = np.mean([detectable_difference(measured()) for _ in range(200)])
    found = sum(two_way_t_ci(difference + measured())[0] > 0 for _ in range(400))
    assert 0.74 <= found / 400 <= 0.86


def test_the_reference_arm_is_the_grids_even_if_it_failed(tmp_path: Path) -> None:
    runs = [("better", "", s, fake(tmp_path / f"b{s}", {"p": [True], "q": [s == 1]})) for s in (0, 1)]
    runs.append(("plain", "", 1, fake(tmp_path / "a1", {"p": [False], "q": [False]})))
    found = {d.arm: d for d in compare(runs, reference="plain").differences}
    assert (found["better"].difference, found["better"].seeds) == (1.0, 1), "against the seed that both have"
    assert compare(runs[:2], reference="plain").differences == []


def test_curves_of_runs_that_are_still_running(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [
        {"step": s, "reward/mean": s / 10, "epistemic/self_doubt/rate_per_1k": 8.0 - s, "eval/set/avg@4": 0.5}
        for s in range(9)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 9, "rew')  # being written
    table = curves_table(
        [("one", folder, 20, "self_doubt"), ("not begun", tmp_path / "none", 20, "self_doubt")], "runs"
    )
    assert [c.header for c in table.columns] == ["run", "step", "reward", "length", "markers per 1k", "set"]
    cells = [list(c.cells) for c in table.columns]
    assert cells[1] == ["8/20", "0/20"] and cells[3] == ["", ""]
    assert cells[2] == ["▁▂▃▄▅▅▆▇█ 0.8", ""] and cells[4][0] == "█▇▆▅▅▄▃▂▁ 0"
    assert sparkline(list(range(100)), 0, 99)[-1] == "█" and len(sparkline(list(range(100)), 0, 99)) == 16


def test_a_sweep_without_a_terminal_says_how_far_it_is(tmp_path: Path) -> None:
    begun, ended = fake(tmp_path / "a", {}), fake(tmp_path / "b", {})
    runs = [("a", begun, 8, ""), ("b", ended, 2, ""), ("c", tmp_path / "c", 2, "")]
    assert standing(runs, 1, 4, 60.0) == "1/3 runs, step 4/12 of all", "nothing to go by yet"
    assert standing(runs, 1, 2, 60.0) == "1/3 runs, step 4/12 of all, about 4 min left", "2 steps a minute, 8 to go"


def test_runs_share_the_cores_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def threads() -> str:
        with closing(Processes(2)) as place:
            return str(place.start(None).result())  # type: ignore[arg-type]

    monkeypatch.setattr(processes, "run_cell", lambda cell, environment, stop: environment["OMP_NUM_THREADS"])
    monkeypatch.setattr(processes, "available_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads() == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads() == "1"


def test_a_factor_changes_a_part_of_what_an_arm_gives(tmp_path: Path) -> None:
    """An arm gives the rewards, a factor the weight of one, whichever stands first."""
    lucky = {"name": "tests.experiments.test_probes:lucky"}
    arms = {"plain": {}, "two": {"rewards": [lucky, {"name": "brevity", "budget": 50}]}}
    path = grid(tmp_path, arms=arms, axes=["rewards"], factors={"3": {"rewards[0].weight": 3.0}}, seeds=[0])
    weights = {c.arm: [r.get("weight", 1.0) for r in c.canonical["rewards"]] for c in cells(path, tmp_path / "out")}
    assert weights == {"plain": [3.0], "two": [3.0, 1.0]}


def test_every_combination(tmp_path: Path) -> None:
    path = grid(tmp_path, factors={"one": {"data.coverage.problems": 2}, "all": None}, seeds=[3])
    found = list(cells(path, tmp_path / "out", ["steps=1"]))
    assert [(c.arm, c.factor, c.seed) for c in found] == [
        ("plain", "one", 3), ("slow", "one", 3), ("plain", "all", 3), ("slow", "all", 3)
    ]  # fmt: skip
    assert found[1].folder == tmp_path / "out/slow/one/seed-3" and found[1].settings.steps == 1
    names = lambda only: [(c.arm, c.factor) for c in chosen(found, only)]  # noqa: E731
    assert names(["slow"]) == [("slow", "one"), ("slow", "all")] and names(["all"]) == [
        ("plain", "all"),
        ("slow", "all"),
    ]
    assert names(["one", "plain"]) == [("plain", "one")] and len(names([])) == 4
    with pytest.raises(
        ConfigError, match=r"--arm: got 'slwo', expected arms or factors: all, one, plain, slow\. Did you mean 'slow'"
    ):
        names(["slwo"])
    seeds = list(cells(grid(tmp_path, seeds=[3, 5]), tmp_path / "out"))
    assert [(c.arm, c.seed) for c in chosen(seeds, ["slow"], [5])] == [("slow", 5)] and len(chosen(seeds, [], [3])) == 2
    with pytest.raises(ConfigError, match=r"--seed: got 4, expected seeds of the grid: 3, 5\."):
        chosen(seeds, [], [5, 4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"bad": {"trainer.lrr": 1}}}, "arm 'bad': trainer.lrr"),
        ({"arms": {}}, "expected at least one arm"),
        ({"seeds": "many"}, "seeds"),
        ({"arm": {}}, "arm: unknown key. Did you mean 'arms'?"),
        ({"pools": {"out": ["sums"]}}, "pools: this key is now called 'eval_groups'"),
        ({"eval_groups": {"out": ["summs"]}}, "eval_groups.out: got 'summs', expected sets of eval.sets: sums"),
        ({"eval_groups": {"out": []}}, "eval_groups.out: got [], expected at least one set of eval.sets"),
        ({"eval_groups": {"sums": ["sums"]}}, "eval_groups.sums: got ['sums'], expected a name that is no set's own"),
        ({"frontier": {"in_domain": "sums"}}, "frontier: got in_domain, expected in_domain and out_of_domain"),
        (
            {"frontier": {"in_domain": "sums", "out_of_domain": "bot"}},
            "frontier.out_of_domain: got 'bot', expected a set of eval.sets or a group of eval_groups: sums, both. Did you mean 'both'?",
        ),
        (
            {"dose_response": ["m/x", "sms"]},
            "dose_response: got 'sms', expected a set of eval.sets, a group of eval_groups (sums, both)",
        ),
        ({"dose": "plicy_gradient"}, "dose: got 'plicy_gradient', expected a term of an arm's objective: "),
        ({"arms": {"plain": {}, "same": {}}}, "the runs 'plain seed 0' and 'same seed 0' have the same settings"),
        (
            {"factors": {"quiet": {"logging.trackers": ["tensorboard"]}}},
            "logging.trackers: got ['tensorboard'], expected jsonl",
        ),
    ],
)
def test_a_mistake_is_found_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(grid(tmp_path, **changes)), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.process
def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = grid(tmp_path, seeds=[0], arms={"plain": {}, "gone": {"data.path": "gone.jsonl"}}, axes=["data"])
    assert main(["sweep", str(path), "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "failed" in said and "gone/seed-0/log.txt" in said
    assert "gone.jsonl" in (tmp_path / "out/gone/seed-0/log.txt").read_text()
    assert [d["arm"] for d in json.loads((tmp_path / "out/comparison.json").read_text())["differences"]] == [
        "plain"
    ] * 2


@pytest.mark.process
def test_some_of_a_sweep(swept: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was run before stays in the comparison, which is against the grid's first arm whatever runs now."""
    path, output = grid(tmp_path, seeds=[0]), tmp_path / "out"
    assert main(["sweep", str(path), "--arm", "plain", "--output", str(output)]) == 0
    assert "1 runs, 0 finished" in capsys.readouterr().out and not (output / "slow").exists()
    already_run(swept, ["slow/seed-0"], tmp_path, output)
    assert main(["sweep", str(path), "--arm", "slow", "--seed", "0", "--output", str(output)]) == 0
    found = json.loads((output / "comparison.json").read_text())
    assert found["reference"] == "plain" and {d["arm"] for d in found["differences"]} == {"plain", "slow"}
    assert main(["sweep", str(path), "--arm", "slow", "trainer.weight_decay=0.1", "--output", str(output)]) == 2
    other = tmp_path / "other"
    already_run(swept, ["slow/seed-0"], tmp_path, other)
    assert main(["sweep", str(path), "--arm", "slow", "--output", str(other)]) == 0
    found = json.loads((other / "comparison.json").read_text())
    assert not found["differences"] and [d["arm"] for d in found["from_start"]] == ["slow"] * 2


@pytest.mark.process
def test_a_config_that_changes_meanwhile(tmp_path: Path) -> None:
    """The run starts with what the file says then; it is no run of this sweep."""
    path = grid(tmp_path, seeds=[0], arms={"plain": {}})
    (cell,) = cells(path, tmp_path / "out")
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.001", "lr: 0.002"))
    place = Processes(1)
    done = place.start(cell)
    assert done.result() == 0
    assert "other settings (trainer.lr" in str(place.failure(cell, done))
    place.close()


def test_arms_with_other_problems(tmp_path: Path) -> None:
    one = fake(tmp_path / "a", {"p": [True], "q": [False]})
    other = fake(tmp_path / "b", {"q": [True], "r": [True]})
    own, found = compare([("plain", "", 0, one), ("other", "", 0, other)]).differences
    assert (own.problems, found.problems, found.mean, found.difference) == (2, 1, 1.0, 1.0), "on those of both"
    assert np.isnan([found.low, found.high]).all(), "one problem with one seed says nothing of others"
    nothing = fake(tmp_path / "c", {"s": [True]})
    assert [d.arm for d in compare([("plain", "", 0, one), ("c", "", 0, nothing)]).differences] == ["plain"]


@contextmanager
def sweep_process(path: Path, output: Path) -> Iterator[subprocess.Popen[str]]:
    """In a session of its own, as a terminal makes one; nothing of it outlives the block."""
    command = [sys.executable, "-m", "onpolicy", "sweep", str(path), "--output", str(output)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            end_session(process.pid)


def end_session(session: int) -> None:
    """Kills all of it, first the process that began it: it would start others."""
    for pid in (session, *of_session(session)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def of_session(session: int) -> list[int]:
    """Every process that belongs to it, whatever its group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (
                os.getsid(int(path.name)) == session
                and path.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
            ):
                found.append(int(path.name))
    return found


def until(true: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    """As long as the process lives; no deadline but pytest's own."""
    while not true():
        assert process.poll() is None
        time.sleep(0.02)


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a run, with the time when it was last written."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.process
@pytest.mark.nightly
def test_a_sweep_killed_half_way_completes_exactly_what_is_missing(tmp_path: Path) -> None:
    arms: dict[str, Any] = {
        "first": {"trainer.lr": 1e-3},
        "second": {"trainer.lr": 2e-3},
        "third": {"trainer.lr": 3e-3},
    }
    (hold := tmp_path / "hold").touch()
    arms["second"]["rewards[0].hold"] = str(hold)
    path = grid(tmp_path, arms=arms, seeds=[0], axes=["trainer.lr", "rewards"], confounds=[])
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["eval"]["every"] = 4
    changes = {
        "steps": 4,
        "rewards": [{"name": "tests.runs:held"}],
        "preflight": {"enabled": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | changes))
    first, second, third = found = list(cells(path, tmp_path / "out"))
    with sweep_process(path, tmp_path / "whole") as whole:  # meanwhile, not killed
        with sweep_process(path, tmp_path / "out") as killed:
            until(lambda: (second.folder / "checkpoints/step-000001").is_dir(), killed)
        assert first.finished() and not second.finished() and not third.folder.exists()
        hold.unlink()
        before = state_of(first.folder)
        with sweep_process(path, tmp_path / "out") as again:
            said = again.communicate()[0]
        assert again.returncode == 0 and "3 runs, 1 finished" in said
        assert "2/2 third seed 0" in said and "first seed 0" not in said
        assert state_of(first.folder) == before, "not a byte, not a time"
        assert all(cell.finished() for cell in found)
        assert "resumed at step" in second.log.read_text() and "resumed at step" not in third.log.read_text()
        assert whole.communicate()[0] and whole.returncode == 0
    for cell in found:
        assert metrics(cell.folder) == metrics(tmp_path / "whole" / cell.folder.relative_to(tmp_path / "out"))
    texts = [(tmp_path / name / "comparison.json").read_text() for name in ("out", "whole")]
    assert texts[0] == texts[1] and json.loads(texts[0])["differences"]


@pytest.mark.process
def test_a_run_that_an_earlier_sweep_left_behind_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed sweep's run may live on: it holds the log of its folder until it ends."""
    cell = next(cells(grid(tmp_path), tmp_path / "out"))
    cell.folder.mkdir(parents=True)
    holds = "import fcntl, sys; fcntl.flock(1, fcntl.LOCK_EX); print('mine', flush=True); sys.stdin.read()"
    with cell.log.open("a") as log:
        left = subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=log)
    looks, locked = list[Any](), processes._locked

    def look(file: Any) -> bool:
        looks.append(file)
        return locked(file)

    monkeypatch.setattr(processes, "LOOK", 0.05)
    monkeypatch.setattr(processes, "_locked", look)
    try:
        until(lambda: "mine" in cell.log.read_text(), left)
        stop = StopRequest()
        with ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(run_cell, cell, os.environ, stop)
            until(lambda: len(looks) > 5, left)
            stop.set()
            assert stopped.result() == STOPPED, "nothing is started beside it"
        looks.clear()
        place = Processes(1)
        future = place.start(cell)
        until(lambda: len(looks) > 5, left)
        assert future.running()
        monkeypatch.setattr("onpolicy.experiments.sweep.grid.Cell.finished", lambda self: True)  # it has ended well
        left.kill()
        assert future.result() == 0 and place.failure(cell, future) is None
        place.close()
        assert cell.log.read_text() == "mine\n", "and is not run again"
    finally:
        left.kill()
        left.communicate()


def test_of_many_arms_the_first_are_drawn(tmp_path: Path) -> None:
    arms = {f"a{i:02}": {"trainer.lr": 1e-3 * (i + 1)} for i in range(13)}
    found = list(cells(grid(tmp_path, arms=arms, axes=["trainer.lr"], confounds=[]), tmp_path / "out"))
    assert [(c.arm, c.seed) for c in drawn(found)] == [(f"a{i:02}", 0) for i in range(12)]
    assert drawn(found[:12]) == found[:12]
