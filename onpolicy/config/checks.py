"""What must hold between the values of a resolved config. A check yields its problems; where it depends on a section with a
problem of its own it stays silent, because what it would say may only follow from that."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from onpolicy.config.bounds import out_of_bounds
from onpolicy.config.metric_checks import metrics
from onpolicy.config.problems import Problems
from onpolicy.config.registry import Plugin, defaults_and
from onpolicy.config.renamed import renamed_name
from onpolicy.config.resolved import (
    ResolvedConfig,
    Section,
    contexts_of,
    mentioned,
    plug_ins_in,
    term_plugins,
)
from onpolicy.config.schedules import Coefficient, coefficients_in
from onpolicy.config.schema import ALL_DEVICES
from onpolicy.rewards import lexicon
from onpolicy.utils.errors import suggest

NORMALIZE = ("tokens", "all_tokens", "sequences", "all_sequences", "max_tokens")
COUNT_OWN = ("tokens", "sequences")
"""Means over a term's own tokens or completions; the others count all of the update."""
ACTIONS = ("warn", "lower", "freeze_teacher", "stop")
WHEN = ("always", "correct", "wrong")
LR_SCHEDULES = ("constant", "linear", "cosine")
Check = Callable[[ResolvedConfig, Problems], Iterator[str]]


