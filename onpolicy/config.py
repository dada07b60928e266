"""The config: its sections, their defaults and meanings, and how a file plus overrides becomes one checked object.

Sections with a ``name`` (``data``, ``generator``, ``teacher`` ...) choose a plug-in: besides the fields listed here they
take that plug-in's own options, which are its keyword-only parameters (``onpolicy.registry``). Loading a config imports
no torch and touches no model.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from onpolicy.registry import ConfigError, Plugin, resolve, suggest
from onpolicy.sampling import Sampling


def opt(default: Any, meaning: str) -> Any:
    """A field with its meaning beside it; mutable defaults are copied."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": meaning})
    if isinstance(default, type):
        return field(default_factory=default, metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


@dataclass
class ModelConfig:
    path: str = opt("???", "local folder, hub id, or `smollm2-135m` (ships as a package, needs no hub)")
    revision: str | None = opt(None, "branch, tag or commit of a hub model")
    trust_remote_code: bool = opt(False, "run Python that comes with the model")
    attn_implementation: str | None = opt(
        None, "transformers' attention kernel, e.g. sdpa, flash_attention_2; null: its choice"
    )


@dataclass
class RenderingConfig:
    chat_template: str | None = opt(None, "Jinja file used instead of the tokenizer's own template")
    thinking: bool | None = opt(
        None, "`enable_thinking` for the template, the same for student and teacher; null: not passed"
    )
    max_prompt_tokens: int = opt(2048, "longest student prompt, in tokens")
    max_teacher_prompt_tokens: int = opt(8192, "longest privileged prompt, in tokens")
    too_long: str = opt(
        "refuse", "a longer prompt: `refuse` stops with an error; `drop` leaves the rollout out and counts it"
    )


@dataclass
class CoverageConfig:
    problems: int | None = opt(
        None, "train on this many problems; subsets are nested: the 8 are among the 64; null: all"
    )
    repeats: int | None = opt(None, "times each chosen problem stands in an epoch; null: once")
    seed: int = opt(0, "which problems")


@dataclass
class DataFrame:
    prompts_per_step: int = opt(8, "problems sampled a step")
    shuffle: bool = opt(True, "a new order each epoch, the same for the same `seed`")
    coverage: CoverageConfig = opt(CoverageConfig, "nested subsets of the problems")


@dataclass
class TrainerFrame:
    lr: float = opt(1e-6, "peak learning rate of AdamW")
    lr_schedule: str = opt("constant", "after warm-up: `constant`, `linear` or `cosine` down to 0 at `steps`")
    warmup_steps: int = opt(0, "steps of linear warm-up")
    weight_decay: float = opt(0.0, "AdamW's")
    betas: list[float] = opt([0.9, 0.999], "AdamW's")
    max_grad_norm: float = opt(1.0, "clip the gradient's norm here")
    micro_batch: int = opt(4, "rollouts in one forward and backward pass; changes memory and speed, never the gradient")
    updates_per_step: int = opt(
        1, "optimizer updates a step, each on its share of the rollouts; above 1 the later ones are off-policy"
    )


@dataclass
class Weighted:
    weight: float = opt(1.0, "factor in the sum; 0 computes and logs without effect")


@dataclass
class EvalConfig:
    every: int = opt(0, "evaluate each so many steps, and before the first and after the last; 0: never")
    sets: dict[str, Any] = opt({}, "name -> data section (with optional `problems`: the first so many)")
    samples: int = opt(4, "rollouts per problem")
    k: list[int] = opt([1, 4], "pass@k and maj@k are reported for these")
    temperature: float = opt(1.0, "sampling temperature at evaluation")
    top_p: float = opt(1.0, "nucleus at evaluation")
    max_tokens: int | None = opt(None, "completion cap at evaluation; null: `generator.max_tokens`")
    reward: str | None = opt(
        None, "name of the reward that says what is right (>= 0.5); null: the first under `rewards`"
    )


@dataclass
class CheckpointConfig:
    every: int = opt(0, "save each so many steps, and after the last; 0: only after the last")
    keep_last: int = opt(2, "checkpoints kept besides the best")
    best: str | None = opt(None, "metric whose best checkpoint is kept, e.g. `eval/ood/avg@4`; null: none")


@dataclass
class LoggingConfig:
    trackers: list[Any] = opt(["jsonl", "tensorboard"], "where metrics go")
    samples: int = opt(2, "rollouts a step written to samples.jsonl with both prompts")


@dataclass
class PreflightConfig:
    enabled: bool = opt(True, "check prompts, alignment, teacher, log-probs and signal before the first step")
    logprob_tolerance: float = opt(
        0.05, "largest mean difference between generator and trainer log-probs, nats per token"
    )


@dataclass
class Config:
    """A whole run. A YAML file holds what differs from these defaults."""

    model: ModelConfig = opt(ModelConfig, "the student, which is also the teacher")
    rendering: RenderingConfig = opt(RenderingConfig, "how messages become tokens")
    data: dict[str, Any] = opt({}, "the problems; a plug-in of kind `data`")
    generator: dict[str, Any] = opt({"name": "vllm"}, "who samples; a plug-in of kind `generator`")
    rewards: list[Any] = opt([], "what an answer is worth: plug-ins of kind `reward`, summed by `weight`")
    contexts: dict[str, Any] = opt({}, "view name -> what the teacher may see; plug-ins of kind `context`")
    teacher: dict[str, Any] = opt({"name": "live"}, "whose weights teach; a plug-in of kind `teacher`")
    credit: dict[str, Any] = opt({"name": "group_std"}, "rewards of a group -> advantages; a plug-in of kind `credit`")
    objective: list[Any] = opt([], "the loss: plug-ins of kind `term`, summed by `weight`")
    trainer: dict[str, Any] = opt({"name": "local"}, "who updates the weights; a plug-in of kind `trainer`")
    eval: EvalConfig = opt(EvalConfig, "named sets, measured while training and by `onpolicy eval`")
    checkpoint: CheckpointConfig = opt(CheckpointConfig, "what is saved when")
    logging: LoggingConfig = opt(LoggingConfig, "metrics and samples")
    preflight: PreflightConfig = opt(PreflightConfig, "refuse a run that cannot mean anything")
    steps: int = opt(100, "optimizer steps")
    seed: int = opt(0, "decides sampling, shuffling and initialisation")
    run_dir: str | None = opt(
        None, "folder of the run; one that holds a checkpoint is resumed; null: runs/<config>-<time>"
    )


FRAMES: dict[str, type] = {
    "data": DataFrame,
    "generator": Sampling,
    "trainer": TrainerFrame,
    "reward": Weighted,
    "term": Weighted,
}
"""Kind -> fields that any plug-in of this kind takes beside its own options."""

SUPPLIED: dict[str, tuple[str, ...]] = {
    "generator": ("renderer", "model", "sampling", "max_model_len"),
    "trainer": ("model", "objective", "teacher", "settings", "total_steps", "pad_id", "views", "clock"),
}
"""Keyword-only parameters that the framework fills."""


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


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies ``a.b=value`` overrides (``objective[0].weight=2`` reaches into lists).

    Raises:
        ConfigError: no such file, not YAML, unknown key, wrong type, missing value.
    """
    path = Path(path)
    if not path.is_file():
        here = sorted(str(p) for p in Path(path.parent).glob("*.yaml")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(str(path), here, n=1, cutoff=0.4)
        raise ConfigError(
            f"config file {str(path)!r} does not exist." + (f" Did you mean {near[0]!r}?" if near else "")
        )
    try:
        raw = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {str(path)!r} is not valid YAML: {error}") from error
    if not isinstance(raw, DictConfig):
        raise ConfigError(f"config file {str(path)!r} holds a {type(raw).__name__}, wanted sections (key: value)")
    for override in overrides:
        _override(raw, override)
    return build(raw)


def build(raw: DictConfig | Mapping[str, Any]) -> Config:
    """Merges onto the defaults; unknown keys and wrong types are refused with their full key."""
    raw = raw if isinstance(raw, DictConfig) else OmegaConf.create(dict(raw))
    _refuse_unknown(raw, Config, "")
    try:
        # a named section replaces its default whole: options of one plug-in mean nothing to another
        schema = OmegaConf.structured(Config)
        for key, value in raw.items():
            if OmegaConf.is_dict(value) and "name" in value:
                schema[key] = {}
        config = OmegaConf.to_object(OmegaConf.merge(schema, raw))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: missing. Give it in the file or as an override.") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(config, Config)
    return config


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


@dataclass
class EvalFrame:
    problems: int | None = opt(None, "the first so many problems; null: all")


def _eval_set(name: str, spec: Any) -> Section:
    return section("data", spec, f"eval.sets.{name}", EvalFrame)


def _override(raw: DictConfig, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: wanted key=value")
    try:
        OmegaConf.update(raw, key, yaml.safe_load(value) if value else None, merge=False, force_add=True)
    except (OmegaConfBaseException, yaml.YAMLError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"override {override!r}: {str(error).splitlines()[0]}") from error


def _refuse_unknown(raw: DictConfig, schema: type, prefix: str) -> None:
    fields = {f.name: f for f in dataclasses.fields(schema)}
    everywhere = _all_keys()
    for name in map(str, raw):
        key = f"{prefix}{name}"
        if name not in fields:
            elsewhere = [k for k in everywhere if k.rpartition(".")[2] == name]
            hint = suggest(name, fields) or (f" There is {', '.join(elsewhere)}." if elsewhere else "")
            raise ConfigError(f"{key}: unknown key.{hint} Known here: {', '.join(fields)}.")
        child = fields[name].default_factory
        if isinstance(child, type) and dataclasses.is_dataclass(child) and isinstance(raw._get_node(name), DictConfig):
            _refuse_unknown(raw[name], child, f"{key}.")


def _all_keys() -> list[str]:
    keys = []
    for f in dataclasses.fields(Config):
        frame = f.default_factory if dataclasses.is_dataclass(f.default_factory) else FRAMES.get(f.name)
        keys += [f"{f.name}.{sub.name}" for sub in dataclasses.fields(frame)] if frame else [f.name]
    return keys


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
    for k in config.eval.k:
        if not 1 <= k <= config.eval.samples:
            raise ConfigError(f"eval.k: got {k}, wanted 1 to eval.samples = {config.eval.samples}.")


def _one_of(key: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}: got {value!r}, wanted one of {', '.join(choices)}.{suggest(value, choices)}")


def _check_views(result: Plan) -> None:
    """A term that reads a view needs that view; a view that nothing reads is a mistake."""
    from onpolicy.registry import options_of

    used = set()
    for i, term in enumerate(result.objective):
        parameter = options_of(term.plugin.function).get("view")
        if parameter is None:
            continue
        view = term.plugin.options.get("view", parameter.default)
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


def to_yaml(config: Config) -> str:
    """The resolved config as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
