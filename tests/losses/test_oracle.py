"""The whole comparison against a slow oracle in float64: every target, on every support and tail, under every divergence.

The oracle below is plain Python over lists of probabilities, written from the formulas and not from the code; its gradient
is taken by central differences. 1. values; 2. gradients to the student's logits; 3. nothing reaches teacher or reference model;
4. where all models agree the comparison is 0, for every target that leaves an agreeing teacher alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from onpolicy.losses import divergences, supports, targets
from onpolicy.losses.comparison import Comparison, Distributions

P = list[float]
V, MARKERS, TOKEN = 7, [1, 4], 2


def softmax(logits: P) -> P:
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def normalised(weights: P) -> P:
    return [w / sum(weights) for w in weights]


def kl(p: P, q: P, clip: float = math.inf) -> float:
    return sum(min(a * math.log(a / b), clip) for a, b in zip(p, q, strict=True) if a > 0)


def mixed(share: float, p: P, q: P) -> P:
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


DIVERGENCES: dict[str, tuple[Callable[..., Any], Callable[[P, P], float]]] = {
    "forward_kl": (divergences.forward_kl, lambda s, t: kl(t, s)),
    "reverse_kl": (divergences.reverse_kl, lambda s, t: kl(s, t)),
    "forward_kl, clipped": (partial(divergences.forward_kl, entry_clip=0.05), lambda s, t: kl(t, s, 0.05)),
    "reverse_kl, clipped": (partial(divergences.reverse_kl, entry_clip=0.05), lambda s, t: kl(s, t, 0.05)),
    "jsd": (partial(divergences.jsd, beta=0.3), lambda s, t: 0.3 * kl(t, mixed(0.3, t, s)) + 0.7 * kl(s, mixed(0.3, t, s))),
    "skew_forward_kl": (partial(divergences.skew_forward_kl, alpha=0.1), lambda s, t: kl(t, mixed(0.1, t, s))),
    "skew_reverse_kl": (partial(divergences.skew_reverse_kl, alpha=0.1), lambda s, t: kl(s, mixed(0.1, s, t))),
}  # fmt: skip


def restricted(ids: list[int], tail: str) -> Callable[[P], P]:
    def restrict(p: P) -> P:
        top = [p[i] for i in ids]
        return [*top, 1 - sum(top)] if tail == "bucket" else normalised(top)

    return restrict


def largest(p: P, k: int) -> list[int]:
    return sorted(range(len(p)), key=lambda i: -p[i])[:k]


def top(whose: int, tail: str) -> Callable[[P, P], Callable[[P], P]]:
    return lambda s, t: restricted(largest((s, t)[whose], 3), tail)


SUPPORTS: dict[str, tuple[Callable[..., Any], Callable[[P, P], Callable[[P], P]]]] = {
    "full": (supports.full, lambda s, t: lambda p: p),
    "student_topk, bucket": (partial(supports.student_topk, k=3), top(0, "bucket")),
    "student_topk, renormalize": (partial(supports.student_topk, k=3, tail="renormalize"), top(0, "renormalize")),
    "teacher_topk, bucket": (partial(supports.teacher_topk, k=3), top(1, "bucket")),
    "teacher_topk, renormalize": (partial(supports.teacher_topk, k=3, tail="renormalize"), top(1, "renormalize")),
}


def truncated(t: P, s: P, start: P, other: P) -> P:
    return normalised([q if i in largest(t, 3) else 0.0 for i, q in enumerate(t)])


def geometric(t: P, s: P, start: P, other: P) -> P:
    return normalised([a**0.3 * b**0.7 for a, b in zip(start, t, strict=True)])


def prior_anchor(t: P, s: P, start: P, other: P) -> P:
    u = 1 / (1 + math.exp(-s[TOKEN] * (math.log(s[TOKEN]) - math.log(t[TOKEN])) / 0.5))
    return mixed(u, start, t)


def pmi_residual(t: P, s: P, start: P, other: P) -> P:
    d = [math.log(a) - math.log(b) for a, b in zip(t, other, strict=True)]
    centred = [x - sum(d) / V for x in d]
    return normalised([p * math.exp(2.0 * math.tanh(x / 2.0) / 0.7) for p, x in zip(start, centred, strict=True)])


def floored(t: P, s: P, start: P, other: P) -> P:
    mass = sum(t[i] for i in MARKERS)
    m = max(mass, 0.8 * sum(start[i] for i in MARKERS))
    return [q * m / mass if i in MARKERS else q * (1 - m) / (1 - mass) for i, q in enumerate(t)]


def held(t: P, s: P, start: P, other: P) -> P:
    return mixed(min(1.0, sum(start[i] for i in MARKERS) / 0.6), start, t)


TARGETS: dict[str, tuple[Callable[..., Any], Callable[[P, P, P, P], P]]] = {
    "identity": (targets.identity, lambda t, s, start, other: t),
    "temperature": (partial(targets.temperature, temperature=2.0), lambda t, s, start, other: normalised([q**0.5 for q in t])),
    "top_k": (partial(targets.top_k, k=3), truncated),
    "arithmetic_mix": (partial(targets.arithmetic_mix, share=0.3), lambda t, s, start, other: mixed(0.3, start, t)),
    "prior_anchor": (partial(targets.prior_anchor, scale=0.5), prior_anchor),
    "geometric_mix": (partial(targets.geometric_mix, share=0.3), geometric),
    "pmi_residual": (partial(targets.pmi_residual, reference_context="other", kappa=2.0, beta=0.7), pmi_residual),
    "marker_mass_floor": (partial(targets.marker_mass_floor, lexicon="self_doubt", share=0.8), floored),
    "prior_at_markers": (partial(targets.prior_at_markers, lexicon="self_doubt", saturation=0.6), held),
}  # fmt: skip


def logits(seed: int) -> dict[str, P]:
    random = torch.Generator().manual_seed(seed)
    return {who: (torch.randn(V, generator=random) * 2).tolist() for who in ("student", "teacher", "start", "other")}


def ours(
    given: dict[str, P], names: tuple[str, str, str]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Value, the student's logits and everyone's, in float64."""
    leaves = {who: torch.tensor([x], dtype=torch.float64, requires_grad=True) for who, x in given.items()}
    logp = {who: x.log_softmax(-1) for who, x in leaves.items()}
    seen = Distributions(
        logp["student"].detach(), {"teacher": logp["teacher"], "other": logp["other"]}, logp["start"], torch.tensor([TOKEN]),
        {"self_doubt": torch.tensor(MARKERS)},
    )  # fmt: skip
    comparison = Comparison("teacher", SUPPORTS[names[1]][0], TARGETS[names[0]][0], DIVERGENCES[names[2]][0])
    return comparison.compare(logp["student"], seen)[0], leaves["student"], leaves


