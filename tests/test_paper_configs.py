"""Every config and grid of the paper's sections, on a tiny model: all arms are valid, and each takes a real step.

The settings that make them small stand where a user's own would: model, data, sampler, trainer, evaluation.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from onpolicy.__main__ import main
from onpolicy.config import load
from onpolicy.grid import cells
from onpolicy.plan import plan
from tests.runs import metrics, run_here, write_config

FOLDER = Path(__file__).parent.parent / "configs" / "paper"
CONFIGS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml")) if "arms" not in yaml.safe_load(path.read_text())}
GRIDS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml")) if path.stem not in CONFIGS}


def small(folder: Path) -> list[str]:
    """Overrides under which any of them runs here."""
    write_config(folder)
    data = {"name": "file", "path": str(folder / "data.jsonl"), "prompts_per_step": 3}
    return [
        f"model.path={folder / 'model'}",
        f"data={json.dumps(data)}",
        "generator={name: transformers, group_size: 4, max_tokens: 8}",
        "trainer={name: local, lr: 0.001}",
        "rewards=['tests.test_methods:often_right']",
        "roles={}",
        "rendering.max_prompt_tokens=200",
        "rendering.max_teacher_prompt_tokens=900",
        "eval.every=0",
        "eval.max_tokens=8",
        "eval.samples=2",
        "eval.k=[1]",
        f"eval.sets={{few: {{name: file, path: {folder / 'data.jsonl'}, problems: 3}}}}",
        "epistemic.lexicons=[seed10]",
        "logging.trackers=[jsonl]",
        "checkpoint={}",
        "steps=1",
    ]


def one_of_each(path: Path, folder: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Every arm under the first cross and every cross of the first arm, with the overrides that make it."""
    everything = [cell for cell in cells(path, folder / "out") if cell.seed == 0]
    first = everything[0]
    return [(f"{c.arm} {c.cross}", c.overrides) for c in everything if c.arm == first.arm or c.cross == first.cross]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_valid_and_says_where_it_comes_from(name: str) -> None:
    path = CONFIGS[name]
    plan(load(path, ["model.path=some/model"]))
    assert "arXiv" in path.read_text() and "# Source: " in path.read_text()


@pytest.mark.parametrize("name", GRIDS)
def test_every_arm_takes_a_step(name: str, tmp_path: Path) -> None:
    config = FOLDER / yaml.safe_load(GRIDS[name].read_text())["config"]
    for i, (arm, overrides) in enumerate(one_of_each(GRIDS[name], tmp_path)):
        kept = [o for o in overrides if not o.startswith(("run_dir=", "data.coverage", "data.prompts", "trainer."))]
        run = tmp_path / f"run-{i}"
        assert run_here(config, *kept, *small(tmp_path), "preflight.enabled=false", f"run_dir={run}") == 0, arm
        (row,) = metrics(run)
        assert row["train/skipped_updates"] == 0 and row["rollout/tokens"] > 0, arm


@pytest.mark.parametrize("name", ["math", "opsd"])
def test_a_run_of_every_config_that_trains(name: str, tmp_path: Path) -> None:
    assert run_here(CONFIGS[name], *small(tmp_path), f"run_dir={tmp_path / 'run'}") == 0
    (row,) = metrics(tmp_path / "run")
    assert row["train/grad_norm"] > 0


def test_contexts_off_policy_and_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = small(tmp_path)
    assert main(["analyze", "contexts", str(CONFIGS["section_3"]), *own, "--problems", "4"]) == 0
    assert "without_thinking" in capsys.readouterr().out
    out = ["--output", str(tmp_path / "sft"), "--examples", "4", "--epochs", "1", "--batch", "4"]
    assert main(["sft", str(CONFIGS["section_4"]), *own, "generator.max_tokens=24", *out]) == 0
    assert "guided_equal_tokens" in capsys.readouterr().out
    assert main(["eval", str(CONFIGS["evaluate"]), *own, f"run_dir={tmp_path / 'eval'}"]) == 0
    found = json.loads((tmp_path / "eval/results.json").read_text())["results"]["few"]
    assert {"avg@2,none", "pass@1,none", "avg@2/math_answer,none", "agrees/math_answer,none"} <= set(found)
