"""From a config to a plan: every name found, every option checked, before anything is loaded."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onpolicy.config.registry import ConfigError, Plugin, coefficient, is_schedule, options_of, resolve_plugin, suggest
from onpolicy.config.schedules import Coefficient, coefficients_in
from onpolicy.config.schema import INJECTED, SHARED_FIELDS, Config, EvalSetSettings
from onpolicy.config.yaml_io import file_name
from onpolicy.rewards import lexicon
from onpolicy.rewards.uncertainty import SPACING

NORMALIZE = ("tokens", "sequences", "all_sequences", "max_tokens")
SCHEDULED = ("weight",)
"""Fields of frames that a schedule may stand for."""


@dataclass(frozen=True)
class Section:
    """A plug-in section: the plug-in and the fields every plug-in of its kind has."""

    plugin: Plugin
    settings: Any


@dataclass(frozen=True)
class ResolvedConfig:
    """A config with every name found and every option checked."""

    config: Config
    data: Section
    generator: Section
    rewards: tuple[Section, ...]
    contexts: Mapping[str, Plugin]
    spans: Mapping[str, Plugin]
    teacher: Plugin
    credit: Plugin
    objective: tuple[Section, ...]
    trainer: Section
    guards: tuple[Section, ...]
    trackers: tuple[Plugin, ...]
    eval_sets: Mapping[str, Section]
    graders: tuple[Plugin, ...]

    @property
    def coefficients(self) -> list[Coefficient]:
        """Every scheduled number of the run."""
        plugins = [*self.contexts.values(), *self.spans.values(), self.teacher, self.credit]
        sections = [*self.rewards, *self.objective]
        found = [s.settings.weight for s in sections] + [p.bind() for p in [*plugins, *(s.plugin for s in sections)]]
        return [c for value in found for c in coefficients_in(value)]

    @property
    def querying_plugins(self) -> dict[str, Plugin]:
        """Contexts and span finders that may ask the model while a step is made, by their keys."""
        found = {f"contexts.{k}": p for k, p in self.contexts.items()} | {
            f"spans.{k}": p for k, p in self.spans.items()
        }
        return {key: plugin for key, plugin in found.items() if inspect.isgeneratorfunction(plugin.function)}

    @property
    def ref_rate_readers(self) -> list[Plugin]:
        """Rewards that compare with the reference model's own rate."""
        return [r.plugin for r in self.rewards if "ref_rate" in inspect.signature(r.plugin.function).parameters]

    @property
    def ref_spacing(self) -> int:
        """Words between two markers of the reference model that both count: as in the rewards that compare with it."""
        return next((int(value) for p in self.ref_rate_readers for value in mentioned(p, "spacing")), SPACING)

    @property
    def lexicons(self) -> tuple[str, ...]:
        """Whose markers' probability the objective wants to know."""
        return tuple(dict.fromkeys(value for t in self.objective for value in mentioned(t.plugin, "lexicon")))

    @property
    def correctness_name(self) -> str:
        """The reward that decides which answers are correct: ``correctness``, else the first one; "" without rewards."""
        return self.config.correctness or next((r.plugin.name for r in self.rewards), "")

    @property
    def term_names(self) -> list[str]:
        """The names of the loss terms, each of them unique."""
        return unique_names([t.plugin.name.rpartition(":")[2] for t in self.objective])


def resolve(config: Config) -> ResolvedConfig:
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
    rewards = reward_sections(config)
    lowered = lowered_keys(config)
    result = ResolvedConfig(
        config=config,
        data=section("data", config.data, "data"),
        generator=section("generator", config.generator, "generator"),
        rewards=rewards,
        contexts={
            context: resolve_plugin("context", spec, f"contexts.{context}") for context, spec in config.contexts.items()
        },
        spans={name: resolve_plugin("span", spec, f"spans.{name}") for name, spec in config.spans.items()},
        teacher=resolve_plugin("teacher", config.teacher, "teacher"),
        credit=resolve_plugin("credit", config.credit, "credit"),
        objective=tuple(_term(spec, f"objective[{i}]", lowered) for i, spec in enumerate(config.objective)),
        trainer=section("trainer", config.trainer, "trainer"),
        guards=tuple(
            section("guard", _followed(spec, config.epistemic.lexicon), f"guards[{i}]")
            for i, spec in enumerate(config.guards)
        ),
        trackers=tuple(
            resolve_plugin("tracker", s, f"logging.trackers[{i}]") for i, s in enumerate(config.logging.trackers)
        ),
        eval_sets={name: _eval_set(name, spec) for name, spec in config.eval.sets.items()},
        graders=tuple(resolve_plugin("reward", s, f"eval.graders[{i}]") for i, s in enumerate(config.eval.graders)),
    )
    _check_values(config, result)
    _check_contexts(result)
    _check_rewards(result)
    _check_completions(result)
    _check_schedules(result)
    return result


