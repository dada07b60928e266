"""Contexts and span finders that ask the model, and what else is decided about a rollout on its way to tensors.

1. regenerated, critique, other_problem, revision: what is asked, what the teacher then reads; 2. equal questions are asked once;
3. spans in text become marks on tokens; 4. the leak check by hand; 5. bonuses are added after normalisation by default, and the
trap that this avoids; 6. correctness, not the sum of rewards, decides contexts and routes; 7. dynamic sampling; 8. whole runs
in which the student really is asked, with transformers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from onpolicy.annotation import routes, spans
from onpolicy.annotation.annotate import Annotator, advantages
from onpolicy.annotation.contexts.critique import critique
from onpolicy.annotation.contexts.failed_sibling import failed_sibling
from onpolicy.annotation.contexts.key_points import key_points
from onpolicy.annotation.contexts.none import none
from onpolicy.annotation.contexts.other_problem import other_problem
from onpolicy.annotation.contexts.regenerated import regenerated
from onpolicy.annotation.contexts.revision import revision
from onpolicy.annotation.contexts.successful_sibling import successful_sibling
from onpolicy.annotation.credit import group_mean, group_std
from onpolicy.annotation.leakage import repeated_share
from onpolicy.annotation.queries import ContextQueries, QueryError
from onpolicy.annotation.scoring import Reward, Scorer
from onpolicy.data.alignment import TokenAlignment
from onpolicy.data.cursor import PromptCursor
from onpolicy.data.rendering import PromptTooLong, Renderer
from onpolicy.rollout.sampler import RolloutSampler
from onpolicy.types import AskModel, Example, Message, Metrics, Prompt, Rollout, RolloutGroup, Sampling
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.seeds import step_seed
from onpolicy.utils.timer import PhaseTimer
from tests.runs import metrics, run_here, write_config
from tests.tiny import CHATML, byte_tokenizer

RENDERER = Renderer(byte_tokenizer())
ALIGNMENT = TokenAlignment(RENDERER)


def problem(name: str) -> Prompt:
    fields = {"answer": "4", "solution": f"the solution of {name}", "problem_id": name}
    return Prompt(id=name, messages=({"role": "user", "content": f"{name}?"},), fields=fields)


def rollout(text: str, version: int = 0) -> Rollout:
    ids = tuple(RENDERER.tokenizer.encode(text)) or (5,)
    return Rollout(
        prompt_ids=(5,), completion_ids=ids, rollout_logprobs=(-1.0,) * len(ids), text=text, finish_reason="stop", policy_version=version
    )  # fmt: skip


def group(*texts: str, name: str = "p1") -> RolloutGroup:
    return RolloutGroup(prompt=problem(name), rollouts=tuple(rollout(t) for t in texts))


def right(completion: str) -> bool:
    return completion.startswith("right")


@dataclass
class Scripted:
    """A generator that says what it is told to, in turn; the real ones are asked in the runs below."""

    says: Sequence[str]
    sampling: Sampling = field(default_factory=Sampling)
    policy_version: int = 0
    asked: list[list[Prompt]] = field(default_factory=list)

    def generate(self, prompts: Sequence[Prompt], *, seed: int, sampling: Sampling | None = None) -> list[RolloutGroup]:
        self.asked.append(list(prompts))
        words = itertools.cycle(self.says)
        size = (sampling or self.sampling).group_size
        return [RolloutGroup(prompt=p, rollouts=tuple(rollout(next(words)) for _ in range(size))) for p in prompts]


def annotate(groups: Sequence[RolloutGroup], generator: Any = None, **changes: Any) -> tuple[list[Example], Metrics]:
    rewards = changes.pop("rewards", [Reward("right", 1.0, right)])
    scorer = Scorer(rewards, str, rewards[0].name)
    limit, drop = changes.pop("limit", 2000), changes.get("drop_too_long", False)
    queries = ContextQueries(generator, scorer, changes.pop("prompts", []), step_seed, RENDERER, limit, drop)
    parts: dict[str, Any] = {"renderer": RENDERER, "contexts": {}, "credit": group_std, "queries": queries,
                             "max_teacher_prompt_tokens": 2000, "drop_too_long": False}  # fmt: skip
    return Annotator(**{**parts, **changes}).annotate(scorer.score(groups), version=0)


def reads(example: Example, context: str = "teacher") -> str:
    return RENDERER.decode(example.teacher_prompt_ids[context])


def test_regenerated_shows_the_first_right_answer_and_asks_once_for_a_group() -> None:
    generator = Scripted(["wrong one", "right one", "right two"])
    examples, _ = annotate([group("a", "b", "c")], generator, contexts={"teacher": partial(regenerated, samples=3)})
    assert len(generator.asked) == 1 and len(generator.asked[0]) == 1
    assert "the solution of p1" in generator.asked[0][0].messages[-1]["content"]
    for example in examples:
        assert "Correct solution:\n\nright one" in reads(example) and "the solution of p1" not in reads(example)
    fallback, _ = annotate(
        [group("a")], Scripted(["wrong one", "wrong two"]), contexts={"teacher": partial(regenerated, samples=2)}
    )
    assert "wrong one" in reads(fallback[0])


def test_regenerated_from_a_sibling_has_no_teacher_without_one() -> None:
    context = partial(regenerated, context=successful_sibling)
    examples, _ = annotate(
        [group("right", "wrong"), group("no", "no", name="p2")], Scripted(["right!"]), contexts={"teacher": context}
    )
    assert [bool(e.teacher_prompt_ids) for e in examples] == [False, True, False, False]


def test_the_same_question_with_more_samples() -> None:
    """Each gets as many replies as it asked for."""
    replies: dict[int, int] = {}

    def asks(samples: int, group: RolloutGroup, index: int, rewards: Sequence[float]) -> Any:
        replies[samples] = len((yield AskModel(({"role": "user", "content": "well?"},), samples=samples)))

    for order in ((1, 3), (3, 1)):
        replies.clear()
        contexts = {f"context{n}": partial(asks, n) for n in order}
        annotate([group("a")], Scripted(["a", "b", "c", "d"]), contexts=contexts)
        assert replies == {1: 1, 3: 3}


def test_key_points_are_the_students_or_a_column() -> None:
    generator = Scripted(["- double the half"])
    examples, _ = annotate([group("a", "b")], generator, contexts={"teacher": key_points})
    assert len(generator.asked) == 1 and len(generator.asked[0]) == 1, "one question for a group"
    assert "the solution of p1" in generator.asked[0][0].messages[-1]["content"]
    assert "- double the half" in reads(examples[1]) and "the solution of p1" not in reads(examples[1])
    generator = Scripted(["step by step</think>- double the half"])
    examples, _ = annotate([group("a")], generator, contexts={"teacher": key_points})
    assert "- double the half" in reads(examples[0]) and "step by step" not in reads(examples[0])
    examples, _ = annotate([group("a")], Scripted(["<think>step by st"]), contexts={"teacher": key_points})
    assert not examples[0].teacher_prompt_ids, "nothing is left of it"
    generator = Scripted(["never"])
    examples, _ = annotate([group("a")], generator, contexts={"teacher": partial(key_points, field="answer")})
    assert not generator.asked and "Key points of a correct solution:\n\n4\n\n" in reads(examples[0])


def test_critique_is_about_this_very_rollout_and_spares_the_right_ones() -> None:
    generator = Scripted(["The first step is off.", "The last one."])
    examples, _ = annotate([group("wrong a", "right", "wrong b")], generator, contexts={"teacher": critique})
    first, second = (p.messages[-1]["content"] for p in generator.asked[0])
    assert "wrong a" in first and "wrong b" in second and "the solution of p1" in first
    assert "The first step is off." in reads(examples[0]) and "The last one." in reads(examples[2])
    assert not examples[1].teacher_prompt_ids and "the solution" not in reads(examples[0])


def test_another_problem_is_the_same_for_a_group_and_never_its_own() -> None:
    problems = [problem(f"p{i}") for i in range(1, 5)]
    examples, _ = annotate([group("a", "b")], prompts=problems, contexts={"teacher": other_problem})
    first, second = map(reads, examples)
    assert first == second and "the solution of p1" not in first and "the solution of p" in first and "p1?" in first
    with pytest.raises(QueryError, match="'p1': the dataset has no other problem"):
        annotate([group("a")], prompts=problems[:1], contexts={"teacher": other_problem})


def revised(*arguments: Any, **options: Any) -> Sequence[Message]:
    messages = revision(*arguments, **options)
    assert messages is not None
    return messages


def test_a_revision_continues_the_turn_with_its_outcome() -> None:
    """SD-Zero's input: problem, y, sentence, and y again inside one assistant's turn."""
    both, rewards = group("wrong", "right"), [0.0, 1.0]
    assert revised(both, 0, rewards)[-1] == {
        "role": "assistant",
        "content": "wrong\n\nWait, this response is wrong. Let me correct it.\n\n",
    }
    assert revised(both, 1, rewards)[-1]["content"] == "right\n\nLet me rephrase the above solution.\n\n"
    examples, _ = annotate([both], contexts={"teacher": revision})
    whole = RENDERER.decode(examples[1].teacher_prompt_ids["teacher"] + examples[1].rollout.completion_ids)
    assert whole == (
        "<|im_start|>user\np1?<|im_end|>\n<|im_start|>assistant\nright\n\nLet me rephrase the above solution.\n\nright"
    )


def test_a_revision_begins_twice_in_the_same_state_of_thinking() -> None:
    """A template that opens the thinking: text that closes what nothing in it has opened."""
    outcome = "\n\nLet me rephrase the above solution.\n\n"
    for text, again in (
        ("hm</think>4", "<think>\n"),
        ("<think>hm</think>4", ""),
        ("cut while thinking", ""),
        ("a</think>b<think>c</think>d", "<think>\n"),
        ("hm</seed:think>4", "<seed:think>\n"),
        ("[THINK]hm[/THINK]4", ""),
        ("", ""),
    ):
        assert revised(group(text), 0, [1.0])[-1]["content"] == text + outcome + again


def test_a_revision_goes_on_where_the_prompt_has_begun_the_answer() -> None:
    begun = replace(problem("p1"), messages=(*problem("p1").messages, {"role": "assistant", "content": "Well, "}))
    messages = revised(RolloutGroup(prompt=begun, rollouts=(rollout("4"),)), 0, [1.0], right="Again:")
    assert [m["role"] for m in messages] == ["user", "assistant"] and messages[-1]["content"] == "Well, 4\n\nAgain:\n\n"


def test_failed_siblings_by_rank_and_in_disguise() -> None:
    groups, scores = group("a", "right", "b", "c"), [0.0, 1.0, 0.0, 0.0]
    texts = [failed_sibling(groups, 0, scores, rank=r) for r in range(3)]
    assert texts[0] is not None and texts[1] is not None and texts[2] is None
    assert "is wrong:\n\nb" in texts[0][0]["content"] and "is wrong:\n\nc" in texts[1][0]["content"]
    disguised = failed_sibling(groups, 1, scores, disguised=True)
    assert disguised is not None and "Correct solution:\n\na" in disguised[0]["content"]


def test_a_context_that_asks_for_nonsense_is_named() -> None:
    def odd(group: RolloutGroup, index: int, rewards: Sequence[float]) -> Any:
        yield "what?"

    with pytest.raises(QueryError, match="'what\\?'; expected AskModel or SampleProblem"):
        annotate([group("a")], contexts={"teacher": odd})


def test_a_context_may_ask_several_times_but_not_for_ever() -> None:
    def times(count: int) -> Any:
        def context(group: RolloutGroup, index: int, rewards: Sequence[float]) -> Any:
            said = []
            for turn in range(count):
                (reply,) = yield AskModel(({"role": "user", "content": f"turn {turn}"},))
                said.append(reply.text)
            return ({"role": "user", "content": " ".join(said)},)

        return context

    (example,), _ = annotate([group("a")], Scripted(["word"]), contexts={"teacher": times(5)})
    assert "word word word word word" in reads(example)
    with pytest.raises(QueryError, match="more than 32 times"):
        annotate([group("a")], Scripted(["word"]), contexts={"teacher": times(40)})


def test_a_question_that_is_too_long_is_refused_or_left_out() -> None:
    with pytest.raises(PromptTooLong, match=r"what a context asks about prompt 'p1' \(rendering"):
        annotate([group("short")], Scripted(["x"]), contexts={"teacher": key_points}, limit=100)
    examples, _ = annotate(
        [group("short")], Scripted(["x"]), contexts={"teacher": key_points}, limit=100, drop_too_long=True
    )
    assert not examples[0].teacher_prompt_ids


def test_a_question_that_a_rollout_makes_too_long_is_left_out_in_any_case() -> None:
    examples, _ = annotate([group("short", "long " * 50)], Scripted(["x"]), contexts={"teacher": critique}, limit=400)
    assert [bool(e.teacher_prompt_ids) for e in examples] == [True, False]


def test_another_problem_that_is_too_long_costs_its_rollouts_their_teacher() -> None:
    problems = [problem(f"p{i}") for i in range(1, 4)]
    examples, _ = annotate([group("a")], prompts=problems, contexts={"t": other_problem}, max_teacher_prompt_tokens=40)
    assert not examples[0].teacher_prompt_ids


def test_spans_of_text_become_marks_on_tokens() -> None:
    text = "so, wait: x = 3. Hmm"
    found = {"markers": partial(spans.markers, lexicon="self_doubt"), "sums": partial(spans.pattern, regex=r"\w = \d")}
    (example, *_), facts = annotate([group(text)], spans=found)
    marked = {name: "".join(c for c, inside in zip(text, example.spans[name], strict=True) if inside) for name in found}
    assert marked == {"markers": "waitHmm", "sums": "x = 3"}
    assert facts["spans/markers"] == pytest.approx(7 / 20)


def test_marks_on_tokens_of_several_bytes() -> None:
    ids = RENDERER.tokenizer.encode("é = ½!")
    assert ALIGNMENT.mark(ids, [(4, 5)]) == (False, False, False, False, False, True, True, False)
    assert ALIGNMENT.mark(ids, [(0, 1)])[:3] == (True, True, False) and not any(ALIGNMENT.mark(ids, [(2, 2)]))


def test_the_model_marks_its_own_answers_within_limits() -> None:
    text = "We add. Then we divide by zero. So it is 4. The end of a long answer, with more words that follow here."
    generator = Scripted(['- "Then we divide by zero."\nnot in the text\nThe end of a long answer, with more words'])
    (example, other), _ = annotate(
        [group(text, "right")], generator, spans={"key": partial(spans.quoted_by_model, of="failures", share=0.3)}
    )
    marked = "".join(c for c, inside in zip(text, example.spans["key"], strict=True) if inside)
    assert marked == "Then we divide by zero." and not any(other.spans["key"])
    assert "which is wrong" in generator.asked[0][0].messages[-1]["content"] and len(generator.asked[0]) == 1


def test_the_leak_check_by_hand() -> None:
    context, known = [1, 2, 3, 4, 5, 6, 7], [1, 2, 3]
    # runs of three: 234 345 456 567 are secret; the completion has 345 and 456
    assert repeated_share(context, known, [9, 3, 4, 5, 6, 9], n=3) == pytest.approx(0.5)
    assert repeated_share(context, known, [9, 9], n=3) == 0.0 and repeated_share(known, known, known, n=3) is None


def test_the_leak_check_is_logged_by_context() -> None:
    text = "the solution of p1, copied"
    contexts = {"teacher": lambda g, i, r: ({"role": "user", "content": "Read the solution of p1!"},), "same": none}
    _, facts = annotate([group(text)], contexts=contexts)
    assert 0.1 < facts["context/teacher/repeated"] < 0.9


def test_bonuses_are_added_after_normalisation() -> None:
    """With GRPO's standard deviation a bonus of .001 in an all-right group becomes an advantage of .8; added after it, it stays .0005."""

    def longer(completion: str) -> float:
        return float(len(completion) > 5)

    for bonus, largest in ((False, 0.8), (True, 0.0005)):
        rewards = [Reward("right", 1.0, right), Reward("longer", 0.001, longer, bonus=bonus)]
        examples, _ = annotate([group("right", "right and long")], rewards=rewards)
        assert max(e.advantage for e in examples) == pytest.approx(largest, rel=0.2)
        assert sum(e.advantage for e in examples) == pytest.approx(0.0, abs=1e-9)
        assert examples[1].reward == pytest.approx(1.001)


