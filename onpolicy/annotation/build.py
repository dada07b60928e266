"""From a resolved config to what scores and annotates rollouts: rewards, contexts, spans, telemetry. Loads no torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from onpolicy.annotation.annotate import Annotator
from onpolicy.annotation.group_work import GroupWork, can_leave
from onpolicy.annotation.privileged import Logprobs, PrivilegedRollouts
from onpolicy.annotation.queries import ContextQueries
from onpolicy.annotation.reading import TextReader
from onpolicy.annotation.scoring import Reward, Scorer
from onpolicy.annotation.spans import markers, pattern
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schedules import Bound
from onpolicy.data.rendering import Renderer
from onpolicy.epistemic.baseline import Baseline
from onpolicy.epistemic.ids import CLASSES, class_names, span_name
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.models import ModelHandle, teacher_renderer
from onpolicy.protocols import Generator
from onpolicy.types import Prompt
from onpolicy.utils.seeds import step_seed
from onpolicy.utils.thinking import split_thinking


def build_rewards(resolved: ResolvedConfig) -> list[Reward]:
    """The rewards; unless ``bonus`` is set, all but the one that decides correctness are bonuses."""
    return [
        Reward(
            name=s.plugin.name,
            weight=s.settings.weight,
            function=s.plugin.bind(),
            bonus=s.plugin.name != resolved.correctness_name if s.settings.bonus is None else s.settings.bonus,
            when=s.settings.when,
        )
        for s in resolved.rewards
    ]


def local_scorer(resolved: ResolvedConfig, renderer: Renderer) -> Scorer:
    """The scorer that computes the rewards in this process."""
    return Scorer(build_rewards(resolved), renderer.final_answer_text, resolved.correctness_name, resolved.config.steps)


def build_queries(
    resolved: ResolvedConfig, model: ModelHandle, prompts: Sequence[Prompt], generator: Generator, scorer: Scorer
) -> ContextQueries:
    """Answers what contexts and span finders ask the model while a step is annotated."""
    return ContextQueries(
        generator=generator,
        scorer=scorer,
        prompts=prompts,
        seed_of=functools.partial(step_seed, resolved.config.seed, "inquiry"),
        renderer=model.renderer,
        limit=model.max_model_len - resolved.generator.settings.max_tokens,
        drop_too_long=resolved.config.rendering.overlong == "drop",
    )


def text_telemetry(
    resolved: ResolvedConfig, renderer: Renderer, baseline: Baseline | None = None
) -> TextTelemetry | None:
    """Telemetry of the text of rollouts; None where no lexicon is to be counted."""
    settings = resolved.config.epistemic
    if not settings.lexicons:
        return None
    split = functools.partial(split_thinking, opened=renderer.opens_thinking, tags=renderer.thinking_tags)
    return TextTelemetry(settings.lexicons, settings.lexicon, split, baseline)


def group_work(resolved: ResolvedConfig, renderer: Renderer, rewards: Sequence[Reward]) -> GroupWork | None:
    """What processes without a model can do with a group: those of the rewards that can leave this process, and its texts where the
    tokenizer can; None where that is nothing."""
    leaving = {r.name: r.function for r in rewards if can_leave(r.function)}
    decoder, classes, telemetry = renderer.fast_decoder(), token_classes(resolved), text_telemetry(resolved, renderer)
    reader = TextReader(classes, telemetry, decoder) if decoder and (classes or telemetry) else None
    return GroupWork(leaving, reader, resolved.config.steps) if leaving or reader else None


def build_annotator(
    resolved: ResolvedConfig,
    renderer: Renderer,
    *,
    max_teacher_prompt_tokens: int,
    queries: ContextQueries | None,
    baseline: Baseline | None = None,
    logprobs: Logprobs | None = None,
) -> Annotator:
    """Builds the annotator of a run.

    Args:
        resolved: the config
        renderer: the student's
        max_teacher_prompt_tokens: tokens of the longest prompt that a teacher may read
        queries: answers contexts that ask the model; None where the config has been refused if one does
        baseline: the reference model's use of markers, where it has been measured
        logprobs: the trainer's log-probabilities of examples, for privileged rollouts
    """
    privileged = None
    if resolved.privileged_rollouts is not None and queries is not None and logprobs is not None:
        given = resolved.privileged_rollouts
        privileged = PrivilegedRollouts(given.plugin.bind(), given.settings.samples, queries, logprobs)
    return Annotator(
        renderer=renderer,
        teacher_renderer=teacher_renderer(resolved, renderer),
        contexts={context: plugin.bind() for context, plugin in resolved.contexts.items()},
        credit=resolved.credit.bind(),
        queries=queries or _no_queries(renderer),
        max_teacher_prompt_tokens=max_teacher_prompt_tokens,
        drop_too_long=resolved.config.rendering.overlong == "drop",
        staleness=resolved.generator.settings.max_staleness,
        routes={name: term.settings.route for name, term in zip(resolved.term_names, resolved.objective, strict=True)},
        spans={name: plugin.bind() for name, plugin in resolved.spans.items()},
        classes=token_classes(resolved),
        telemetry=text_telemetry(resolved, renderer, baseline),
        privileged=privileged,
    )


def token_classes(resolved: ResolvedConfig) -> dict[str, Any]:
    """Name of the span -> the function that finds the tokens of this class."""
    return {
        span_name(name): Bound(pattern, regex=CLASSES[name]) if name in CLASSES else Bound(markers, lexicon=name)
        for name in class_names(resolved)
    }


def _no_queries(renderer: Renderer) -> ContextQueries:
    nobody: Any = None
    return ContextQueries(
        generator=nobody, scorer=nobody, prompts=(), seed_of=int, renderer=renderer, limit=0, drop_too_long=False
    )
