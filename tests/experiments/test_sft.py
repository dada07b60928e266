"""``onpolicy sft`` on the lab's reasoner, which answers right both with the solution in view and without it.

1. the traces: the same problems in both files, right, the guided ones shorter, as many as asked for; 2. cut off while collecting it goes
on and ends with the same files; 3. the arms: equal examples, and the third arm as many tokens as the first; they learn from what the
files hold; 4. what is wrong is said before anything is sampled.
"""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from onpolicy.cli import main
from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.experiments.sft.sft import Training, prepare_sweep, sft_grid
from onpolicy.experiments.sft.traces import COLUMN, GUIDED, UNGUIDED, TraceRequest, collect, write_rows
from onpolicy.rewards.answer import exact_answer
from onpolicy.run.run_dir import logged

CONFIG = Path("configs/lab/self_distillation.yaml")
SMALL = [
    "generator.group_size=2", "eval.samples_per_problem=1", "eval.pass_at=[1]", "preflight.enabled=false", "logging.tokens_every=0",
    "eval.sets={unseen: {name: lab, family: route-a-2, split: test, problems: 6}}",
]  # fmt: skip


def trace_rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{kind}.jsonl").read_text().splitlines()]


def test_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onpolicy.experiments.sft.traces.AT_ONCE", 8)  # four problems at a time
    resolved, wanted = (
        resolve(load(CONFIG, [*SMALL, "data.coverage={problems: 30}"])),
        TraceRequest(10, (0.0, 1.0), "teacher"),
    )
    notes: list[str] = []

    def until_the_second(text: str) -> None:
        notes.append(text)
        if len(notes) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(resolved, wanted, tmp_path / "cut", until_the_second)
    rows = collect(resolved, wanted, tmp_path / "cut", notes.append)
    whole = collect(resolved, wanted, tmp_path / "whole", notes.append)
    assert rows == whole and notes[-1].startswith("10 of 10 problems")
    assert collect(resolved, wanted, tmp_path / "whole", lambda text: pytest.fail("nothing is left to do")) == whole
    for kind in (UNGUIDED, GUIDED):
        found = trace_rows(tmp_path / "whole", kind)
        assert found == whole[kind] and len(found) == 10
        assert all(exact_answer(row["completion"], row["answer"]) for row in found)
        assert all("hint" not in row["messages"][-1]["content"] for row in found), "it is trained on the plain problem"
    assert [r["id"] for r in whole[UNGUIDED]] == [r["id"] for r in whole[GUIDED]]
    lengths = {kind: sum(len(r[COLUMN]) for r in whole[kind]) for kind in whole}
    assert lengths[GUIDED] < 0.75 * lengths[UNGUIDED]
    state = json.loads((tmp_path / "whole/collected.json").read_text())
    assert state["examples"] == 10 and state["tokens"] == lengths


@pytest.mark.process
def test_the_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--examples", "8", "--epochs", "2", "--batch", "4", "--seeds", "0", "1", "--output", str(tmp_path)]
    own = ["data.coverage={problems: 30, seed: '${seed}'}", "trainer.lr=1e-3"]
    assert main(["sft", str(CONFIG), *SMALL, *own, *options]) == 0
    said = capsys.readouterr().out
    assert "seed 1: 8 answers of each kind" in said and "guided_equal_tokens" in said
    folders = {arm: [tmp_path / arm / f"seed-{s}" for s in (0, 1)] for arm in (UNGUIDED, GUIDED, "guided_equal_tokens")}
    spent = {arm: sum(r.get("rollout/tokens", 0) for f in fs for r in logged(f)) for arm, fs in folders.items()}
    assert spent[GUIDED] < 0.75 * spent[UNGUIDED]
    assert spent["guided_equal_tokens"] == pytest.approx(spent[UNGUIDED], rel=0.2)
    for seed in (0, 1):
        traces = tmp_path / "examples" / f"seed-{seed}"
        one = logged(folders[UNGUIDED][seed])
        assert [r["step"] for r in one] == [0, 1, 2, 3, 4] and one[-1]["train/loss"] > 0
        lengths = [len(r[COLUMN]) for r in trace_rows(traces, UNGUIDED)]
        assert sum(r.get("rollout/tokens", 0) for r in one) == 2 * sum(lengths), "two epochs of exactly these answers"
        assert one[1]["group/pass_rate"] == 1.0
    ids = [[r["id"] for r in trace_rows(tmp_path / "traces" / f"seed-{s}", GUIDED)] for s in (0, 1)]
    assert ids[0] != ids[1], "other problems with each seed"
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert {d["arm"] for d in comparison["from_start"]} == set(folders)
    arms = yaml.safe_load((tmp_path / "grid.yaml").read_text())["arms"]
    assert arms[UNGUIDED]["steps"] == arms[GUIDED]["steps"] == 4 < arms["guided_equal_tokens"]["steps"]
    before = (folders[GUIDED][0] / "metrics.jsonl").stat().st_mtime_ns
    assert main(["sft", str(CONFIG), *SMALL, *own, *options]) == 0, "again: nothing is left to do"
    assert (folders[GUIDED][0] / "metrics.jsonl").stat().st_mtime_ns == before
    assert main(["sft", str(CONFIG), *SMALL, *own, *options, "generator.temperature=0.5"]) == 2
    assert "holds traces that were made with other settings" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "onpolicy.experiments.sft.traces.dataset_digest", lambda problems: {"digest": "of other problems"}
        )
        assert main(["sft", str(CONFIG), *SMALL, *own, *options]) == 2
    assert "holds traces that were made with other problems" in capsys.readouterr().err


