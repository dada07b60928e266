"""Reading numbers off the vocabulary in chunks.

1. equal to the plain computation on whole logits, value and gradient, whatever the chunk; 2. no gradient reaches the
teacher; 3. nothing of the size tokens x vocabulary is kept for the backward pass.
"""

from __future__ import annotations

import pytest
import torch

from onpolicy.distill.compare import Comparison
from onpolicy.distill.divergence import forward_kl, reverse_kl
from onpolicy.distill.support import full, student_topk
from onpolicy.distill.target import identity
from onpolicy.distill.vocabulary import States, read

FULL = Comparison("teacher", full, identity, forward_kl)
TOP = Comparison("teacher", student_topk, identity, reverse_kl)


def parts(tokens: int = 11, width: int = 8, vocabulary: int = 150):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    head, other = torch.nn.Linear(width, vocabulary), torch.nn.Linear(width, vocabulary)
    hidden = torch.randn(tokens, width, requires_grad=True)
    taught = torch.randn(tokens, width, requires_grad=True)
    return hidden, head, taught, other, torch.randint(0, vocabulary, (tokens,))


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_equals_the_plain_computation(chunk: int) -> None:
    hidden, head, taught, other, ids = parts()
    readings = read(States(hidden, head), {"teacher": States(taught, other)}, ids, [FULL, TOP], chunk=chunk)
    s, t = head(hidden).log_softmax(-1), other(taught).log_softmax(-1).detach()
    torch.testing.assert_close(readings.logprobs, s.gather(-1, ids[:, None])[:, 0])
    torch.testing.assert_close(readings.entropy, -(s.exp() * s).sum(-1).detach())
    torch.testing.assert_close(readings.teacher_logprobs["teacher"], t.gather(-1, ids[:, None])[:, 0])
    torch.testing.assert_close(readings.teacher_entropy["teacher"], -(t.exp() * t).sum(-1))
    torch.testing.assert_close(readings.divergences[FULL], forward_kl(s, t))
    loss = (readings.divergences[FULL] + 2 * readings.divergences[TOP] - readings.logprobs).sum()
    plain = (forward_kl(s, t) + 2 * reverse_kl(*student_topk(s, t)) - s.gather(-1, ids[:, None])[:, 0]).sum()
    mine = torch.autograd.grad(loss, [hidden, *head.parameters()])
    theirs = torch.autograd.grad(plain, [hidden, *head.parameters()])
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_no_gradient_reaches_the_teacher() -> None:
    hidden, head, taught, other, ids = parts()
    readings = read(States(hidden, head), {"teacher": States(taught, other)}, ids, [FULL])
    readings.divergences[FULL].sum().backward()
    assert taught.grad is None and all(p.grad is None for p in other.parameters())
    assert hidden.grad is not None and not readings.entropy.requires_grad


def test_nothing_of_vocabulary_size_is_kept() -> None:
    hidden, head, taught, other, ids = parts(tokens=64, vocabulary=1000)
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        read(States(hidden, head), {"teacher": States(taught, other)}, ids, [FULL], chunk=8)
    assert max(kept, default=0) < 8 * 1000 + 1, "a chunk's log-probabilities survive the forward pass"
    assert sum(kept) < 64 * 1000


def test_no_tokens_give_empty_readings() -> None:
    hidden, head, taught, other, ids = parts()
    readings = read(States(hidden[:0], head), {"teacher": States(taught[:0], other)}, ids[:0], [FULL])
    assert readings.logprobs.shape == readings.divergences[FULL].shape == (0,)
