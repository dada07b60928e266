"""A number that the host reads makes it wait for the device.

1. a step reads as often with many micro-batches as with one; 2. the sums that stay on the device are those of a loop in float64, over
shapes, after a merge, and where a masked value is no number.
"""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onpolicy.epistemic.ids import span_name
from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.losses.objective import MetricAccumulator, Term
from onpolicy.losses.terms.base import spec_of
from onpolicy.losses.terms.policy_gradient import policy_gradient
from onpolicy.trainer.teacher_rules import frozen
from onpolicy.utils.device_sums import DeviceSums
from tests.epistemic.test_telemetry import with_marks
from tests.tiny import random_examples
from tests.trainer.test_teacher import distill_term, trainer

READERS = ("item", "__float__", "__int__", "__bool__", "__index__", "tolist", "cpu", "numpy")
"""How a tensor's numbers come to the host. Choosing by a mask, which waits for how many are chosen, is not counted: four of those are left
in a micro-batch."""


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """What the host reads meanwhile, by how."""
    found: Counter[str] = Counter()

    def watched(name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        def watched_read(*arguments: Any, **options: Any) -> Any:
            found[name] += 1
            return read(*arguments, **options)

        return watched_read

    with monkeypatch.context() as patch:
        for name in READERS:
            patch.setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
        yield found


@pytest.mark.parametrize("updates", [1, 2])
def test_a_step_reads_as_often_whatever_it_is_cut_into(updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = with_marks(random_examples(24))
    reads, passes = [], []
    for budget in (20, 100, 10_000):
        one = trainer(
            frozen(),
            distill_term(),
            Term("policy_gradient", 0.5, policy_gradient, spec_of(policy_gradient)),
            telemetry=TokenTelemetry("self_doubt", ("self_doubt", "number")),
            spans=(span_name("self_doubt"), span_name("number")),
            marker_ids={"self_doubt": [5, 6, 7, 8, 9, 10]},
        )
        one.batching.budget = budget
        one.settings.updates_per_step = updates
        passes.append(len(one.batching.cut(examples)))
        one.step(examples)  # what is made once is made
        with counted(monkeypatch) as found:
            one.step(examples)
        reads.append(dict(found))
    assert passes[0] > 3 * passes[1] > 3 * passes[2]
    assert reads[0] == reads[1] == reads[2]
    in_adam = len(list(one.student.parameters())) * updates  # on the CPU each parameter's step counter is a tensor
    assert sum(reads[0].values()) <= in_adam + 4 * updates + 8


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5))


@given(st.lists(st.tuples(st.sampled_from("abc"), SHAPES), max_size=90), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_sums_on_the_device_are_sums(added: list[tuple[str, tuple[int, int]]], seed: int) -> None:
    draw = random.Random(seed)
    sums, counts = dict[str, float](), dict[str, int]()
    parts = [DeviceSums(), DeviceSums(), DeviceSums()]
    for name, shape in added:
        values = torch.tensor([[draw.gauss(0, 1e3) for _ in range(shape[1])] for _ in range(shape[0])])
        mask = torch.tensor([[draw.random() < 0.5 for _ in range(shape[1])] for _ in range(shape[0])])
        part = draw.choice(parts)
        part.add(name, torch.where(mask, values, torch.nan), mask)
        sums[name] = sums.get(name, 0.0) + sum(values[mask].double().tolist())
        counts[name] = counts.get(name, 0) + int(mask.sum())
        if draw.random() < 0.1:
            part.read()
    parts[0].absorb(parts[1])
    parts[0].absorb(pickle.loads(pickle.dumps(parts[2])))
    found_sums, found_counts = parts[0].read()
    assert found_counts == counts and found_sums == pytest.approx(sums, rel=1e-12, abs=1e-9)
    assert parts[0].read() == (found_sums, found_counts), "nothing new"


def test_another_process_gets_numbers() -> None:
    metrics = MetricAccumulator()
    metrics.add("x", torch.tensor([[1.0, 2.0]]), torch.tensor([[True, True]]))
    assert b"torch" not in pickle.dumps(metrics)
    other = pickle.loads(pickle.dumps(metrics))
    other.absorb(metrics)
    assert other.means() == {"x": 1.5} and metrics.means() == {"x": 1.5}
