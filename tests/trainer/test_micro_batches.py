"""Which rows run together.

1. every row once; 2. no micro-batch of several rows computes more tokens than the budget, counted without asking the
packing, and a row that has more runs alone; 3. no micro-batch stops early; 4. rows of one prompt stay side by side, and
the largest come first; 5. packed needs no more micro-batches than padded where rollouts share prompts; 6. a trainer's
forward passes keep to the budget, the teachers' too; 7. neither budget nor layout change the gradient.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example as written
from hypothesis import given, settings
from hypothesis import strategies as st

from onpolicy.losses.objective import Term
from onpolicy.losses.terms.base import spec_of
from onpolicy.losses.terms.policy_gradient import policy_gradient
from onpolicy.losses.terms.ref_kl import ref_kl
from onpolicy.losses.terms.teacher_advantage import teacher_advantage
from onpolicy.trainer import prefix_sharing
from onpolicy.trainer.forward import Layout, completion_states
from onpolicy.trainer.micro_batches import Row, micro_batches
from onpolicy.trainer.teacher_rules import frozen
from onpolicy.trainer.trainer import PolicyTrainer
from onpolicy.types import Example
from tests.ranks.against_local import surveyed_terms
from tests.tiny import example, tiny_model
from tests.trainer.test_trainer import distill_term, gradient, plain_term, trainer

PROMPTS = [tuple(range(10 * i, 10 * i + length)) for i, length in enumerate((1, 3, 3, 8, 40))]
ANY_ROWS = st.lists(
    st.tuples(st.sampled_from(PROMPTS), st.integers(1, 30).map(lambda n: (7,) * n)), min_size=1, max_size=20
)
BUDGETS = st.integers(1, 200)
LAYOUTS = st.booleans()


def computed(rows: Sequence[Row], *, packed: bool) -> int:
    """Tokens that go through the model for these rows together."""
    if packed:
        return len(prefix_sharing.pack(rows)[1])
    return len(rows) * (max(len(prompt) for prompt, _ in rows) + max(len(completion) for _, completion in rows))


def batches_of(rows: Sequence[Row], budget: int, *, packed: bool) -> list[list[Row]]:
    return [[rows[i] for i in numbers] for numbers in micro_batches(rows, budget, packed=packed)]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@torch.no_grad()
def test_what_is_counted_here_is_what_enters_the_model(layout: Layout) -> None:
    model, counted = tiny_model(), []
    prefix_sharing.enable_prefix_sharing(model)
    model.get_input_embeddings().register_forward_hook(lambda _, args, __: counted.append(args[0].numel()))
    rows: list[Row] = [(PROMPTS[4], (7,) * 5), (PROMPTS[1], (7,)), (PROMPTS[4], (7, 8)), (PROMPTS[2], (7,) * 30)]
    completion_states(model, rows, layout=layout)
    by_hand = {"packed": (40 + 4 + 1) + (3 + 0) + (3 + 29), "padded": 4 * (40 + 30)}[layout]
    assert counted == [by_hand] == [computed(rows, packed=layout == "packed")]


@given(rows=ANY_ROWS, budget=BUDGETS, packed=LAYOUTS)
@settings(deadline=None)
def test_every_row_once(rows: list[Row], budget: int, packed: bool) -> None:
    batches = list(micro_batches(rows, budget, packed=packed))
    assert all(batches)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))


@given(rows=ANY_ROWS, budget=BUDGETS, packed=LAYOUTS)
@settings(deadline=None)
def test_no_micro_batch_of_several_rows_exceeds_the_budget(rows: list[Row], budget: int, packed: bool) -> None:
    for batch in batches_of(rows, budget, packed=packed):
        assert len(batch) == 1 or computed(batch, packed=packed) <= budget


@given(rows=ANY_ROWS, budget=BUDGETS, packed=LAYOUTS)
@settings(deadline=None)
def test_no_micro_batch_stops_before_it_is_full(rows: list[Row], budget: int, packed: bool) -> None:
    """The next row would have gone over the budget. The last tokens of completions are counted, although they are not run."""
    batches = batches_of(rows, budget, packed=packed)
    for batch, following in itertools.pairwise(batches):
        tried = [*batch, following[0]]
        assert computed(tried, packed=packed) + (len(tried) if packed else 0) > budget


@given(rows=ANY_ROWS, budget=BUDGETS)
@settings(deadline=None)
def test_rows_of_one_prompt_stay_side_by_side(rows: list[Row], budget: int) -> None:
    prompts = [prompt for batch in batches_of(rows, budget, packed=True) for prompt, _ in batch]
    changes = sum(one != other for one, other in itertools.pairwise(prompts))
    assert changes == len(set(prompts)) - 1


@given(rows=ANY_ROWS, budget=BUDGETS)
@settings(deadline=None)
def test_the_longest_row_comes_first_without_a_shared_prompt(rows: list[Row], budget: int) -> None:
    rows = [((i, *prompt), completion) for i, (prompt, completion) in enumerate(rows)]
    for packed in (False, True):
        lengths = [len(p) + len(c) for batch in batches_of(rows, budget, packed=packed) for p, c in batch]
        assert lengths == sorted(lengths, reverse=True)


@given(rows=ANY_ROWS, budget=BUDGETS)
@settings(deadline=None)
def test_the_longest_completions_of_a_prompt_come_first(rows: list[Row], budget: int) -> None:
    ordered = [row for batch in batches_of(rows, budget, packed=True) for row in batch]
    for prompt in {p for p, _ in rows}:
        lengths = [len(c) for p, c in ordered if p == prompt]
        assert lengths == sorted(lengths, reverse=True)


MANY_AND_ONE_LONG: list[Row] = [((1, 2, 3), (7,) * 20)] * 8 + [((4, 5, 6), (7,) * 120)]


@pytest.mark.parametrize("packed", [False, True])
@given(rows=ANY_ROWS, budget=BUDGETS)
@written(rows=MANY_AND_ONE_LONG, budget=100)
@settings(deadline=None)
def test_memory_runs_out_in_the_first_micro_batch_or_in_none(rows: list[Row], budget: int, packed: bool) -> None:
    sizes = [computed(batch, packed=packed) for batch in batches_of(rows, budget, packed=packed)]
    assert max(sizes) <= max(budget, sizes[0])


@pytest.mark.parametrize("packed", [False, True])
def test_a_huge_row_runs_alone(packed: bool) -> None:
    small: list[Row] = [((1, 2), (7,) * n) for n in (1, 2, 3)]
    huge: Row = ((1, 2), (7,) * 500)
    for rows in ([huge, *small], [*small, huge]):
        batches = batches_of(rows, 50, packed=packed)
        assert [len(batch) for batch in batches] == [1, 3] and batches[0] == [huge]


def test_cut_by_hand() -> None:
    rows: list[Row] = [((1, 2), (7,) * n) for n in (3, 1, 2)] + [((3, 4, 5), (7,) * n) for n in (4, 4)]
    # one prompt with 3 + 4 + 4 tokens and one with 2 + 3 + 2 + 1
    assert list(micro_batches(rows, 19, packed=True)) == [[3, 4, 0, 2, 1]]
    assert list(micro_batches(rows, 16, packed=True)) == [[3, 4, 0], [2, 1]]
    assert list(micro_batches(rows, 10, packed=True)) == [[3], [4], [0, 2, 1]]
    # the longest first, every row as long as the longest: 2 * 7, 3 * 5
    assert list(micro_batches(rows, 15, packed=False)) == [[3, 4], [0, 2, 1]]
    assert list(micro_batches(rows, 35, packed=False)) == [[3, 4, 0, 2, 1]]
    assert list(micro_batches(rows, 1, packed=False)) == [[3], [4], [0], [2], [1]]
    for packed in (False, True):
        assert list(micro_batches([], 10, packed=packed)) == []


@given(seed=st.integers(0, 1000), budget=st.sampled_from([150, 300, 600, 1200]))
@settings(deadline=None)
def test_packed_needs_no_more_micro_batches_than_padded(seed: int, budget: int) -> None:
    """Where rollouts share prompts; a row always fits."""
    draw = random.Random(seed)
    rows: list[Row] = [
        ((prompt,) * length, (7,) * draw.randint(1, 80))
        for prompt in range(6)
        for length in [draw.randint(10, 60)]
        for _ in range(8)
    ]
    count = {packed: len(batches_of(rows, budget, packed=packed)) for packed in (True, False)}
    assert count[True] <= count[False]
    tokens = [sum(computed(b, packed=p) for b in batches_of(rows, budget, packed=p)) for p in (True, False)]
    assert tokens[0] < tokens[1]


def rollouts_of_shared_prompts(seed: int = 0) -> list[Example]:
    """Four prompts with three rollouts each, one of a single token; privileged prompts shared by some and missing for others."""
    draw = random.Random(seed)

    def tokens(n: int) -> list[int]:
        return [draw.randrange(3, 250) for _ in range(n)]

    rows = []
    for number, length in enumerate((9, 4, 1, 6)):
        prompt, hint = tokens(length), tokens(12)
        for k, spoken in enumerate((1, draw.randint(2, 12), draw.randint(2, 12))):
            teacher = [hint + prompt, tokens(5) + prompt, None][(number + k) % 3 if number % 2 else 0]
            rows.append(example(prompt, tokens(spoken), teacher=teacher, advantage=draw.gauss(0.0, 1.0)))
    draw.shuffle(rows)
    return rows


def mixed_trainer(layout: str, budget: int, **options: Any) -> PolicyTrainer:
    """Terms of every kind: without a teacher, on whole distributions, on the teacher's log-probs, on the reference model."""
    taught = Term("teacher_advantage", 0.5, teacher_advantage, spec_of(teacher_advantage), ("teacher",))
    terms = (plain_term(policy_gradient), distill_term(weight=0.7), taught, plain_term(ref_kl, 0.3))
    return trainer(*terms, layout=layout, micro_batch_tokens=budget, **options)