def test_every_reward_but_correctness_is_a_bonus_unless_told_otherwise(tmp_path: Path) -> None:
    from onpolicy.annotation.build import build_rewards
    from onpolicy.config.load import build
    from onpolicy.config.resolve import resolve

    base = {"model": {"path": "m"}, "data": {"name": "file", "path": "d"}, "objective": ["policy_gradient"]}
    three = [
        "math_answer",
        {"name": "brevity", "budget": 9},
        {"name": "overlong", "max_tokens": 9, "buffer": 3, "bonus": False},
    ]
    assert [r.bonus for r in build_rewards(resolve(build({**base, "rewards": three})))] == [False, True, False]
    named = {**base, "rewards": three, "correctness": "brevity"}
    assert [r.bonus for r in build_rewards(resolve(build(named)))] == [True, False, False]


def test_a_bonus_for_right_answers_alone() -> None:
    long = Reward("long", 0.5, lambda num_tokens: float(num_tokens > 5), bonus=True, when="correct")
    rewards = [Reward("right", 1.0, right), long, replace(long, name="cost", weight=-0.5, when="wrong")]
    examples, _ = annotate([group("right and long", "right", "wrong and long", "wrong")], rewards=rewards)
    assert [e.reward_breakdown["long"] for e in examples] == [1.0, 0.0, 0.0, 0.0]
    assert [e.reward for e in examples] == [1.5, 1.0, -0.5, 0.0]


