"""How much a context tells: an estimate of I(y; c | x) = H(y | x) - H(y | x, c) (arXiv 2603.24472, equation 2).

The paper never estimates it and orders its contexts by what is a part of what. With p the reference model and

    gain(y) = log p(y | x, c) - log p(y | x)

its mean over answers drawn from p(y | x, c) would be KL(p(. | x, c) || p(. | x)): the information, if p(y | x) is what p(y | x, c) is on
average over contexts, else more. What is taken here is its mean over *right* answers, sampled as the config samples: what the context
tells about being right. So it is no KL: it also holds log P(right | c) / P(right), it is below 0 where a context misleads, and
likelihoods are those at temperature 1 over all tokens, whatever the sampler's temperature and nucleus. It is 0 for a context that says
nothing.

The mean gain of right answers sampled *without* the context is the other side: how far the informed model is from saying what the plain
one says. It is the sum of u_t over the student's right rollouts, which distillation learns from, and mostly below 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from onpolicy.config.resolve import ResolvedConfig
from onpolicy.data.rendering import PromptTooLong
from onpolicy.experiments.analysis.guided import Guided
from onpolicy.models import ModelHandle, load_weights
from onpolicy.trainer import prefix_sharing
from onpolicy.trainer.chunked_head import read
from onpolicy.trainer.forward import completion_states
from onpolicy.trainer.micro_batches import Row, micro_batches
from onpolicy.trainer.trainer import WITHOUT_GRAPH
from onpolicy.types import CORRECT_THRESHOLD, Message, ScoredGroup
from onpolicy.utils.stats import Measured, measured

BUDGET = {"cpu": 1024, "cuda": 8192}
"""Tokens that learn in one micro-batch, of which those without a gradient are a multiple."""


@dataclass(frozen=True)
class Gain:
    """Of one context; nats an answer, mean over problems."""

    guided: Measured
    """Of right answers sampled with the context: what it tells."""
    unguided: Measured | None
    """Of right answers sampled without it; None where the problems that it helped with had none."""
    problems: int
    """Those with a right answer under the context."""


Answers = Mapping[str, Sequence[tuple[int, ...]]]
"""Problem -> its right answers."""


def right_answers(judged: Sequence[ScoredGroup]) -> dict[str, list[tuple[int, ...]]]:
    return {
        g.group.prompt.id: [
            r.completion_ids for r, s in zip(g.group.rollouts, g.scores, strict=True) if s >= CORRECT_THRESHOLD
        ]
        for g in judged
    }


def richness(
    resolved: ResolvedConfig, model: ModelHandle, unguided: Sequence[ScoredGroup], guided: Mapping[str, Guided]
) -> dict[str, Gain]:
    """Context -> gain; loads the reference model. A context that is too long for the window is left out of the mean.

    Args:
        checked: names the model
        model: its renderer and window
        unguided: each problem with its answers
        guided: context -> what was shown, and the answers
    """
    plain = {g.group.prompt.id: g.group.prompt.messages for g in unguided}
    without = right_answers(unguided)
    rows: dict[tuple[str, str, str, bool], list[Row]] = {}
    for name, given in guided.items():
        for kind, answers in (("guided", right_answers(given.judged)), ("unguided", without)):
            for problem, found in answers.items():
                if problem not in given.shown:
                    continue
                for informed, messages in ((True, given.shown[problem]), (False, plain[problem])):
                    ids = _prompt(model, messages)
                    if ids is not None:
                        rows[name, kind, problem, informed] = [(ids, answer) for answer in found]
    flat = list(dict.fromkeys(row for group in rows.values() for row in group))
    likelihood = dict(zip(flat, log_likelihoods(resolved, model.path, flat), strict=True))
    means = {key: fmean(likelihood[row] for row in group) for key, group in rows.items() if group}
    gains = {k[:3]: v - means[*k[:3], False] for k, v in means.items() if k[3] and (*k[:3], False) in means}
    return {name: gain for name in guided if (gain := _gain({k[1:]: v for k, v in gains.items() if k[0] == name}))}


def _gain(found: Mapping[tuple[str, str], float]) -> Gain | None:
    """Of (kind of answers, problem) -> nats."""
    guided, unguided = ([v for (kind, _), v in found.items() if kind == wanted] for wanted in ("guided", "unguided"))
    return Gain(measured(guided), measured(unguided) if unguided else None, len(guided)) if guided else None


def _prompt(model: ModelHandle, messages: Sequence[Message]) -> tuple[int, ...] | None:
    """None where it is too long."""
    try:
        return model.renderer.prompt_ids(messages, limit=model.max_teacher_prompt_tokens)
    except PromptTooLong:
        return None


@torch.no_grad()
def log_likelihoods(resolved: ResolvedConfig, path: str, rows: Sequence[Row]) -> list[float]:
    """log p(completion | prompt) of each row under the model, in nats."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_weights(resolved, path).to(device).eval()
    packed = prefix_sharing.supports_prefix_sharing(model) and prefix_sharing.prepare(model)
    budget = WITHOUT_GRAPH * (resolved.trainer.settings.micro_batch_tokens or BUDGET[device.type])
    found = [0.0] * len(rows)
    for numbers in micro_batches(rows, budget, packed=packed):
        chosen = [rows[i] for i in numbers]
        states = completion_states(model, chosen, layout="packed" if packed else "padded")
        ids = torch.tensor([i for _, completion in chosen for i in completion], device=device)
        flat = read(states, {}, ids).logprobs.double()
        for i, logprobs in zip(numbers, flat.split([len(c) for _, c in chosen]), strict=True):
            found[i] = float(logprobs.sum())
    return found
