"""How much a context tells: an estimate of I(y*; c | x) = H(y* | x) - H(y* | x, c) (arXiv 2603.24472, equation 2).

The paper never estimates it and orders its contexts by what is a part of what. Here, of one right answer y* to each problem,

    gain = log p(y* | x, c) - log p(y* | x),    p the start model,

whose mean over problems is the estimate where y* and c belong together, as where c was made of y*. The same of *other* right
answers, which no context shows, tells what is left of it where nothing can be copied; their expectation is not the information, and
may be negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from onpolicy import forest
from onpolicy.backends.local import WITHOUT_GRAPH
from onpolicy.distill.vocabulary import read
from onpolicy.forward import completion_states
from onpolicy.intervals import Measured, measured
from onpolicy.loading import Model, load_weights
from onpolicy.packing import Row, micro_batches
from onpolicy.plan import Plan
from onpolicy.rendering import PromptTooLong
from onpolicy.routing import RIGHT
from onpolicy.scoring import JudgedGroup
from onpolicy.types import Message

BUDGET = {"cpu": 1024, "cuda": 8192}
"""Tokens that learn in one micro-batch, of which those without a gradient are a multiple."""


@dataclass(frozen=True)
class Gain:
    """Of one context, over problems; nats an answer."""

    first: Measured
    """Of the first right answer."""
    others: Measured | None
    """Of the mean other right answer; None where no problem has two."""
    problems: int
    """Those with a right answer."""


def richness(
    checked: Plan,
    model: Model,
    judged: Sequence[JudgedGroup],
    shown: Mapping[str, Mapping[str, tuple[Message, ...]]],
) -> dict[str, Gain]:
    """Context -> gain; loads the start model. A context that is too long for the window is left out of the mean.

    Args:
        checked: names the model
        model: its renderer and window
        judged: the unguided answers
        shown: context -> problem -> what the model reads there
    """
    answers = {
        g.group.prompt.id: [r.completion_ids for r, s in zip(g.group.rollouts, g.scores, strict=True) if s >= RIGHT]
        for g in judged
    }
    rows: dict[tuple[str | None, str, int], Row] = {}
    for g in judged:
        prompt = g.group.prompt
        read_: dict[str | None, tuple[Message, ...]] = {None: prompt.messages}
        read_ |= {name: problems[prompt.id] for name, problems in shown.items() if prompt.id in problems}
        for name, messages in read_.items():
            try:
                ids = model.renderer.prompt_ids(messages, limit=model.max_teacher_prompt_tokens)
            except PromptTooLong:
                continue
            rows |= {(name, prompt.id, i): (ids, answer) for i, answer in enumerate(answers[prompt.id])}
    likelihood = dict(zip(rows, log_likelihoods(checked, model.path, list(rows.values())), strict=True))
    gains = {key: value - likelihood[None, *key[1:]] for key, value in likelihood.items() if key[0] is not None}
    return {name: gain for name in shown if (gain := _gain({k[1:]: v for k, v in gains.items() if k[0] == name}))}


def _gain(found: Mapping[tuple[str, int], float]) -> Gain | None:
    """Of (problem, number of the right answer) -> nats."""
    first = [value for (_, i), value in found.items() if i == 0]
    others: dict[str, list[float]] = {}
    for (problem, i), value in found.items():
        if i:
            others.setdefault(problem, []).append(value)
    if not first:
        return None
    return Gain(measured(first), measured([fmean(v) for v in others.values()]) if others else None, len(first))


@torch.no_grad()
def log_likelihoods(checked: Plan, path: str, rows: Sequence[Row]) -> list[float]:
    """log p(completion | prompt) of each row under the model, in nats."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_weights(checked, path).to(device).eval()
    packed = forest.can_grow(model) and forest.prepare(model)
    budget = WITHOUT_GRAPH * (checked.trainer.frame.micro_batch_tokens or BUDGET[device.type])
    found = [0.0] * len(rows)
    for numbers in micro_batches(rows, budget, packed=packed):
        chosen = [rows[i] for i in numbers]
        states = completion_states(model, chosen, layout="packed" if packed else "padded")
        ids = torch.tensor([i for _, completion in chosen for i in completion], device=device)
        flat = read(states, {}, ids).logprobs.double()
        for i, logprobs in zip(numbers, flat.split([len(c) for _, c in chosen]), strict=True):
            found[i] = float(logprobs.sum())
    return found