def test_a_reward_for_answers_that_another_reward_accepts() -> None:
    """RLCR's: all 0 without the format, correctness too, so that an unformatted answer is no correct one."""
    rewards = [
        Reward("right", 0.5, right, when="form"),
        Reward("form", 0.5, lambda completion: completion.endswith("!")),
        Reward("extra", 2.0, lambda completion: 0.75, when="correct"),
    ]
    (scored,) = Scorer(rewards, str, "right").score([group("right!", "right", "no!", "no")])
    assert [r.total for r in scored.rewards] == [0.5 + 0.5 + 1.5, 0.0, 0.5, 0.0]
    assert scored.scores == (1.0, 0.0, 0.0, 0.0) and scored.correct == (True, False, False, False)


def test_what_when_may_name() -> None:
    from onpolicy.config.load import build
    from onpolicy.config.resolve import resolve

    def when(decides: str, gate: str) -> str:
        rewards = [
            {"name": "math_answer", "when": decides},
            {"name": "tagged_format", "bonus": False, "when": gate},
            {"name": "brevity", "budget": 9},
        ]
        base = {"model": {"path": "m"}, "data": {"name": "file", "path": "d"}, "objective": ["policy_gradient"]}
        try:
            return str(resolve(build({**base, "rewards": rewards})).rewards[0].settings.when)
        except ConfigError as error:
            return str(error)

    assert when("tagged_format", "always") == "tagged_format"
    assert "rewards[0].when: got 'format', expected one of always, correct, wrong, tagged_format" in when(
        "format", "always"
    )
    assert "rewards[0].when: got 'math_answer'" in when("math_answer", "always"), "not itself"
    assert "got 'tagged_format', expected one of always, correct, wrong, brevity" in when("tagged_format", "brevity"), (
        "no chain"
    )
    assert "must be given always" in when("correct", "always")


