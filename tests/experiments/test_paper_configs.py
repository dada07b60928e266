"""Every config and grid of the paper's sections, on a tiny model: all arms are valid, and each takes a real step.

The settings that make them small stand where a user's own would: model, data, sampler, trainer, evaluation.
"""

from __future__ import annotations

import json
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy.cli import main
from onpolicy.config.load import load, to_yaml
from onpolicy.config.resolve import resolve
from onpolicy.config.schema import Config
from onpolicy.experiments.sweep.grid import cells, read_grid
from tests.runs import metrics, run_here, write_config

FOLDER = Path(__file__).parents[2] / "configs" / "paper"
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
        "rewards=['tests.experiments.test_methods:often_right']",
        "distributed={}",
        "rendering.thinking=null",  # the tiny model's template has no such switch
        "rendering.max_prompt_tokens=200",
        "rendering.max_teacher_prompt_tokens=900",
        "eval.every=0",
        "eval.max_tokens=8",
        "eval.samples_per_problem=2",
        "eval.pass_at=[1]",
        f"eval.sets={{few: {{name: file, path: {folder / 'data.jsonl'}, problems: 3}}}}",
        "epistemic.lexicons=[paper10]",
        "logging.trackers=[jsonl]",
        "checkpoint={}",
        "steps=1",
    ]


