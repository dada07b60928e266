"""Teachers read some micro-batches ahead of the student, and their states exist for no more than that.

1. rollouts of one prompt are in one window where they fit; 2. what teachers left, counted while it lives, is at most a window and a
micro-batch, and does not grow with the number of groups; 3. loss, gradient and metrics are those of an update that is read at once, to the
last bit where the same rows run together; 4. a privileged prompt that a group shares is computed once; 5. an update that is read twice is
scored twice, one of a single window once; 6. where teachers run out of memory, windows get smaller; 7. ranks are in step; 8. in bfloat16
states are kept rounded, which changes nothing.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from onpolicy.config.schema import TrainerSettings
from onpolicy.losses.objective import Objective, Term
from onpolicy.losses.terms.base import spec_of
from onpolicy.losses.terms.policy_gradient import policy_gradient
from onpolicy.losses.terms.ref_kl import ref_kl
from onpolicy.losses.terms.teacher_advantage import teacher_advantage
from onpolicy.trainer import batching
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.trainer.forward import completion_hidden
from onpolicy.trainer.micro_batches import Row, micro_batches
from onpolicy.trainer.teacher import TeacherScorer
from onpolicy.trainer.teacher_rules import WeightRule, ema, frozen, live, model, trust_region_logits
from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup, local
from onpolicy.trainer.windows import MicroBatch, in_step
from onpolicy.types import REF, Example
from onpolicy.utils.timer import PhaseTimer
from tests.ranks.against_local import surveyed_terms
from tests.tiny import example, tiny_model
from tests.trainer.test_micro_batches import ANY_ROWS, BUDGETS, batches_of, computed
from tests.trainer.test_trainer import distill_term, gradient, plain_term

PROMPT, COMPLETION, HINT, ROLLOUTS = 6, 8, 12, 3
GROUP = PROMPT + ROLLOUTS * COMPLETION
"""Tokens that the student reads of a group."""
EVERYTHING = 10**6


def groups(number: int, *, same_length: bool = True) -> list[Example]:
    """Rollouts of groups that share a privileged prompt, and another one for some of them; mixed up."""
    draw = random.Random(number)

    def tokens(length: int) -> list[int]:
        return [draw.randrange(3, 250) for _ in range(length if same_length else draw.randint(1, 2 * length))]

    found = []
    for group in range(number):
        prompt, hint, other = tokens(PROMPT), tokens(HINT), tokens(HINT)
        for rollout in range(ROLLOUTS):
            one = example(prompt, tokens(COMPLETION), teacher=hint + prompt, advantage=draw.gauss(0.0, 1.0))
            more = {"other": (*other, *prompt)} if same_length or (group + rollout) % 2 else {}
            found.append(replace(one, group_id=group, teacher_prompt_ids={**one.teacher_prompt_ids, **more}))
    draw.shuffle(found)
    return found


def every_kind() -> tuple[Term, ...]:
    """Over the vocabulary, on log-probabilities of another context, on the reference model, and without a teacher."""
    other = Term("other", 0.5, partial(teacher_advantage, context="other"), spec_of(teacher_advantage), ("other",))
    return distill_term(weight=0.7), other, plain_term(ref_kl, 0.3), plain_term(policy_gradient)


OBJECTIVES: Mapping[str, Callable[[], tuple[Term, ...]]] = {
    "every kind of term": every_kind,
    "the whole update": lambda: (*surveyed_terms(), *every_kind()[1:]),
}


def trainer(
    *terms: Term, budget: int = GROUP, rule: WeightRule | None = None, updates: int = 1, **options: Any
) -> PolicyTrainer:
    """An update of the trainer is read in windows of as many groups as the module's constant says."""
    setup = TrainerSetup(
        student=tiny_model(), objective=Objective(terms or every_kind()), rule=rule or ema(ema_decay=0.5), total_steps=10,
        settings=TrainerSettings(lr=1e-3, micro_batch_tokens=budget, updates_per_step=updates), contexts=("teacher", "other"),
        clock=PhaseTimer(), teacher_model=options.pop("teacher_model", None),
    )  # fmt: skip
    return local(setup=setup, **options)


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the length of a window in micro-batches."""
    return lambda factor: monkeypatch.setattr(batching, "WINDOW_FACTOR", factor)


@given(rows=ANY_ROWS, budget=BUDGETS)
@settings(deadline=None)
def test_rollouts_of_one_prompt_are_in_one_window_where_they_fit(rows: list[Row], budget: int) -> None:
    found = list(micro_batches(rows, budget, packed=True, together=True))
    assert sorted(i for own in found for i in own) == list(range(len(rows)))
    for own in found:
        assert len(own) == 1 or computed([rows[i] for i in own], packed=True) <= budget
    for prompt in {prompt for prompt, _ in rows}:
        group = [i for i, (p, _) in enumerate(rows) if p == prompt]
        if len(prompt) + sum(len(rows[i][1]) for i in group) <= budget:
            assert sum(any(i in own for i in group) for own in found) == 1
    if all(len(own) == 1 for own in batches_of(rows, budget, packed=True)):
        assert len(found) == len(rows), "a group that never fits is cut as ever"


def test_an_update_is_cut_into_windows_by_hand(window: Callable[[int], None]) -> None:
    """Of five groups of 30 tokens two fit a window of 64; a micro-batch of 16 tokens holds one rollout, of 32 a group."""
    one, examples = trainer(layout="packed", budget=32), groups(5)
    window(2)
    assert [[len(batch) for batch in w] for w in one.batching.windows(examples)] == [[3, 3], [3, 3], [3]]
    assert one.batching.halve(examples)
    window(4)
    assert [[len(batch) for batch in w] for w in one.batching.windows(examples)] == [[1] * 6, [1] * 6, [1] * 3]
    for own in one.batching.windows(examples):
        assert len({examples[i].group_id for batch in own for i in batch}) * 3 == sum(map(len, own)), "whole groups"


class Living:
    """Rows of teachers' states that exist, and the most that ever did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        score, states = TeacherScorer.score, TeacherScorer.states

        def counted_score(*arguments: Any, **options: Any) -> Any:
            return self.count(score(*arguments, **options), lambda found: (t for row in found for t in row.values()))

        def counted_states(*arguments: Any, **options: Any) -> Any:
            return self.count(states(*arguments, **options), lambda found: (s.hidden for s in found.values()))

        monkeypatch.setattr(TeacherScorer, "score", counted_score)
        monkeypatch.setattr(TeacherScorer, "states", counted_states)

    def count(self, found: Any, tensors: Callable[[Any], Any]) -> Any:
        for tensor in tensors(found):
            weakref.finalize(tensor, self.gone, len(tensor))
            self.now += len(tensor)
        self.most = max(self.most, self.now)
        return found

    def gone(self, rows: int) -> None:
        self.now -= rows


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("updates", [1, 2])
def test_what_teachers_left_does_not_grow_with_the_number_of_groups(
    kind: str, updates: int, monkeypatch: pytest.MonkeyPatch, window: Callable[[int], None]
) -> None:
    living, by_group = Living(monkeypatch), lambda e: e.group_id  # two updates have whole groups

    def peak(number: int, factor: int) -> int:
        window(factor)
        living.most = 0
        trainer(*OBJECTIVES[kind](), layout="packed", updates=updates).step(sorted(groups(number), key=by_group))
        assert living.now == 0, "nothing outlives its update"
        return living.most

    views = 3  # two contexts and the reference model
    of_a_group = views * ROLLOUTS * COMPLETION
    assert peak(4, 2) == peak(12, 2) == (2 + 1) * of_a_group, "a window and, joined, a micro-batch"
    assert peak(12, EVERYTHING) == (12 // updates + 1) * of_a_group


def everything_of(one: PolicyTrainer, examples: list[Example]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradient of the first update, and the metrics of a second step."""
    return gradient(one, examples), one.step(examples)


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("rule", [live(), frozen(), ema(ema_decay=0.5), trust_region_logits(student_share=0.3)])
def test_the_same_as_if_all_were_read_at_once_to_the_last_bit(
    kind: str, rule: WeightRule, monkeypatch: pytest.MonkeyPatch, window: Callable[[int], None]
) -> None:
    """Where a pass of the student, and of a teacher, is a group, the same rows run together."""
    monkeypatch.setattr("onpolicy.trainer.trainer.NO_GRAPH_FACTOR", 1)
    examples, budget = groups(6), GROUP + HINT
    window(EVERYTHING)
    expected, metrics = everything_of(trainer(*OBJECTIVES[kind](), rule=rule, layout="packed", budget=budget), examples)
    assert len(expected) > 10 and any(g.abs().max() > 1e-2 for g in expected.values())
    for factor in (1, 2):
        window(factor)
        one = trainer(*OBJECTIVES[kind](), rule=rule, layout="packed", budget=budget)
        assert len(one.batching.windows(examples)) > 2
        found, measured = everything_of(one, examples)
        assert measured == metrics
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("updates", [1, 2])
def test_the_same_as_if_all_were_read_at_once(
    kind: str, layout: str, updates: int, window: Callable[[int], None]
) -> None:
    examples = groups(6, same_length=False)

    def run(factor: int, budget: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        window(factor)
        return everything_of(trainer(*OBJECTIVES[kind](), layout=layout, budget=budget, updates=updates), examples)

    expected, metrics = run(EVERYTHING, EVERYTHING)
    for factor, budget in ((1, 20), (1, 60), (3, 40)):
        found, measured = run(factor, budget)
        assert measured == pytest.approx(metrics, abs=1e-5, rel=1e-4)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-4, msg=name)


def test_a_shared_privileged_prompt_is_computed_once(window: Callable[[int], None]) -> None:
    """In each context by each model, however many windows and passes there are."""
    examples, counted = groups(12), list[int]()
    window(2)
    one = trainer(rule=frozen(), layout="packed", budget=GROUP)
    assert len(one.batching.windows(examples)) == 6
    embeddings = one.teacher_scorer.teacher.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda _, args, __: counted.append(args[0].numel()))
    one.step(examples)
    rows = [(prompt, e.rollout.completion_ids) for e in examples for prompt in e.teacher_prompt_ids.values()]
    rows += [(e.rollout.prompt_ids, e.rollout.completion_ids) for e in examples]  # the reference model is the teacher
    last = len(rows)  # tokens that predict nothing
    assert sum(counted) == sum(map(len, {p for p, _ in rows})) + sum(len(c) for _, c in rows) - last
    assert len(counted) > 6


@pytest.mark.parametrize(("kind", "times"), [("every kind of term", 1), ("the whole update", 2)])
def test_an_update_that_is_read_twice_is_scored_twice_unless_it_is_one_window(
    kind: str, times: int, monkeypatch: pytest.MonkeyPatch, window: Callable[[int], None]
) -> None:
    scored: list[int] = []
    score = TeacherScorer.score

    def counted(self: TeacherScorer, examples: Sequence[Example], **options: Any) -> Any:
        scored.append(len(examples))
        return score(self, examples, **options)

    monkeypatch.setattr(TeacherScorer, "score", counted)
    for factor, expected in ((EVERYTHING, [18]), (2, [6, 6, 6] * times)):
        window(factor)
        scored.clear()
        trainer(*OBJECTIVES[kind](), layout="packed").step(groups(6))
        assert scored == expected


def test_where_teachers_run_out_of_memory_windows_get_smaller(
    monkeypatch: pytest.MonkeyPatch, window: Callable[[int], None]
) -> None:
    window(8)
    score, faults = TeacherScorer.score, list[str]()
    expected, metrics = everything_of(trainer(layout="packed", budget=2 * GROUP), groups(12))

    def limited(self: TeacherScorer, examples: Sequence[Example], **options: Any) -> Any:
        if len(examples) > 4 * ROLLOUTS:
            raise torch.OutOfMemoryError("no room")
        return score(self, examples, **options)

    monkeypatch.setattr(TeacherScorer, "score", limited)
    one = trainer(layout="packed", budget=2 * GROUP)
    one.on_fault = lambda role, what: faults.append(what)
    found, measured = everything_of(one, groups(12))
    assert one.batching.budget == GROUP // 2 and len(faults) == 2
    assert measured == pytest.approx(metrics, abs=1e-5, rel=1e-4)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-4, msg=name)


class TwoRanks(SingleProcess):
    """The first of two, whose other rank has these micro-batches by window."""

    def __init__(self, other: list[int]) -> None:
        self.other = other

    def all_gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def test_ranks_have_as_many_windows_and_as_many_passes_in_each() -> None:
    own = [[[0, 1], [2]], [[3]]]
    batches = [MicroBatch((0, 1), 0), MicroBatch((2,), 0), MicroBatch((3,), 1)]
    idle = [MicroBatch((9,), number, idle=True) for number in range(3)]
    assert in_step(own, SingleProcess(), filler=9) == batches
    assert in_step(own, TwoRanks([1, 1]), filler=9) == batches
    assert in_step(own, TwoRanks([3, 2]), filler=9) == [*batches[:2], idle[0], batches[2], idle[1]]
    assert in_step(own, TwoRanks([2, 1, 2]), filler=9) == [*batches, idle[2], idle[2]]
    assert in_step([], TwoRanks([1]), filler=9) == [idle[0]]


RULES: Mapping[str, tuple[WeightRule, Callable[[], Any]]] = {
    "live": (live(), lambda: None),
    "ema": (ema(ema_decay=0.5), lambda: None),
    "trust region of logits": (trust_region_logits(student_share=0.3), lambda: None),
    "another model with more rows": (model(path="other"), lambda: tiny_model(seed=7, vocab_size=320)),
    "another model with fewer rows": (model(path="other"), lambda: tiny_model(seed=7, vocab_size=250)),
}


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("name", RULES)
def test_in_bfloat16_states_are_kept_rounded_which_changes_nothing(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rule, other), examples = RULES[name], groups(4)

    def run() -> tuple[dict[str, Tensor], dict[str, float]]:
        terms = OBJECTIVES[kind]()
        one = trainer(*terms, rule=rule, precision="bfloat16", teacher_model=other(), layout="packed")
        dtypes.append({t.dtype for row in one.teacher_hidden(examples) for t in row.values()})
        return everything_of(one, examples)

    dtypes: list[set[torch.dtype]] = []
    found, measured = run()

    def unrounded(self: TeacherScorer, reader: Any, rows: Sequence[Row]) -> Tensor:
        with reader.adapters():
            return completion_hidden(reader.model, rows, layout=self.layout, body=reader.body)

    monkeypatch.setattr(TeacherScorer, "_run", unrounded)
    expected, metrics = run()
    assert dtypes == [{torch.bfloat16}, {torch.float32}]
    assert measured == metrics and all(torch.equal(found[n], tensor) for n, tensor in expected.items())


def test_in_float32_states_stay_float32() -> None:
    one = trainer()
    (row, *_) = one.teacher_hidden(groups(1))
    assert set(row) == {"teacher", "other", REF} and {states.dtype for states in row.values()} == {torch.float32}


def test_a_trust_region_of_logits_is_zero_at_equality_in_bfloat16() -> None:
    """Its head computes in what the student's does."""
    one = trainer(distill_term(), rule=trust_region_logits(student_share=0.3), precision="bfloat16", layout="packed")
    same = [replace(e, teacher_prompt_ids={"teacher": e.rollout.prompt_ids}) for e in groups(3)]
    assert one.step(same)["train/loss"] == pytest.approx(0.0, abs=1e-7)