def test_a_route_may_see_the_rollouts() -> None:
    """A truncated answer leaves the loss and stays in its group's mean."""
    whole = group("right", "no", "right")
    cut = replace(whole, rollouts=(*whole.rollouts[:2], replace(whole.rollouts[2], finish_reason="length")))
    examples, facts = annotate([cut], credit=group_mean, routes={"pg": routes.finished, "all": routes.all})
    assert [e.routes["pg"] for e in examples] == [1.0, 1.0, 0.0] and facts["route/pg"] == pytest.approx(2 / 3)
    assert [e.advantage for e in examples] == pytest.approx([1 / 3, -2 / 3, 1 / 3])
    assert routes.share_of(partial(routes.failures, threshold=2.0), [1.0], 0, whole.rollouts) == 1.0


def test_correctness_and_not_the_sum_decides_contexts_and_routes() -> None:
    """A large bonus must not turn a failure into a demonstration."""
    rewards = [Reward("right", 1.0, right), Reward("long", 5.0, lambda num_tokens: float(num_tokens > 5), bonus=True)]
    examples, facts = annotate(
        [group("wrong and long", "right", "no")], rewards=rewards, contexts={"teacher": successful_sibling},
        routes={"pg": routes.correct, "distill": routes.failures},
    )  # fmt: skip
    assert [bool(e.teacher_prompt_ids) for e in examples] == [True, False, True]
    assert [e.routes["distill"] for e in examples] == [1.0, 0.0, 1.0] and facts["route/pg"] == pytest.approx(1 / 3)


