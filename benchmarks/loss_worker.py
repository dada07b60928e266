"""onpolicy's loss from hidden states and its gradient, on command; protocol, spec and inputs are those of ``peers/loss_worker.py``.

``read`` computes more than the divergence on the way: log-probabilities and entropies of student and teacher.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import torch

from benchmarks.peers.channel import Channel, PeakMemory, serve
from onpolicy.losses.comparison import Comparison
from onpolicy.losses.divergences import jsd
from onpolicy.losses.supports import full, student_topk
from onpolicy.losses.targets import identity
from onpolicy.trainer.chunked_head import token_stats
from onpolicy.trainer.head import Head, HiddenStates


def work(channel: Channel) -> None:
    spec = channel.read()
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec.get("seed", 0))
    student, teacher = (torch.randn(spec["tokens"], spec["hidden"]) for _ in range(2))
    weight = torch.randn(spec["vocabulary"], spec["hidden"]).mul_(2.0 / math.sqrt(spec["hidden"]))
    for tensor in (student, weight):
        tensor.requires_grad_().grad = torch.empty_like(tensor)
    support = full if spec.get("support", "full") == "full" else partial(student_topk, k=20)
    comparison = Comparison("teacher", support, identity, partial(jsd, beta=spec.get("beta", 0.5)))
    head, ids = Head(weight), torch.zeros(spec["tokens"], dtype=torch.long)
    channel.answer(ready=True)
    while True:
        channel.wait_for_step()
        channel.answer(**step(student, teacher, head, ids, comparison))


def step(
    student: torch.Tensor, teacher: torch.Tensor, head: Head, ids: torch.Tensor, comparison: Comparison
) -> dict[str, Any]:
    for tensor in (student, head.weight):
        assert tensor.grad is not None
        tensor.grad.zero_()
    memory, start = PeakMemory(), time.perf_counter()
    stats = token_stats(HiddenStates(student, head), {"teacher": HiddenStates(teacher, head)}, ids, [comparison])
    loss = stats.divergences[comparison].mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return {
        "seconds": time.perf_counter() - start,
        "loss": loss.item(),
        "rss_mib": memory.start,
        "peak_mib": memory.above(),
    }


if __name__ == "__main__":
    serve(work)