def tokens_run(layout: str, budget: int, examples: Sequence[Example]) -> dict[str, list[int]]:
    """By model the tokens of each forward pass of one step."""
    one, counted = mixed_trainer(layout, budget, rule=frozen()), {}
    for name, model in (("student", one.student), ("teacher", one.teacher_scorer.teacher.model)):
        sizes = counted[name] = list[int]()
        hook = lambda _, args, __, c=sizes: c.append(args[0].numel())  # noqa: E731
        model.get_input_embeddings().register_forward_hook(hook)
    one.step(examples)
    return counted


def rows_of(examples: Sequence[Example]) -> dict[str, list[Row]]:
    """What the student reads; and the teacher, who is the reference model too."""
    own = [(e.rollout.prompt_ids, e.rollout.completion_ids) for e in examples]
    taught = [(p, e.rollout.completion_ids) for e in examples for p in e.teacher_prompt_ids.values()]
    return {"student": own, "teacher": own + taught}


AT_ONCE = {"student": 1, "teacher": 4}
"""Budgets of a forward pass: who keeps no graph reads four times as many tokens."""


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_no_forward_pass_of_a_trainer_exceeds_the_budget(layout: str) -> None:
    examples, budget = rollouts_of_shared_prompts(), 40
    rows = rows_of(examples)
    assert max(len(p) + len(c) for p, c in rows["teacher"]) <= budget, "every row fits"
    for name, sizes in tokens_run(layout, budget, examples).items():
        most = AT_ONCE[name] * budget
        assert len(sizes) > 1 and 0.5 * most < max(sizes) <= most
        if layout == "padded":
            assert sum(sizes) >= sum(len(p) + len(c) for p, c in rows[name])