def test_advantages_sum_to_zero_with_any_bonus() -> None:
    rewards = [Reward("right", 1.0, right), Reward("length", 0.1, lambda num_tokens: float(num_tokens), bonus=True)]
    (judged,) = Scorer(rewards, str, "right").score([group("right", "no", "wrong, and long")])
    assert sum(advantages(judged, group_std)) == pytest.approx(0.0, abs=1e-9)


class Taking:
    """Says `right` to some problems always, to others never, to the rest every other time."""

    sampling, policy_version = Sampling(group_size=4), 0

    def generate(
        self, prompts: Sequence[Prompt], *, seed: int, sampling: Sampling | None = None, on_group: Any = None
    ) -> list[RolloutGroup]:
        patterns = {"always": ["right"] * 4, "never": ["no"] * 4, "mixed": ["right", "no"] * 2}
        return [RolloutGroup(prompt=p, rollouts=tuple(map(rollout, patterns[p.id.split()[0]]))) for p in prompts]


@pytest.mark.parametrize(("batches", "kept", "drawn"), [(0, 4, 1), (1, 2, 1), (2, 3, 2), (9, 4, 3)])
def test_dynamic_sampling_fills_the_step_with_mixed_groups(batches: int, kept: int, drawn: int) -> None:
    names = [
        "mixed",
        "always",
        "mixed",
        "never",
        "mixed",
        "always",
        "never",
        "always",
        "mixed",
        "mixed",
        "mixed",
        "mixed",
    ]
    problems = [problem(f"{name} {i}") for i, name in enumerate(names)]
    cursor = PromptCursor(problems, batch_size=4, seed=0, shuffle=False)
    sampler = RolloutSampler(
        Taking(), cursor, Scorer([Reward("right", 1.0, right)], str, "right").score, PhaseTimer(), lambda s: s, batches
    )  # type: ignore[arg-type]
    groups, facts = sampler.sample(1)
    assert len(groups) == kept and cursor.position == 4 * drawn
    assert not batches or all(g.group.prompt.id.startswith("mixed") for g in groups)
    assert facts.get("rollout/batches", 1.0) == drawn


