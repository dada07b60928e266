"""What a generator is asked for by one prompt."""

from __future__ import annotations

from onpolicy.data.rendering import Renderer
from onpolicy.types import Prompt, Sampling


def max_tokens(prompt: Prompt, sampling: Sampling) -> int:
    """Longest completion."""
    return sampling.max_tokens if prompt.max_tokens is None else min(prompt.max_tokens, sampling.max_tokens)


def continued_prompt(renderer: Renderer, prompt: Prompt, limit: int) -> tuple[int, ...]:
    """[P] the messages, and behind them the first tokens of the completion where these are given.

    Raises:
        PromptTooLong: together they are over ``limit``.
    """
    given = prompt.completion_prefix_ids
    return (*renderer.prompt_ids(prompt.messages, limit=limit - len(given)), *given)
