"""How much a context tells: an estimate of I(y; c | x) = H(y | x) - H(y | x, c) (arXiv 2603.24472, equation 2).

The paper does not estimate it; it orders its contexts by inclusion. With p the reference model and

    gain(y) = log p(y | x, c) - log p(y | x)

the mean over answers drawn from p(y | x, c) would be KL(p(. | x, c) || p(. | x)): the information if p(y | x) is the average of
p(y | x, c) over contexts, otherwise more. Computed here is the mean over *correct* answers, sampled as the config samples: what the
context tells about being correct. This is not a KL: it also contains log P(correct | c) / P(correct), it is negative where a context
misleads, and likelihoods are at temperature 1 over all tokens, whatever the sampler's temperature and nucleus. It is 0 for a context
that says nothing.

The mean gain of correct answers sampled *without* the context is the counterpart: how unlikely the informed model finds what the plain
model says. It is the sum of u_t over the student's correct rollouts, which distillation learns from, and mostly negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.rendering import PromptTooLong
from onpolicy.experiments.analysis.context_answers import ContextAnswers
from onpolicy.models import ModelHandle, load_weights
from onpolicy.trainer import prefix_sharing
from onpolicy.trainer.chunked_head import token_stats
from onpolicy.trainer.forward import completion_states
from onpolicy.trainer.micro_batches import Row, micro_batches
from onpolicy.trainer.trainer import NO_GRAPH_FACTOR
from onpolicy.types import CORRECT_THRESHOLD, Message, ScoredGroup
from onpolicy.utils.stats import Estimate, estimate_mean

BUDGET = {"cpu": 1024, "cuda": 8192}
"""Tokens that learn in one micro-batch, of which those without a gradient are a multiple."""


@dataclass(frozen=True)
class Gain:
    """What one context tells, in nats per answer, mean over problems."""

    with_context: Estimate
    """Over correct answers sampled with the context: what it tells."""
    without_context: Estimate | None
    """Over correct answers sampled without it; None where the problems that it helped with had none."""
    problems: int
    """Those with a correct answer under the context."""


def correct_answers(scored: Sequence[ScoredGroup]) -> dict[str, list[tuple[int, ...]]]:
    return {
        g.group.prompt.id: [
            r.completion_ids for r, s in zip(g.group.rollouts, g.scores, strict=True) if s >= CORRECT_THRESHOLD
        ]
        for g in scored
    }


def richness(
    resolved: ResolvedConfig,
    model: ModelHandle,
    without_context: Sequence[ScoredGroup],
    with_contexts: Mapping[str, ContextAnswers],
) -> dict[str, Gain]:
    """Context -> gain; loads the reference model. A context that is too long for the window is left out of the mean.

    Args:
        resolved: names the model
        model: its renderer and window
        without_context: each problem with its answers
        with_contexts: context -> its prompts and their answers
    """
    plain = {g.group.prompt.id: g.group.prompt.messages for g in without_context}
    without = correct_answers(without_context)
    rows: dict[tuple[str, str, str, bool], list[Row]] = {}
    for name, given in with_contexts.items():
        for kind, answers in (("with", correct_answers(given.scored)), ("without", without)):
            for problem, found in answers.items():
                if problem not in given.messages:
                    continue
                for informed, messages in ((True, given.messages[problem]), (False, plain[problem])):
                    ids = _prompt(model, messages)
                    if ids is not None:
                        rows[name, kind, problem, informed] = [(ids, answer) for answer in found]
    flat = list(dict.fromkeys(row for group in rows.values() for row in group))
    likelihood = dict(zip(flat, log_likelihoods(resolved, model.path, flat), strict=True))
    means = {key: fmean(likelihood[row] for row in group) for key, group in rows.items() if group}
    gains = {k[:3]: v - means[*k[:3], False] for k, v in means.items() if k[3] and (*k[:3], False) in means}
    return {
        name: gain for name in with_contexts if (gain := _gain({k[1:]: v for k, v in gains.items() if k[0] == name}))
    }


def _gain(found: Mapping[tuple[str, str], float]) -> Gain | None:
    """From (kind of answers, problem) -> nats."""
    with_it, without = ([v for (kind, _), v in found.items() if kind == chosen] for chosen in ("with", "without"))
    return Gain(estimate_mean(with_it), estimate_mean(without) if without else None, len(with_it)) if with_it else None


def _prompt(model: ModelHandle, messages: Sequence[Message]) -> tuple[int, ...] | None:
    """None where it is too long."""
    try:
        return model.teacher_renderer.prompt_ids(messages, limit=model.max_teacher_prompt_tokens)
    except PromptTooLong:
        return None


@torch.no_grad()
def log_likelihoods(resolved: ResolvedConfig, path: str, rows: Sequence[Row]) -> list[float]:
    """log p(completion | prompt) of each row under the model, in nats."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_weights(resolved, path).to(device).eval()
    packed = prefix_sharing.supports_prefix_sharing(model) and prefix_sharing.enable_prefix_sharing(model)
    budget = NO_GRAPH_FACTOR * (resolved.trainer.settings.micro_batch_tokens or BUDGET[device.type])
    found = [0.0] * len(rows)
    for numbers in micro_batches(rows, budget, packed=packed):
        chosen = [rows[i] for i in numbers]
        states = completion_states(model, chosen, layout="packed" if packed else "padded")
        ids = torch.tensor([i for _, completion in chosen for i in completion], device=device)
        flat = token_stats(states, {}, ids).logprobs.double()
        for i, logprobs in zip(numbers, flat.split([len(c) for _, c in chosen]), strict=True):
            found[i] = float(logprobs.sum())
    return found
