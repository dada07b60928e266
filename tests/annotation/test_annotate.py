"""From rollouts to examples.

1. contexts: the wording, who sees what, and when there is no teacher; 2. credit by hand, and the trap of dividing by a
small spread; 3. rewards come before contexts and are summed by weight; 4. rollouts of other weights are refused; 5. a
privileged prompt that is too long is refused or dropped, and counted; 6. equal privileged prompts of a step are templated and tokenised
once; 7. observed tokens lie in no span and are counted nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial as partial_
from typing import Any

import pytest

from onpolicy.annotation import routes
from onpolicy.annotation.annotate import Annotator, StaleRollouts, advantages, dose_metrics
from onpolicy.annotation.contexts.failed_sibling import failed_sibling
from onpolicy.annotation.contexts.feedback import feedback
from onpolicy.annotation.contexts.final_answer import final_answer
from onpolicy.annotation.contexts.instruction import instruction
from onpolicy.annotation.contexts.none import none
from onpolicy.annotation.contexts.partial import partial
from onpolicy.annotation.contexts.reference_solution import reference_solution
from onpolicy.annotation.contexts.successful_sibling import successful_sibling
from onpolicy.annotation.contexts.template import ContextError, replace_question
from onpolicy.annotation.contexts.without_thinking import without_thinking
from onpolicy.annotation.contexts.wrong_answer import wrong_answer
from onpolicy.annotation.credit import group_mean, group_std, leave_one_out
from onpolicy.annotation.queries import ContextQueries
from onpolicy.annotation.scoring import Reward, Scorer
from onpolicy.annotation.spans import markers
from onpolicy.data.rendering import PromptTooLong, Renderer
from onpolicy.data.rows import to_prompt
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.experiments.lab.siblings import sibling_answer
from onpolicy.types import Example, Metrics, Prompt, Rollout, RolloutGroup, RolloutReward, ScoredGroup
from onpolicy.utils.seeds import step_seed
from tests.tiny import byte_tokenizer

PROMPT = Prompt(
    id="p1",
    messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is {x}?"}),
    fields={"answer": "4", "solution": "x = \\frac{8}{2} = {answer}", "x": "never filled"},
)


def group(*texts: str, version: int = 0) -> RolloutGroup:
    rollouts = tuple(
        Rollout(
            prompt_ids=(5,),
            completion_ids=(6, 7),
            rollout_logprobs=(-1.0, -1.0),
            text=t,
            finish_reason="stop",
            policy_version=version,
        )
        for t in texts
    )
    return RolloutGroup(prompt=PROMPT, rollouts=rollouts)


def test_contexts_replace_the_last_user_message_and_leave_braces_alone() -> None:
    messages = reference_solution(group("a"), 0, [0.0])
    assert messages is not None and messages[0] == PROMPT.messages[0] and len(messages) == 2
    assert messages[1]["content"] == (
        "What is {x}?\nCorrect solution:\n\nx = \\frac{8}{2} = {answer}\n\nCorrectly solve the original question."
    )
    assert "The correct final answer is 4." in final_answer(group("a"), 0, [0.0])[1]["content"]
    assert none(group("a"), 0, [0.0]) == PROMPT.messages
    assert final_answer(group("a"), 0, [0.0], template="{question} ({answer})")[1]["content"] == "What is {x}? (4)"


def test_a_row_without_the_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"'p1' has no 'solution'"):
        reference_solution(group("a"), 0, [0.0], field="reference")


def test_a_sibling_is_never_the_rollout_itself() -> None:
    siblings = group("zero", "one", "two")
    rewards = [0.0, 1.0, 1.0]
    shown = [successful_sibling(siblings, i, rewards) for i in range(3)]
    assert all(m is not None for m in shown)
    assert "one" in shown[0][-1]["content"] and "two" in shown[1][-1]["content"] and "one" in shown[2][-1]["content"]  # type: ignore[index]
    assert successful_sibling(siblings, 1, [0.0, 1.0, 0.0]) is None
    assert successful_sibling(siblings, 0, [0.0, 0.4, 0.0], threshold=0.3) is not None


def test_thinking_that_never_closes_is_shown_only_where_it_is_kept() -> None:
    siblings = group("x", "<think>hm {a} is 5")

    def shown(**options: Any) -> str:
        messages = successful_sibling(siblings, 0, [0.0, 1.0], **options)
        assert messages is not None
        return messages[-1]["content"]

    assert "\n\n<think>hm {a} is 5\n\n" in shown(keep_thinking="unclosed") == shown()
    assert successful_sibling(siblings, 0, [0.0, 1.0], keep_thinking=False) is None, "nothing is left to show"


def test_the_labs_sibling_without_its_search() -> None:
    found = [sibling_answer(group("maybe a1 sees a2 no wait so #### a3 a4", "x"), i, [1.0, 0.0]) for i in range(2)]
    assert found[0] is None and found[1] is not None and found[1][-1]["content"].endswith("hint so #### a3 a4")
    assert "wait" not in found[1][-1]["content"]
    assert sibling_answer(group("maybe a1 sees a2", "x"), 1, [1.0, 0.0]) is None, "no answer of its own to show"


def test_the_ladder_of_contexts() -> None:
    rich = Prompt(
        id="p", messages=({"role": "user", "content": "Q"},),
        fields={"answer": "4", "solution": "<think>wait</think>one\ntwo\nthree", "feedback": "off by one"},
    )  # fmt: skip
    rollouts = group("<think>hm</think>right", "wrong").rollouts
    both = RolloutGroup(prompt=rich, rollouts=rollouts)

    def text(context: Any, index: int = 1, rewards: tuple[float, ...] = (1.0, 0.0), **options: Any) -> str:
        messages = context(both, index, rewards, **options)
        return "" if messages is None else messages[-1]["content"]

    assert "wait" not in text(without_thinking) and "one\ntwo\nthree" in text(without_thinking)
    assert (
        "one" in text(partial, share=0.2)
        and "two" not in text(partial, share=0.2)
        and "three" in text(partial, share=1.0)
    )
    assert "wrong:\n\nwrong" in text(failed_sibling, index=0) and text(failed_sibling) == ""
    assert "off by one" in text(feedback) and text(feedback, index=0) == "" and text(feedback, field="none") == ""
    assert "answer is 5." in text(wrong_answer) and "answer is 9." in text(wrong_answer, constant="9")
    assert text(instruction) == "Q\n\nCorrectly solve the original question."
    assert "hm" in text(successful_sibling) and "hm" not in text(successful_sibling, keep_thinking=False)
    assert "hm" not in text(successful_sibling, keep_thinking="unclosed")
    assert text(feedback) == (
        "Q\nThe following is feedback from your unsuccessful earlier attempt:\n\noff by one\n\nCorrectly solve the original question."
    )
    for options, words in (
        ({"constant": "4"}, "is the correct one"),
        ({"field": "solution"}, "give the context's constant"),
    ):
        with pytest.raises(ContextError, match=words):
            wrong_answer(both, 0, [0.0], **options)  # type: ignore[arg-type]
    with pytest.raises(ContextError, match="between 0 and 1"):
        partial(both, 0, [0.0], share=2.0)


def test_credit_by_hand() -> None:
    assert group_mean([1.0, 0.0, 0.0, 1.0]) == [0.5, -0.5, -0.5, 0.5]
    # deviations of .5, squares sum to 1, over n - 1 = 3: std = sqrt(1/3)
    assert group_std([1.0, 0.0, 0.0, 1.0], epsilon=0.0) == pytest.approx([0.5 * 3**0.5 * s for s in (1, -1, -1, 1)])
    assert group_std([1.0, 0.0], epsilon=0.5**0.5) == pytest.approx([0.5 / 2**0.5, -0.5 / 2**0.5])
    assert leave_one_out([1.0, 0.0, 0.0]) == [1.0, -0.5, -0.5] and leave_one_out([3.0]) == [0.0]


@pytest.mark.parametrize("credit", [group_mean, group_std, leave_one_out])
@pytest.mark.parametrize("value", [0.1, 0.35, 1.0, -0.7, 1e-9, 1e9, 1 / 3])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 64])
def test_equal_rewards_give_exactly_nothing(credit: Any, value: float, size: int) -> None:
    """0 and not 1e-17, whose sign a route or an advantage would take for a verdict."""
    assert credit([value] * size) == [0.0] * size
    assert all(routes.above_average([value] * size, i) == 0 for i in range(size))
    group = RolloutGroup(prompt=Prompt(id="p", messages=()), rollouts=())
    bonus = ScoredGroup(group, tuple(RolloutReward(1.0, value, {}) for _ in range(size)), (1.0,) * size)
    assert advantages(bonus, credit) == [0.0] * size


def test_the_trap_of_dividing_by_a_small_spread() -> None:
    """A bonus of .001 in an all-right group becomes an advantage of .7; without the division it stays .0005."""
    rewards = [1.0, 1.001]
    assert group_std(rewards, epsilon=1e-6)[1] == pytest.approx(0.5**0.5, abs=0.01)
    assert group_mean(rewards)[1] == pytest.approx(0.0005)


def right(completion: str) -> bool:
    return completion == "right"


def short(num_tokens: int) -> float:
    return -num_tokens / 10


def annotate(groups: Sequence[RolloutGroup], *, version: int = 0, **changes: Any) -> tuple[list[Example], Metrics]:
    rewards = changes.pop("rewards", [Reward("right", 1.0, right), Reward("short", 0.5, short, bonus=True)])
    scorer = Scorer(rewards, final_part=str, correctness=rewards[0].name)
    settings: dict[str, Any] = {
        "renderer": Renderer(byte_tokenizer()),
        "contexts": {"teacher": successful_sibling, "hint": final_answer},
        "credit": group_mean,
        "queries": ContextQueries(None, scorer, [], step_seed, Renderer(byte_tokenizer()), 1000, False),  # type: ignore[arg-type]
        "max_teacher_prompt_tokens": 1000,
        "drop_too_long": False,
    }
    return Annotator(**{**settings, **changes}).annotate(scorer.score(groups), version=version)


def test_rewards_contexts_and_credit_together() -> None:
    examples, metrics = annotate([group("wrong", "right")])
    assert [e.reward for e in examples] == pytest.approx([-0.1, 0.9])
    assert examples[1].reward_breakdown == {"right": 1.0, "short": -0.2}
    assert [e.advantage for e in examples] == pytest.approx([-0.5, 0.5])
    assert set(examples[0].teacher_prompt_ids) == {"teacher", "hint"} and set(examples[1].teacher_prompt_ids) == {
        "hint"
    }
    assert metrics["context/teacher/share"] == 0.5 and metrics["context/hint/share"] == 1.0
    assert (
        metrics["reward/right"] == 0.5
        and metrics["reward/mean"] == pytest.approx(0.4)
        and metrics["credit/nonzero"] == 1.0
    )


def test_a_reward_of_weight_zero_is_logged_and_does_not_count() -> None:
    rewards = [Reward("length", 0.0, lambda num_tokens: float(num_tokens))]
    examples, metrics = annotate([group("a")], rewards=rewards)
    assert examples[0].reward == 0.0 and metrics["reward/length"] == 2.0


def test_rollouts_of_other_weights_are_refused() -> None:
    with pytest.raises(StaleRollouts, match="version 3, training is at 4"):
        annotate([group("a", version=3)], version=4)


def test_long_privileged_prompts_are_refused_or_dropped_and_counted() -> None:
    with pytest.raises(
        PromptTooLong,
        match=r"contexts\.hint, prompt 'p1' \(rendering\.max_teacher_prompt_tokens\): \d+ tokens, the limit is 40",
    ):
        annotate([group("right", "wrong")], max_teacher_prompt_tokens=40)
    examples, metrics = annotate([group("a", "b")], max_teacher_prompt_tokens=40, drop_too_long=True)
    assert not examples[0].teacher_prompt_ids and metrics["context/hint/dropped"] == 2.0


def test_a_sibling_that_is_too_long_costs_its_rollouts_their_teacher_and_not_the_run() -> None:
    contexts = {"sibling": failed_sibling, "hint": final_answer}
    groups = [group("wrong " * 200, "right"), group("wrong", "right")]
    examples, metrics = annotate(groups, contexts=contexts, max_teacher_prompt_tokens=500)
    assert [sorted(e.teacher_prompt_ids) for e in examples] == [["hint"], ["hint"], ["hint"], ["hint", "sibling"]]
    assert metrics["context/sibling/dropped"] == 1.0 and metrics["context/hint/dropped"] == 0.0


class CountingTokenizer:
    """The tokenizer it wraps, with a count of the prompts that went through its chat template."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.templated = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def apply_chat_template(self, *args: Any, **options: Any) -> Any:
        self.templated += 1
        return self.inner.apply_chat_template(*args, **options)


