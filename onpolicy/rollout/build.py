"""From a resolved config to what samples: the generator of this process, the order of prompts, the rollouts of the steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from onpolicy.config.registry import Plugin, options_of
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.cursor import PromptCursor
from onpolicy.data.rendering import Renderer
from onpolicy.models import ModelHandle
from onpolicy.protocols import AdapterShape, Environment, Generator, Sampler
from onpolicy.rollout.dataset_completions import DatasetCompletions
from onpolicy.rollout.environments import EnvironmentGenerator, Rules
from onpolicy.rollout.prefetch import RolloutPrefetcher
from onpolicy.rollout.sampler import RolloutSampler
from onpolicy.types import Prompt, RolloutGroup
from onpolicy.utils.seeds import step_seed
from onpolicy.utils.timer import PhaseTimer


def local_generator(
    resolved: ResolvedConfig,
    model: ModelHandle,
    *,
    beside_trainer: bool = False,
    adapter: AdapterShape | None = None,
    transfer_backend: str | None = None,
) -> Generator:
    """The configured generator in this process.

    A plug-in with an option ``source`` is told the revision of a hub's model and whether its code may run; one with an option
    ``beside_trainer``, whether it shares its device with a trainer; one with an option ``adapter``, the shape of the adapters that are all
    that it will be given of the student; one with an option ``transfer_backend``, how a trainer sends it weights by itself.
    """
    section, settings = resolved.generator, resolved.config.model
    source = {"trust_remote_code": settings.trust_remote_code, "revision": settings.revision}
    offered = {
        "source": source,
        "beside_trainer": beside_trainer,
        "adapter": adapter,
        "transfer_backend": transfer_backend,
    }
    options = options_of(section.plugin.function)
    generator: Generator = section.plugin.bind()(
        renderer=model.renderer,
        model=model.path,
        sampling=section.settings,
        max_model_len=model.max_model_len,
        **{name: value for name, value in offered.items() if name in options},
    )
    return generator


def with_environment(
    resolved: ResolvedConfig, model: ModelHandle, generator: Generator, note: Callable[[str], None]
) -> Generator:
    """The generator, with the configured environment for the prompts that it takes part in; as it is where none is configured.

    Args:
        resolved: the config
        model: the student
        generator: samples
        note: told what went wrong in some rollouts
    """
    section = resolved.environment
    if section is None:
        return generator
    rules = Rules(model.renderer, model.max_model_len, section.settings.timeout)
    return EnvironmentGenerator(generator, environment_maker(section.plugin, model.renderer), rules, note)


def environment_maker(plugin: Plugin, renderer: Renderer) -> Callable[[], Environment]:
    """Makes an environment; a plug-in with an option ``renderer`` is given that of the student."""
    options = {"renderer": renderer} if "renderer" in options_of(plugin.function) else {}
    return functools.partial(plugin.bind(), **options)


def prompt_cursor(resolved: ResolvedConfig, prompts: Sequence[Prompt]) -> PromptCursor:
    """The order in which a run goes through its prompts."""
    settings = resolved.data.settings
    return PromptCursor(
        prompts, batch_size=settings.prompts_per_step, seed=resolved.config.seed, shuffle=settings.shuffle
    )


def completion_source(resolved: ResolvedConfig, model: ModelHandle, generator: Generator) -> Sampler:
    """Where the completions of a step come from: the generator, or a column of the dataset."""
    column = resolved.data.settings.completions_column
    if column is None:
        return generator
    known = range(model.vocabulary.stop - len(model.banned_token_ids))
    return DatasetCompletions(generator, model.renderer, column, resolved.generator.settings.max_tokens, known)


def build_prefetcher(
    resolved: ResolvedConfig,
    cursor: PromptCursor,
    source: Sampler,
    timer: PhaseTimer,
    *,
    score: Callable[..., Any],
    begin: Callable[[RolloutGroup], Any],
) -> RolloutPrefetcher:
    """The scored rollouts of each step; with ``generator.max_staleness`` those of the next steps are sampled meanwhile.

    Args:
        resolved: the config
        cursor: the order of its prompts
        source: samples them
        timer: of the training
        score: rollout groups, and by place what ``begin`` returned -> scored groups
        begin: called with each group as soon as it is whole
    """
    rollouts = RolloutSampler(
        source,
        cursor,
        score,
        timer,
        functools.partial(step_seed, resolved.config.seed),
        batches=resolved.data.settings.dynamic_sampling,
        begin=begin,
    )
    return RolloutPrefetcher(
        rollouts, timer, staleness=resolved.generator.settings.max_staleness, steps=resolved.config.steps
    )
