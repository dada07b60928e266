"""The prompts of a run: read from their source, chosen as configured, and checked against ``rendering.max_prompt_tokens``."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.config.resolved import ResolvedConfig, Section
from onpolicy.data import DataError
from onpolicy.data.rendering import PromptTooLong, Renderer
from onpolicy.data.subset import coverage
from onpolicy.types import Prompt


def section_prompts(section: Section, key: str) -> list[Prompt]:
    """Reads the prompts of a data section.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    prompts: list[Prompt] = section.plugin.bind()()
    if not prompts:
        raise DataError(f"{key}: {section.plugin.name!r} gave no problems")
    return prompts


def training_prompts(resolved: ResolvedConfig, renderer: Renderer) -> list[Prompt]:
    """The prompts to train on: the configured subset; those that are too long raise an error or are dropped."""
    chosen = resolved.data.settings.coverage
    prompts = coverage(
        section_prompts(resolved.data, "data"), problems=chosen.problems, repeats=chosen.repeats, seed=chosen.seed
    )
    return drop_overlong(prompts, renderer, drop=resolved.config.rendering.overlong == "drop")


def drop_overlong(prompts: Sequence[Prompt], renderer: Renderer, *, drop: bool) -> list[Prompt]:
    """The prompts within ``rendering.max_prompt_tokens``; renders every prompt once, so that problems show before the first step.

    Raises:
        PromptTooLong: a prompt is too long and ``drop`` is false.
        DataError: no prompt is left.
    """
    kept = []
    for prompt in prompts:
        try:
            renderer.prompt_ids(prompt.messages)
        except PromptTooLong as error:
            if not drop:
                raise PromptTooLong(
                    error.num_tokens, error.limit, f"prompt {prompt.id!r} (rendering.max_prompt_tokens)"
                ) from error
            continue
        kept.append(prompt)
    if not kept:
        raise DataError("data: every prompt is longer than rendering.max_prompt_tokens")
    return kept