def unique_names(names: Sequence[str]) -> list[str]:
    """``distill, distill`` -> ``distill, distill_2``."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result


def reward_sections(config: Config) -> tuple[Section, ...]:
    """The rewards, with the lexicons they may count; imports nothing else that the config names."""
    for name, words in config.lexicons.items():
        try:
            if not isinstance(words, list):
                raise ValueError(f"got {words!r}, wanted a list of words or phrases")
            lexicon.add(name, words)
        except ValueError as error:
            raise ConfigError(f"lexicons.{name}: {error}") from None
    lowered = lowered_keys(config)
    return tuple(section("reward", s, f"rewards[{i}]", lowered=lowered) for i, s in enumerate(config.rewards))


def lowered_keys(config: Config) -> list[str]:
    """Keys of the numbers that guards may lower."""
    return [str(spec["lowers"]) for spec in config.guards if isinstance(spec, Mapping) and spec.get("lowers")]


def _followed(guard: Any, lexicon_name: str) -> Any:
    """A guard whose metric says ``{followed}`` for the lexicon that is followed."""
    if not isinstance(guard, Mapping) or not isinstance(guard.get("metric"), str):
        return guard
    return {**guard, "metric": guard["metric"].replace("{followed}", lexicon_name)}


def section(kind: str, spec: Any, key: str, settings: type | None = None, lowered: Sequence[str] = ()) -> Section:
    """Splits a section into the fields of its frame and the plug-in's options, and checks both.

    Args:
        lowered: keys of numbers that a guard may lower
    """
    settings = settings or SHARED_FIELDS[kind]
    if isinstance(spec, str):
        return Section(plugin=resolve_plugin(kind, spec, key, supplied=INJECTED.get(kind, ())), settings=settings())
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{key}: wanted a name or a mapping with 'name' and options, got {spec!r}")
    names = {f.name for f in dataclasses.fields(settings)}
    ours = {k: v for k, v in spec.items() if k in names}
    scheduled = {k: coefficient(v, f"{key}.{k}") for k, v in ours.items() if k in SCHEDULED and is_schedule(v)}
    ours = {k: v for k, v in ours.items() if k not in scheduled}
    try:
        merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(settings), ours))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}.{error.full_key}: {str(error).splitlines()[0]}") from error
    except ValueError as error:  # a frame's own check of its values
        raise ConfigError(str(error)) from error
    for name in SCHEDULED:
        if f"{key}.{name}" in lowered and name not in scheduled:
            scheduled[name] = coefficient({"name": "constant", "value": getattr(merged, name)}, f"{key}.{name}")
    merged = dataclasses.replace(merged, **scheduled)  # type: ignore[arg-type, type-var]
    rest = {k: v for k, v in spec.items() if k not in names}
    try:
        return Section(plugin=resolve_plugin(kind, rest, key, supplied=INJECTED.get(kind, ())), settings=merged)
    except ConfigError as error:
        for option in rest:  # a misspelled frame field looks like an unknown option of the plug-in
            if str(error).startswith(f"{key}.{option}: ") and suggest(option, names):
                raise ConfigError(
                    f"{error} Fields of every {kind}: {', '.join(sorted(names))}.{suggest(option, names)}"
                ) from None
        raise


def _term(spec: Any, key: str, lowered: Sequence[str]) -> Section:
    found = section("term", spec, key, lowered=lowered)
    route = resolve_plugin("route", found.settings.route, f"{key}.route").bind()
    return Section(found.plugin, dataclasses.replace(found.settings, route=route))


def _eval_set(name: str, spec: Any) -> Section:
    file_name(name, f"eval.sets.{name}")
    return section("data", spec, f"eval.sets.{name}", EvalSetSettings)


def _check_values(config: Config, result: ResolvedConfig) -> None:
    positive = {
        "steps": config.steps,
        "data.prompts_per_step": result.data.settings.prompts_per_step,
        "rendering.max_prompt_tokens": config.rendering.max_prompt_tokens,
        "rendering.max_teacher_prompt_tokens": config.rendering.max_teacher_prompt_tokens,
        "trainer.micro_batch_tokens": result.trainer.settings.micro_batch_tokens,
        "trainer.updates_per_step": result.trainer.settings.updates_per_step,
        "eval.samples": config.eval.samples,
        "checkpoint.keep_last": config.checkpoint.keep_last,
    }
    for key, value in positive.items():
        if value is not None and value < 1:
            raise ConfigError(f"{key}: got {value}, wanted at least 1.")
    nonnegative = {
        "trainer.lr": result.trainer.settings.lr,
        "eval.every": config.eval.every,
        "checkpoint.every": config.checkpoint.every,
        "data.dynamic_sampling": result.data.settings.dynamic_sampling,
        "epistemic.baseline": config.epistemic.baseline,
    }
    for key, number in nonnegative.items():
        if number < 0:
            raise ConfigError(f"{key}: got {number}, wanted 0 or more.")
    _items("trainer.betas", result.trainer.settings.betas, int | float, "two numbers", length=2)
    _items("eval.k", config.eval.k, int, "whole numbers")
    _items("epistemic.lexicons", config.epistemic.lexicons, str, "names of lexicons")
    _one_of("rendering.too_long", config.rendering.too_long, ("refuse", "drop"))
    _one_of("trainer.lr_schedule", result.trainer.settings.lr_schedule, ("constant", "linear", "cosine"))
    for key, names in (
        ("epistemic.lexicons", config.epistemic.lexicons),
        ("epistemic.lexicon", [config.epistemic.lexicon]),
    ):
        for name in names:
            _one_of(key, name, lexicon.LEXICONS)
    for guard in result.guards:
        _one_of(f"{guard.plugin.key}.action", guard.settings.action, ("warn", "lower", "freeze_teacher", "stop"))
        if guard.settings.action == "lower" or guard.settings.lowers:
            _check_lowered(guard, result)
    for reward in result.rewards:
        _one_of(f"{reward.plugin.key}.when", reward.settings.when, ("always", "correct", "wrong"))
    for term in result.objective:
        _one_of(f"{term.plugin.key}.normalize", term.settings.normalize, NORMALIZE)
    for k in config.eval.k:
        if not 1 <= k <= config.eval.samples:
            raise ConfigError(f"eval.k: got {k}, wanted 1 to eval.samples = {config.eval.samples}.")


def _items(key: str, values: Sequence[Any], kind: Any, wanted: str, length: int | None = None) -> None:
    """OmegaConf lets a list stand where a number of a list should."""
    if not all(isinstance(v, kind) for v in values) or (length is not None and len(values) != length):
        raise ConfigError(f"{key}: got {values!r}, wanted a list of {wanted}.")


def _check_lowered(guard: Section, result: ResolvedConfig) -> None:
    if guard.settings.action != "lower":
        raise ConfigError(
            f"{guard.plugin.key}.lowers: has no effect with action={guard.settings.action}; set action=lower."
        )
    weights = [f"{s.plugin.key}.weight" for s in (*result.rewards, *result.objective)]
    _one_of(
        f"{guard.plugin.key}.lowers",
        str(guard.settings.lowers),
        dict.fromkeys([*weights, *(c.key for c in result.coefficients)]),
    )


def _one_of(key: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}: got {value!r}, wanted one of {', '.join(choices)}.{suggest(value, choices)}")


def _check_contexts(result: ResolvedConfig) -> None:
    """A term that reads a context, or a span, needs it; one that nothing reads is a mistake."""
    read: dict[str, set[str]] = {"contexts": set(), "spans": set()}
    for term in result.objective:
        for kind, keys, known in (
            ("contexts", contexts_of(term.plugin), result.contexts),
            ("spans", mentioned(term.plugin, "marked"), result.spans),
        ):
            read[kind].update(keys)
            for name, key in keys.items():
                if name not in known:
                    what = "context" if kind == "contexts" else "span"
                    example = "reference_solution" if kind == "contexts" else "markers"
                    raise ConfigError(
                        f"{key}: {term.plugin.name!r} reads the {what} {name!r}, which is not under {kind} "
                        f"({', '.join(known) or 'none are configured'}). Add e.g. {kind}: {{{name}: {{name: {example}}}}}."
                    )
    for kind, configured in (("contexts", result.contexts), ("spans", result.spans)):
        for name in configured:
            if name not in read[kind]:
                option, what = ("context", "context") if kind == "contexts" else ("marked", "span")
                raise ConfigError(
                    f"{kind}.{name}: no term of the objective reads this {what}; remove it or name it in a term: {option}={name}."
                )


def _check_rewards(result: ResolvedConfig) -> None:
    config = result.config
    names = [r.plugin.name for r in result.rewards]
    if len(set(names)) < len(names):
        raise ConfigError(f"rewards: the same name twice ({', '.join(names)}); parts are logged by name.")
    if result.eval_sets and not (names or result.graders):
        raise ConfigError(
            "eval.sets: sets need a reward that says what is right; add one under rewards (weight 0 if it should not train)."
        )
    if result.data.settings.dynamic_sampling and not names:
        raise ConfigError("data.dynamic_sampling: needs a reward that says what is right; add one under rewards.")
    for plugin in result.ref_rate_readers:
        if not config.epistemic.baseline:
            raise ConfigError(
                f"{plugin.key}: {plugin.name!r} compares with the reference model's rate; set epistemic.baseline, e.g. 8."
            )
        counted = {"lexicon": config.epistemic.lexicon, "spacing": result.ref_spacing}
        for option, value in counted.items():
            given = mentioned(plugin, option)
            if given and set(given) != {value}:
                raise ConfigError(
                    f"{plugin.key}.{option}: got {next(iter(given))!r}, but the reference model's markers are counted with {value!r}: "
                    "the lexicon of epistemic.lexicon, and one spacing for all rewards that compare with it."
                )
    right = result.correctness_name
    for reward in result.rewards:
        if reward.plugin.name == right and reward.settings.when != "always":
            raise ConfigError(f"{reward.plugin.key}.when: {right!r} itself says what is right; it is given always.")
    if config.correctness is not None and config.correctness not in names:
        raise ConfigError(f"correctness: {config.correctness!r} is not under rewards ({', '.join(names) or 'empty'}).")


def _check_completions(result: ResolvedConfig) -> None:
    """What sampled answers have and recorded ones lack."""
    if result.data.settings.completions is None:
        return
    nothing = "data.completions: nothing is sampled"
    if result.generator.settings.staleness:
        raise ConfigError(f"{nothing}, so generator.staleness has no meaning; leave it at 0.")
    if result.data.settings.dynamic_sampling:
        raise ConfigError(f"{nothing}, so there are no groups for data.dynamic_sampling; leave it at 0.")
    for term in result.objective:
        for cap, key in mentioned(term.plugin, "importance_cap").items():
            if cap is not None:
                raise ConfigError(f"{nothing}, so no sampler's log-probabilities for {key} = {cap}; set it to null.")


def _check_schedules(result: ResolvedConfig) -> None:
    for plugin in (result.data.plugin, result.generator.plugin, result.trainer.plugin, *result.trackers):
        for found in coefficients_in(plugin.bind()):
            raise ConfigError(f"{found.key}: a schedule has no effect here, this option is read once, at the start.")


def contexts_of(plugin: Plugin) -> dict[str, str]:
    """The contexts that a term and the plug-ins among its options read, each with the key of the option that names it."""
    return {v: key for option in ("_contexts", "_context", "context") for v, key in mentioned(plugin, option).items()}


def mentioned(plugin: Plugin, option: str) -> dict[str, str]:
    """The values of an option, given or by default, of a plug-in and of those among its options: value -> full key.

    An option that begins with an underscore stands for all names that end with it; a list counts by its items.
    """
    found: dict[str, str] = {}
    for key, value in _all_options(plugin.function, plugin.options, plugin.key):
        name = key.rpartition(".")[2]
        if name == option or (option.startswith("_") and name.endswith(option)):
            found |= dict.fromkeys(value if isinstance(value, list | tuple) else [value], key)
    return found


def plug_ins_in(function: Callable[..., Any], options: Mapping[str, Any]) -> Iterator[Callable[..., Any]]:
    """A plug-in and all that stand among its options, given or by default."""
    yield function
    for _, value in defaults_and(function, options):
        if callable(value):
            yield from plug_ins_in(*unbound(value))


def _all_options(function: Callable[..., Any], options: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    for name, value in defaults_and(function, options):
        yield f"{key}.{name}", value
        if callable(value):
            yield from _all_options(*unbound(value), f"{key}.{name}")


def defaults_and(function: Callable[..., Any], options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A plug-in's options as given, or as they are by default."""
    defaults = {name: parameter.default for name, parameter in options_of(function).items()}
    yield from (defaults | dict(options)).items()


def unbound(value: Callable[..., Any]) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    """A plug-in among the options of another, and its own options."""
    return (value.func, value.keywords) if isinstance(value, functools.partial) else (value, {})