def test_seeds_that_found_more_learn_from_as_many(tmp_path: Path) -> None:
    """Seed 1 keeps four of six examples; the ratio of tokens is that of what is learned from."""
    wanted, training = TraceRequest(6, (0.0, 1.0), "teacher"), Training(1, 2, (0, 1))

    def scarce(resolved: Any, wanted: Any, folder: Path, note: Any) -> dict[str, list[dict[str, Any]]]:
        count = 4 if resolved.config.seed == 0 else 6
        lengths: dict[str, Any] = {UNGUIDED: lambda i: 3 + i, GUIDED: lambda i: 2}
        return {k: [{"id": f"{i}\u2028", COLUMN: [1] * n(i)} for i in range(count)] for k, n in lengths.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onpolicy.experiments.sft.sft.collect", scarce)
        prepare_sweep(CONFIG, SMALL, wanted, training, tmp_path, Console(quiet=True))
    for seed in (0, 1):
        lines = (tmp_path / f"examples/seed-{seed}/guided.jsonl").read_text().split("\n")
        assert [json.loads(line)["id"] for line in lines if line] == [f"{i}\u2028" for i in range(4)]
    arms = yaml.safe_load((tmp_path / "grid.yaml").read_text())["arms"]
    assert [arm["steps"] for arm in arms.values()] == [2, 2, 4], "18 tokens against 8: 2.25 times two steps"
    alike = {kind: [{"id": "a", COLUMN: [1, 2]}] for kind in (UNGUIDED, GUIDED)}
    assert list(sft_grid(load(CONFIG, SMALL), training, tmp_path, [alike])["arms"]) == [UNGUIDED, GUIDED], (
        "no run twice"
    )


def test_traces_of_rows_with_values_of_parquet(tmp_path: Path) -> None:
    row = {"problem": "p", "price": Decimal("0.10"), "seen": {"on": datetime.date(2026, 11, 30)}}
    write_rows(tmp_path / "a.jsonl", [row])
    assert trace_rows(tmp_path, "a") == [{"problem": "p", "price": "0.10", "seen": {"on": "2026-11-30"}}]


def test_traces_with_line_separators_are_read_again(tmp_path: Path) -> None:
    resolved, wanted = (
        resolve(load(CONFIG, [*SMALL, "data.coverage={problems: 4}"])),
        TraceRequest(2, (0.0, 1.0), "teacher"),
    )
    rows = collect(resolved, wanted, tmp_path, lambda text: None)
    for kind, found in rows.items():
        write_rows(tmp_path / f"{kind}.jsonl", [row | {"note": "a\u2028b\x85c"} for row in found])
    again = collect(resolved, wanted, tmp_path, lambda text: None)
    assert [row["note"] for row in again[GUIDED]] == ["a\u2028b\x85c"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--context", "other"], "a context 'other' that guided answers see; the config has the contexts teacher"),
        (["eval.sets={}"], "eval.sets: empty"),
        (["--pass-rate", "0.4", "0.4"], "no problem was solved both with 'teacher' and without it"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    own = ["data.coverage={problems: 3}", "--output", str(tmp_path)]
    assert main(["sft", str(CONFIG), *SMALL, *own, *arguments]) == 2
    assert message in capsys.readouterr().err
