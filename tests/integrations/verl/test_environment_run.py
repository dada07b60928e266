"""A whole run of verl's own entry point in which an environment answers: turns, segments, rewards, failures, validation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.test_next_turn import FORGETS
from tests.integrations.verl.runs import main_ppo, smallest
from tests.integrations.verl.test_environment_agent import SEGMENTS, write_method, write_problems_of
from tests.integrations.verl.test_runs import finite
from tests.tiny import byte_tokenizer, tiny_model_dir

pytestmark = [pytest.mark.verl, pytest.mark.ray]


def test_an_environment_answers_and_fails_in_some_rollouts(tmp_path: Path) -> None:
    """Segments are rows of their own, and a step is one update all the same."""
    tiny_model_dir(tmp_path / "model")
    byte_tokenizer(FORGETS).save_pretrained(tmp_path / "model")
    data = write_problems_of(tmp_path, faults={"p1": "raises"})
    overrides = smallest(tmp_path) | {
        "data.train_files": str(data),
        "data.val_files": str(data),
        "data.max_response_length": 100,
        "actor_rollout_ref.rollout.n": 4,
        "trainer.val_before_train": True,
        "trainer.test_freq": 2,
    }
    rows = main_ppo(overrides, tmp_path, config=write_method(tmp_path, SEGMENTS))
    assert [row["step"] for row in rows] == [0, 1, 2]
    said = (tmp_path / "output.log").read_text()
    assert said.count("environment: 4 of 16 rollouts failed and are left out: KeyError: 'no such tool' (4)") == 2
    assert "onpolicy: the driver reads texts" not in said and "ours differ from token" not in said
    for row in rows[1:]:
        assert row["environment/failed"] == row["rollout/not_graded"] == row["rollout/aborted"] == 0.25
        assert row["environment/turns"] > 1 and row["environment/segments"] > 1
        assert row["environment/metrics/letters"] > 0
        assert "actor/entropy" not in row, "one update needs no pass for old log-probabilities"
        assert row["context/teacher/share"] == row["context/told/share"] == 1.0
    for name in (
        "reward/environment",
        "reward/tests.runs:length_reward",
        "distill/divergence",
        "teacher_advantage/loss",
    ):
        finite(rows, name)
    assert max(finite(rows, "rollout/logprob_gap")) < 1e-4, "what was observed is where the model has read it"
    assert min(finite(rows, "actor/grad_norm")) > 0
    for row in (rows[0], rows[2]):
        assert row["val-aux/problems/environment/failed/mean@1"] == 0.25
        assert row["val-aux/problems/environment/turns/mean@1"] >= 1
        # the mean over those that were graded; verl's own counts the others as 0
        assert row["val-aux/problems/environment/mean@1"] > row["val-core/problems/reward/mean@1"] > 0
