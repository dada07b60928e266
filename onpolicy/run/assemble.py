"""From a checked plan to the parts of a run: the one place where everything is put together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from onpolicy.annotation.annotate import Annotator, rollout_metrics
from onpolicy.annotation.queries import ContextQueries
from onpolicy.annotation.scoring import Reward, Scorer
from onpolicy.config.registry import options_of
from onpolicy.config.resolve import ResolvedConfig, Section
from onpolicy.config.schedules import Coefficients
from onpolicy.data.cursor import PromptCursor
from onpolicy.distributed.env import launched
from onpolicy.distributed.torchrun_group import Rank0Driver, RankGenerators
from onpolicy.epistemic.baseline import Baseline
from onpolicy.epistemic.baseline import load as load_baseline
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.protocols import Generator, Sampler, Trainer
from onpolicy.rewards.extract import extract_answer
from onpolicy.rollout.dataset_completions import DatasetCompletions
from onpolicy.rollout.prefetch import RolloutPrefetcher
from onpolicy.rollout.sampler import RolloutSampler
from onpolicy.rollout.sampling import Sampling
from onpolicy.run.checkpoint import Checkpoints
from onpolicy.run.display import Display
from onpolicy.run.evaluate import Evaluator
from onpolicy.run.guards import Guards, Watched
from onpolicy.run.loading import (
    Model,
    drop_overlong,
    model_skeleton,
    model_writer,
    open_model,
    read_prompts,
    training_prompts,
)
from onpolicy.run.preflight import report_of
from onpolicy.run.run import Run
from onpolicy.run.run_dir import prepare_folder
from onpolicy.run.token_trace import token_record
from onpolicy.run.trackers import Jsonl, Logs
from onpolicy.trainer.build import local_trainer, term_names, token_classes
from onpolicy.types import Example, Prompt
from onpolicy.utils.disk import Room
from onpolicy.utils.faults import Faults
from onpolicy.utils.rng import step_seed
from onpolicy.utils.timer import PhaseTimer


def build_rewards(resolved: ResolvedConfig) -> list[Reward]:
    """All but the one that says what is right are bonuses unless the config says otherwise."""
    names = [s.plugin.name for s in resolved.rewards]
    right = resolved.config.correctness or (names[0] if names else "")
    return [
        Reward(
            name=name,
            weight=s.settings.weight,
            function=s.plugin.bind(),
            bonus=name != right if s.settings.bonus is None else s.settings.bonus,
            when=s.settings.when,
        )
        for name, s in zip(names, resolved.rewards, strict=True)
    ]


def build_scorer(resolved: ResolvedConfig, model: Model, faults: Faults | None = None) -> Scorer:
    """What says how good answers are; under ``roles.rewards`` with workers of its own."""
    judge = Scorer(
        rewards=build_rewards(resolved),
        final_part=lambda text: model.renderer.split_thinking(text).answer,
        correctness=resolved.config.correctness,
    )
    if not resolved.config.roles.rewards or not resolved.rewards:
        return judge
    from onpolicy.distributed.reward_tasks import remote_scorer

    return remote_scorer(resolved, judge, faults)


def build_generator(resolved: ResolvedConfig, model: Model, faults: Faults | None = None) -> Generator:
    """The sampler, with the reference model's weights; under ``roles.generators`` replicas of it.

    Args:
        faults: is told of every replica that is replaced
    """
    if not resolved.config.roles.generators:
        return local_generator(resolved, model)
    from onpolicy.distributed.generator_pool import GeneratorPool

    return GeneratorPool(resolved, model, faults)


def local_generator(resolved: ResolvedConfig, model: Model) -> Generator:
    """The sampler in this process; those of a user's own that load a hub's model may take ``source``."""
    section, settings = resolved.generator, resolved.config.model
    source = {"trust_remote_code": settings.trust_remote_code, "revision": settings.revision}
    generator: Generator = section.plugin.bind()(
        renderer=model.renderer,
        model=model.path,
        sampling=section.settings,
        max_model_len=model.max_model_len,
        **({"source": source} if "source" in options_of(section.plugin.function) else {}),
    )
    return generator


def build_evaluator(resolved: ResolvedConfig, model: Model, generator: Generator, room: Room) -> Evaluator | None:
    """None where no sets are named."""
    settings = resolved.config.eval
    if not resolved.eval_sets:
        return None
    rewards_ = {r.name: r for r in build_rewards(resolved)}
    graders = [Reward(name=g.name, weight=1.0, function=g.bind()) for g in resolved.graders]
    graders = graders or [rewards_[resolved.config.correctness or next(iter(rewards_))]]
    sets = {
        name: drop_overlong(read_prompts(s, f"eval.sets.{name}")[: s.settings.problems], model.renderer, drop=False)
        for name, s in resolved.eval_sets.items()
    }
    sampling = Sampling(
        group_size=settings.samples,
        max_tokens=settings.max_tokens or resolved.generator.settings.max_tokens,
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
        seed=resolved.config.seed,
        room=room,
        telemetry=text_telemetry(resolved, model),
        graders=graders[1:],
    )


def build_trainer(resolved: ResolvedConfig, model: Model, clock: PhaseTimer, faults: Faults) -> Trainer:
    """In this process; under ``roles.trainers`` ranks of it; where a launcher started several processes the first of them."""
    if resolved.config.roles.trainers:
        from onpolicy.distributed.ray_trainer_group import RayTrainerGroup

        return RayTrainerGroup(resolved, clock, faults)
    if launched():
        return Rank0Driver(resolved, model, clock)
    trainer = local_trainer(resolved, model, clock)
    trainer.on_fault = faults
    return trainer


def build_queries(
    resolved: ResolvedConfig, model: Model, prompts: Sequence[Prompt], generator: Generator, judge: Scorer
) -> ContextQueries:
    """What answers contexts that ask."""
    return ContextQueries(
        generator=generator,
        judge=judge,
        prompts=prompts,
        seed_of=functools.partial(step_seed, resolved.config.seed, "inquiry"),
        renderer=model.renderer,
        limit=model.max_model_len - resolved.generator.settings.max_tokens,
        drop_too_long=resolved.config.rendering.too_long == "drop",
    )


def text_telemetry(resolved: ResolvedConfig, model: Model, baseline: Baseline | None = None) -> TextTelemetry | None:
    """None where no markers are to be counted."""
    settings = resolved.config.epistemic
    if not settings.lexicons:
        return None
    return TextTelemetry(settings.lexicons, settings.lexicon, model.renderer.split_thinking, baseline)


def build_annotator(
    resolved: ResolvedConfig, model: Model, queries: ContextQueries, baseline: Baseline | None
) -> Annotator:
    return Annotator(
        renderer=model.renderer,
        contexts={context: plugin.bind() for context, plugin in resolved.contexts.items()},
        credit=resolved.credit.bind(),
        queries=queries,
        max_teacher_prompt_tokens=model.max_teacher_prompt_tokens,
        drop_too_long=resolved.config.rendering.too_long == "drop",
        staleness=resolved.generator.settings.staleness,
        routes={name: term.settings.route for name, term in zip(term_names(resolved), resolved.objective, strict=True)},
        spans={name: plugin.bind() for name, plugin in resolved.spans.items()},
        classes=token_classes(resolved),
        telemetry=text_telemetry(resolved, model, baseline),
    )


def build_guards(sections: Sequence[Section]) -> Guards:
    return Guards(
        [Watched(s.plugin.key, s.plugin.bind(), s.settings, s.plugin.options.get("metric")) for s in sections]
    )


def assemble(resolved: ResolvedConfig, folder: Path, display: Display) -> Run:
    """Everything a run needs, at the point where the run in ``folder`` stands."""
    config = resolved.config
    prepare_folder(folder, config)
    model = open_model(resolved)
    prompts = training_prompts(resolved, model.renderer)
    clock = PhaseTimer(_synchronize)
    clock.on_phase = display.phase
    faults = Faults(display.note, config.roles.apart)
    trainer = build_trainer(resolved, model, clock, faults)
    generator = build_generator(resolved, model, faults)
    if isinstance(trainer, Rank0Driver) and not config.roles.generators:
        generator = RankGenerators(trainer, generator)
    generator.on_progress = display.progress
    checkpoints = Checkpoints(
        folder / "checkpoints", keep_last=config.checkpoint.keep_last, best=config.checkpoint.best
    )
    room = Room(display.note, checkpoints.kept)
    judge = build_scorer(resolved, model, faults)
    baseline = reference_baseline(resolved, model, prompts, generator, judge, folder / "baseline.json", display, room)
    prompts = [baseline.with_columns(p) for p in prompts] if baseline else prompts
    cursor = prompt_cursor(resolved, prompts)
    queries = build_queries(resolved, model, prompts, generator, judge)
    return Run(
        config=config,
        folder=folder,
        renderer=model.renderer,
        prompts=cursor,
        generator=generator,
        sample=build_pipeline(resolved, cursor, sampler(resolved, model, generator), judge, clock),
        annotate=build_annotator(resolved, model, queries, baseline),
        trainer=trainer,
        evaluator=build_evaluator(resolved, model, generator, room),
        checkpoints=checkpoints,
        model_writer=functools.partial(
            model_writer, trainer.weights, model_skeleton(resolved, model.path), model.tokenizer
        ),
        open_logs=functools.partial(open_logs, resolved, folder),
        trace=functools.partial(trainer.apply, token_record, model.renderer),
        clock=clock,
        display=display,
        coefficients=Coefficients(resolved.coefficients),
        guards=build_guards(resolved.guards),
        judge=judge,
        faults=faults,
        room=room,
        ref_metrics=baseline.metrics if baseline else {},
    )


def open_logs(resolved: ResolvedConfig, folder: Path, step: int) -> Logs:
    """Where a run writes, with what was logged after ``step`` taken out."""
    return Logs(
        trackers=[tracker.bind()(folder, step) for tracker in resolved.trackers],
        samples=Jsonl(folder / "samples.jsonl", resume_at=step),
        tokens=Jsonl(folder / "tokens.jsonl", resume_at=step),
    )


def sampler(resolved: ResolvedConfig, model: Model, generator: Generator) -> Sampler:
    """Where the answers of a step come from."""
    column = resolved.data.settings.completions
    if column is None:
        return generator
    return DatasetCompletions(generator, model.renderer, column, resolved.generator.settings.max_tokens)


def build_pipeline(
    resolved: ResolvedConfig, cursor: PromptCursor, generator: Sampler, judge: Scorer, clock: PhaseTimer
) -> RolloutPrefetcher:
    """What samples the steps."""
    rollouts = RolloutSampler(
        generator,
        cursor,
        judge,
        clock,
        functools.partial(step_seed, resolved.config.seed),
        batches=resolved.data.settings.dynamic_sampling,
    )
    return RolloutPrefetcher(
        rollouts, clock, staleness=resolved.generator.settings.staleness, steps=resolved.config.steps
    )


def reference_baseline(
    resolved: ResolvedConfig,
    model: Model,
    prompts: Sequence[Prompt],
    generator: Generator,
    judge: Scorer,
    path: Path,
    display: Display,
    room: Room,
) -> Baseline | None:
    """Measured here, where the generator has the reference model's weights, also when a run is resumed and goes farther."""
    settings = resolved.config.epistemic
    telemetry = text_telemetry(resolved, model)
    if not settings.baseline or telemetry is None:
        return None
    known = load_baseline(path) if path.exists() else Baseline()
    ahead = prompt_cursor(resolved, prompts)
    steps = resolved.config.steps * max(resolved.data.settings.dynamic_sampling, 1)
    visited = {p.id: p for _ in range(min(steps, len(prompts))) for p in ahead.next()}
    missing = [prompt for name, prompt in visited.items() if name not in known.problem_baselines]
    if missing:
        display.phase("baseline")
        seed = step_seed(resolved.config.seed, "baseline")
        sampling = dataclasses.replace(generator.sampling, group_size=settings.baseline)
        groups = judge(generator.generate(missing, seed=seed, sampling=sampling))
        found = telemetry.start(groups, resolved.ref_spacing)
        tokens = sum(len(r.completion_ids) for g in groups for r in g.group.rollouts)
        metrics = found.metrics | rollout_metrics(groups) | {"rollout/sampled_tokens": float(tokens)}
        known = known.joined(dataclasses.replace(found, metrics=metrics))
        room(path, functools.partial(known.save, path))
    return known


def prompt_cursor(resolved: ResolvedConfig, prompts: Sequence[Prompt]) -> PromptCursor:
    settings = resolved.data.settings
    return PromptCursor(
        prompts, batch_size=settings.prompts_per_step, seed=resolved.config.seed, shuffle=settings.shuffle
    )


def first_rollouts(run: Run, resolved: ResolvedConfig) -> list[Example]:
    """Rollouts of the reference model, as the first step would have them; no problem is used up."""
    sample = dataclasses.replace(run.sample.rollouts, prompts=prompt_cursor(resolved, run.prompts.prompts), batches=0)
    groups, _ = sample(0)
    examples, _ = run.annotate(groups, version=0)
    return examples


def preflight(run: Run, resolved: ResolvedConfig) -> None:
    """Samples once with the reference model and checks what came back; nothing is trained and no problem is used up."""
    console = run.display.console
    said, error = run.trainer.apply(
        report_of,
        run.renderer,
        tuple(resolved.contexts),
        run.config.preflight.logprob_tolerance if resolved.data.settings.completions is None else None,
        (console.width, console.is_terminal),
        first_rollouts(run, resolved),
    )
    console.print(Text.from_ansi(said), end="")
    if error is not None:
        raise error
    run.clock.read()


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
