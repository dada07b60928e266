"""Every shipped config takes two real steps on a tiny model and changes its weights; RLCSD, SDPO and OPSD differ by the same few
sections; each says where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from onpolicy.annotation.contexts import failed_sibling, majority_sibling
from onpolicy.types import Rollout
from tests.runs import metrics, run_here, write_config
from tests.tiny import tiny_model_dir

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
# Thinking is no matter of the config here: the tiny model's template has no such switch.
SMALL = ["data.prompts_per_step=3", "generator.name=transformers", "generator.max_tokens=8", "generator.group_size=4", "steps=2",
         "trainer.lr=1e-3", "trainer.warmup_steps=0", "logging.trackers=[jsonl]", "eval.every=0", "seed=3",
         "rendering.thinking=null", "rendering.teacher_thinking=null"]  # fmt: skip


def often_right(completion: str) -> float:
    """1 for about half of a random model's rollouts."""
    return float(len(completion) % 2)


def odd_or_even(rollout: Rollout) -> str:
    """A random model states no answer; here it states one of two."""
    return str(len(rollout.text) % 2)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_two_steps_of_every_config(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(majority_sibling, "vote_of", odd_or_even)
    monkeypatch.setattr(failed_sibling, "extract_answer", lambda text: str(len(text) % 2))
    write_config(tmp_path)
    given = yaml.safe_load(path.read_text())
    overrides = [*SMALL, f"model.path={tmp_path / 'model'}", f"run_dir={tmp_path / 'run'}"]
    if given["data"]["name"] != "gym":
        again = {"dynamic_sampling": given["data"].get("dynamic_sampling", 0), "name": "file"}
        data = {**again, "path": str(tmp_path / "data.jsonl"), "prompts_per_step": 3}
        overrides += (
            [f"data={data}", "rewards[0]=tests.experiments.test_methods:often_right"]
            if "rewards" in given
            else [f"data={data}"]
        )
    if any(term.get("route") == "finished" for term in given["objective"]):
        overrides += ["generator.max_tokens=200"]  # a random model hardly ever ends its turn within eight tokens
    if given.get("teacher", {}).get("name") == "model":
        overrides += [f"teacher.path={tiny_model_dir(tmp_path / 'teacher', seed=1)}"]
    assert run_here(path, *overrides) == 0
    rows = metrics(tmp_path / "run")
    assert len(rows) == 2
    for row in rows:
        assert row["train/grad_norm"] > 0 and row["train/skipped_updates"] == 0
    before, after = (
        AutoModelForCausalLM.from_pretrained(p) for p in (tmp_path / "model", tmp_path / "run/checkpoints/step-000002")
    )
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_is_short_and_says_where_it_comes_from(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 30
    if path.stem not in ("quickstart", "smollm2"):  # they show a run, not a published method
        assert re.match(r"# [^\n]+\((arXiv|MiniMax|Thinking)|# [^\n]*arXiv|# GRPO and self", text)
        assert re.search(r"^# Source: .+; confidence (high|medium|low)\.$", text, flags=re.MULTILINE)


@pytest.mark.parametrize(("one", "other"), [("rlcsd", "sdpo"), ("sdpo", "opsd"), ("opsd", "rlcsd")])
def test_three_families_are_a_few_sections_apart(one: str, other: str) -> None:
    """What the teacher reads, its weights and the loss, and the scale of the published runs."""
    first, second = (_sections(name) for name in (one, other))
    apart = {key for key in first | second if first.get(key) != second.get(key)}
    assert apart <= {
        "contexts",
        "teacher",
        "objective",
        "data",
        "generator",
        "trainer",
        "rendering",
        "rewards",
        "credit",
    }


def _sections(name: str) -> dict[str, object]:
    text = (Path(__file__).parents[2] / "configs" / f"{name}.yaml").read_text()
    return dict(yaml.safe_load(text))