def test_a_step_without_any_mixed_group_keeps_the_last_batch() -> None:
    cursor = PromptCursor([problem("never 1"), problem("always 2")], batch_size=2, seed=0)
    sampler = RolloutSampler(
        Taking(), cursor, Scorer([Reward("right", 1.0, right)], str, "right").score, PhaseTimer(), lambda s: s, 3
    )  # type: ignore[arg-type]
    groups, facts = sampler.sample(1)
    assert len(groups) == 2 and facts["rollout/mixed_groups"] == 0.0


ASKING: dict[str, Any] = {
    "regenerated": {"name": "regenerated", "samples": 2}, "critique": {"name": "critique", "threshold": 2.0},
    "key_points": {"name": "key_points"},
    "other_problem": {"name": "other_problem"}, "revision": {"name": "revision"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ASKING)
def test_a_run_with_each_of_them(name: str, tmp_path: Path) -> None:
    config = write_config(
        tmp_path, contexts={"teacher": ASKING[name]}, objective=[{"name": "distill", "divergence": "forward_kl"}]
    )
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "steps=2") == 0
    rows = metrics(tmp_path / "run")
    assert all(row["context/teacher/share"] == 1.0 and row["train/grad_norm"] > 0 for row in rows)
    again = tmp_path / "again"
    assert run_here(config, f"run_dir={again}", "steps=1") == 0 and run_here(config, f"run_dir={again}", "steps=2") == 0
    assert metrics(again) == rows, "what was asked is asked again in the same way"


