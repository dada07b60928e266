"""Rollouts that are sampled with a context where a group has failed whole.

1. who is asked, what is kept, and what the student is said to have read; 2. they have no advantage, go to the terms that take them, and
change no metric but their own; 3. the trainer's log-probabilities replace those of the other prompt; 4. configs that contradict
themselves; 5. a real run in which nothing else is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from onpolicy.annotation import routes
from onpolicy.annotation.annotate import Annotator
from onpolicy.annotation.contexts.failed_sibling import failed_sibling
from onpolicy.annotation.contexts.reference_solution import reference_solution
from onpolicy.annotation.credit import group_mean
from onpolicy.annotation.privileged import PrivilegedRollouts
from onpolicy.annotation.queries import ContextQueries
from onpolicy.annotation.scoring import Reward, Scorer
from onpolicy.config.load import build
from onpolicy.config.resolve import resolve
from onpolicy.data.rendering import PromptTooLong
from onpolicy.types import Example, Metrics, RolloutGroup, Sampling
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.seeds import step_seed
from tests.annotation.test_queries import RENDERER, Scripted, group, right
from tests.runs import metrics, run_here, write_config


def annotate(
    groups: Sequence[RolloutGroup], generator: Any, *, with_privileged: bool = True, samples: int = 4, **options: Any
) -> tuple[list[Example], Metrics]:
    scorer = Scorer([Reward("right", 1.0, right)], str, "right")
    limit, drop = options.pop("limit", 2000), options.pop("drop", True)
    queries = ContextQueries(generator, scorer, [], step_seed, RENDERER, limit, drop)
    context = options.pop("context", None) or partial(reference_solution, optional=True, **options)
    privileged = PrivilegedRollouts(context, samples, queries, lambda es: [[-7.0] * e.rollout.num_sampled for e in es])
    annotator = Annotator(
        renderer=RENDERER, contexts={"teacher": reference_solution}, credit=group_mean, queries=queries,
        max_teacher_prompt_tokens=2000, drop_too_long=False,
        routes={"pg": routes.all, "ended": routes.finished, "distill": routes.privileged},
        privileged=privileged if with_privileged else None,
    )  # fmt: skip
    return annotator.annotate(scorer.score(groups), version=0)


def test_groups_that_failed_whole_get_correct_rollouts_sampled_with_the_solution() -> None:
    generator = Scripted(["right one", "no", "never", "right two"], Sampling(group_size=3, temperature=0.5))
    groups = [group("no", "right", name="p1"), group("no", "never", name="p2"), group("right", "right", name="p3")]
    examples, facts = annotate(groups, generator)
    (asked,) = generator.asked
    assert [p.id for p in asked] == ["p2#privileged"] and "the solution of p2" in asked[0].messages[-1]["content"]
    assert [e.rollout.text for e in examples] == [
        "no",
        "right",
        "no",
        "never",
        "right one",
        "right two",
        "right",
        "right",
    ]
    assert [e.group_id for e in examples] == [0, 0, 1, 1, 1, 1, 2, 2]
    extra, own = examples[4], examples[2]
    assert extra.rollout.prompt_ids == own.rollout.prompt_ids and extra.prompt == own.prompt
    assert extra.teacher_prompt_ids == own.teacher_prompt_ids, "the teacher scores it with the solution too"
    assert extra.rollout.rollout_logprobs == (-7.0,) * len("right one"), "the trainer's, under the student's prompt"
    assert own.rollout.rollout_logprobs == (-1.0, -1.0)
    assert facts["privileged/groups"] == pytest.approx(1 / 3) and facts["privileged/correct"] == 0.5


def test_they_have_no_advantage_and_go_where_they_are_asked_for() -> None:
    generator = Scripted(["right one"])
    groups = [group("no", "no"), group("right", "no", name="p2")]
    with_them, facts = annotate(groups, generator, samples=2)
    without, plain = annotate(groups, generator, with_privileged=False)
    extra = [e for e in with_them if e.rollout.text == "right one"]
    assert len(extra) == 2 and all(e.advantage == 0.0 and e.reward == 1.0 for e in extra)
    assert all(e.routes == {"pg": 0.0, "ended": 0.0, "distill": 1.0} for e in extra)
    assert [e for e in with_them if e not in extra] == without
    assert all(e.routes == {"pg": 1.0, "ended": 1.0, "distill": 0.0} for e in without)
    assert {k: v for k, v in facts.items() if not k.startswith(("privileged/", "context/sampled"))} == plain
    assert facts["group/pass_rate"] == 0.25 and facts["context/sampled_tokens"] == 2.0 * len("right one")


@pytest.mark.parametrize(
    ("groups", "options", "shares"),
    [
        ([group("right", "no")], {}, (0.0, None)),
        ([group("no")], {"field": "absent"}, (0.0, None)),
        ([group("no")], {"limit": 20}, (0.0, None)),
        ([group("no")], {}, (1.0, 0.0)),
    ],
)
def test_steps_without_any(
    groups: list[RolloutGroup], options: dict[str, Any], shares: tuple[float, float | None]
) -> None:
    generator = Scripted(["never"])
    examples, facts = annotate(groups, generator, **options)
    assert len(examples) == len(groups[0].rollouts) and len(generator.asked) == (shares[1] is not None)
    assert (facts["privileged/groups"], facts.get("privileged/correct")) == shares


def test_a_failed_answer_that_is_too_long_to_be_shown_is_left_out_in_any_case() -> None:
    generator = Scripted(["right one"])
    groups = [group("no", "long " * 50, name="p1"), group("no", "never", name="p2")]
    examples, facts = annotate(groups, generator, context=failed_sibling, limit=200, drop=False)
    assert facts["privileged/groups"] == 0.5 and [p.id for p in generator.asked[0]] == ["p2#privileged"]
    assert [e.rollout.text for e in examples][-2:] != ["no", "never"]
    with pytest.raises(PromptTooLong, match=r"privileged_rollouts, prompt 'p2' \(rendering"):
        annotate(groups[1:], generator, limit=40, drop=False)


def resolved_with(**changes: Any) -> Any:
    base: dict[str, Any] = {
        "model": {"path": "m"}, "data": {"name": "file", "path": "d"}, "rewards": ["math_answer"],
        "contexts": {"teacher": "reference_solution"}, "privileged_rollouts": {"name": "reference_solution", "samples": 2},
        "objective": [{"name": "distill", "divergence": "forward_kl", "route": "privileged"}],
    }  # fmt: skip
    return resolve(build({**base, **changes}))


def test_what_a_config_has_to_say() -> None:
    found = resolved_with()
    assert found.privileged_rollouts is not None and found.privileged_rollouts.settings.samples == 2
    assert list(found.querying_plugins) == ["privileged_rollouts"], (
        "the window has to hold its prompts; verl refuses it"
    )
    term = {"name": "distill", "divergence": "forward_kl"}
    for changes, problem in (
        ({"privileged_rollouts": {}}, r"objective\[0\].route: takes privileged rollouts alone"),
        ({"objective": [term]}, "no term of the objective takes such rollouts"),
        ({"privileged_rollouts": {"name": "reference_solution", "samples": 0}}, "samples: got 0, expected at least 1"),
        ({"privileged_rollouts": {"name": "key_points"}}, "'key_points' asks the model itself"),
        ({"privileged_rollouts": {"name": "nothing"}}, "unknown context 'nothing'"),
        ({"privileged_rollouts": {"name": "reference_solution", "sample": 3}}, "Fields of every context: samples"),
        ({"objective": [{**term, "route": "privileged", "normalize": "max_tokens"}]}, "expected tokens or sequences"),
        ({"rewards": []}, "needs a reward"),
        ({"data": {"name": "file", "path": "d", "completions_column": "a"}}, "nothing is sampled"),
    ):
        with pytest.raises(ConfigError, match=problem):
            resolved_with(**changes)


def right_with_the_solution(completion: str, id: str) -> float:
    """The student alone fails always; with the solution before it, every second rollout is correct."""
    return float("#privileged" in id and id.endswith(("0", "2")))


def test_a_run_that_learns_from_them_alone(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        rewards=[{"name": "tests.annotation.test_privileged:right_with_the_solution"}],
        privileged_rollouts={"name": "reference_solution", "samples": 4},
        teacher={"name": "live"},
        objective=[
            {"name": "policy_gradient"},
            {"name": "distill", "divergence": "forward_kl", "route": "privileged", "importance_cap": 2.0},
        ],
        generator={"name": "transformers", "group_size": 2, "max_tokens": 8},
        steps=2,
    )
    assert run_here(config, f"run_dir={tmp_path / 'run'}") == 0
    for row in metrics(tmp_path / "run"):
        assert row["privileged/groups"] == 1.0 and row["group/pass_rate"] == 0.0 == row["credit/nonzero"]
        assert (row["train/grad_norm"] > 0) == (row["privileged/correct"] > 0)
        assert row["rollout/logprob_gap"] < 1e-4 and "distill/divergence" in row
    assert any(row["train/grad_norm"] > 0 for row in metrics(tmp_path / "run"))
