"""From a config to a plan: every name found, every option checked, before anything is loaded."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onpolicy.config import FRAMES, SUPPLIED, Config, EvalFrame
from onpolicy.registry import ConfigError, Plugin, options_of, resolve, suggest


@dataclass(frozen=True)
class Section:
    """A plug-in section: the plug-in and the fields every plug-in of its kind has."""

    plugin: Plugin
    frame: Any


@dataclass(frozen=True)
class Plan:
    """A config with every name found and every option checked."""

    config: Config
    data: Section
    generator: Section
    rewards: tuple[Section, ...]
    contexts: Mapping[str, Plugin]
    teacher: Plugin
    credit: Plugin
    objective: tuple[Section, ...]
    trainer: Section
    trackers: tuple[Plugin, ...]
    eval_sets: Mapping[str, Section]


def plan(config: Config) -> Plan:
    """Finds every plug-in the config names and checks what can be checked without a model.

    Raises:
        ConfigError: unknown names or options, values out of range, sections that contradict each other.
    """
    if not config.data:
        raise ConfigError("data: missing. Name a source, e.g. data.name=file data.path=problems.jsonl")
    if not config.objective:
        raise ConfigError(
            "objective: empty. Name at least one term, e.g. objective: [{name: distill, divergence: forward_kl}]"
        )
    result = Plan(
        config=config,
        data=section("data", config.data, "data"),
        generator=section("generator", config.generator, "generator"),
        rewards=tuple(section("reward", spec, f"rewards[{i}]") for i, spec in enumerate(config.rewards)),
        contexts={view: resolve("context", spec, f"contexts.{view}") for view, spec in config.contexts.items()},
        teacher=resolve("teacher", config.teacher, "teacher"),
        credit=resolve("credit", config.credit, "credit"),
        objective=tuple(section("term", spec, f"objective[{i}]") for i, spec in enumerate(config.objective)),
        trainer=section("trainer", config.trainer, "trainer"),
        trackers=tuple(resolve("tracker", s, f"logging.trackers[{i}]") for i, s in enumerate(config.logging.trackers)),
        eval_sets={name: _eval_set(name, spec) for name, spec in config.eval.sets.items()},
    )
    _check_values(config, result)
    _check_views(result)
    _check_rewards(result)
    return result


def section(kind: str, spec: Any, key: str, frame: type | None = None) -> Section:
    """Splits a section into the fields of its frame and the plug-in's options, and checks both."""
    frame = frame or FRAMES[kind]
    if isinstance(spec, str):
        return Section(plugin=resolve(kind, spec, key, supplied=SUPPLIED.get(kind, ())), frame=frame())
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{key}: wanted a name or a mapping with 'name' and options, got {spec!r}")
    names = {f.name for f in dataclasses.fields(frame)}
    ours = {k: v for k, v in spec.items() if k in names}
    try:
        merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(frame), ours))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}.{error.full_key}: {str(error).splitlines()[0]}") from error
    except ValueError as error:  # a frame's own check of its values
        raise ConfigError(str(error)) from error
    rest = {k: v for k, v in spec.items() if k not in names}
    try:
        return Section(plugin=resolve(kind, rest, key, supplied=SUPPLIED.get(kind, ())), frame=merged)
    except ConfigError as error:
        for option in rest:  # a misspelled frame field looks like an unknown option of the plug-in
            if str(error).startswith(f"{key}.{option}: ") and suggest(option, names):
                raise ConfigError(
                    f"{error} Fields of every {kind}: {', '.join(sorted(names))}.{suggest(option, names)}"
                ) from None
        raise


def _eval_set(name: str, spec: Any) -> Section:
    return section("data", spec, f"eval.sets.{name}", EvalFrame)


def _check_values(config: Config, result: Plan) -> None:
    positive = {
        "steps": config.steps,
        "data.prompts_per_step": result.data.frame.prompts_per_step,
        "rendering.max_prompt_tokens": config.rendering.max_prompt_tokens,
        "rendering.max_teacher_prompt_tokens": config.rendering.max_teacher_prompt_tokens,
        "trainer.micro_batch": result.trainer.frame.micro_batch,
        "trainer.updates_per_step": result.trainer.frame.updates_per_step,
        "eval.samples": config.eval.samples,
        "checkpoint.keep_last": config.checkpoint.keep_last,
    }
    for key, value in positive.items():
        if value < 1:
            raise ConfigError(f"{key}: got {value}, wanted at least 1.")
    nonnegative = {
        "trainer.lr": result.trainer.frame.lr,
        "eval.every": config.eval.every,
        "checkpoint.every": config.checkpoint.every,
    }
    for key, number in nonnegative.items():
        if number < 0:
            raise ConfigError(f"{key}: got {number}, wanted 0 or more.")
    _one_of("rendering.too_long", config.rendering.too_long, ("refuse", "drop"))
    _one_of("trainer.lr_schedule", result.trainer.frame.lr_schedule, ("constant", "linear", "cosine"))
    for term in result.objective:
        _one_of(f"{term.plugin.key}.normalize", term.frame.normalize, ("tokens", "sequences"))
    for k in config.eval.k:
        if not 1 <= k <= config.eval.samples:
            raise ConfigError(f"eval.k: got {k}, wanted 1 to eval.samples = {config.eval.samples}.")


def _one_of(key: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}: got {value!r}, wanted one of {', '.join(choices)}.{suggest(value, choices)}")


def _check_views(result: Plan) -> None:
    """A term that reads a view needs that view; a view that nothing reads is a mistake."""
    used = set()
    for i, term in enumerate(result.objective):
        for view in _views_read(term.plugin.function, term.plugin.options):
            used.add(view)
            if view not in result.contexts:
                known = ", ".join(result.contexts) or "none are configured"
                raise ConfigError(
                    f"objective[{i}].view: {term.plugin.name!r} reads the view {view!r}, which is not under contexts ({known}). "
                    f"Add e.g. contexts: {{{view}: {{name: reference_solution}}}}."
                )
    for view in result.contexts:
        if view not in used:
            raise ConfigError(
                f"contexts.{view}: no term of the objective reads this view; remove it or set a term's view={view}."
            )


def _check_rewards(result: Plan) -> None:
    config = result.config
    names = [r.plugin.name for r in result.rewards]
    if len(set(names)) < len(names):
        raise ConfigError(f"rewards: the same name twice ({', '.join(names)}); parts are logged by name.")
    if result.eval_sets and not names:
        raise ConfigError(
            "eval.sets: sets need a reward that says what is right; add one under rewards (weight 0 if it should not train)."
        )
    if config.eval.reward is not None and config.eval.reward not in names:
        raise ConfigError(f"eval.reward: {config.eval.reward!r} is not under rewards ({', '.join(names) or 'empty'}).")


def _views_read(function: Callable[..., Any], options: Mapping[str, Any]) -> set[str]:
    """The views that a term and the plug-ins among its options read."""
    known = options_of(function)
    views = {options.get("view", known["view"].default)} if "view" in known else set()
    for value in options.values():
        if callable(value):
            inner, bound = (value.func, value.keywords) if isinstance(value, functools.partial) else (value, {})
            views |= _views_read(inner, bound)
    return views