def test_a_trainer_runs_all_in_one_pass_where_its_layout_lets_it() -> None:
    """A budget that holds every prompt once and every completion once, but not one padded batch of them."""
    examples = rollouts_of_shared_prompts()
    for name, rows in rows_of(examples).items():
        total = sum(map(len, {p for p, _ in rows})) + sum(len(c) for _, c in rows)
        assert computed(rows, packed=False) > 1.2 * total
        budget = math.ceil(total / AT_ONCE[name])
        assert tokens_run("packed", budget, examples)[name] == [total - len(rows)]  # without the last tokens
        assert len(tokens_run("padded", budget, examples)[name]) > 1


@pytest.mark.parametrize("updates", [1, 2])
def test_neither_budget_nor_layout_change_the_gradient(updates: int) -> None:
    examples = rollouts_of_shared_prompts(1)
    reference = gradient(mixed_trainer("padded", 10**6, updates_per_step=updates), examples)
    assert len(reference) > 10 and any(g.abs().max() > 1e-2 for g in reference.values())
    for layout in ("packed", "padded"):
        for budget in (1, 40, 90, 10**6):
            found = gradient(mixed_trainer(layout, budget, updates_per_step=updates), examples)
            assert found.keys() == reference.keys()
            for name, expected in reference.items():
                torch.testing.assert_close(
                    found[name], expected, atol=1e-5, rtol=1e-4, msg=partial("{} at {}: {}".format, name, budget)
                )


def test_neither_changes_the_gradient_of_terms_that_read_the_whole_update() -> None:
    examples = rollouts_of_shared_prompts(1)

    def surveyed(layout: str, budget: int) -> PolicyTrainer:
        return trainer(*surveyed_terms(), layout=layout, micro_batch_tokens=budget)

    reference = gradient(surveyed("padded", 10**6), examples)
    assert len(reference) > 10 and any(g.abs().max() > 1e-2 for g in reference.values())
    for layout in ("packed", "padded"):
        for budget in (1, 60, 10**6):
            found = gradient(surveyed(layout, budget), examples)
            for name, expected in reference.items():
                torch.testing.assert_close(
                    found[name], expected, atol=1e-5, rtol=1e-4, msg=partial("{} at {}: {}".format, name, budget)
                )


def test_numbers_of_a_step_do_not_depend_on_budget_or_layout() -> None:
    """Losses and telemetry too, over two updates that see each other."""
    examples = rollouts_of_shared_prompts(2)
    reference = mixed_trainer("padded", 10**6, updates_per_step=2).step(examples)
    for layout, budget in (("packed", 1), ("packed", 70), ("packed", 10**6), ("padded", 1)):
        found = mixed_trainer(layout, budget, updates_per_step=2).step(examples)
        assert found == pytest.approx(reference, abs=2e-5, rel=1e-4), f"{layout} at {budget}"


def test_log_probabilities_come_back_in_the_order_of_the_rollouts() -> None:
    examples = rollouts_of_shared_prompts(3)
    expected = [mixed_trainer("padded", 10**6).logprobs([e])[0] for e in examples]
    for layout, budget in (("packed", 1), ("packed", 50), ("packed", 10**6), ("padded", 50)):
        for found, row in zip(mixed_trainer(layout, budget).logprobs(examples), expected, strict=True):
            torch.testing.assert_close(found, row, atol=1e-5, rtol=1e-4)
