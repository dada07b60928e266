"""Whole runs in which an environment answers.

1. segments are rows of their own: the same reward and advantage, the teacher's prompt goes on as the student's does, and log-probabilities
agree; 2. rollouts whose environment failed are neither graded nor trained on, are counted, and the run goes on; 3. it is the same with
processes that annotate, with replicas under Ray, and with rollouts sampled ahead; 4. what a context asks the model has one turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy.annotation.annotate import by_segment
from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.run.assemble import assemble
from onpolicy.run.display import Display
from tests.data.test_next_turn import FORGETS
from tests.runs import metrics, run_here, write_config

HERE = "tests.rollout.conversations"


def write_run(folder: Path, **changes: Any) -> Path:
    path = write_config(folder)
    config = yaml.safe_load(path.read_text())
    config |= {
        "environment": {"name": f"{HERE}:asks", "turns": 2},
        "data": {"name": f"{HERE}:talks", "prompts_per_step": 2},
        "generator": {"name": "transformers", "group_size": 3, "max_tokens": 150},
        "rewards": [{"name": "environment"}],
        "contexts": {"teacher": {"name": "instruction", "template": "{question}\n\nSay more letters."}},
        "epistemic": {"lexicons": ["self_doubt"]},
        "steps": 2,
        **changes,
    }
    path.write_text(yaml.safe_dump(config))
    return path


def test_segments_are_rows_that_share_their_reward(tmp_path: Path) -> None:
    template = tmp_path / "forgets.jinja"
    template.write_text(FORGETS)
    path = write_run(
        tmp_path,
        environment={"name": "tests.rollout.test_environments:Thinks", "turns": 3},
        rendering={"chat_template": str(template)},
        preflight={"enabled": False},
    )
    resolved = resolve(load(path, [f"run_dir={tmp_path / 'run'}"]))
    run = assemble(resolved, tmp_path / "run", Display(2))
    groups, _ = run.sampler.sample(1)
    examples, facts = run.annotator.annotate(groups, version=0)
    rollouts = [r for scored in groups for r in scored.group.rollouts]
    assert len(examples) == sum(len(r.segments) for r in rollouts) > len(rollouts)
    assert facts["environment/segments"] == len(examples) / len(rollouts)
    assert facts["rollout/completion_length/mean"] == pytest.approx(
        sum(r.num_written for r in rollouts) / len(rollouts)
    )
    renderer, place = run.annotator.renderer, iter(examples)
    for scored in groups:
        for index, rollout in enumerate(scored.group.rollouts):
            own = [next(place) for _ in rollout.segments]
            assert [e.rollout for e in own] == list(rollout.segments)
            assert len({(e.reward, e.advantage, e.group_id) for e in own}) == 1
            for example, segment in zip(own, rollout.segments, strict=True):
                asked = scored.group.prompt.messages[0]["content"] + "\n\nSay more letters."
                expected = renderer.prompt_ids([{"role": "user", "content": asked}, *segment.history])
                assert example.teacher_prompt_ids == {"teacher": expected}
            views = by_segment(scored, index)
            assert [v.group.rollouts[index] for v in views] == list(rollout.segments) and views[-1] is scored
    stepped = run.trainer.step(examples)
    assert stepped["rollout/logprob_gap"] < 1e-5
    run.generator.close()


FAULTS = {"faults": {"p1": "raises", "p3": "forgets_the_problem"}}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        pytest.param(["distributed.num_annotation_workers=1"], marks=pytest.mark.process),
        ["generator.max_staleness=1", "objective.1.importance_cap=5.0"],
        pytest.param(["distributed.num_generators=1", "distributed.num_reward_workers=1"], marks=pytest.mark.ray),
    ],
)
def test_what_failed_is_counted_and_left_out(
    tmp_path: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path, data={"name": f"{HERE}:talks", "prompts_per_step": 4, **FAULTS})
    assert run_here(path, f"run_dir={tmp_path / 'run'}", *overrides) == 0
    rows = metrics(tmp_path / "run")
    assert len(rows) == 2
    for row in rows:
        assert row["environment/failed"] == row["rollout/not_graded"] == row["rollout/aborted"] == 0.5
        assert (
            row["environment/metrics/letters"] == pytest.approx(row["reward/environment"])
            and row["environment/turns"] > 1
        )
        # rollouts that were sampled ahead are of older weights
        assert row["rollout/logprob_gap"] < 1e-4 or "rollout/staleness/max" in row
    said = " ".join(capsys.readouterr().out.split())
    assert "6 of 12 rollouts failed and are left out:" in said and "KeyError: 'no such tool' (3)" in said


def test_a_run_without_a_rollout_that_is_whole_ends_with_the_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = {"faults": dict.fromkeys(("p0", "p1", "p2", "p3"), "raises")}
    path = write_run(tmp_path, data={"name": f"{HERE}:talks", "prompts_per_step": 4, **faults})
    assert run_here(path, f"run_dir={tmp_path / 'run'}") != 0
    assert "all 12 rollouts failed: KeyError: 'no such tool' (12)" in capsys.readouterr().err


def test_what_a_context_asks_has_one_turn(tmp_path: Path) -> None:
    path = write_run(
        tmp_path,
        contexts={"teacher": {"name": "critique", "threshold": 1e6, "question": "{question} {attempt}"}},
        steps=1,
    )
    assert run_here(path, f"run_dir={tmp_path / 'run'}") == 0
    assert metrics(tmp_path / "run")[-1]["context/sampled_tokens"] > 0


def test_what_contradicts_an_environment_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(
        tmp_path,
        environment={"name": f"{HERE}:asks", "turns": 2, "timeout": 0},
        privileged_rollouts={"name": "none"},
    )
    assert run_here(path, f"run_dir={tmp_path / 'run'}") != 0
    said = capsys.readouterr().err
    assert "environment.timeout: got 0" in said
    assert "privileged_rollouts: an environment answers what is sampled for the problem alone" in said
    assert not (tmp_path / "run").exists()
