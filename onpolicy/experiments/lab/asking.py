"""Asking a reasoner, with or without a hint, outside of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from onpolicy.annotation.contexts.template import replace_question
from onpolicy.data.rendering import Renderer
from onpolicy.experiments.lab.problem import HINT
from onpolicy.models import load_tokenizer
from onpolicy.rollout.hf_generator import HFGenerator
from onpolicy.types import Prompt, Sampling


def sampler_of(model: str) -> HFGenerator:
    """Samples from a reasoner."""
    return HFGenerator(
        renderer=Renderer(load_tokenizer(model)),
        model=model,
        sampling=Sampling(),
        max_model_len=512,
        batch_size=256,
    )


def hinted(prompt: Prompt, hint: str) -> Prompt:
    """The problem with a hint behind its question."""
    return replace(prompt, messages=replace_question(prompt, f"{{question}} {HINT} {{hint}}", hint=hint))


def probability_of_last(sampler: HFGenerator, asked: Sequence[int], said: str) -> float:
    """Probability of the last word of what is said after the ids of a prompt, given the words before it."""
    ids = [*asked, *sampler.renderer.tokenizer.encode(said, add_special_tokens=False)]
    return math.exp(sampler.logprobs(ids)[-1])