@pytest.mark.parametrize("limit", [1000, 10], ids=["fits", "too long"])
def test_a_teacher_prompt_is_rendered_once_for_a_group_and_context(limit: int) -> None:
    tokenizer = CountingTokenizer(byte_tokenizer())
    renderer = Renderer(tokenizer)
    other = replace(PROMPT, id="p2", fields={**PROMPT.fields, "answer": "5"})
    groups = [group(*"abcdefgh"), RolloutGroup(prompt=other, rollouts=group(*"abcd").rollouts)]
    contexts = {
        "teacher": reference_solution,
        "hint": final_answer,
        "again": final_answer,
        "sibling": successful_sibling,
    }
    tokenizer.templated = 0
    settings = {"max_teacher_prompt_tokens": limit, "drop_too_long": True}
    examples, metrics = annotate(groups, renderer=renderer, contexts=contexts, **settings)
    # the same solution for both problems, and one answer for each of them; nobody has a successful sibling
    assert tokenizer.templated == 3 and len(examples) == 12
    assert [metrics[f"context/{name}/dropped"] for name in contexts] == (
        [0.0] * 4 if limit == 1000 else [12.0] * 3 + [0.0]
    )
    plain, _ = annotate(groups, contexts=contexts, **settings)
    assert [e.teacher_prompt_ids for e in examples] == [e.teacher_prompt_ids for e in plain]
    assert len({e.teacher_prompt_ids.get("hint") for e in examples}) == (2 if limit == 1000 else 1)


