"""Measures how the reference model expresses uncertainty on the problems of a run (``epistemic.baseline``), before training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from onpolicy.annotation.build import text_telemetry
from onpolicy.annotation.metrics import rollout_metrics
from onpolicy.annotation.scoring import Scorer
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.rendering import Renderer
from onpolicy.epistemic.baseline import Baseline, load_baseline
from onpolicy.protocols import Generator
from onpolicy.rollout.build import prompt_cursor
from onpolicy.types import Prompt
from onpolicy.utils.seeds import step_seed


def measure_baseline(
    resolved: ResolvedConfig,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    generator: Generator,
    scorer: Scorer,
    path: Path,
    on_start: Callable[[], None],
) -> Baseline | None:
    """The baseline of all problems that the run will visit; None where none is configured.

    The generator must still have the reference model's weights; that holds also when a run is resumed with more steps, since
    checkpoints are loaded later.

    Args:
        resolved: the config
        renderer: the student's
        prompts: all training prompts
        generator: samples ``epistemic.baseline`` rollouts of each problem that ``path`` lacks
        scorer: scores them
        path: where the baseline is kept
        on_start: called before anything is sampled
    """
    settings = resolved.config.epistemic
    telemetry = text_telemetry(resolved, renderer)
    if not settings.baseline or telemetry is None:
        return None
    known = load_baseline(path) if path.exists() else Baseline()
    missing = [p for p in _visited(resolved, prompts) if p.id not in known.problem_baselines]
    if missing:
        on_start()
        seed = step_seed(resolved.config.seed, "baseline")
        sampling = dataclasses.replace(generator.sampling, group_size=settings.baseline)
        groups = scorer.score(generator.generate(missing, seed=seed, sampling=sampling))
        found = telemetry.build_baseline(groups, resolved.ref_spacing)
        tokens = sum(r.num_sampled for g in groups for r in g.group.rollouts)
        metrics = found.metrics | rollout_metrics(groups) | {"rollout/sampled_tokens": float(tokens)}
        known = known.merge(dataclasses.replace(found, metrics=metrics))
        known.save(path)
    return known


def _visited(resolved: ResolvedConfig, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The problems that the run's steps draw, in order, each once."""
    cursor = prompt_cursor(resolved, prompts)
    batches = resolved.config.steps * max(resolved.data.settings.dynamic_sampling, 1)
    visited = {p.id: p for _ in range(min(batches, len(prompts))) for p in cursor.next()}
    return list(visited.values())
