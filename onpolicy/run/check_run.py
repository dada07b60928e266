"""What would stop a run before it loads anything: said by ``onpolicy check`` and ``onpolicy train`` alike, all of it at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from onpolicy.config.load import ConfigSource
from onpolicy.config.problems import Problems, collected
from onpolicy.config.registry import Plugin
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.shipped import config_argument
from onpolicy.contracts import check_config, gives_single_rollouts_nothing, learns_from_advantages_alone
from onpolicy.rewards.base import RewardError
from onpolicy.run.devices import for_ranks
from onpolicy.run.first_rows import lacking_columns
from onpolicy.utils.errors import ConfigError, UserError


def check_run(source: ConfigSource, overrides: Sequence[str] = ()) -> ResolvedConfig:
    """``check_config``, and whether a run with this config could start and would learn.

    Raises:
        ConfigError: with every problem of the config.
    """
    with collected(None) as problems:
        resolved = check_config(source, overrides, problems)
        problems.add(*_not_ready(resolved, problems))
        problems.add(*_learns_nothing(resolved, problems))
        problems.add(*_split_engines(resolved, problems))
        problems.add(*_not_on_ranks(source, overrides, resolved, problems))
        problems.add(*lacking_columns(resolved, problems))
        return resolved


def training_command(source: Path, overrides: Sequence[str]) -> list[str]:
    """The arguments that train with this config; where that would not start, as with data that are elsewhere, those that list others."""
    try:
        check_run(source, overrides)
    except UserError:
        return ["list", "configs"]
    return ["train", config_argument(source), *overrides]


def _not_ready(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    sections = (resolved.data, *resolved.eval_sets.values(), *resolved.rewards)
    here = (
        [] if resolved.config.distributed.num_generators else [resolved.generator.plugin]
    )  # else where the actors are
    for plugin in (*(section.plugin for section in sections), *resolved.trackers, *resolved.graders, *here):
        if problems.sound(plugin.key):
            yield from not_ready(plugin)


def not_ready(plugin: Plugin) -> Iterator[str]:
    """What a plug-in lacks, as it says itself (``utils.ready``)."""
    check = getattr(plugin.function, "ready", None)
    if check is None:
        return
    try:
        check(**plugin.options)
    except (UserError, RewardError) as error:
        yield f"{plugin.key}: {error}"


def _not_on_ranks(
    source: ConfigSource, overrides: Sequence[str], resolved: ResolvedConfig, problems: Problems
) -> Iterator[str]:
    """What the ranks of several devices cannot be started with."""
    if not problems.sound("trainer") or resolved.trainer.settings.devices == "1":
        return
    try:
        for_ranks(source, overrides)
    except ConfigError as error:
        yield from error.problems


def _split_engines(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """Engines that several GPUs share get no new weights: each of their workers would have to take its part of every tensor."""
    number = resolved.generator.plugin.options.get("tensor_parallel_size", 1)
    if problems.sound("generator") and number > 1:
        yield (
            f"generator.tensor_parallel_size: got {number}, expected 1: new weights reach an engine on one GPU alone. To sample on "
            "several, trainer.devices=all gives each GPU an engine; a model that fits no single GPU is trained on verl (docs/verl.md)."
        )


def _learns_nothing(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    if not problems.sound("objective", "credit", "generator"):
        return
    trained = [term for term in resolved.objective if term.settings.weight != 0]
    if not trained:
        yield "objective: every weight is 0, so nothing would be trained; expected a term with another weight."
    sampling = resolved.generator.settings
    if sampling.group_size > 1 or not gives_single_rollouts_nothing(resolved.credit.bind()):
        return
    for term in trained:
        if learns_from_advantages_alone(term.plugin.bind()):
            yield (
                f"generator.group_size: got 1, but {term.plugin.key} ({term.plugin.name}) learns from advantages alone, and those of "
                f"credit ({resolved.credit.name}) are 0 for a rollout without siblings; expected at least 2."
            )
