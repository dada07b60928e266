"""Evaluations as logs of Inspect, read back by Inspect itself and taken by its viewer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onpolicy.cli import main
from tests.runs import run_here, write_config

pytestmark = pytest.mark.process  # Inspect asks which system this is


def test_a_runs_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("inspect_ai", reason="inspect-ai is not installed (make test-trackers)")
    from inspect_ai.log import bundle_log_dir, list_eval_logs, read_eval_log

    sets = {"sums": {"name": "file", "path": str(tmp_path / "data.jsonl"), "problems": 4}}
    config = write_config(tmp_path, steps=1, eval={"every": 1, "sets": sets, "samples_per_problem": 2, "pass_at": [2]})
    run, logs = tmp_path / "run", tmp_path / "logs"
    assert run_here(config, f"run_dir={run}") == 0
    assert main(["export-inspect", str(run), "--output", str(logs)]) == 0
    assert f"{logs}: 2 logs" in capsys.readouterr().out
    assert sorted(Path(info.name).name for info in list_eval_logs(str(logs))) == [
        "sums-step-000000.eval",
        "sums-step-000001.eval",
    ]
    kept = [json.loads(line) for line in (run / "eval/step-000001/sums.jsonl").read_text().splitlines()]
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    log = read_eval_log(str(logs / "sums-step-000001.eval"))
    assert log.status == "success" and log.results is not None and log.samples is not None
    assert log.results.scores[0].metrics["avg@2"].value == logged["eval/sums/avg@2"]
    assert len(log.samples) == 8 and log.results.completed_samples == 8
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    for sample in log.samples:
        problem, i = next(p for p in kept if p["id"] == sample.id), sample.epoch - 1
        (score,) = (sample.scores or {}).values()
        assert score.value == ("C" if problem["right"][i] else "I") and score.answer == problem["answers"][i]
        assert sample.output.completion == problem["completions"][i] == sample.messages[-1].text
        asked = next(row for row in rows if row["prompt"][0]["content"] == sample.messages[0].text)
        assert sample.target == asked["answer"] and not isinstance(sample.input, str)
    bundle_log_dir(str(logs), str(tmp_path / "page"))
    assert (tmp_path / "page/index.html").is_file()
    assert sorted(p.name for p in (tmp_path / "page/logs").glob("*.eval")) == sorted(
        p.name for p in logs.glob("*.eval")
    )


def test_a_run_without_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("inspect_ai", reason="inspect-ai is not installed (make test-trackers)")
    assert main(["export-inspect", str(tmp_path)]) == 2
    assert "holds no evaluations of a run" in capsys.readouterr().err


def test_a_missing_package_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onpolicy.integrations.inspect_logs.is_installed", lambda package: package != "inspect_ai")
    assert main(["export-inspect", str(tmp_path)]) == 2
    assert "pip install 'onpolicy-distill[inspect]'" in capsys.readouterr().err
