"""Targets: their laws, and the marker-mass floor as the projection that it claims to be. (Values: test_oracle.py.)

1. every target sums to one, for any distributions, also extreme ones; 2. the floor is the nearest distribution that keeps
the mass (found again by a numerical optimiser); 3. it leaves a teacher alone that keeps the mass; 4. ends of the mixtures;
5. wrong options are refused with their key.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from onpolicy.losses import targets
from onpolicy.losses.comparison import Distributions

IDS = torch.tensor([1, 4])
ALL: list[Any] = [
    targets.identity, partial(targets.temperature, temperature=0.5), partial(targets.top_k, k=2), targets.arithmetic_mix,
    targets.prior_anchor,
    targets.geometric_mix, partial(targets.pmi_residual, reference_context="other"),
    partial(targets.marker_mass_floor, lexicon="self_doubt"),
    partial(targets.marker_mass_floor, lexicon="self_doubt", control="others"),
    partial(targets.prior_at_markers, lexicon="self_doubt"),
]  # fmt: skip


def draw(seed: int, scale: float = 2.0) -> tuple[Tensor, Distributions]:
    random = torch.Generator().manual_seed(seed)
    student, teacher, start, other = ((torch.randn(3, 7, generator=random) * scale).log_softmax(-1) for _ in range(4))
    return teacher, Distributions(student, {"other": other}, start, torch.tensor([0, 1, 2]), {"self_doubt": IDS})


@given(st.integers(0, 10_000), st.floats(0.1, 60.0))
@settings(max_examples=60, deadline=None)
def test_every_target_sums_to_one(seed: int, scale: float) -> None:
    teacher, seen = draw(seed, scale)
    for function in ALL:
        total = function(teacher, seen).exp().sum(-1)
        torch.testing.assert_close(total, torch.ones(3), atol=2e-4, rtol=0)


def test_the_floor_is_an_i_projection() -> None:
    """argmin over r of KL(r || q) under r(E) >= share pi_0(E), by an optimiser that knows nothing of the closed form."""
    teacher = torch.tensor([[0.5, 0.01, 0.2, 0.15, 0.02, 0.07, 0.05]]).log()
    start = torch.tensor([[0.2, 0.15, 0.1, 0.2, 0.15, 0.1, 0.1]]).log()
    seen = Distributions(start, {}, start, torch.tensor([0]), {"self_doubt": IDS})
    ours = targets.marker_mass_floor(teacher, seen, lexicon="self_doubt", share=0.5).exp()[0].numpy()
    q = teacher.exp()[0].double().numpy()
    found = minimize(
        lambda r: float((r * np.log(r / q)).sum()), q, bounds=[(1e-6, 1)] * 7, method="SLSQP", tol=1e-12,
        constraints=[{"type": "eq", "fun": lambda r: r.sum() - 1}, {"type": "ineq", "fun": lambda r: r[[1, 4]].sum() - 0.15}],
    )  # fmt: skip
    assert found.success and ours == pytest.approx(found.x, abs=2e-4)
    assert ours[[1, 4]].sum() == pytest.approx(0.15, abs=1e-6) and ours[1] / ours[4] == pytest.approx(0.5, abs=1e-4)


def test_the_floors_control_moves_as_much_mass_to_other_words() -> None:
    teacher, seen = draw(5)
    assert seen.ref is not None
    floored, control = (
        targets.marker_mass_floor(teacher, seen, share=1.0, control=c).exp() for c in ("none", "others")
    )
    q, start, mass = teacher.exp(), seen.ref.exp(), lambda p: p[:, IDS].sum(-1)
    moved = (mass(start) - mass(q)).clamp(min=0.0)
    assert (moved > 0).any() and (mass(floored) - mass(q)).tolist() == pytest.approx(moved.tolist(), abs=1e-5)
    torch.testing.assert_close(mass(control), (1 - moved) * mass(q))  # markers lose what all words lose
    others = start.index_fill(-1, IDS, 0.0)
    wanted = (1 - moved)[:, None] * q + moved[:, None] * others / others.sum(-1, keepdim=True)
    torch.testing.assert_close(control, wanted)


def test_a_teacher_that_keeps_the_mass_is_left_alone() -> None:
    teacher, seen = draw(3)
    generous = Distributions(seen.student, seen.teachers, teacher, seen.token_ids, seen.marker_ids)
    assert torch.equal(targets.marker_mass_floor(teacher, generous, share=1.0), teacher)
    assert torch.equal(targets.marker_mass_floor(teacher, seen, share=0.0), teacher)


def test_a_teacher_that_has_lost_the_markers_altogether_gets_finite_ones_back() -> None:
    teacher = torch.tensor([[0.0, -200.0, -1.0, -1.0, -200.0, -2.0, -3.0]]).log_softmax(-1)
    _, seen = draw(1)
    start = torch.zeros(1, 7).log_softmax(-1)
    floored = targets.marker_mass_floor(
        teacher, Distributions(start, {}, start, seen.token_ids[:1], seen.marker_ids), share=1.0
    )
    assert floored.isfinite().all() and floored.exp()[0, IDS].sum().item() == pytest.approx(2 / 7, rel=1e-3)


def test_the_prior_where_a_marker_was_likely_by_hand() -> None:
    """Markers 1 and 4 have .1 of the reference model's mass, then 0, then .02; the target is it from .04 on."""
    start = torch.tensor(
        [[0.5, 0.08, 0.2, 0.1, 0.02, 0.1], [0.5, 0.0, 0.3, 0.1, 0.0, 0.1], [0.5, 0.01, 0.2, 0.18, 0.01, 0.1]]
    )
    teacher = torch.tensor(
        [[0.9, 0.0, 0.1, 0.0, 0.0, 0.0], [0.7, 0.0, 0.1, 0.2, 0.0, 0.0], [0.1, 0.03, 0.6, 0.18, 0.01, 0.08]]
    )
    seen = Distributions(start.log(), {}, start.log(), torch.tensor([0, 1, 2]), {"self_doubt": IDS})
    held = targets.prior_at_markers(teacher.log(), seen, saturation=0.04).exp()
    torch.testing.assert_close(
        held, torch.stack([start[0], teacher[1], torch.tensor([0.3, 0.02, 0.4, 0.18, 0.01, 0.09])])
    )


def test_the_ends_of_the_mixtures() -> None:
    teacher, seen = draw(0)
    assert seen.ref is not None
    for mix in (targets.arithmetic_mix, targets.geometric_mix):
        torch.testing.assert_close(mix(teacher, seen, share=0.0), teacher)
        torch.testing.assert_close(mix(teacher, seen, share=1.0), seen.ref)


@pytest.mark.parametrize(
    ("function", "option", "message"),
    [
        (targets.temperature, {"temperature": 0.0}, r"target\.temperature must be above 0"),
        (targets.top_k, {"k": 0}, r"target\.k must be at least 1"),
        (targets.arithmetic_mix, {"share": 1.5}, r"target\.share must lie between 0 and 1, got 1\.5"),
        (targets.marker_mass_floor, {"share": -1.0}, r"target\.share"),
    ],
)
def test_wrong_options_are_named(function: Any, option: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(*draw(0), **option)
