"""From a checked plan to the parts of a run: the one place where everything is put together."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onpolicy.annotate import Annotator, rollout_metrics
from onpolicy.backends.local import LocalTrainer
from onpolicy.checkpoint import Checkpoints
from onpolicy.clock import Clock
from onpolicy.cursor import PromptCursor
from onpolicy.display import Display
from onpolicy.distill.compare import Comparison
from onpolicy.distill.support import full
from onpolicy.distill.target import identity
from onpolicy.epistemic.baseline import Baseline
from onpolicy.epistemic.baseline import load as load_baseline
from onpolicy.epistemic.ids import LexiconError, marker_ids
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.epistemic.tokens import CLASSES, TokenTelemetry, span_name
from onpolicy.evaluate import Evaluator
from onpolicy.faults import Faults
from onpolicy.folder import prepare_folder
from onpolicy.guards import Guards, Watched
from onpolicy.inquiry import Inquiry
from onpolicy.loading import (
    Model,
    bones,
    fitting,
    load_teacher,
    load_weights,
    model_writer,
    read_model,
    read_prompts,
    training_prompts,
)
from onpolicy.loss import Objective, Term, unique_names
from onpolicy.objectives.term import facts_of
from onpolicy.pipeline import Pipeline
from onpolicy.plan import Plan, Section, plug_ins_in, views_of
from onpolicy.preflight import Preflight
from onpolicy.protocols import Generator
from onpolicy.randomness import step_seed
from onpolicy.registry import options_of
from onpolicy.report.tokens import token_record
from onpolicy.rollouts import Rollouts
from onpolicy.run import Run
from onpolicy.sampling import Sampling
from onpolicy.schedule import Bound, Coefficients
from onpolicy.scoring import Judge, Reward
from onpolicy.spans import markers, pattern
from onpolicy.teachers import WeightRule
from onpolicy.trackers import Jsonl
from onpolicy.types import Example, Prompt
from rewards.extract import extract_answer


def term_names(plan: Plan) -> list[str]:
    return unique_names([t.plugin.name.rpartition(":")[2] for t in plan.objective])


def build_objective(plan: Plan) -> Objective:
    """The loss, with what each term needs compared over the vocabulary."""
    max_tokens = plan.generator.frame.max_tokens
    return Objective(
        tuple(_term(name, section, max_tokens) for name, section in zip(term_names(plan), plan.objective, strict=True))
    )


def _term(name: str, section: Section, max_tokens: int) -> Term:
    plugin, facts = section.plugin, facts_of(section.plugin.function)
    options, views = plugin.options, tuple(views_of(plugin))
    comparison = None
    if "divergence" in options:  # a term with this option reads LossInputs.divergences
        comparison = Comparison(
            view=options.get("view", "teacher"),
            support=options.get("support", full),
            target=options.get("target", identity),
            divergence=options["divergence"],
        )
    reads_start = any(getattr(f, "reads_start", False) for f in plug_ins_in(plugin.function, options))
    return Term(
        name=name,
        weight=section.frame.weight,
        normalize=section.frame.normalize,
        max_tokens=max_tokens,
        function=plugin.bind(),
        facts=dataclasses.replace(facts, needs_ref=facts.needs_ref or reads_start),
        views=views,
        comparison=comparison,
    )


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
    from onpolicy.backends.reward_workers import remote_judge

    return remote_judge(plan, judge, faults)


def build_generator(plan: Plan, model: Model, faults: Faults | None = None) -> Generator:
    """The sampler, with the start model's weights; under ``roles.generators`` replicas of it.

    Args:
        faults: is told of every replica that is replaced
    """
    if not plan.config.roles.generators:
        return own_generator(plan, model)
    from onpolicy.backends.replicas import Replicas

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


def build_evaluator(plan: Plan, model: Model, generator: Generator) -> Evaluator | None:
    """None where no sets are named."""
    settings = plan.config.eval
    if not plan.eval_sets:
        return None
    rewards_ = {r.name: r for r in build_rewards(plan)}
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
        reward=rewards_[plan.config.correctness or next(iter(rewards_))],
        sampling=sampling,
        k=settings.k,
        final_part=lambda text: model.renderer.split_thinking(text).answer,
        extract=extract_answer,
        seed=plan.config.seed,
        telemetry=text_telemetry(plan, model),
    )


def teacher_rule(plan: Plan) -> WeightRule:
    """The rule, whose options, where they are scheduled, are read again at each update."""
    make = plan.teacher.bind()
    rule: WeightRule = make()
    if rule.update is None:
        return rule
    return dataclasses.replace(rule, update=lambda *tensors_and_step: make().update(*tensors_and_step))


def build_trainer(plan: Plan, model: Model, clock: Clock) -> LocalTrainer:
    rule = teacher_rule(plan)
    trainer: LocalTrainer = plan.trainer.plugin.bind()(
        model=load_weights(plan, model.path),
        objective=build_objective(plan),
        teacher=rule,
        settings=plan.trainer.frame,
        total_steps=plan.config.steps,
        views=tuple(plan.contexts),
        clock=clock,
        spans=(*plan.spans, *token_classes(plan)),
        marker_ids=lexicon_ids(plan, model.tokenizer),
        telemetry=TokenTelemetry(plan.config.epistemic.lexicon, class_names(plan))
        if plan.config.epistemic.lexicons
        else None,
        teacher_model=None if rule.path is None else load_teacher(plan, model, rule.path),
    )
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


def lexicon_ids(plan: Plan, tokenizer: Any) -> dict[str, list[int]]:
    """Of every lexicon the objective reads, and of the one that telemetry follows, if its markers are tokens."""
    followed = (plan.config.epistemic.lexicon,) if plan.config.epistemic.lexicons else ()
    return tokens_of(tokenizer, followed) | {name: marker_ids(tokenizer, name) for name in plan.lexicons}


def tokens_of(tokenizer: Any, lexicons: Iterable[str]) -> dict[str, list[int]]:
    """The ids of those lexicons that have a marker which is one token."""
    ids = {}
    for name in lexicons:
        with contextlib.suppress(LexiconError):
            ids[name] = marker_ids(tokenizer, name)
    return ids


def class_names(plan: Plan) -> tuple[str, ...]:
    """The classes of tokens that are marked: what telemetry tells apart, and the lexicons that the objective reads."""
    epistemic = plan.config.epistemic
    watched = (epistemic.lexicon, *epistemic.lexicons, *CLASSES) if epistemic.lexicons else ()
    return tuple(dict.fromkeys((*watched, *plan.lexicons)))


def token_classes(plan: Plan) -> dict[str, Any]:
    """Name of the span -> what finds it."""
    return {
        span_name(name): Bound(pattern, regex=CLASSES[name]) if name in CLASSES else Bound(markers, lexicon=name)
        for name in class_names(plan)
    }


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
    trainer = build_trainer(plan, model, clock)
    faults = Faults(display.note, config.roles.apart)
    generator = build_generator(plan, model, faults)
    generator.on_progress = display.progress
    checkpoints = Checkpoints(
        folder / "checkpoints", keep_last=config.checkpoint.keep_last, best=config.checkpoint.best
    )
    judge = build_judge(plan, model, faults)
    baseline = start_model_baseline(plan, model, prompts, generator, judge, folder / "baseline.json", display)
    prompts = [baseline.with_columns(p) for p in prompts] if baseline else prompts
    cursor = prompt_cursor(plan, prompts)
    inquiry = build_inquiry(plan, model, prompts, generator, judge)
    latest = checkpoints.latest()
    done = latest.step if latest else -1  # without a checkpoint nothing that was logged counts
    return Run(
        config=config,
        folder=folder,
        renderer=model.renderer,
        prompts=cursor,
        generator=generator,
        sample=build_pipeline(plan, cursor, generator, judge, clock),
        annotate=build_annotator(plan, model, inquiry, baseline),
        trainer=trainer,
        evaluator=build_evaluator(plan, model, generator),
        checkpoints=checkpoints,
        model_writer=functools.partial(model_writer, trainer.weights, bones(plan, model.path), model.tokenizer),
        trackers=[tracker.bind()(folder, done) for tracker in plan.trackers],
        samples=Jsonl(folder / "samples.jsonl", resume_at=done),
        tokens=Jsonl(folder / "tokens.jsonl", resume_at=done),
        trace=functools.partial(token_record, trainer=trainer, renderer=model.renderer),
        clock=clock,
        display=display,
        coefficients=Coefficients(plan.coefficients),
        guards=build_guards(plan.guards),
        judge=judge,
        faults=faults,
        start_metrics=baseline.metrics if baseline else {},
    )


def build_pipeline(plan: Plan, cursor: PromptCursor, generator: Generator, judge: Judge, clock: Clock) -> Pipeline:
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
        known.save(path)
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
    examples = first_rollouts(run, plan)
    assert isinstance(run.trainer, LocalTrainer)
    check = Preflight(
        trainer=run.trainer,
        renderer=run.renderer,
        views=tuple(plan.contexts),
        logprob_tolerance=run.config.preflight.logprob_tolerance,
        console=run.display.console,
    )
    check(examples)
    run.clock.read()


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
