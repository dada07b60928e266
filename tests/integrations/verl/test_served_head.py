"""A teacher of which verl's servers tell the sampled token and the most likely ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import verl  # noqa: F401 first, as it imports the rig and our plug-in in its own order
from omegaconf import open_dict

from onpolicy.integrations.verl.command import compose
from onpolicy.integrations.verl.served_head import ServedHead, is_exact, states
from onpolicy.integrations.verl.settings import method
from onpolicy.utils.errors import ConfigError
from tests.integrations.verl.runs import ROOT

pytestmark = pytest.mark.verl

GIVEN = [
    "data.train_files=x",
    "data.val_files=x",
    "actor_rollout_ref.model.path=some/model",
    "onpolicy.teacher.path=another/model",
]


def composed(*overrides: str) -> Any:
    return compose(ROOT / "configs" / "verl" / "opd_served.yaml", [*GIVEN, *overrides])


def test_what_is_known_is_exact_and_the_rest_is_shared() -> None:
    """Five tokens; the sampled one, 4, is not among the two most likely, 0 and 2."""
    probabilities = torch.tensor([0.5, 0.05, 0.3, 0.05, 0.1], dtype=torch.float64)
    known = torch.tensor([4, 0, 2])
    found = ServedHead(5).logits(states(known, probabilities.log()[known]))
    torch.testing.assert_close(found.exp(), probabilities)
    known = torch.tensor([2, 0, 2])  # the sampled token is one of them
    found = ServedHead(5).logits(states(known, probabilities.log()[known]))
    torch.testing.assert_close(found.exp(), torch.tensor([0.5, 0.2 / 3, 0.3, 0.2 / 3, 0.2 / 3], dtype=torch.float64))


def test_a_teacher_whose_table_is_longer() -> None:
    """Id 6 is beyond the student's five tokens."""
    probabilities = torch.tensor([0.4, 0.0, 0.3, 0.0, 0.1, 0.0, 0.2], dtype=torch.float64)
    known = torch.tensor([4, 0, 6])
    found = ServedHead(5).logits(states(known, probabilities.log()[known]))
    torch.testing.assert_close(found.exp(), torch.tensor([0.4, 0.5 / 3, 0.5 / 3, 0.5 / 3, 0.1], dtype=torch.float64))


def test_a_certain_teacher_in_float32() -> None:
    """What is left of the probability is 0 after rounding, and no other token may overtake a known one."""
    logits = torch.tensor([30.0, 0.0, -5.0, -9.0])
    known = torch.tensor([0, 0, 1])
    found = ServedHead(4).logits(states(known, logits.log_softmax(-1)[known]))
    assert bool(found.isfinite().all())
    assert found.topk(2).indices.tolist() == [0, 1]


TOP = {"name": "teacher_topk", "k": 16}


@pytest.mark.parametrize(
    ("objective", "exact"),
    [
        ({"name": "teacher_advantage"}, {0, 16}),
        ({"name": "teacher_advantage", "temperature": 1.1, "importance_cap": None}, set()),
        ({"name": "teacher_advantage", "select": {"name": "logratio_above", "threshold": -2.5}}, {0, 16}),
        ({"name": "distill", "divergence": "forward_kl", "support": TOP}, {16}),
        ({"name": "distill", "divergence": {"name": "jsd", "beta": 0.5}, "support": TOP | {"tail": "renormalize"}}, {16}),
        ({"name": "distill", "divergence": "forward_kl", "target": {"name": "top_k", "k": 16}}, {16}),
        ({"name": "distill", "divergence": "forward_kl", "support": TOP | {"k": 17}}, set()),
        ({"name": "distill", "divergence": "forward_kl", "support": {"name": "student_topk", "k": 16}}, set()),
        ({"name": "distill", "divergence": "reverse_kl"}, set()),
        ({"name": "distill", "divergence": "reverse_kl", "weight": {"name": "linear", "initial": 0, "final": 1, "end": 40}}, set()),
        ({"name": "distill", "divergence": "forward_kl", "support": TOP,
          "token_weights": {"name": "teacher_entropy", "threshold": 0.8}}, set()),
    ],
)  # fmt: skip
def test_an_objective_that_reads_more_is_told_from_one_that_does_not(
    objective: dict[str, Any], exact: set[int]
) -> None:
    config = composed("distillation.enabled=false", "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null")
    with open_dict(config):
        config.onpolicy.objective = [objective]
    resolved = method(config)
    assert {k for k in (0, 16) if is_exact(resolved, k)} == exact


def test_what_a_served_teacher_cannot_do_is_refused() -> None:
    method(composed())
    method(
        composed("distillation.distillation_loss.loss_mode=forward_kl_topk", "distillation.distillation_loss.topk=8")
    )
    wrong = {
        "distillation.teacher_models.teacher_model.model_path=a/third": "expected one with the model of onpolicy.teacher",
        "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null": "without which no context reaches the teacher",
        "onpolicy.contexts.teacher=successful_sibling": "'successful_sibling' shows other rollouts",
        "distillation.teacher_models.teacher_model.inference.max_model_len=512": "distillation: .*max_model_len=512",
        "onpolicy.objective=[{name: distill, divergence: reverse_kl}]": "reads more of the teacher than the sampled token",
    }
    for override, expected in wrong.items():
        with pytest.raises(ConfigError, match=expected):
            method(composed(override))
