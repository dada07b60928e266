"""Per-token numbers from the vocabulary, in chunks.

1. equal to the plain computation on whole logits, value and gradient, whatever the chunk; 2. no gradient reaches the
teacher; 3. nothing of the size tokens x vocabulary is kept for the backward pass.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from onpolicy.losses.comparison import Comparison, Distributions
from onpolicy.losses.divergences import forward_kl, jsd, reverse_kl
from onpolicy.losses.supports import full, student_topk, teacher_topk
from onpolicy.losses.targets import identity, temperature
from onpolicy.trainer import head_passes
from onpolicy.trainer.chunked_head import token_stats
from onpolicy.trainer.head import Head, HiddenStates
from onpolicy.types import STUDENT

FULL = Comparison("teacher", full, identity, forward_kl)
TOP = Comparison("teacher", student_topk, identity, reverse_kl)


def parts(tokens: int = 11, width: int = 8, vocabulary: int = 150):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    head, other = (
        Head(x.weight, x.bias) for x in (torch.nn.Linear(width, vocabulary), torch.nn.Linear(width, vocabulary))
    )
    hidden = torch.randn(tokens, width, requires_grad=True)
    taught = torch.randn(tokens, width, requires_grad=True)
    return hidden, head, taught, other, torch.randint(0, vocabulary, (tokens,))


COMPARISONS = {
    "all entries": [FULL],
    "top entries and the rest": [TOP],
    "top entries alone": [Comparison("teacher", partial(student_topk, k=9, tail="renormalize"), identity, forward_kl)],
    "the teacher's top entries": [Comparison("teacher", partial(teacher_topk, k=9), identity, partial(jsd, beta=0.3))],
    "an edited target on top entries": [
        Comparison("teacher", partial(teacher_topk, k=9), partial(temperature, temperature=2.0), forward_kl)
    ],
    "several at once": [FULL, TOP, Comparison("teacher", partial(teacher_topk, k=3), identity, forward_kl)],
    "divided logits": [
        FULL,
        replace(FULL, temperature=1.5),
        replace(TOP, temperature=0.7),
        replace(TOP, temperature=1.5),
    ],
    "none": [],
}


@pytest.mark.parametrize("head", [{}, {"scale": 0.3}, {"cap": 2.0}, {"scale": 2.0, "cap": 1.5}])
@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
@pytest.mark.parametrize("comparisons", COMPARISONS.values(), ids=COMPARISONS)
def test_equals_the_plain_computation(
    comparisons: list[Comparison], chunk: int, head: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head_passes.LOGITS_PER_SLICE, "cpu", 3 * 150)
    hidden, own, taught, other, ids = parts()
    own, other = replace(own, **head), replace(other, **head)  # type: ignore[arg-type]
    stats = token_stats(
        HiddenStates(hidden, own), {"teacher": HiddenStates(taught, other)}, ids, comparisons, chunk=chunk
    )
    s, t = own.logits(hidden).log_softmax(-1), other.logits(taught).log_softmax(-1).detach()
    torch.testing.assert_close(stats.logprobs, s.gather(-1, ids[:, None])[:, 0])
    torch.testing.assert_close(stats.entropy, -(s.exp() * s).sum(-1).detach())
    torch.testing.assert_close(stats.teacher_logprobs["teacher"], t.gather(-1, ids[:, None])[:, 0])
    torch.testing.assert_close(stats.teacher_entropy["teacher"], -(t.exp() * t).sum(-1))
    shares = torch.rand(len(ids), 1 + len(comparisons))
    shares[2:5] = 0.0  # tokens that no term trains
    shares[6, :-1] = 0.0  # and one that a single term trains

    def compared(c: Comparison) -> torch.Tensor:
        divided, teacher = (s / c.temperature).log_softmax(-1), (t / c.temperature).log_softmax(-1)
        return c.compare(divided, Distributions(divided.detach(), {"teacher": teacher}, None, ids, {}))

    plain = [s.gather(-1, ids[:, None])[:, 0], *map(compared, comparisons)]
    ours = [stats.logprobs, *(stats.divergences[c] for c in comparisons)]
    torch.testing.assert_close(ours, plain)
    leaves = [hidden, own.weight, own.bias]
    gradients = [
        torch.autograd.grad((torch.stack(values, -1) * shares).sum(), leaves, retain_graph=True)  # type: ignore[arg-type]
        for values in (ours, plain)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_sampled_tokens_at_a_temperature() -> None:
    """Log-probabilities, entropies and their gradient from divided logits; the numbers at 1 stay what they are."""
    hidden, own, taught, other, ids = parts()
    states = HiddenStates(hidden, own), {"teacher": HiddenStates(taught, other)}, ids
    markers = {"self_doubt": torch.tensor([5, 6]), "hedges": torch.tensor([140])}
    stats, plain = (token_stats(*states, marker_ids=markers, temperatures=t, chunk=4) for t in ((1.0, 2.0), ()))
    hot, undivided = stats.tempered[2.0], own.logits(hidden).softmax(-1)
    for name, marked in markers.items():
        torch.testing.assert_close(stats.marker_mass[STUDENT, name].exp(), undivided[:, marked].sum(-1).detach())
    s, t = (own.logits(hidden) / 2).log_softmax(-1), (other.logits(taught) / 2).log_softmax(-1).detach()
    torch.testing.assert_close(hot.logprobs, s.gather(-1, ids[:, None])[:, 0])
    torch.testing.assert_close(hot.entropy, -(s.exp() * s).sum(-1).detach())
    torch.testing.assert_close(hot.teacher_logprobs["teacher"], t.gather(-1, ids[:, None])[:, 0])
    torch.testing.assert_close(hot.teacher_entropy["teacher"], -(t.exp() * t).sum(-1))
    for name in ("logprobs", "entropy", "teacher_logprobs", "teacher_entropy"):
        assert torch.equal(*(torch.as_tensor(_only(getattr(x, name))) for x in (stats, plain)))
    assert all(torch.equal(mass, plain.marker_mass[who]) for who, mass in stats.marker_mass.items())
    weight = torch.arange(1.0, 1.0 + len(ids))
    both = (hot.logprobs * weight - stats.logprobs).sum()
    by_hand = (s.gather(-1, ids[:, None])[:, 0] * weight).sum() - own.logits(hidden).log_softmax(-1).gather(
        -1, ids[:, None]
    ).sum()
    for mine, theirs in zip(
        *(torch.autograd.grad(x, [hidden, own.weight, own.bias]) for x in (both, by_hand)), strict=True
    ):  # type: ignore[arg-type]
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def _only(value: Any) -> Any:
    return value["teacher"] if isinstance(value, dict) else value


def test_where_the_top_entries_hold_nearly_everything() -> None:
    """A student sure to e^-40: the gradient on the rest is that of the formula in float64."""
    logits = torch.tensor([[60.0, 59.0, 20.0, 19.0, 18.0]])
    teacher = torch.tensor([[0.4, 0.3, 0.1, 0.1, 0.1]]).log()
    comparison = Comparison("teacher", partial(student_topk, k=2), identity, forward_kl)
    single, double = (logits.to(d).requires_grad_() for d in (torch.float32, torch.float64))
    eye = torch.eye(5)
    stats = token_stats(
        HiddenStates(single, Head(eye)), {"teacher": HiddenStates(teacher, Head(eye))}, torch.tensor([0]), [comparison]
    )
    (mine,) = torch.autograd.grad(stats.divergences[comparison].sum(), single)
    seen = Distributions(double.detach(), {"teacher": teacher.double()}, None, torch.tensor([0]), {})
    (theirs,) = torch.autograd.grad(comparison.compare(double.log_softmax(-1), seen).sum(), double)
    torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-6)


def test_under_autocast_only_the_product_is_rounded() -> None:
    hidden, head, taught, other, ids = parts()
    with torch.autocast("cpu", torch.bfloat16):
        stats = token_stats(HiddenStates(hidden, head), {"teacher": HiddenStates(taught, other)}, ids, [FULL, TOP])
    (stats.divergences[FULL] + stats.divergences[TOP]).sum().backward()
    assert stats.logprobs.dtype == torch.float32 and hidden.grad is not None and head.weight.grad is not None
    s, t = (
        (h.bfloat16() @ w.weight.bfloat16().T + w.bias).float().log_softmax(-1)
        for h, w in ((hidden, head), (taught, other))
    )  # type: ignore[operator]
    torch.testing.assert_close(stats.divergences[FULL], forward_kl(s, t.detach()), rtol=0.03, atol=2e-3)


def test_no_gradient_reaches_the_teacher() -> None:
    hidden, head, taught, other, ids = parts()
    stats = token_stats(HiddenStates(hidden, head), {"teacher": HiddenStates(taught, other)}, ids, [FULL])
    stats.divergences[FULL].sum().backward()
    assert taught.grad is None and other.weight.grad is None
    assert hidden.grad is not None and not stats.entropy.requires_grad


def test_nothing_of_vocabulary_size_is_kept() -> None:
    hidden, head, taught, other, ids = parts(tokens=64, vocabulary=1000)
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_stats(HiddenStates(hidden, head), {"teacher": HiddenStates(taught, other)}, ids, [FULL], chunk=8)
    assert max(kept, default=0) < 8 * 1000 + 1, "a chunk's log-probabilities survive the forward pass"
    assert sum(kept) < 64 * 1000


def test_no_tokens_give_empty_stats() -> None:
    hidden, head, taught, other, ids = parts()
    stats = token_stats(HiddenStates(hidden[:0], head), {"teacher": HiddenStates(taught[:0], other)}, ids[:0], [FULL])
    assert stats.logprobs.shape == stats.divergences[FULL].shape == (0,)


@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.parametrize("comparisons", COMPARISONS.values(), ids=COMPARISONS)
def test_logits_instead_of_states(comparisons: list[Comparison], chunk: int) -> None:
    """For a backend whose model runs its head itself: the same numbers, and the gradient on the logits."""
    hidden, own, taught, other, ids = parts()
    found = []
    for given in (False, True):
        logits = own.logits(hidden).detach().requires_grad_()
        student = HiddenStates(logits, Head()) if given else HiddenStates(hidden, own)
        teacher = HiddenStates(other.logits(taught), Head()) if given else HiddenStates(taught, other)
        stats = token_stats(student, {"teacher": teacher}, ids, comparisons, chunk=chunk)
        loss = stats.logprobs.sum() + sum(d.sum() for d in stats.divergences.values())
        (gradient,) = torch.autograd.grad(loss, logits if given else hidden)
        found.append((loss, stats.entropy, gradient @ own.weight if given else gradient))
    torch.testing.assert_close(found[0], found[1])
