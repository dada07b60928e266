"""Coverage and order of problems.

1. smaller subsets are inside larger ones; 2. repeats keep their problem; 3. every epoch holds each problem once, in an
order of its own; 4. a cursor that is resumed anywhere goes on as if nothing had happened; 5. digests tell what problems are.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onpolicy.data import DataError
from onpolicy.data.cursor import PromptCursor
from onpolicy.data.digest import dataset_difference, dataset_digest, digest
from onpolicy.data.subset import coverage
from onpolicy.types import Prompt


def problems(n: int) -> list[Prompt]:
    return [Prompt(id=str(i), messages=({"role": "user", "content": str(i)},)) for i in range(n)]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_subsets_are_nested(a: int, b: int, seed: int) -> None:
    small, large = sorted((a, b))
    some = [p.id for p in coverage(problems(40), problems=small, seed=seed)]
    more = [p.id for p in coverage(problems(40), problems=large, seed=seed)]
    assert more[:small] == some and len(set(more)) == large


def test_repeats() -> None:
    chosen = coverage(problems(10), problems=2, repeats=3)
    assert len(chosen) == 6 and len({p.id for p in chosen}) == 6
    assert len({p.fields["problem_id"] for p in chosen}) == 2


def test_too_many_problems() -> None:
    with pytest.raises(DataError, match="got 11, but the dataset has 10"):
        coverage(problems(10), problems=11)


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_resumed_anywhere_it_goes_on(n: int, size: int, stop: int, shuffle: bool) -> None:
    whole = PromptCursor(problems(n), batch_size=size, seed=5, shuffle=shuffle)
    batches = [[p.id for p in whole.next()] for _ in range(8)]
    first = PromptCursor(problems(n), batch_size=size, seed=5, shuffle=shuffle)
    for _ in range(stop):
        first.next()
    second = PromptCursor(problems(n), batch_size=size, seed=5, shuffle=shuffle)
    second.load_state(first.state())
    assert [[p.id for p in second.next()] for _ in range(8 - stop)] == batches[stop:]
    flat = [i for batch in batches for i in batch]
    for epoch in range(len(flat) // n):
        assert sorted(flat[epoch * n : (epoch + 1) * n]) == sorted(str(i) for i in range(n))


def test_orders_differ_between_epochs() -> None:
    cursor = PromptCursor(problems(20), batch_size=20, seed=0)
    assert [p.id for p in cursor.next()] != [p.id for p in cursor.next()]


def test_problems_are_told_apart_by_content() -> None:
    before = dataset_digest(problems(20))
    assert dataset_difference(before, problems(20)) is None
    assert dataset_difference(before, problems(20)[::-1]) == "20 problems, in another order"
    fewer = dataset_difference(before, problems(19))
    assert fewer == "20 problems there, 19 here; the first that differs is number 20"
    changed = problems(20)
    changed[6] = replace(changed[6], fields={"answer": "7"})
    assert dataset_difference(before, changed) == "20 problems; the first that differs is number 7, '6'"


def test_a_digest_is_the_same_in_every_process() -> None:
    """Sets have another order, and objects another place, in each process."""

    class Picture:
        pass

    one, other = (replace(problems(1)[0], fields={"of": Picture(), "in": words}) for words in ({"b", "a"}, {"a", "b"}))
    assert digest(one) == digest(other) != digest(replace(one, fields={"of": Picture(), "in": {"a"}}))
    assert digest(replace(one, fields={"raw": b"1"})) != digest(replace(one, fields={"raw": b"2"}))


@pytest.mark.parametrize(("n", "size"), [(4, 8), (3, 8), (10, 8), (1, 5)])
def test_a_problem_that_is_in_a_batch_twice_knows_it(n: int, size: int) -> None:
    cursor = PromptCursor(problems(n), batch_size=size, seed=1)
    for _ in range(6):
        batch = [(p.id, p.occurrence) for p in cursor.next()]
        assert len(set(batch)) == size
        for name in {name for name, _ in batch}:
            ours = [occurrence for other, occurrence in batch if other == name]
            assert ours == list(range(len(ours))), "from 0 on, in order"