def oracle(given: dict[str, P], names: tuple[str, str, str]) -> float:
    p = {who: softmax(x) for who, x in given.items()}
    q = TARGETS[names[0]][1](p["teacher"], p["student"], p["start"], p["other"])
    restrict = SUPPORTS[names[1]][1](p["student"], q)
    return DIVERGENCES[names[2]][1](restrict(p["student"]), restrict(q))


CASES = [(t, s, d) for t in TARGETS for s in SUPPORTS for d in DIVERGENCES if not (t == "top_k" and "reverse" in d)]
"""The reverse KL to a truncated teacher is infinite."""


@pytest.mark.parametrize("names", CASES, ids="-".join)
def test_equals_the_oracle_in_value_and_gradient(names: tuple[str, str, str]) -> None:
    for seed in range(3):
        given = logits(seed)
        value, _, leaves = ours(given, names)
        assert value.item() == pytest.approx(oracle(given, names), rel=1e-9, abs=1e-12)
        grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        assert all(g is None for who, g in zip(leaves, grads, strict=True) if who != "student")
        grad, step, expected = grads[0], 1e-6, []
        fixed = dict(given)
        for v in range(V):
            sides = [
                oracle(
                    {**fixed, "student": [x + sign * step * (i == v) for i, x in enumerate(given["student"])]}, names
                )
                for sign in (1, -1)
            ]
            expected.append((sides[0] - sides[1]) / (2 * step))
        if names[0] == "prior_anchor":  # the oracle differentiates the student inside the target too; ours must not
            continue
        assert grad is not None and grad[0].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("names", [c for c in CASES if c[0] not in ("temperature", "top_k")], ids="-".join)
def test_nothing_where_all_agree(names: tuple[str, str, str]) -> None:
    given = dict.fromkeys(("student", "teacher", "start", "other"), logits(5)["student"])
    value, student, _ = ours(given, names)
    assert abs(value.item()) < 1e-12
    if "clipped" not in names[2]:  # where an entry is cut its gradient is gone, and the others' no longer cancel
        (grad,) = torch.autograd.grad(value, student)
        assert grad.abs().max() < 1e-9