SILENT = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)


def test_a_run_whose_teacher_thinks_and_whose_student_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OPSD's setting. Preflight holds each prompt against the ending of its own mode, and still finds no loss at equal prompts."""
    (tmp_path / "silent.jinja").write_text(SILENT)
    rendering = {"chat_template": str(tmp_path / "silent.jinja"), "thinking": False, "teacher_thinking": True}
    contexts = {"teacher": {"name": "reference_solution"}, "revised": {"name": "revision"}}
    terms = [{"name": "distill", "divergence": "forward_kl", "context": name} for name in contexts]
    config = write_config(tmp_path, rendering=rendering, contexts=contexts, objective=terms)
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "steps=1") == 0
    said = capsys.readouterr().out
    assert "first completion token lines up" in said and "same prompt, same weights, no loss" in said
    (sample, *_) = map(json.loads, (tmp_path / "run/samples.jsonl").read_text().splitlines())
    closed = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert sample["student_prompt"].endswith(closed)
    assert sample["teacher_prompts"]["teacher"].endswith("<|im_start|>assistant\n")
    revised = sample["teacher_prompts"]["revised"]
    assert "<|im_start|>assistant\n" + sample["completion"] in revised and revised.endswith("it.\n\n")


def test_which_renderer_the_teachers_prompts_have() -> None:
    from onpolicy.config.load import build
    from onpolicy.config.resolve import resolve
    from onpolicy.models import teacher_renderer

    student = Renderer(byte_tokenizer(SILENT), thinking=False)
    base = {"model": {"path": "m"}, "data": {"name": "file", "path": "d"}, "objective": ["policy_gradient"]}
    for given, same in (({}, True), ({"teacher_thinking": False}, True), ({"teacher_thinking": True}, False)):
        resolved = resolve(build({**base, "rendering": {"thinking": False, **given}}))
        assert (teacher_renderer(resolved, student) is student) == same
        assert resolved.config.rendering.teacher_thinking == given.get("teacher_thinking")
    other = teacher_renderer(resolved, student)
    assert other.decode(other.generation_suffix) == "<|im_end|>\n<|im_start|>assistant\n"


def test_a_run_without_signal_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    never = [{"name": "tests.annotation.test_queries:never"}]
    config = write_config(tmp_path, rewards=never, contexts={}, objective=["policy_gradient"])
    assert run_here(config, f"run_dir={tmp_path / 'run'}") == 2
    assert "no rollout carries a signal (policy_gradient 0 of 6)" in capsys.readouterr().err
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "preflight.enabled=false") == 0
    output = capsys.readouterr().out
    assert "step 1: no signal, nothing was learned; credit/nonzero 0" in " ".join(output.split())
    rows = metrics(tmp_path / "run")
    assert all(row["train/empty_updates"] == 1.0 and row["train/grad_norm"] == 0.0 for row in rows)


def never(completion: str) -> float:
    return 0.0


def test_prompts_of_replaced_ids_do_not_change_the_rollouts_of_others() -> None:
    """A question has the problem's id and its own text in its id, hence its own seed."""
    generator = Scripted(["x"])
    annotate([group("wrong a", "wrong b")], generator, contexts={"teacher": critique})
    first, second = generator.asked[0]
    assert (
        first.id != second.id and first.id.startswith("p1#") and replace(first, id="p1").fields == problem("p1").fields
    )