def ranges(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """Numbers that lie outside of the bounds that the schema declares."""
    yield from out_of_bounds(resolved.config, "")
    sections = [
        resolved.data,
        resolved.generator,
        resolved.trainer,
        *resolved.rewards,
        *resolved.objective,
        *resolved.guards,
    ]
    optional = [section for section in (resolved.privileged_rollouts, resolved.environment) if section is not None]
    for section in (*sections, *resolved.eval_sets.values(), *optional):
        yield from out_of_bounds(section.settings, f"{section.plugin.key}.")


def dates(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """The day of the chat template."""
    date = resolved.config.rendering.date
    try:
        day = None if date is None else datetime.date.fromisoformat(date)
    except ValueError:
        day = None
    if date is not None and str(day) != date:
        yield f"rendering.date: got {date!r}, expected a day as YYYY-MM-DD, or null."


def lists(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """The items of lists: OmegaConf takes a list where a number of a list is expected."""
    config = resolved.config
    yield from _items("trainer.betas", resolved.trainer.settings.betas, int | float, "two numbers", length=2)
    yield from _items("eval.pass_at", config.eval.pass_at, int, "whole numbers")
    yield from _items("epistemic.lexicons", config.epistemic.lexicons, str, "names of lexicons")
    tags = config.rendering.thinking_tags
    if tags is not None:
        yield from _items(
            "rendering.thinking_tags", tags, str, "two texts, what opens and what closes thinking", length=2
        )
        if not all(tags) or len(set(tags)) < len(tags):
            yield f"rendering.thinking_tags: got {tags!r}, expected two different texts that are not empty."
    for k in config.eval.pass_at if problems.sound("eval.samples_per_problem") else ():
        if isinstance(k, int) and not 1 <= k <= config.eval.samples_per_problem:
            yield f"eval.pass_at: got {k}, expected 1 to eval.samples_per_problem = {config.eval.samples_per_problem}."


def _items(key: str, values: Sequence[Any], kind: Any, expected: str, length: int | None = None) -> Iterator[str]:
    if not all(isinstance(v, kind) for v in values) or (length is not None and len(values) != length):
        yield f"{key}: got {values!r}, expected a list of {expected}."


def choices(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """Values that are one of a few names."""
    config = resolved.config
    yield from _one_of("rendering.overlong", config.rendering.overlong, ("error", "drop"))
    yield from _one_of("trainer.lr_schedule", resolved.trainer.settings.lr_schedule, LR_SCHEDULES)
    for guard in resolved.guards:
        yield from _one_of(f"{guard.plugin.key}.action", guard.settings.action, ACTIONS)
    for reward in resolved.rewards:
        others = [r.plugin.name for r in resolved.rewards if r is not reward and r.settings.when == WHEN[0]]
        yield from _one_of(f"{reward.plugin.key}.when", reward.settings.when, (*WHEN, *others))
    for term in resolved.objective:
        yield from _one_of(f"{term.plugin.key}.normalize", term.settings.normalize, NORMALIZE)


def lexicons(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """Names of lexicons, built in or under ``lexicons``."""
    config = resolved.config
    named = [("epistemic.lexicons", name) for name in config.epistemic.lexicons if isinstance(name, str)]
    for key, name in (*named, ("epistemic.lexicon", config.epistemic.lexicon)):
        if name not in config.custom_lexicons:
            yield from _one_of(key, name, lexicon.LEXICONS, "lexicon")


def _one_of(key: str, value: str, known: Iterable[str], kind: str = "") -> Iterator[str]:
    if value not in known:
        hint = renamed_name(kind, value) or suggest(value, known)
        yield f"{key}: got {value!r}, expected one of {', '.join(known)}.{hint}"


def lowered(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """A guard lowers a number that exists."""
    weights = [f"{s.plugin.key}.weight" for s in (*resolved.rewards, *resolved.objective)]
    numbers = dict.fromkeys([*weights, *(c.key for c in resolved.coefficients)])
    sections = ("rewards", "objective", "contexts", "spans", "teacher", "credit")
    for guard in resolved.guards:
        key, settings = guard.plugin.key, guard.settings
        if settings.action not in ACTIONS or not problems.sound(key):
            continue
        if settings.action == "lower" and (settings.target in numbers or problems.sound(*sections)):
            yield from _one_of(f"{key}.target", str(settings.target), numbers)
        elif settings.action != "lower" and settings.target:
            yield f"{key}.target: has no effect with action={settings.action}; set action=lower."


def contexts(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """A term that reads a context, or a span, needs it; one that nothing reads is a mistake."""
    kinds: tuple[tuple[str, str, str, str, Callable[[Plugin], dict[str, str]], Iterable[str]], ...] = (
        ("contexts", "context", "context", "reference_solution", contexts_of, resolved.contexts),
        ("spans", "span", "marked", "markers", lambda plugin: mentioned(plugin, "marked"), resolved.spans),
    )
    for kind, what, option, example, read_by, configured in kinds:
        read: set[str] = set()
        for term in resolved.objective:
            keys = {name: key for plugin in term_plugins(term) for name, key in read_by(plugin).items()}
            read.update(keys)
            for name, key in keys.items():
                if name not in configured and problems.readable(kind):
                    yield (
                        f"{key}: {term.plugin.name!r} reads the {what} {name!r}, which is not under {kind} "
                        f"({', '.join(configured) or 'none are configured'}). Add e.g. {kind}: {{{name}: {{name: {example}}}}}."
                    )
        for name in configured if problems.sound("objective") else ():
            if name not in read:
                yield f"{kind}.{name}: no term of the objective reads this {what}; remove it or name it in a term: {option}={name}."


def rewards(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """Rewards have different names, and what needs a verdict has a reward that gives it."""
    config = resolved.config
    names = [r.plugin.name for r in resolved.rewards]
    found = [r.plugin.name for r in resolved.rewards if r.plugin.found]
    if len(set(found)) < len(found):
        yield f"rewards: the same name twice ({', '.join(names)}); parts are logged by name."
    if resolved.eval_sets and not (names or resolved.graders) and problems.sound("rewards", "eval.graders"):
        yield "eval.sets: sets need a reward that says what is right; add one under rewards (weight 0 if it should not train)."
    if resolved.data.settings.dynamic_sampling > 0 and not names and problems.sound("rewards"):
        yield "data.dynamic_sampling: needs a reward that says what is right; add one under rewards."
    decides = resolved.correctness_name
    for reward in resolved.rewards:
        if reward.plugin.name == decides and reward.settings.when in WHEN[1:]:
            yield f"{reward.plugin.key}.when: {decides!r} decides which answers are correct, so it must be given always."
    if config.correctness is not None and config.correctness not in names and problems.readable("rewards"):
        yield f"correctness: {config.correctness!r} is not under rewards ({', '.join(names) or 'empty'})."


def reference_rates(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """Rewards that compare with the reference model's rate count the same markers as its baseline."""
    epistemic = resolved.config.epistemic
    for plugin in resolved.ref_rate_readers:
        if not epistemic.baseline and problems.sound("epistemic.baseline"):
            yield f"{plugin.key}: {plugin.name!r} compares with the reference model's rate; set epistemic.baseline, e.g. 8."
        counted = {"lexicon": epistemic.lexicon, "spacing": resolved.ref_spacing}
        for option, value in counted.items():
            given = mentioned(plugin, option)
            if given and set(given) != {value} and problems.sound("epistemic.lexicon"):
                yield (
                    f"{plugin.key}.{option}: got {next(iter(given))!r}, but the reference model's markers are counted with {value!r}: "
                    "the lexicon of epistemic.lexicon, and one spacing for all rewards that compare with it."
                )


def completions(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """What sampled answers have and a dataset's completions lack."""
    if resolved.data.settings.completions_column is None:
        return
    nothing = "data.completions_column: nothing is sampled"
    if resolved.generator.settings.max_staleness:
        yield f"{nothing}, so generator.max_staleness has no meaning; leave it at 0."
    if resolved.data.settings.dynamic_sampling:
        yield f"{nothing}, so there are no groups for data.dynamic_sampling; leave it at 0."
    for plugin in resolved.loss_plugins:
        for cap, key in mentioned(plugin, "importance_cap").items():
            if cap is not None:
                yield f"{nothing}, so no sampler's log-probabilities for {key} = {cap}; set it to null."


def privileged(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """Rollouts sampled with a context are sampled for terms that take them, and a term that takes them has some."""
    found, key = resolved.privileged_rollouts, "privileged_rollouts"
    takers = [t for t in resolved.objective if "is_privileged" in inspect.signature(t.settings.route).parameters]
    if found is None:
        for term in takers:
            yield f"{term.plugin.key}.route: takes privileged rollouts alone, but {key} names no context with which to sample them."
        return
    if not takers and problems.sound("objective"):
        yield f"{key}: no term of the objective takes such rollouts; add a term with route=privileged."
    if not resolved.rewards and problems.sound("rewards"):
        yield f"{key}: needs a reward that says which rollouts are correct; add one under rewards."
    if resolved.data.settings.completions_column is not None:
        yield f"{key}: nothing is sampled with data.completions_column; leave it out."
    if resolved.environment is not None:
        yield f"{key}: an environment answers what is sampled for the problem alone; expected one of the two."
    if resolved.data.settings.dynamic_sampling:
        yield f"{key}: data.dynamic_sampling discards the groups whose rollouts all failed; expected one of the two."
    if any(map(inspect.isgeneratorfunction, plug_ins_in(found.plugin.function, found.plugin.options))):
        yield f"{key}.name: {found.plugin.name!r} asks the model itself; expected a context that does not."
    for term in resolved.objective:
        if term.settings.normalize not in COUNT_OWN:
            yield (
                f"{term.plugin.key}.normalize: {term.settings.normalize!r} counts every completion of the update, {key} too; "
                "expected tokens or sequences."
            )


def temperatures(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """At a temperature other than 1 nothing is known of the sampler, nor of the student at the start of a step."""
    if not problems.sound("objective"):
        return
    updates = resolved.trainer.settings.updates_per_step
    for term in resolved.objective:
        key, value = f"{term.plugin.key}.temperature", resolved.temperature_of(term)
        if isinstance(value, Coefficient):
            yield f"{key}: a schedule has no effect here, this option is read once, at the start."
        elif value <= 0:
            yield f"{key}: got {value}, expected more than 0."
        elif value != 1:
            yield from _of_sampler(term.plugin, f"with {key} = {value}")
    for plugin in resolved.tempered_old_readers if updates > 1 else ():
        yield (
            f"trainer.updates_per_step: got {updates}, but {plugin.key} reads log-probabilities of the start of a step, which are kept at "
            f"temperature 1; expected 1, or {plugin.key}.temperature=1."
        )


def _of_sampler(plugin: Plugin, where: str) -> Iterator[str]:
    why = "but the sampler's log-probabilities are those at temperature 1"
    if (cap := dict(defaults_and(plugin.function, plugin.options)).get("importance_cap")) is not None:
        yield f"{plugin.key}.importance_cap: got {cap} {where}, {why}; expected null."
    if key := mentioned(plugin, "against").get("sampler"):
        yield f"{key}: got 'sampler' {where}, {why}; expected 'old'."


def data_sections(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """What a data section puts around its problems, and the columns that it names."""
    for section in (resolved.data, *resolved.eval_sets.values()):
        key, options = section.plugin.key, section.plugin.options
        template = options.get("prompt_template")
        if isinstance(template, str) and "{problem}" not in template:
            yield f"{key}.prompt_template: got {template!r}, expected a text with {{problem}}; every prompt would be this one."
        for role in options.get("columns") or ():
            yield from _one_of(f"{key}.columns", role, ("prompt", "answer", "solution"))


def schedules(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """Schedules stand only where a number is read again at each step."""
    sections: tuple[Section, ...] = (resolved.data, resolved.generator, resolved.trainer)
    for plugin in (*(s.plugin for s in sections), *resolved.trackers):
        for found in coefficients_in(plugin.bind()):
            yield f"{found.key}: a schedule has no effect here, this option is read once, at the start."


def devices(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """How many devices there are to be, and by whose processes."""
    if not problems.sound("trainer"):
        return
    asked, roles = resolved.trainer.settings.devices, resolved.config.distributed
    if asked != ALL_DEVICES and not (asked.isdecimal() and int(asked) > 0):
        yield f"trainer.devices: got {asked!r}, expected a number of GPUs from 1 on, or all"
    elif asked != "1" and (roles.num_trainers or roles.num_generators):
        named = "num_trainers" if roles.num_trainers else "num_generators"
        yield (
            f"trainer.devices: got {asked}, and distributed.{named} is {getattr(roles, named)}; expected one of them: devices are ranks of "
            "this machine that train and sample, distributed.* are Ray actors"
        )


CHECKS: tuple[Check, ...] = (
    *(ranges, dates, lists, choices, lexicons, lowered, contexts, rewards, reference_rates),
    *(completions, privileged, temperatures, data_sections, schedules, metrics, devices),
)
