"""A distillation loss from hidden states and its gradient, as the peers compute it, on command (see channel.py).

Run by the peers' python (see environment.py): imports nothing from onpolicy. The first command sets up:

    {"do": "setup", "loss": "plain" | "trl_chunked" | "liger", "tokens": N, "hidden": H, "vocabulary": V, "threads": n}

and may hold `support` ("full", or "top20": the student's with the rest in one bucket), `beta` (.5), `seed`, and Liger's `compiled`
(false) and `chunk` (1024). Then each `step` is answered with the mean over tokens of the Jensen-Shannon divergence between
softmax(student @ head.T) and softmax(teacher @ head.T), after its gradient for the student's hidden states [N, H] and the head [V, H]:

    seconds, loss (nats per token), gradients (sums of their absolute values), rss_mib (before), peak_mib (what the step needed more)

The inputs and the buffers that gradients are added to are there before the step, as they are from the second micro-batch on, and are
not in the peak; a gradient's own temporary, which a loss makes before it is added, is.

What is measured: `plain` the textbook formula. `trl_chunked` with full support the loss of TRL's DistillationTrainer (tiles of 4096
tokens x 32768 entries, recomputed for the gradient); with top20 that of its AsyncDistillationTrainer (chunks of 256 tokens under
checkpointing), to which the teacher's log-probs come ready made, so that they cost nothing here. `liger` its chunked fused linear JSD.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from channel import Channel, PeakMemory, serve
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
from torch import Tensor
from trl.experimental.async_distillation.async_distillation_trainer import _chunked_jsd_loss
from trl.trainer.distillation_trainer import _chunked_divergence_loss

Spec = dict[str, Any]
Loss = Callable[[], Tensor]
STD = 2.0  # of the logits
K = 20


@dataclass
class Inputs:
    student: Tensor  # [N, H], with gradient
    teacher: Tensor  # [N, H]
    head: Tensor  # [V, H], with gradient, but not from the teacher

    @staticmethod
    def random(tokens: int, hidden: int, vocabulary: int, seed: int) -> Inputs:
        torch.manual_seed(seed)
        student, teacher = (torch.randn(tokens, hidden) for _ in range(2))
        head = torch.randn(vocabulary, hidden).mul_(STD / math.sqrt(hidden))
        for weight in (student, head):
            weight.requires_grad_().grad = torch.empty_like(weight)
        return Inputs(student, teacher, head)

    def zero_grad(self) -> None:
        for weight in (self.student, self.head):
            assert weight.grad is not None
            weight.grad.zero_()  # which also makes the buffer resident


def plain(inputs: Inputs, spec: Spec) -> Loss:
    """Both models' logits in full."""
    beta, top = spec.get("beta", 0.5), _top20(spec)

    def loss() -> Tensor:
        student = F.log_softmax(inputs.student @ inputs.head.t(), dim=-1)
        with torch.no_grad():
            teacher = F.log_softmax(inputs.teacher @ inputs.head.t(), dim=-1)
        if top:
            student, ids = student.topk(K, dim=-1)
            student, teacher = _with_rest(student), _with_rest(teacher.gather(-1, ids))
        mixture = torch.logaddexp(student + math.log(1 - beta), teacher + math.log(beta))
        of_teacher = F.kl_div(mixture, teacher, reduction="none", log_target=True)
        of_student = F.kl_div(mixture, student, reduction="none", log_target=True)
        return (beta * of_teacher + (1 - beta) * of_student).sum(-1).mean()

    return loss


def trl_chunked(inputs: Inputs, spec: Spec) -> Loss:
    """TRL's own, called as its trainers call it."""
    beta, tokens = spec.get("beta", 0.5), len(inputs.student)
    if not _top20(spec):
        mask = torch.ones(1, tokens)
        return lambda: _chunked_divergence_loss(
            inputs.student[None], inputs.teacher[None], inputs.head, inputs.head.detach(), mask, beta
        )[0]
    ids, of_teacher = _support(inputs)
    present = torch.ones_like(ids, dtype=torch.bool)
    return lambda: (
        _chunked_jsd_loss(
            inputs.student, inputs.head, None, 1.0, None, ids, of_teacher, present, beta, 1.0, True, None, 1, 256
        )[0]
        / tokens
    )


def liger(inputs: Inputs, spec: Spec) -> Loss:
    """Liger's own, without its cross-entropy. Gradients are made in the forward pass."""
    if _top20(spec):
        raise ValueError("Liger's JSD takes the full vocabulary")
    divergence = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=spec.get("beta", 0.5),
        compiled=spec.get("compiled", False), chunk_size=spec.get("chunk", 1024),
    )  # fmt: skip
    labels = torch.zeros(len(inputs.student), dtype=torch.long)
    return lambda: divergence(inputs.student, inputs.head, inputs.teacher, inputs.head.detach(), labels)


LOSSES: dict[str, Callable[[Inputs, Spec], Loss]] = {"plain": plain, "trl_chunked": trl_chunked, "liger": liger}


def _top20(spec: Spec) -> bool:
    return spec.get("support", "full") == "top20"


def _with_rest(logps: Tensor) -> Tensor:
    """And the rest of the mass as one more entry."""
    mass = logps.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([logps, torch.log(-torch.expm1(mass))], dim=-1)


@torch.no_grad()
def _support(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The student's 20 tokens at each position and the teacher's log-probs of them."""
    rows = [
        ((student @ inputs.head.t()).topk(K).indices, F.log_softmax(teacher @ inputs.head.t(), dim=-1))
        for student, teacher in zip(inputs.student.split(64), inputs.teacher.split(64), strict=True)
    ]
    return torch.cat([ids for ids, _ in rows]), torch.cat([logps.gather(-1, ids) for ids, logps in rows])


def step(inputs: Inputs, loss: Loss) -> dict[str, Any]:
    inputs.zero_grad()
    memory, start = PeakMemory(), time.perf_counter()
    value = loss()
    value.backward()
    seconds = time.perf_counter() - start
    answer = {"seconds": seconds, "peak_mib": memory.above(), "rss_mib": memory.start, "loss": value.item()}
    return answer | {"gradients": [weight.grad.norm(1).item() for weight in (inputs.student, inputs.head)]}


def work(channel: Channel) -> None:
    spec = channel.read()
    torch.set_num_threads(spec["threads"])
    inputs = Inputs.random(spec["tokens"], spec["hidden"], spec["vocabulary"], spec.get("seed", 0))
    loss = LOSSES[spec["loss"]](inputs, spec)
    channel.answer(ready=True)
    while True:
        channel.wait_for_step()
        channel.answer(**step(inputs, loss))


if __name__ == "__main__":
    serve(work)