def test_observed_tokens_are_in_no_span_and_counted_nowhere() -> None:
    renderer = Renderer(byte_tokenizer())
    said, told = renderer.tokenizer.encode("so wait"), renderer.tokenizer.encode(" wait, wait ")
    mask = (True,) * 2 + (False,) * len(told) + (True,) * 5
    ids = (*said[:2], *told, *said[2:])
    rollout = Rollout(
        prompt_ids=(5,), completion_ids=ids, rollout_logprobs=(-1.0,) * len(ids), text="so wait", finish_reason="stop",
        policy_version=0, sampled_mask=mask,
    )  # fmt: skip
    whole = replace(rollout, completion_ids=tuple(said), rollout_logprobs=(-1.0,) * len(said), sampled_mask=())
    telemetry = TextTelemetry(["self_doubt"], "self_doubt", renderer.split_thinking)
    rewards = [Reward("right", 1.0, right), Reward("short", 0.5, short, bonus=True)]
    (found, metrics), (expected, reference) = (
        annotate([RolloutGroup(prompt=PROMPT, rollouts=(one,))], renderer=renderer, rewards=rewards, telemetry=telemetry,
                 contexts={"hint": final_answer}, spans={"key": partial_(markers, lexicon="self_doubt")})
        for one in (rollout, whole)
    )  # fmt: skip
    assert (
        metrics == reference
        and metrics["rollout/tokens"] == 7.0
        and metrics["epistemic/self_doubt/rate_per_1k"] == 1000 / 7
    )
    assert (found[0].reward, found[0].reward_breakdown) == (expected[0].reward, expected[0].reward_breakdown)
    assert rollout.select_sampled(found[0].spans["key"]) == expected[0].spans["key"] == (False,) * 3 + (True,) * 4
    assert sum(found[0].spans["key"]) == 4