def one_of_each(path: Path, folder: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Every arm under the first factor and every factor of the first arm, with the overrides that make it."""
    everything = list(takewhile(lambda cell: cell.seed == 0, cells(path, folder / "out")))
    first = everything[0]
    return [(f"{c.arm} {c.factor}", c.overrides) for c in everything if c.arm == first.arm or c.factor == first.factor]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_valid_and_says_where_it_comes_from(name: str) -> None:
    path = CONFIGS[name]
    resolve(load(path, ["model.path=some/model"]))
    assert "arXiv" in path.read_text() and "# Source: " in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly) if name == "bonus" else name for name in GRIDS]
)
def test_every_arm_takes_a_step(name: str, tmp_path: Path) -> None:
    """Arms that are the same once they are small take it once."""
    config, own = (
        FOLDER / yaml.safe_load(GRIDS[name].read_text())["config"],
        [*small(tmp_path), "preflight.enabled=false"],
    )
    taken: dict[str, dict[str, float]] = {}
    for arm, overrides in one_of_each(GRIDS[name], tmp_path):
        kept = [o for o in overrides if not o.startswith(("run_dir=", "data.coverage", "data.prompts", "trainer."))]
        settings = to_yaml(load(config, [*kept, *own]))
        if settings not in taken:
            run = tmp_path / f"run-{len(taken)}"
            assert run_here(config, *kept, *own, f"run_dir={run}") == 0, arm
            (taken[settings],) = metrics(run)
        row = taken[settings]
        assert row["train/skipped_updates"] == 0 and row["rollout/tokens"] > 0, arm
        informed = resolve(load(config, kept)).contexts
        assert not informed or row["context/teacher/share"] > 0, arm


@pytest.mark.slow
def test_bonuses_are_those_of_the_lab_but_for_what_only_the_lab_can_grade(tmp_path: Path) -> None:
    """Every arm at the lowest weight: one bonus, a penalty there, after credit or inside the reward that it normalises."""
    arms = read_grid(GRIDS["bonus"]).arms
    designs = {name.split("_")[0] for name in arms}
    assert set(arms) == {
        f"{d}_{o}_{p}" for d in designs for o in ("grpo", "mixed", "teacher") for p in ("after", "inside")
    }
    lab = read_grid(FOLDER.parent / "lab/bonus.yaml")
    assert set(arms) == set(lab.arms) and read_grid(GRIDS["bonus"]).factors == lab.factors
    for cell in islice(cells(GRIDS["bonus"], tmp_path), len(arms)):
        correct, bonus = cell.settings.rewards
        assert bonus["weight"] == -3.0 and bonus.get("bonus", True) == cell.arm.endswith("_after"), cell.arm
        assert correct["name"] == "paper_train_answer" and bool(cell.settings.contexts) == ("_grpo_" not in cell.arm)


SDPO = {
    "prompts": 256, "answers": 8, "tokens": 20480, "updates": 2, "steps": 100, "lr": 1e-5, "warm-up": (10, True),
    "decay": 0.01, "clip": 1.0,
    "teacher": "frozen", "credit": "group_mean", "context": "successful_sibling", "threshold": 0.5, "keep": None, "term": "distill",
    "beta": 0.5, "k": 100, "cap": 2.0, "normalize": "all_sequences", "reward": "paper_train_answer",
    "eval": (16, 0.6, 0.95, 38912),
}  # fmt: skip
"""arXiv 2603.24472, appendix and code."""
GRPO = SDPO | {
    "lr": 1e-6,
    "teacher": "live",
    "context": None,
    "threshold": None,
    "term": "policy_gradient",
    "beta": None,
    "k": None,
}
SIX = {"prompts": 64, "eval": (16, 0.7, 0.8, 38912)}


def settings(config: Config) -> dict[str, Any]:
    term, teacher = config.objective[0], config.contexts.get("teacher", {})
    trainer, sets = config.trainer, config.eval
    return {
        "prompts": config.data["prompts_per_step"], "answers": config.generator["group_size"], "tokens": config.generator["max_tokens"],
        "updates": trainer["updates_per_step"], "steps": config.steps, "lr": float(trainer["lr"]),
        "warm-up": (trainer["warmup_steps"], trainer["warmup_from_zero"]),
        "decay": trainer["weight_decay"], "clip": trainer.get("max_grad_norm", 1.0), "teacher": config.teacher["name"],
        "credit": config.credit["name"], "context": teacher.get("name"), "threshold": teacher.get("threshold"),
        "keep": teacher.get("keep_thinking"), "term": term["name"], "beta": term.get("divergence", {}).get("beta"),
        "k": term.get("support", {}).get("k"), "cap": term["importance_cap"], "normalize": term["normalize"],
        "reward": config.rewards[0]["name"], "eval": (sets.samples_per_problem, sets.temperature, sets.top_p, sets.max_tokens),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "arm", "factor", "expected"),
    [
        ("section_5", "sdpo", "r1_distill_7b", SDPO),
        ("section_5", "sdpo_without_think", "olmo3_7b", SDPO | {"keep": "unclosed"}),
        ("section_5", "grpo", "qwen3_1.7b", GRPO),
        ("section_5", "grpo", "qwen3_8b_no_think", GRPO | {"eval": (16, 0.7, 0.8, 38912)}),
        ("section_5_ablations", "ema", "", SDPO | {"teacher": "ema"}),
        ("section_5_ablations", "lr_1e-6", "", SDPO | {"lr": 1e-6}),
        ("section_5_ablations", "top_256", "", SDPO | {"k": 256}),
        ("section_5_ablations", "grpo_lr_1e-5", "", GRPO | {"lr": 1e-5}),
        ("section_6", "sdpo", "512", SDPO | SIX),
        ("section_6", "grpo", "1", GRPO | SIX),
    ],
)
def test_the_papers_settings(grid: str, arm: str, factor: str, expected: dict[str, Any], tmp_path: Path) -> None:
    cell = next(c for c in cells(GRIDS[grid], tmp_path) if (c.arm, c.factor) == (arm, factor))
    found = settings(load(FOLDER / "math.yaml", cell.overrides))
    assert found == expected
    if "grpo" in arm:
        (term,) = load(FOLDER / "math.yaml", cell.overrides).objective
        assert (term["clip_low"], term["clip_high"], term["dual_clip"]) == (0.2, 0.28, 3.0)


@pytest.mark.parametrize("name", ["math", "opsd"])
def test_a_run_of_every_config_that_trains(name: str, tmp_path: Path) -> None:
    assert run_here(CONFIGS[name], *small(tmp_path), f"run_dir={tmp_path / 'run'}") == 0
    (row,) = metrics(tmp_path / "run")
    assert row["train/grad_norm"] > 0


@pytest.mark.process
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
