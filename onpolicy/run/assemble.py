"""From a checked plan to the parts of a run: the one place where everything is put together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from onpolicy.annotation.annotate import Annotator, rollout_metrics
from onpolicy.annotation.queries import Inquiry
from onpolicy.annotation.scoring import Judge, Reward
from onpolicy.config.registry import options_of
from onpolicy.config.resolve import Plan, Section
from onpolicy.config.schedules import Coefficients
from onpolicy.data.cursor import PromptCursor
from onpolicy.distributed.env import launched
from onpolicy.distributed.torchrun_group import Colocated, Leader
from onpolicy.epistemic.baseline import Baseline
from onpolicy.epistemic.baseline import load as load_baseline
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.protocols import Generator, Sampler, Trainer
from onpolicy.rewards.extract import extract_answer
from onpolicy.rollout.dataset_completions import Recorded
from onpolicy.rollout.prefetch import Pipeline
from onpolicy.rollout.sampler import Rollouts
from onpolicy.rollout.sampling import Sampling
from onpolicy.run.checkpoint import Checkpoints
from onpolicy.run.display import Display
from onpolicy.run.evaluate import Evaluator
from onpolicy.run.guards import Guards, Watched
from onpolicy.run.loading import (
    Model,
    bones,
    fitting,
    model_writer,
    read_model,
    read_prompts,
    training_prompts,
)
from onpolicy.run.preflight import report_of
from onpolicy.run.run import Run
from onpolicy.run.run_dir import prepare_folder
from onpolicy.run.token_trace import token_record
from onpolicy.run.trackers import Jsonl, Logs
from onpolicy.trainer.build import own_trainer, term_names, token_classes
from onpolicy.types import Example, Prompt
from onpolicy.utils.disk import Room
from onpolicy.utils.faults import Faults
from onpolicy.utils.rng import step_seed
from onpolicy.utils.timer import Clock


def build_rewards(plan: Plan) -> list[Reward]:
    """All but the one that says what is right are bonuses unless the config says otherwise."""
    names = [s.plugin.name for s in plan.rewards]
    right = plan.config.correctness or (names[0] if names else "")
    return [
        Reward(
            name=name,
            weight=s.frame.weight,
            function=s.plugin.bind(),
            bonus=name != right if s.frame.bonus is None else s.frame.bonus,
            when=s.frame.when,
        )
        for name, s in zip(names, plan.rewards, strict=True)
    ]


def build_judge(plan: Plan, model: Model, faults: Faults | None = None) -> Judge:
    """What says how good answers are; under ``roles.rewards`` with workers of its own."""
    judge = Judge(
        rewards=build_rewards(plan),
        final_part=lambda text: model.renderer.split_thinking(text).answer,
        correctness=plan.config.correctness,
    )
    if not plan.config.roles.rewards or not plan.rewards:
        return judge
    from onpolicy.distributed.reward_pool import remote_judge

    return remote_judge(plan, judge, faults)


def build_generator(plan: Plan, model: Model, faults: Faults | None = None) -> Generator:
    """The sampler, with the start model's weights; under ``roles.generators`` replicas of it.

    Args:
        faults: is told of every replica that is replaced
    """
    if not plan.config.roles.generators:
        return own_generator(plan, model)
    from onpolicy.distributed.generator_pool import Replicas

    return Replicas(plan, model, faults)


def own_generator(plan: Plan, model: Model) -> Generator:
    """The sampler in this process; those of a user's own that load a hub's model may take ``source``."""
    section, settings = plan.generator, plan.config.model
    source = {"trust_remote_code": settings.trust_remote_code, "revision": settings.revision}
    generator: Generator = section.plugin.bind()(
        renderer=model.renderer,
        model=model.path,
        sampling=section.frame,
        max_model_len=model.max_model_len,
        **({"source": source} if "source" in options_of(section.plugin.function) else {}),
    )
    return generator


def build_evaluator(plan: Plan, model: Model, generator: Generator, room: Room) -> Evaluator | None:
    """None where no sets are named."""
    settings = plan.config.eval
    if not plan.eval_sets:
        return None
    rewards_ = {r.name: r for r in build_rewards(plan)}
    graders = [Reward(name=g.name, weight=1.0, function=g.bind()) for g in plan.graders]
    graders = graders or [rewards_[plan.config.correctness or next(iter(rewards_))]]
    sets = {
        name: fitting(read_prompts(s, f"eval.sets.{name}")[: s.frame.problems], model.renderer, drop=False)
        for name, s in plan.eval_sets.items()
    }
    sampling = Sampling(
        group_size=settings.samples,
        max_tokens=settings.max_tokens or plan.generator.frame.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
    )
    return Evaluator(
        generator=generator,
        sets=sets,
        reward=graders[0],
        sampling=sampling,
        k=settings.k,
        final_part=lambda text: model.renderer.split_thinking(text).answer,
        extract=extract_answer,
        seed=plan.config.seed,
        room=room,
        telemetry=text_telemetry(plan, model),
        graders=graders[1:],
    )


def build_trainer(plan: Plan, model: Model, clock: Clock, faults: Faults) -> Trainer:
    """In this process; under ``roles.trainers`` ranks of it; where a launcher started several processes the first of them."""
    if plan.config.roles.trainers:
        from onpolicy.distributed.ray_trainer_group import RayRanks

        return RayRanks(plan, clock, faults)
    if launched():
        return Leader(plan, model, clock)
    trainer = own_trainer(plan, model, clock)
    trainer.on_fault = faults
    return trainer


def build_inquiry(plan: Plan, model: Model, prompts: Sequence[Prompt], generator: Generator, judge: Judge) -> Inquiry:
    """What answers contexts that ask."""
    return Inquiry(
        generator=generator,
        judge=judge,
        prompts=prompts,
        seed_of=functools.partial(step_seed, plan.config.seed, "inquiry"),
        renderer=model.renderer,
        limit=model.max_model_len - plan.generator.frame.max_tokens,
        drop_too_long=plan.config.rendering.too_long == "drop",
    )


def text_telemetry(plan: Plan, model: Model, baseline: Baseline | None = None) -> TextTelemetry | None:
    """None where no markers are to be counted."""
    settings = plan.config.epistemic
    if not settings.lexicons:
        return None
    return TextTelemetry(settings.lexicons, settings.lexicon, model.renderer.split_thinking, baseline)


def build_annotator(plan: Plan, model: Model, inquiry: Inquiry, baseline: Baseline | None) -> Annotator:
    return Annotator(
        renderer=model.renderer,
        contexts={view: plugin.bind() for view, plugin in plan.contexts.items()},
        credit=plan.credit.bind(),
        inquiry=inquiry,
        max_teacher_prompt_tokens=model.max_teacher_prompt_tokens,
        drop_too_long=plan.config.rendering.too_long == "drop",
        staleness=plan.generator.frame.staleness,
        routes={name: term.frame.route for name, term in zip(term_names(plan), plan.objective, strict=True)},
        spans={name: plugin.bind() for name, plugin in plan.spans.items()},
        classes=token_classes(plan),
        telemetry=text_telemetry(plan, model, baseline),
    )


def build_guards(sections: Sequence[Section]) -> Guards:
    return Guards([Watched(s.plugin.key, s.plugin.bind(), s.frame, s.plugin.options.get("metric")) for s in sections])


def assemble(plan: Plan, folder: Path, display: Display) -> Run:
    """Everything a run needs, at the point where the run in ``folder`` stands."""
    config = plan.config
    prepare_folder(folder, config)
    model = read_model(plan)
    prompts = training_prompts(plan, model.renderer)
    clock = Clock(_synchronize)
    clock.on_phase = display.phase
    faults = Faults(display.note, config.roles.apart)
    trainer = build_trainer(plan, model, clock, faults)
    generator = build_generator(plan, model, faults)
    if isinstance(trainer, Leader) and not config.roles.generators:
        generator = Colocated(trainer, generator)
    generator.on_progress = display.progress
    checkpoints = Checkpoints(
        folder / "checkpoints", keep_last=config.checkpoint.keep_last, best=config.checkpoint.best
    )
    room = Room(display.note, checkpoints.kept)
    judge = build_judge(plan, model, faults)
    baseline = start_model_baseline(plan, model, prompts, generator, judge, folder / "baseline.json", display, room)
    prompts = [baseline.with_columns(p) for p in prompts] if baseline else prompts
    cursor = prompt_cursor(plan, prompts)
    inquiry = build_inquiry(plan, model, prompts, generator, judge)
    return Run(
        config=config,
        folder=folder,
        renderer=model.renderer,
        prompts=cursor,
        generator=generator,
        sample=build_pipeline(plan, cursor, sampler(plan, model, generator), judge, clock),
        annotate=build_annotator(plan, model, inquiry, baseline),
        trainer=trainer,
        evaluator=build_evaluator(plan, model, generator, room),
        checkpoints=checkpoints,
        model_writer=functools.partial(model_writer, trainer.weights, bones(plan, model.path), model.tokenizer),
        open_logs=functools.partial(open_logs, plan, folder),
        trace=functools.partial(trainer.apply, token_record, model.renderer),
        clock=clock,
        display=display,
        coefficients=Coefficients(plan.coefficients),
        guards=build_guards(plan.guards),
        judge=judge,
        faults=faults,
        room=room,
        start_metrics=baseline.metrics if baseline else {},
    )


def open_logs(plan: Plan, folder: Path, step: int) -> Logs:
    """Where a run writes, with what was logged after ``step`` taken out."""
    return Logs(
        trackers=[tracker.bind()(folder, step) for tracker in plan.trackers],
        samples=Jsonl(folder / "samples.jsonl", resume_at=step),
        tokens=Jsonl(folder / "tokens.jsonl", resume_at=step),
    )


def sampler(plan: Plan, model: Model, generator: Generator) -> Sampler:
    """Where the answers of a step come from."""
    column = plan.data.frame.completions
    if column is None:
        return generator
    return Recorded(generator, model.renderer, column, plan.generator.frame.max_tokens)


def build_pipeline(plan: Plan, cursor: PromptCursor, generator: Sampler, judge: Judge, clock: Clock) -> Pipeline:
    """What samples the steps."""
    rollouts = Rollouts(
        generator,
        cursor,
        judge,
        clock,
        functools.partial(step_seed, plan.config.seed),
        batches=plan.data.frame.dynamic_sampling,
    )
    return Pipeline(rollouts, clock, staleness=plan.generator.frame.staleness, steps=plan.config.steps)


def start_model_baseline(
    plan: Plan,
    model: Model,
    prompts: Sequence[Prompt],
    generator: Generator,
    judge: Judge,
    path: Path,
    display: Display,
    room: Room,
) -> Baseline | None:
    """Measured here, where the generator has the start model's weights, also when a run is resumed and goes farther."""
    settings = plan.config.epistemic
    telemetry = text_telemetry(plan, model)
    if not settings.baseline or telemetry is None:
        return None
    known = load_baseline(path) if path.exists() else Baseline()
    ahead = prompt_cursor(plan, prompts)
    steps = plan.config.steps * max(plan.data.frame.dynamic_sampling, 1)
    visited = {p.id: p for _ in range(min(steps, len(prompts))) for p in ahead.next()}
    missing = [prompt for name, prompt in visited.items() if name not in known.habits]
    if missing:
        display.phase("baseline")
        seed = step_seed(plan.config.seed, "baseline")
        sampling = dataclasses.replace(generator.sampling, group_size=settings.baseline)
        groups = judge(generator.generate(missing, seed=seed, sampling=sampling))
        found = telemetry.start(groups, plan.start_spacing)
        tokens = sum(len(r.completion_ids) for g in groups for r in g.group.rollouts)
        metrics = found.metrics | rollout_metrics(groups) | {"rollout/sampled_tokens": float(tokens)}
        known = known.joined(dataclasses.replace(found, metrics=metrics))
        room(path, functools.partial(known.save, path))
    return known


def prompt_cursor(plan: Plan, prompts: Sequence[Prompt]) -> PromptCursor:
    frame = plan.data.frame
    return PromptCursor(prompts, batch_size=frame.prompts_per_step, seed=plan.config.seed, shuffle=frame.shuffle)


def first_rollouts(run: Run, plan: Plan) -> list[Example]:
    """Rollouts of the start model, as the first step would have them; no problem is used up."""
    sample = dataclasses.replace(run.sample.rollouts, prompts=prompt_cursor(plan, run.prompts.prompts), batches=0)
    groups, _ = sample(0)
    examples, _ = run.annotate(groups, version=0)
    return examples


def preflight(run: Run, plan: Plan) -> None:
    """Samples once with the start model and checks what came back; nothing is trained and no problem is used up."""
    console = run.display.console
    said, error = run.trainer.apply(
        report_of,
        run.renderer,
        tuple(plan.contexts),
        run.config.preflight.logprob_tolerance if plan.data.frame.completions is None else None,
        (console.width, console.is_terminal),
        first_rollouts(run, plan),
    )
    console.print(Text.from_ansi(said), end="")
    if error is not None:
        raise error
    run.clock.read()


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
