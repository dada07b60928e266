"""The config: its sections, their defaults and meanings, and how a file plus overrides becomes one checked object.

Sections with a ``name`` (``data``, ``generator``, ``teacher`` ...) choose a plug-in: besides the fields listed here they
take that plug-in's own options, which are its keyword-only parameters (``onpolicy.config.registry``). Loading a config imports
no torch and touches no model.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from onpolicy.config.registry import ConfigError, suggest
from onpolicy.config.yaml_io import read_value, read_yaml, refuse_functions, refuse_leftovers
from onpolicy.types import Sampling


def opt(default: Any, meaning: str) -> Any:
    """A field with its meaning beside it; mutable defaults are copied."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": meaning})
    if isinstance(default, type):
        return field(default_factory=default, metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


@dataclass
class ModelSettings:
    path: str = opt(
        "???", "local folder, hub id, `smollm2-135m` or `lab-reasoner` (both ship as packages, no hub needed)"
    )
    revision: str | None = opt(None, "branch, tag or commit of a hub model")
    trust_remote_code: bool = opt(False, "run Python that comes with the model")
    attn_implementation: str | None = opt(
        None, "transformers' attention kernel, e.g. sdpa, flash_attention_2; null: its choice"
    )


@dataclass
class RenderingSettings:
    chat_template: str | None = opt(None, "Jinja file used instead of the tokenizer's own template")
    thinking: bool | None = opt(
        None, "`enable_thinking` for the template, the same for student and teacher; null: not passed"
    )
    max_prompt_tokens: int = opt(2048, "longest student prompt, in tokens")
    max_teacher_prompt_tokens: int = opt(32768, "longest privileged prompt, in tokens; the model's window permitting")
    too_long: str = opt(
        "refuse", "a longer prompt: `refuse` stops with an error; `drop` leaves the rollout out and counts it"
    )


@dataclass
class CoverageSettings:
    problems: int | None = opt(
        None, "train on this many problems; subsets are nested: the 8 are among the 64; null: all"
    )
    repeats: int | None = opt(None, "times each chosen problem stands in an epoch; null: once")
    seed: int = opt(0, "which problems")


@dataclass
class DataSettings:
    prompts_per_step: int = opt(8, "problems sampled a step")
    shuffle: bool = opt(True, "a new order each epoch, the same for the same `seed`")
    coverage: CoverageSettings = opt(CoverageSettings, "nested subsets of the problems")
    completions: str | None = opt(
        None,
        "column that holds an answer to each problem, as text or as token ids: nothing is sampled and the run is off-policy, e.g. "
        "fine-tuning with the term `cross_entropy`; null: answers are sampled",
    )
    dynamic_sampling: int = opt(
        0,
        "DAPO's: leave out groups that are all right or all wrong and draw up to this many batches until the step is full; 0: keep all",
    )


@dataclass
class TrainerSettings:
    lr: float = opt(1e-6, "peak learning rate of AdamW")
    lr_schedule: str = opt("constant", "after warm-up: `constant`, `linear` or `cosine` down to 0 at `steps`")
    warmup_steps: int = opt(0, "steps of linear warm-up")
    weight_decay: float = opt(0.0, "AdamW's")
    betas: list[float] = opt([0.9, 0.999], "AdamW's")
    max_grad_norm: float = opt(1.0, "clip the gradient's norm here")
    micro_batch_tokens: int | None = opt(
        None,
        "most tokens in one forward and backward pass of the student; its teachers, who keep no graph, read four times as many at "
        "once; changes memory and speed, never the gradient; null: 1024 on the CPU, 8192 on a GPU",
    )
    updates_per_step: int = opt(
        1, "optimizer updates a step, each on its share of the rollouts; above 1 the later ones are off-policy"
    )


@dataclass
class Weighted:
    weight: float = opt(1.0, "factor in the sum; 0 computes and logs without effect")


@dataclass
class RewardSettings(Weighted):
    bonus: bool | None = opt(
        None,
        "added to the advantage after `credit`, less the group's mean, so that no standard deviation blows it up; "
        "null: for every reward but the one under `correctness`",
    )
    when: str = opt(
        "always", "which answers get it: `always`, `correct` or `wrong`, as `correctness` says; the others get 0"
    )


@dataclass
class TermSettings(Weighted):
    normalize: str = opt(
        "tokens",
        "what the term is a mean over. `tokens`: the update's; `sequences`: each completion's, then completions; "
        "`all_sequences`: the same, counting those without a token of the term; `max_tokens`: completions x `generator.max_tokens`",
    )
    route: Any = opt("all", "which rollouts go to this term; a plug-in of kind `route`")


@dataclass
class GuardSettings:
    action: str = opt(
        "warn",
        "`warn`, `lower` (see `lowers`), `freeze_teacher` (a moving teacher stays as it is) or `stop` (saves first)",
    )
    lowers: str | None = opt(
        None,
        "key of the number that the action `lower` changes: a weight, e.g. `objective[0].weight`, or a scheduled option",
    )
    factor: float = opt(0.5, "what that number is multiplied by, for the rest of the run, each time the guard speaks")


GUARDS = [
    {"name": "falls", "metric": "rollout/completion_length/mean", "share": 0.4},
    {"name": "falls", "metric": "policy/entropy", "share": 0.3},
    {"name": "falls", "metric": "epistemic/{followed}/rate_per_1k", "share": 0.3},
    {"name": "falls", "metric": "epistemic/{followed}/entropy_at", "share": 0.3},
    {"name": "falls", "metric": "credit/nonzero", "share": 0.3},
    {"name": "falls", "metric": "group/mixed", "share": 0.3},
    {"name": "falls", "metric": "group/any_right", "share": 0.5},
    {"name": "rises", "metric": "rollout/truncated", "by": 0.3},
    {"name": "rises", "metric": "audit/repetition", "by": 0.2},
    {"name": "falls", "metric": "audit/compression", "share": 0.7},
    {"name": "rises", "metric": "audit/{followed}/first_word", "by": 0.3},
    {"name": "rises", "metric": "audit/{followed}/vacuous", "by": 0.3},
    {"name": "rises", "metric": "audit/{followed}/after_answer", "by": 0.2},
    {"name": "rises", "metric": "audit/{followed}/crowded", "by": 0.3},
    {"name": "rises", "metric": "audit/{followed}/carrier", "by": 0.3},
    {"name": "rises", "metric": "audit/{followed}/lead", "by": 0.7},
    {"name": "rises", "metric": "epistemic/{followed}/probability", "by": 0.25},
    {"name": "stays", "metric": "train/skipped_updates", "steps": 5, "action": "stop"},
]
"""What every run is watched for unless it says otherwise: collapse, markers said for their own sake, gradients that are not finite.
``{followed}`` in a guard's metric stands for ``epistemic.lexicon``."""


@dataclass
class EvalSettings:
    every: int = opt(0, "evaluate each so many steps, and before the first and after the last; 0: never")
    sets: dict[str, Any] = opt({}, "name -> data section (with optional `problems`: the first so many)")
    samples: int = opt(4, "rollouts per problem")
    k: list[int] = opt([1, 4], "pass@k and maj@k are reported for these")
    temperature: float = opt(1.0, "sampling temperature at evaluation")
    top_p: float = opt(1.0, "nucleus at evaluation")
    max_tokens: int | None = opt(None, "completion cap at evaluation; null: `generator.max_tokens`")
    graders: list[Any] = opt(
        [],
        "rewards that say what is right at evaluation: the first decides, the others are reported beside it; "
        "[]: the one under `correctness`",
    )


@dataclass
class EpistemicSettings:
    lexicons: list[str] = opt(
        ["seed10", "A", "B", "C", "D", "F"], "whose markers are counted in every rollout; []: none"
    )
    lexicon: str = opt("A", "whose markers are followed token by token: gaps, mass, entropy, share of the divergence")
    baseline: int = opt(
        0,
        "rollouts of the reference model for each problem that will be trained on, before the first step: gives rewards the columns "
        "`ref_rate` and `ref_std`, the log `suppression` and a step 0, and guards what to compare with; 0: none",
    )


@dataclass
class CheckpointSettings:
    every: int = opt(0, "save each so many steps, and after the last; 0: only after the last")
    keep_last: int = opt(2, "checkpoints kept besides the best")
    best: str | None = opt(None, "metric whose best checkpoint is kept, e.g. `eval/ood/avg@4`; null: none")


@dataclass
class LoggingSettings:
    trackers: list[Any] = opt(["jsonl", "tensorboard"], "where metrics go")
    samples: int = opt(2, "rollouts a step written to samples.jsonl with both prompts")
    tokens_every: int = opt(
        10, "one rollout is kept token by token each so many steps, and in the first, for `onpolicy report`; 0: none"
    )


@dataclass
class PreflightSettings:
    enabled: bool = opt(True, "check prompts, alignment, teacher, log-probs and signal before the first step")
    logprob_tolerance: float = opt(
        0.05, "largest mean difference between generator and trainer log-probs, nats per token"
    )


@dataclass
class RolesSettings:
    address: str | None = opt(
        None,
        "Ray cluster to join, e.g. `auto` or `10.0.0.1:6379`; null: where a role below needs Ray it is started here, on loopback",
    )
    generators: int = opt(0, "replicas of the generator, each a Ray actor; 0: one, in the driver's process")
    trainers: int = opt(0, "ranks of the trainer, each a Ray actor; 0: the driver's process, or the ranks of torchrun")
    rewards: int = opt(0, "Ray workers that compute rewards; 0: the driver's process")
    patience: float = opt(120.0, "seconds without a sign of progress after which a role counts as hung and is replaced")
    restarts: int = opt(
        5, "times in a row that a role is replaced without having done any work before the run gives up"
    )

    @property
    def apart(self) -> list[str]:
        """The roles that run in processes of their own, by the names under which faults are counted."""
        counts = {"generator": self.generators, "trainer": self.trainers, "rewards": self.rewards}
        return [role for role, count in counts.items() if count]


@dataclass
class Config:
    """A whole run. A YAML file holds what differs from these defaults."""

    model: ModelSettings = opt(ModelSettings, "the student, which is also the teacher")
    rendering: RenderingSettings = opt(RenderingSettings, "how messages become tokens")
    data: dict[str, Any] = opt({}, "the problems; a plug-in of kind `data`")
    generator: dict[str, Any] = opt({"name": "vllm"}, "who samples; a plug-in of kind `generator`")
    rewards: list[Any] = opt([], "what an answer is worth: plug-ins of kind `reward`, summed by `weight`")
    correctness: str | None = opt(
        None,
        "name of the reward that says what is right (>= 0.5): for contexts, routes, dynamic sampling and evaluation; "
        "null: the first under `rewards`",
    )
    contexts: dict[str, Any] = opt({}, "context name -> what the teacher may see; plug-ins of kind `context`")
    lexicons: dict[str, Any] = opt({}, "name -> words and phrases: lists of markers beside the built-in ones")
    spans: dict[str, Any] = opt({}, "name -> which parts of a completion it marks; plug-ins of kind `span`")
    teacher: dict[str, Any] = opt({"name": "live"}, "whose weights teach; a plug-in of kind `teacher`")
    credit: dict[str, Any] = opt({"name": "group_std"}, "rewards of a group -> advantages; a plug-in of kind `credit`")
    objective: list[Any] = opt([], "the loss: plug-ins of kind `term`, summed by `weight`")
    trainer: dict[str, Any] = opt({"name": "local"}, "who updates the weights; a plug-in of kind `trainer`")
    roles: RolesSettings = opt(RolesSettings, "which parts run in processes of their own, under Ray; none by default")
    eval: EvalSettings = opt(EvalSettings, "named sets, measured while training and by `onpolicy eval`")
    epistemic: EpistemicSettings = opt(EpistemicSettings, "expressed uncertainty, measured every step")
    guards: list[Any] = opt(GUARDS, "collapse seen early: plug-ins of kind `guard`; []: none")
    checkpoint: CheckpointSettings = opt(CheckpointSettings, "what is saved when")
    logging: LoggingSettings = opt(LoggingSettings, "metrics and samples")
    preflight: PreflightSettings = opt(PreflightSettings, "refuse a run that cannot mean anything")
    steps: int = opt(100, "optimizer steps")
    seed: int = opt(0, "decides sampling, shuffling and initialisation")
    run_dir: str | None = opt(
        None, "folder of the run; one that holds a checkpoint is resumed; null: runs/<config>-<time>"
    )


SHARED_FIELDS: dict[str, type] = {
    "data": DataSettings,
    "generator": Sampling,
    "trainer": TrainerSettings,
    "reward": RewardSettings,
    "term": TermSettings,
    "guard": GuardSettings,
}
"""Kind -> fields that any plug-in of this kind takes beside its own options."""

INJECTED: dict[str, tuple[str, ...]] = {
    "generator": ("renderer", "model", "sampling", "max_model_len", "source"),
    "trainer": ("setup",),
}
"""Keyword-only parameters that the framework fills."""


@dataclass
class EvalSetSettings:
    problems: int | None = opt(None, "the first so many problems; null: all")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies ``a.b=value`` overrides (``objective[0].weight=2`` reaches into lists).

    Raises:
        ConfigError: no such file, not YAML, unknown key, wrong type, missing value, a call such as ``${oc.env:HOME}``.
    """
    path = Path(path)
    if not path.is_file():
        here = sorted(str(p) for p in Path(path.parent).glob("*.yaml")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(str(path), here, n=1, cutoff=0.4)
        raise ConfigError(
            f"config file {str(path)!r} does not exist." + (f" Did you mean {near[0]!r}?" if near else "")
        )
    raw = read_yaml(path)
    for override in overrides:
        _override(raw, override)
        refuse_functions(raw)
    return build(raw)


def build(raw: DictConfig | Mapping[str, Any]) -> Config:
    """Merges onto the defaults; unknown keys and wrong types are refused with their full key."""
    try:
        raw = raw if isinstance(raw, DictConfig) else OmegaConf.create(dict(raw))
        refuse_functions(raw)
        _refuse_unknown(raw, Config, "")
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
    except RecursionError as error:
        raise ConfigError("the config is nested too deeply, or a value refers to itself") from error
    assert isinstance(config, Config)
    refuse_leftovers(dataclasses.asdict(config))
    return config


def _override(raw: DictConfig, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: wanted key=value")
    try:
        OmegaConf.update(raw, key, read_value(value), merge=False, force_add=True)
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
        make = fields[name].default_factory
        if make is dataclasses.MISSING:
            continue
        kind, wanted = (ListConfig, "a list") if isinstance(make(), list) else (DictConfig, "keys and values")
        value = raw[name]
        if not isinstance(value, kind):
            raise ConfigError(f"{key}: got {value!r}, wanted {wanted}.")
        if isinstance(make, type) and dataclasses.is_dataclass(make):
            _refuse_unknown(value, make, f"{key}.")


def _all_keys() -> list[str]:
    keys = []
    for f in dataclasses.fields(Config):
        settings = f.default_factory if dataclasses.is_dataclass(f.default_factory) else SHARED_FIELDS.get(f.name)
        keys += [f"{f.name}.{sub.name}" for sub in dataclasses.fields(settings)] if settings else [f.name]
    return keys


def to_yaml(config: Config, sections: Sequence[str] | None = None) -> str:
    """The resolved config as YAML, whole or some of its sections."""
    whole = OmegaConf.structured(config)
    return OmegaConf.to_yaml(whole if sections is None else OmegaConf.masked_copy(whole, list(sections)))
