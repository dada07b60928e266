"""Puts the parts of a run together; each package builds its own (``annotation.build``, ``rollout.build``, ``trainer.build``)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from onpolicy.annotation.build import build_annotator, build_queries
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schedules import Coefficients
from onpolicy.distributed.torchrun_group import Rank0Driver, RankGenerators
from onpolicy.models import model_skeleton, model_writer, open_model
from onpolicy.rollout.build import build_prefetcher, completion_source, prompt_cursor
from onpolicy.run.checkpoint import Checkpoints
from onpolicy.run.control import RunControl
from onpolicy.run.display import Display
from onpolicy.run.evaluate import build_evaluator
from onpolicy.run.guards import build_guards
from onpolicy.run.loading import training_prompts
from onpolicy.run.log import build_log
from onpolicy.run.placement import build_generator, build_scorer, build_trainer
from onpolicy.run.ref_baseline import measure_baseline
from onpolicy.run.run import Run
from onpolicy.run.run_dir import prepare_folder
from onpolicy.trainer.trainer import PolicyTrainer
from onpolicy.types import Example
from onpolicy.utils.disk import waiting_for_disk_space
from onpolicy.utils.faults import Faults
from onpolicy.utils.timer import PhaseTimer


def assemble(resolved: ResolvedConfig, folder: Path, display: Display) -> Run:
    """Everything a run needs, at the point where the run in ``folder`` stands."""
    config = resolved.config
    prepare_folder(folder, config)
    model = open_model(resolved)
    prompts = training_prompts(resolved, model.renderer)
    timer = PhaseTimer(_synchronize)
    timer.on_phase = display.phase
    faults = Faults(display.note, config.distributed.apart)
    trainer = build_trainer(resolved, model, timer, faults)
    generator = build_generator(resolved, model, faults)
    if isinstance(trainer, Rank0Driver) and not config.distributed.num_generators:
        generator = RankGenerators(trainer, generator)
    generator.on_progress = display.progress
    checkpoints = Checkpoints(
        folder / "checkpoints", keep_last=config.checkpoint.keep_last, best=config.checkpoint.best_metric
    )
    scorer = build_scorer(resolved, model, faults)
    with waiting_for_disk_space(display.note, kept=checkpoints.kept):
        baseline = measure_baseline(
            resolved,
            model.renderer,
            prompts,
            generator,
            scorer,
            folder / "baseline.json",
            functools.partial(display.phase, "baseline"),
        )
    prompts = [baseline.add_columns(p) for p in prompts] if baseline else prompts
    source = completion_source(resolved, model, generator)
    return Run(
        config=config,
        folder=folder,
        sampler=build_prefetcher(resolved, prompt_cursor(resolved, prompts), source, scorer.score, timer),
        scorer=scorer,
        annotator=build_annotator(
            resolved,
            model.renderer,
            max_teacher_prompt_tokens=model.max_teacher_prompt_tokens,
            queries=build_queries(resolved, model, prompts, generator, scorer),
            baseline=baseline,
            logprobs=functools.partial(trainer.apply, own_logprobs),
        ),
        trainer=trainer,
        generator=generator,
        evaluator=build_evaluator(resolved, model, generator),
        checkpoints=checkpoints,
        model_writer=functools.partial(
            model_writer, trainer.weights, model_skeleton(resolved, model.path), model.tokenizer
        ),
        control=RunControl(Coefficients(resolved.coefficients), build_guards(resolved.guards), trainer, display.note),
        timer=timer,
        ref_metrics=baseline.metrics if baseline else {},
        log=build_log(resolved, folder, checkpoints, trainer, model.renderer, display, timer, faults),
    )


def own_logprobs(trainer: PolicyTrainer, examples: Sequence[Example]) -> list[list[float]]:
    """The student's log-probability of each sampled token, by example; for ``Trainer.apply``."""
    return [row.tolist() for row in trainer.logprobs(examples)]


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
