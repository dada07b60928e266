"""What a generator may not answer: every kind of nonsense is named."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest

from onpolicy.data.rendering import Renderer
from onpolicy.rollout.validation import InvalidRollout, RolloutValidator
from onpolicy.types import Prompt, Rollout, RolloutGroup, Sampling
from tests.tiny import byte_tokenizer

PROMPTS = [Prompt(id=str(i), messages=({"role": "user", "content": "x" * (i + 1)},)) for i in range(2)]


def answer(**changes: Any) -> RolloutGroup:
    renderer = Renderer(byte_tokenizer())
    ids = (70, 71, 2)
    good = {
        "prompt_ids": renderer.prompt_ids(PROMPTS[0].messages),
        "completion_ids": ids,
        "rollout_logprobs": (-0.1, 0.0, -3.0),
        "text": renderer.completion_text(ids),
        "finish_reason": "stop",
        "policy_version": 4,
    }
    rollout = Rollout(**{**good, **changes})
    return RolloutGroup(prompt=PROMPTS[0], rollouts=(rollout, rollout))


NONSENSE: dict[str, tuple[Any, str]] = {
    "no answer": (None, "NoneType"),
    "no groups": ([1], "expected a list of groups"),
    "nothing": ([], "is about"),
    "another prompt's": ([replace(answer(), prompt=PROMPTS[1])], "is about"),
    "too many": ([replace(answer(), rollouts=answer().rollouts * 2)], "4 rollouts"),
    "another prompt read": ([answer(prompt_ids=(1, 2))], "to another prompt"),
    "too long": ([answer(completion_ids=(70,) * 4, rollout_logprobs=(-1.0,) * 4)], "max_tokens is 3"),
    "no number": ([answer(rollout_logprobs=(-1.0, float("nan"), -1.0))], "log-prob"),
    "minus infinity": ([answer(rollout_logprobs=(-1.0, float("-inf"), -1.0))], "log-prob"),
    "above 0": ([answer(rollout_logprobs=(-1.0, 0.01, -1.0))], "log-prob"),
    "unknown token": ([answer(completion_ids=(70, 264, 2))], "vocabulary of 264"),
    "negative token": ([answer(completion_ids=(70, -1, 2))], "vocabulary"),
    "too old": ([answer(policy_version=2)], "weights 2, expected 3 to 5"),
    "too new": ([answer(policy_version=6)], "weights 6"),
    "another text": ([answer(text="hello")], "text"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense(name: str) -> None:
    groups, words = NONSENSE[name]
    check = functools.partial(
        RolloutValidator(Renderer(byte_tokenizer()), 264).validate,
        prompts=PROMPTS[:1],
        sampling=Sampling(group_size=2, max_tokens=3),
        oldest=3,
        newest=5,
    )
    check([answer()])
    with pytest.raises(InvalidRollout, match=words):
        check(groups)
