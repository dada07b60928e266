"""What decides about rollouts on verl: the embedded trainer's annotator, without a model to ask."""

from __future__ import annotations

from typing import Any

from onpolicy.annotation.annotate import Annotator
from onpolicy.annotation.queries import ContextQueries
from onpolicy.config.resolve import ResolvedConfig
from onpolicy.data.rendering import Renderer
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.trainer.build import term_names, token_classes


def build_annotator(resolved: ResolvedConfig, renderer: Renderer, window: int | None) -> Annotator:
    """``settings.method`` has refused every context that asks.

    Args:
        window: tokens the model has positions for; None: its config does not say
    """
    rendering, epistemic = resolved.config.rendering, resolved.config.epistemic
    longest = rendering.max_teacher_prompt_tokens
    nobody: Any = None
    return Annotator(
        renderer=renderer,
        contexts={context: plugin.bind() for context, plugin in resolved.contexts.items()},
        credit=resolved.credit.bind(),
        queries=ContextQueries(
            generator=nobody, judge=nobody, prompts=(), seed_of=int, renderer=renderer, limit=0, drop_too_long=False
        ),
        max_teacher_prompt_tokens=longest
        if window is None
        else min(longest, window - resolved.generator.settings.max_tokens),
        drop_too_long=rendering.too_long == "drop",
        routes={name: term.settings.route for name, term in zip(term_names(resolved), resolved.objective, strict=True)},
        spans={name: plugin.bind() for name, plugin in resolved.spans.items()},
        classes=token_classes(resolved),
        telemetry=TextTelemetry(epistemic.lexicons, epistemic.lexicon, renderer.split_thinking)
        if epistemic.lexicons
        else None,
    )
