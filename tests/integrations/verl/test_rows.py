"""Level 2: verl's rows and our nouns.

1. columns of a batch -> groups, rewards, scored groups; 2. what was decided goes through columns to a worker and comes out as the
embedded trainer's batch; 3. through TransferQueue itself; 4. a served teacher's rows move to the student's places; 5. the reward manager
gives the parts.
"""

from __future__ import annotations

import asyncio
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import verl  # noqa: F401 first, as it imports the rig and our plug-in in its own order
from tensordict import TensorDict

from onpolicy.annotation.scoring import Reward
from onpolicy.data.rendering import Renderer
from onpolicy.epistemic.ids import span_name
from onpolicy.integrations.verl import store
from onpolicy.integrations.verl.rows import columns, grouped, rollout_group, train_batch
from onpolicy.integrations.verl.scoring import score_rows, sees_siblings
from onpolicy.integrations.verl.teacher_server import realign
from onpolicy.rewards.answer import math_answer
from onpolicy.trainer.collate import collate
from onpolicy.types import Example
from tests.integrations.verl.against_local import NAMES, batch
from tests.tiny import byte_tokenizer, random_examples

pytestmark = pytest.mark.verl

RENDERER = Renderer(byte_tokenizer())


def row(text: str, *, uid: str = "a", score: float = 0.0, **extra: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": "1 + 1?"}]
    return {
        "uid": uid,
        "raw_prompt": np.array(prompt, dtype=object),
        "prompts": torch.tensor(RENDERER.prompt_ids(prompt)),  # type: ignore[arg-type]
        "responses": torch.tensor([*RENDERER.tokenizer.encode(text, add_special_tokens=False), 2]),
        "rm_scores": torch.tensor([0.0, score]),
        "reward_model": {"ground_truth": "2"},
        "extra_info": {"index": 7, "solution": "1 + 1 = 2"},
        "extra_fields": {"reward_extra_info": extra},
        "data_source": "sums",
    }


def test_rows_become_groups_with_the_columns_of_the_dataset() -> None:
    rows = [row("2", uid="a"), row("3", uid="b"), row("4", uid="a")]
    assert grouped(rows) == [[0, 2], [1]]
    group = rollout_group([rows[0], rows[2]], RENDERER, max_tokens=8)
    assert (group.prompt.id, group.prompt.fields["answer"], group.prompt.fields["solution"]) == ("7", "2", "1 + 1 = 2")
    assert group.prompt.messages == ({"role": "user", "content": "1 + 1?"},)
    assert [r.text for r in group.rollouts] == ["2", "4"]
    assert [r.finish_reason for r in group.rollouts] == ["stop", "stop"]
    assert rollout_group([row("12345678")], RENDERER, max_tokens=9).rollouts[0].finish_reason == "stop", (
        "its end was sampled"
    )
    cut = row("12345678") | {"responses": torch.tensor(RENDERER.tokenizer.encode("12345678", add_special_tokens=False))}
    assert rollout_group([cut], RENDERER, max_tokens=8).rollouts[0].finish_reason == "length"


def test_tokens_that_a_tool_wrote_are_observed_and_not_sampled() -> None:
    """Response "2ab3" and the end of the turn, in which "ab" is the output of a tool."""
    mask = torch.tensor([1, 0, 0, 1, 1])
    (rollout,) = rollout_group([row("2ab3") | {"response_mask": mask}], RENDERER, max_tokens=8).rollouts
    assert rollout.sampled_mask == (True, False, False, True, True) and len(rollout.completion_ids) == 5
    assert rollout.text == "23" and rollout.num_sampled == 3
    for sampled in ({}, {"response_mask": torch.ones(5)}):
        (whole,) = rollout_group([row("2ab3") | sampled], RENDERER, max_tokens=8).rollouts
        assert whole.sampled_mask == () and whole.text == "2ab3"


def test_an_image_is_named() -> None:
    bad = row("2") | {"raw_prompt": [{"role": "user", "content": [{"type": "image"}]}]}
    with pytest.raises(ValueError, match="a part of type 'image'"):
        rollout_group([bad], RENDERER, max_tokens=8)


def test_ground_truths_are_handed_on_as_they_are() -> None:
    given = {"target": np.array(["2", "two"], dtype=object)}
    group = rollout_group([row("2") | {"reward_model": {"ground_truth": given}}], RENDERER, max_tokens=8)
    assert group.prompt.ground_truth is given and group.prompt.fields["answer"] == '{"target": ["2", "two"]}'


def test_a_prompt_that_holds_its_answer_is_refused() -> None:
    asked = row("2")["raw_prompt"].tolist()
    bad = row("2") | {"raw_prompt": [*asked, {"role": "assistant", "content": "It is 2."}]}
    with pytest.raises(ValueError, match="row '7': the prompt ends with the assistant's turn, which verl shows"):
        rollout_group([bad], RENDERER, max_tokens=8)
    begun = {"role": "assistant", "content": "It is", "prefix": True}
    group = rollout_group([row("2") | {"raw_prompt": [*asked, begun]}], RENDERER, max_tokens=8)
    assert group.prompt.messages[-1]["content"] == "It is"


def best_of_group(prompts: Any, completions: Any) -> list[float]:
    longest = max(len(c[0]["content"]) for c in completions)
    return [float(len(c[0]["content"]) == longest) for c in completions]


def test_what_workers_measured_is_weighed_with_what_only_a_group_shows() -> None:
    rows = [row("2", math_answer=1.0), row("345", math_answer=0.0)]
    group = rollout_group(rows, RENDERER, max_tokens=8)
    rewards = [Reward("math_answer", 1.0, math_answer), Reward("longest", 0.5, best_of_group, bonus=True)]
    assert sees_siblings(best_of_group) and not sees_siblings(math_answer)
    found = score_rows(group, rows, rewards, str, right="math_answer")
    assert found.scores == (1.0, 0.0)
    assert [s.total for s in found.rewards] == [1.0, 0.5]
    assert [dict(s.reward_breakdown) for s in found.rewards] == [
        {"math_answer": 1.0, "longest": 0.0},
        {"math_answer": 0.0, "longest": 1.0},
    ]


def test_without_rewards_of_ours_verls_score_counts() -> None:
    rows = [row("2", score=0.75, format=1), row("3", score=0.25, note="text")]
    found = score_rows(rollout_group(rows, RENDERER, max_tokens=8), rows, [], str, right="")
    assert found.scores == (0.75, 0.25)
    assert [dict(s.reward_breakdown) for s in found.rewards] == [{"score": 0.75, "format": 1.0}, {"score": 0.25}]


def as_data(examples: list[Example | None]) -> TensorDict:
    """A micro-batch as a worker gets it."""
    responses = [torch.tensor(e.rollout.completion_ids if e else (2,)) for e in examples]
    masks = [torch.full((len(r),), int(e is not None)) for e, r in zip(examples, responses, strict=True)]
    ours = columns(
        examples,
        [len(r) for r in responses],
        contexts=("teacher",),
        terms=("distill",),
        spans=list(map(span_name, NAMES)),
    )
    given = {
        "responses": responses,
        "response_mask": masks,
        "rollout_log_probs": [torch.zeros(len(r)) for r in responses],
        "advantages": [m.float() * (e.advantage if e else 0.0) for e, m in zip(examples, masks, strict=True)],
        **ours,
    }
    return TensorDict(
        {n: torch.nested.as_nested_tensor(r, layout=torch.jagged) for n, r in given.items()}, batch_size=len(examples)
    )


def test_a_workers_batch_is_the_embedded_trainers() -> None:
    examples, spans = batch(), [span_name(name) for name in NAMES]
    theirs = train_batch(as_data([*examples, None]), contexts=("teacher",), terms=("distill",), spans=spans)
    ours = collate(examples, contexts=("teacher",), routes=("distill",), spans=spans)
    assert (
        not theirs.sampled_mask[-1].any()
        and not theirs.context_masks["teacher"][-1].any()
        and theirs.routes["distill"][-1] == 0
    )
    for f in fields(ours):
        one, other = getattr(ours, f.name), getattr(theirs, f.name)
        if f.name == "examples":
            continue
        pairs = [(one[n], other[n]) for n in one] if isinstance(one, dict) else [(one, other)]
        for a, b in pairs:
            torch.testing.assert_close(b[:-1], a)


def test_columns_go_through_transfer_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the queue's two calls held in memory: what is put under a name comes back under it, row by row."""
    import transfer_queue as tq

    held: dict[str, Any] = {}

    def put(keys: list[str], partition_id: str, fields: TensorDict) -> None:
        held.update(dict(fields.items()))

    def get(keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        return TensorDict({n: held[n] for n in select_fields if n in held}, batch_size=len(keys))

    monkeypatch.setattr(tq, "kv_batch_put", put)
    monkeypatch.setattr(tq, "kv_batch_get", get)
    meta: Any = SimpleNamespace(keys=["a", "b"], partition_id="train", tags=[{}, {"is_padding": True}])
    store.put(meta, {"x": [torch.tensor([1, 2]), torch.tensor([3])], "y": [torch.tensor(1.5), torch.tensor(2.5)]})
    rows = store.fetch(meta, ["x", "y", "absent"])
    assert [r["x"].tolist() for r in rows] == [[1, 2], [3]] and [float(r["y"]) for r in rows] == [1.5, 2.5]
    assert "absent" not in rows[0]
    assert [store.synthetic(tag) for tag in store.tags(meta)] == [False, True]


def test_a_served_teachers_rows_move_to_the_students_places() -> None:
    """Teacher's prompt of 3, student's of 2, response of 2: the rows that predict the response, and the dummy, behind zeros."""
    rows = torch.tensor([[10.0], [11.0], [12.0], [13.0], [0.0]])
    assert realign(rows, 3, 2)[:, 0].tolist() == [0.0, 12.0, 13.0, 0.0]


def test_the_reward_manager_gives_the_parts() -> None:
    from onpolicy.integrations.verl.command import compose
    from onpolicy.integrations.verl.reward_manager import OnpolicyRewardManager
    from tests.integrations.verl.runs import ROOT

    given = ["data.train_files=x", "data.val_files=x", "actor_rollout_ref.model.path=m"]
    config = compose(ROOT / "configs" / "verl" / "grpo_distill_floor.yaml", given)
    one = row("\\boxed{2}")
    item = SimpleNamespace(
        batch={
            "prompts": one["prompts"],
            "responses": torch.cat([one["responses"], torch.zeros(3, dtype=torch.long)]),
            "attention_mask": torch.cat([torch.ones(len(one["prompts"]) + len(one["responses"])), torch.zeros(3)]),
        },
        non_tensor_batch={k: v for k, v in one.items() if k not in ("prompts", "responses", "rm_scores")},
    )

    async def scored() -> dict[str, Any]:
        manager = OnpolicyRewardManager(config, byte_tokenizer(), None)
        manager.loop = asyncio.get_running_loop()
        answer: dict[str, Any] = await manager.run_single([item])  # type: ignore[arg-type]
        return answer

    assert asyncio.run(scored()) == {
        "reward_score": 1.0,
        "reward_extra_info": {"math_answer": 1.0, "saturating_floor": 0.0, "feedback": ""},
    }


def test_the_text_beside_a_score_reaches_the_rollout() -> None:
    rows = [row("2", math_answer=1.0, feedback=""), row("345", math_answer=0.0, feedback="off by 343")]
    group = rollout_group(rows, RENDERER, max_tokens=8)
    for rewards in ([Reward("math_answer", 1.0, math_answer)], []):
        scored = score_rows(group, rows, rewards, str, right="math_answer")
        assert [r.feedback for r in scored.group.rollouts] == [None, "off by 343"]
        assert all("feedback" not in own.reward_breakdown for own in scored.rewards)


def test_random_examples_have_contexts_and_none() -> None:
    """What the tests above rest on."""
    assert {bool(e.teacher_prompt_ids) for e in random_examples(8)} == {True, False}