def lettered(*texts: str, name: str = "p1") -> RolloutGroup:
    whole = group(*texts)
    return replace(whole, prompt=replace(PROMPT, id=name, fields={**PROMPT.fields, "problem": "x?"}))


def test_siblings_at_random_are_the_same_each_time_and_not_always_the_first() -> None:
    texts, rewards = [f"answer {i}" for i in range(6)], [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]

    def shown(name: str, index: int) -> str:
        messages = successful_sibling(
            lettered(*texts, name=name), index, rewards, choose="random", template="{solution}"
        )
        assert messages is not None
        return messages[-1]["content"]

    drawn = {(f"p{n}", i): shown(f"p{n}", i) for n in range(8) for i in range(6)}
    assert drawn == {key: shown(*key) for key in drawn}
    assert all(text in texts[1:5] and text != texts[i] for (_, i), text in drawn.items())
    assert set(drawn.values()) == set(texts[1:5]) and len({drawn[f"p{n}", 0] for n in range(8)}) > 1


def test_failed_siblings_at_random_are_different_ones_by_rank() -> None:
    whole, rewards = lettered(*(f"try {i}" for i in range(6))), [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    for index, expected in ((0, {1, 2, 3, 4}), (2, {1, 3, 4})):
        by_rank = [
            failed_sibling(whole, index, rewards, rank=r, choose="random", template="{attempt}") for r in range(5)
        ]
        texts = [messages[-1]["content"] for messages in by_rank if messages]
        assert sorted(texts) == [f"try {i}" for i in sorted(expected)] and by_rank[len(expected)] is None


RLCSD = "Problem: {problem}\n=== Begin ===\n{solution}\n\nCorrect final answer: {answer}\n=== End ==="


def test_right_and_wrong_hints_in_the_same_words() -> None:
    """Each with its own answer; a wrong one without an answer is not shown, a right one has the dataset's then."""
    whole = lettered(r"so \boxed{4}", r"so \boxed{5}", "no answer", "four", r"<think>\boxed{1}</think>\boxed{6}")
    rewards = [1.0, 0.0, 0.0, 1.0, 0.0]

    def text(context: Any, index: int, **options: Any) -> str:
        messages = context(whole, index, rewards, template=RLCSD, **options)
        return "" if messages is None else messages[-1]["content"]

    form = "Problem: x?\n=== Begin ===\n{}\n\nCorrect final answer: {}\n=== End ===".format
    assert text(successful_sibling, 3) == form(r"so \boxed{4}", "4") and text(successful_sibling, 0) == form(
        "four", "4"
    )
    wrong = [text(failed_sibling, 0, rank=r, disguised=True) for r in range(3)]
    assert wrong == [form(r"so \boxed{5}", "5"), form(r"<think>\boxed{1}</think>\boxed{6}", "6"), ""]
    assert text(failed_sibling, 1) == wrong[1], "the others alone"
    assert failed_sibling(whole, 0, rewards, rank=2) is not None, "words without an answer show those without one too"


def test_where_no_sibling_is_correct_another_context_may_stand_in() -> None:
    """AntiSD's: a correct rollout, else the solution, and whether this very one is correct."""
    words = "{solution} | Your answer is {outcome}."
    solution = partial_(reference_solution, optional=True, template=words)
    both = lettered("right", "wrong")

    def text(rewards: list[float], index: int, **options: Any) -> str | None:
        messages = successful_sibling(both, index, rewards, threshold=0.5, template=words, **options)
        return None if messages is None else messages[-1]["content"]

    assert text([1.0, 0.0], 1, context=solution) == "right | Your answer is incorrect."
    assert text([1.0, 0.0], 0, context=solution) == PROMPT.fields["solution"] + " | Your answer is correct."
    assert text([0.0, 0.0], 0, context=solution) == PROMPT.fields["solution"] + " | Your answer is incorrect."
    assert text([0.0, 0.0], 0) is None
    without = replace(both, prompt=replace(both.prompt, fields={}))
    assert successful_sibling(without, 0, [0.0, 0.0], context=solution) is None


def test_the_problem_without_the_prompts_wording() -> None:
    worded = to_prompt({"question": "2 + 2?"}, default_id="a", prompt_template="Problem: {problem}\n\nThink.")
    assert worded.fields["problem"] == "2 + 2?"
    (message,) = replace_question(worded, "{problem} | {question}")
    assert message["content"] == "2 + 2? | Problem: 2 + 2?\n\nThink."
    chat = to_prompt({"prompt": [{"role": "user", "content": "2 + 2?"}]}, default_id="b", prompt_template=None)
    assert replace_question(chat, "{problem}!")[0]["content"] == "2 + 2?!"
    kept = to_prompt({"prompt": "Solve: 2 + 2?", "problem": "2 + 2?"}, default_id="c", prompt_template=None)
    assert replace_question(kept, "{problem}!")[0]["content"] == "2 + 2?!"


def test_the_dose_by_hand() -> None:
    """What other rewards change in the advantages, in either place; a weight alone does not say it."""
    empty = RolloutGroup(prompt=Prompt(id="p", messages=()), rollouts=())

    def scored(correct: Sequence[float], other: Sequence[float], *, inside: bool) -> ScoredGroup:
        rewards = (RolloutReward(c + o * inside, o * (not inside), {}, c) for c, o in zip(correct, other, strict=True))
        return ScoredGroup(empty, tuple(rewards), tuple(correct))

    # alone +-.5; the bonus adds +.1 to one and -.1 to the other of each pair: sqrt(4 x .01) / sqrt(4 x .25)
    after = scored([1.0, 1.0, 0.0, 0.0], [0.2, 0.0, 0.2, 0.0], inside=False)
    assert dose_metrics([after], group_mean) == {"credit/dose": pytest.approx(0.2)}
    assert dose_metrics([scored([1.0, 0.0], [0.0, 0.0], inside=False)], group_std) == {"credit/dose": 0.0}
    # all correct: no advantage alone, and +-sqrt(1/2) inside the reward however small the bonus; beside +-sqrt(1/2) of the other group
    groups = [scored([1.0, 1.0], [0.001, 0.0], inside=True), scored([1.0, 0.0], [0.0, 0.0], inside=True)]
    assert dose_metrics(groups, partial_(group_std, epsilon=1e-9)) == {"credit/dose": pytest.approx(1.0, rel=1e-4)}
    assert dose_metrics(groups[:1], group_std) == {}, "correctness gives no advantage"
    unknown = ScoredGroup(empty, after.rewards, (1.0, 1.0, 0.0, float("nan")))
    # among three: 1/3, 1/3 and -2/3 alone; the bonus adds .2/3, -.4/3 and .2/3
    assert dose_metrics([unknown], group_mean) == {"credit/dose": pytest.approx(0.2)}


def test_a_step_logs_its_dose() -> None:
    rewards = [Reward("right", 1.0, right), Reward("first", 0.2, right, bonus=True)]
    _, metrics = annotate([group("wrong", "right")], rewards=rewards)
    assert metrics["credit/dose"] == pytest.approx(0.2), "+-.1 over +-.5"
    inside = [rewards[0], Reward("first", 0.2, right)]
    assert annotate([group("wrong", "right")], rewards=inside)[1]["credit/dose"] == pytest.approx(0.2)
    assert "credit/dose" not in annotate([group("wrong", "wrong")])[1]
