"""Puts the parts of a run together; each package builds its own (``annotation.build``, ``rollout.build``, ``trainer.build``)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from onpolicy.annotation.build import build_annotator, build_queries
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schedules import Coefficients
from onpolicy.distributed.adapter_plan import adapter_plan
from onpolicy.distributed.torchrun_group import Rank0Driver, RankGenerators
from onpolicy.epistemic.ids import markers_not_read
from onpolicy.models import ModelHandle, open_model
from onpolicy.protocols import Generator, Trainer
from onpolicy.rollout.build import build_prefetcher, completion_source, prompt_cursor, with_environment
from onpolicy.run.checkpoint import Checkpoints
from onpolicy.run.control import RunControl
from onpolicy.run.devices import refuse_devices_without_ranks, unused_devices
from onpolicy.run.display import Display
from onpolicy.run.evaluate import build_evaluator
from onpolicy.run.exclusive_trainer import ExclusiveTrainer
from onpolicy.run.guards import build_guards, gap_tolerance
from onpolicy.run.inputs import input_files, keep_inputs
from onpolicy.run.loading import evaluation_prompts, training_prompts
from onpolicy.run.log import build_log
from onpolicy.run.placement import build_generator, build_scorer, build_trainer, direct_weights, with_workers
from onpolicy.run.ref_baseline import measure_baseline
from onpolicy.run.room import check_room, checkpoint_size
from onpolicy.run.run import Run
from onpolicy.run.run_dir import prepare_folder, refuse_other_settings, write_choices
from onpolicy.trainer.build import teacher_rule
from onpolicy.trainer.trainer import PolicyTrainer, forward_report, ids_read
from onpolicy.types import Example, Prompt
from onpolicy.utils.device import synchronize
from onpolicy.utils.disk import waiting_for_disk_space
from onpolicy.utils.faults import Faults
from onpolicy.utils.terminal import plain
from onpolicy.utils.timer import PhaseTimer


def assemble(resolved: ResolvedConfig, folder: Path, display: Display) -> Run:
    """Everything a run needs, at the point where the run in ``folder`` stands."""
    config = resolved.config
    refuse_devices_without_ranks(resolved)
    refuse_other_settings(folder, resolved)
    model = open_model(resolved)
    prompts = for_teacher(training_prompts(resolved, model.renderer), model, display)
    sets = evaluation_prompts(resolved, model.renderer)
    prepare_folder(folder, resolved)  # now that there is something to run: a mistake leaves no folder behind
    _keep_inputs(folder, resolved, prompts, sets if config.eval.every else {}, display)
    timer = PhaseTimer(synchronize)
    timer.on_phase = display.phase
    faults = Faults(display.note, config.distributed.apart)
    own = build_trainer(resolved, model, timer, faults)
    generator = _generator_beside(own, resolved, model, faults, display)
    generator.on_progress = display.progress
    trainer = ExclusiveTrainer(_say_how_it_computes(own, resolved, model, folder, display), generator, timer)
    if size := own.apply(checkpoint_size):
        check_room(size, config, folder, display.note)
    checkpoints = Checkpoints(
        folder / "checkpoints", keep_last=config.checkpoint.keep_last, best=config.checkpoint.best_metric
    )
    scorer = with_workers(build_scorer(resolved, model, faults), resolved, model.renderer, faults)
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
    guards = build_guards(resolved.guards, gap_tolerance(resolved))
    return Run(
        config=config,
        folder=folder,
        sampler=build_prefetcher(
            resolved, prompt_cursor(resolved, prompts), source, timer, score=scorer.score, begin=scorer.begin
        ),
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
        evaluator=build_evaluator(resolved, model, generator, sets),
        checkpoints=checkpoints,
        control=RunControl(Coefficients(resolved.coefficients), guards, trainer, display.note),
        timer=timer,
        ref_metrics=baseline.metrics if baseline else {},
        log=build_log(resolved, folder, checkpoints, trainer, model.renderer, display, timer, faults),
    )


def _generator_beside(
    trainer: Trainer, resolved: ResolvedConfig, model: ModelHandle, faults: Faults, display: Display
) -> Generator:
    """The generator, and lines on what it is given of the student, and which way; where a launcher's ranks train, those of all ranks.

    It comes before the trainer's first call: the other ranks make theirs before they serve calls, and vLLM's engines wait for one another.
    """
    plan = adapter_plan(resolved, model)

    def say(line: str) -> None:
        display.console.print(plain(line), highlight=False, soft_wrap=True)

    if plan.said:
        say(plan.said)
    direct = direct_weights(trainer, resolved, say, adapter=plan.shape is not None)
    own = build_generator(resolved, model, faults, beside_trainer=True, adapter=plan.shape, direct=direct)
    if isinstance(trainer, Rank0Driver) and not resolved.config.distributed.num_generators:
        own = RankGenerators(trainer, own)
    return with_environment(resolved, model, own, display.note)


def _keep_inputs(
    folder: Path,
    resolved: ResolvedConfig,
    prompts: Sequence[Prompt],
    sets: Mapping[str, Sequence[Prompt]],
    display: Display,
) -> None:
    problems = {"data": prompts, **{f"eval.sets.{name}": found for name, found in sets.items()}}
    if not keep_inputs(folder, problems, input_files(resolved, teacher_rule(resolved).path)):
        display.note(f"{folder} does not say what its run has read: data and models cannot be compared with it")


def _say_how_it_computes(
    trainer: Trainer, resolved: ResolvedConfig, model: ModelHandle, folder: Path, display: Display
) -> Trainer:
    """One line, the run's config, and notes: markers that the loss does not read, devices that nothing uses, and where a run goes on in
    another dtype than this device would choose; returns the trainer."""
    report = trainer.apply(forward_report)
    if report is None:  # a user's own
        return trainer
    write_choices(folder, resolved, report)
    display.console.print(f"computes in {plain(str(report))}", highlight=False, soft_wrap=True)
    for sentence in markers_not_read(resolved.lexicons, trainer.apply(ids_read), model.tokenizer):
        display.note(sentence)
    if idle := unused_devices(resolved):
        display.note(idle)
    chosen = report.default.precision
    if report.precision != chosen and (folder / "checkpoints").is_dir():
        display.note(
            f"trainer.precision: this run computes in {report.precision}, as it began, although `auto` is {chosen} on {report.devices[0]}"
        )
    return trainer


def for_teacher(prompts: Sequence[Prompt], model: ModelHandle, display: Display) -> list[Prompt]:
    """The prompts, with the tokens banned that the teacher cannot read; says in what it can read less than the student."""
    if model.limits_of_teacher:
        display.note(model.limits_of_teacher)
    return [replace(prompt, banned_token_ids=model.banned_token_ids) for prompt in prompts]


def own_logprobs(trainer: PolicyTrainer, examples: Sequence[Example]) -> list[list[float]]:
    """The student's log-probability of each sampled token, by example; for ``Trainer.apply``."""
    return [row.tolist() for row in trainer.logprobs(examples)]
