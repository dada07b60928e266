"""The config: its sections, their defaults and what each setting means.

Sections with a ``name`` (``data``, ``generator``, ``teacher`` ...) choose a plug-in: besides the fields listed here they
take that plug-in's own options, which are its keyword-only parameters (``onpolicy.config.registry``).
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from onpolicy.config.bounds import AT_LEAST_ONE, FINITE, NOT_NEGATIVE, POSITIVE, Bounds
from onpolicy.config.default_guards import GUARDS
from onpolicy.types import Sampling


def opt(default: Any, meaning: str, bounds: Bounds | None = None) -> Any:
    """A field with its default, its meaning and its bounds; mutable defaults are copied."""
    about = {"help": meaning, "bounds": bounds}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=about)
    if isinstance(default, type):
        return field(default_factory=default, metadata=about)
    return field(default=default, metadata=about)


@dataclass
class ModelSettings:
    path: str = opt(
        "???",
        "local folder, hub id, `smollm2-135m` or `lab-reasoner` (the last two come in Python packages and need no hub)",
    )
    revision: str | None = opt(None, "branch, tag or commit of a model on the hub")
    trust_remote_code: bool = opt(False, "run Python code that comes with the model")
    attn_implementation: str | None = opt(
        None, "attention implementation of transformers, e.g. sdpa or flash_attention_2; null: chosen by transformers"
    )


@dataclass
class RenderingSettings:
    chat_template: str | None = opt(
        None,
        "file to use in place of the tokenizer's chat template: Jinja, or JSON that holds it under `chat_template`",
    )
    thinking: bool | None = opt(
        None,
        "`enable_thinking` passed to the chat template, which must read it, for student and teacher alike; null: not passed",
    )
    teacher_thinking: bool | None = opt(None, "`enable_thinking` of the teacher's prompts; null: as `thinking`")
    thinking_tags: list[str] | None = opt(
        None,
        "the texts that open and close the model's thinking, e.g. `[<seed:think>, </seed:think>]`; null: found in the generation prompt, "
        "the tokenizer or the chat template, else `<think>` and `</think>`",
    )
    date: str | None = opt(
        "2026-01-01",
        "the day, as YYYY-MM-DD, that a chat template which writes today's date takes for today, so that prompts do not depend on when "
        "they are rendered; null: the clock's",
    )
    max_prompt_tokens: int = opt(2048, "maximum length of the student's prompt, in tokens", AT_LEAST_ONE)
    max_teacher_prompt_tokens: int = opt(
        32768,
        "maximum length of the teacher's prompt, in tokens; lowered to what fits into the model's context window",
        AT_LEAST_ONE,
    )
    overlong: str = opt(
        "error",
        "what to do with a longer prompt: `error` stops the run; `drop` skips the rollout and counts it. A teacher's prompt that holds "
        "something sampled, such as a sibling, is dropped and counted in any case",
    )


@dataclass
class CoverageSettings:
    problems: int | None = opt(
        None, "number of problems to train on; smaller subsets are contained in larger ones; null: all", AT_LEAST_ONE
    )
    repeats: int | None = opt(None, "number of times each chosen problem occurs in an epoch; null: once", AT_LEAST_ONE)
    seed: int = opt(0, "seed that selects the problems")


@dataclass
class DataSettings:
    prompts_per_step: int = opt(8, "problems per step; each gets `generator.group_size` rollouts", AT_LEAST_ONE)
    shuffle: bool = opt(True, "shuffle the problems in each epoch; the order depends on `seed` alone")
    coverage: CoverageSettings = opt(CoverageSettings, "train on a subset of the problems")
    completions_column: str | None = opt(
        None,
        "dataset column with a completion for each problem, as text or token ids. Nothing is then sampled and training is "
        "off-policy, e.g. fine-tuning with the term `cross_entropy`; null: completions are sampled",
    )
    dynamic_sampling: int = opt(
        0,
        "dynamic sampling (DAPO): discard groups whose rollouts are all correct or all incorrect, and sample up to this many batches "
        "until the step is full; 0: keep all groups",
        NOT_NEGATIVE,
    )


@dataclass
class EnvironmentSettings:
    timeout: float = opt(
        60.0,
        "seconds that the environment may take to answer a reply; a rollout that waits longer counts as failed",
        Bounds(above=0),
    )


ALL_DEVICES = "all"
"""In place of a number of devices."""


@dataclass
class TrainerSettings:
    lr: float = opt(1e-6, "peak learning rate of AdamW", NOT_NEGATIVE)
    lr_schedule: str = opt(
        "constant",
        "schedule after the warm-up: `constant`, or `linear` or `cosine` decay to 0 at `steps`, with which a run cannot be resumed with "
        "other `steps`",
    )
    warmup_steps: int = opt(0, "number of steps of linear warm-up", NOT_NEGATIVE)
    warmup_from_zero: bool = opt(
        False,
        "if true, step k of the warm-up has (k - 1) / warmup_steps of the peak rate: the first step learns nothing, as with the "
        "schedulers of verl and transformers; if false, k / warmup_steps",
    )
    weight_decay: float = opt(0.0, "weight decay of AdamW", NOT_NEGATIVE)
    betas: list[float] = opt([0.9, 0.999], "betas of AdamW", Bounds(least=0, below=1))
    max_grad_norm: float | None = opt(
        1.0,
        "maximum norm of the gradient; larger gradients are scaled down to it; null or `.inf`: none are",
        Bounds(above=0, infinite=True),
    )
    micro_batch_tokens: int | None = opt(
        None,
        "maximum number of tokens in one forward and backward pass of the student; teachers, which need no gradient, take four times "
        "as many. Affects memory and speed, not the gradient; null: 1024 on the CPU, 8192 on a GPU",
        AT_LEAST_ONE,
    )
    devices: str = opt(
        "1",
        "GPUs of this machine that the run uses, a number or `all`: `onpolicy train` starts a rank on each, which trains its shard (a "
        "trainer of one process is replaced by deepspeed with ZeRO-3) and samples its share. Without a GPU, a number of processes",
    )
    updates_per_step: int = opt(
        1,
        "optimizer updates per step, each on an equal part of the rollouts; with more than 1, the later ones are off-policy",
        AT_LEAST_ONE,
    )

    @property
    def clip_norm(self) -> float:
        """``max_grad_norm`` as a number."""
        return math.inf if self.max_grad_norm is None else self.max_grad_norm


@dataclass
class Weighted:
    weight: float = opt(1.0, "factor in the sum; with 0 it is computed and logged only", FINITE)


@dataclass
class RewardSettings(Weighted):
    bonus: bool | None = opt(
        None,
        "if true, the reward is centred on its group's mean and added to the advantage after `credit`, so the group's standard deviation "
        "does not scale it; null: true for all rewards except the one named by `correctness`",
    )
    when: str = opt(
        "always",
        "which completions get the reward: `always`, `correct` or `wrong` ones (see `correctness`), or the name of another reward: those "
        "for which that one is at least 0.5, e.g. a format; the others get 0",
    )


@dataclass
class TermSettings(Weighted):
    normalize: str = opt(
        "tokens",
        "what the term is averaged over. `tokens`: all its tokens in the update; `all_tokens`: all sampled tokens of the update, those of "
        "other terms too; `sequences`: its tokens in each completion, then the completions; `all_sequences`: the same, but completions "
        "without a token of the term count too, as in SDPO's code with micro-batches of one completion; `max_tokens`: the sum is divided "
        "by completions that are not empty x `generator.max_tokens`",
    )
    route: Any = opt("all", "which rollouts this term is computed on; a plug-in of kind `route`")
    select: Any = opt(
        None,
        "which of their tokens: a plug-in of kind `token_weights`, whose tokens of weight 0 are left out of the term and of its mean "
        "(under `token_weights` they count as 0 in the mean). If it reads the models, the student reads the update once more; null: all",
    )


@dataclass
class GuardSettings:
    action: str = opt(
        "warn",
        "what to do when the guard triggers: `warn`, `lower` (see `target`), `freeze_teacher` (no more teacher updates) or `stop` (after "
        "saving)",
    )
    target: str | None = opt(
        None,
        "key of the number that the action `lower` reduces: a weight, e.g. `objective[0].weight`, or a scheduled option",
    )
    scale: float = opt(
        0.5, "what that number is multiplied by, for the rest of the run, each time the guard triggers", NOT_NEGATIVE
    )


@dataclass
class EvalSettings:
    every: int = opt(0, "evaluate every N steps, and before the first and after the last; 0: never", NOT_NEGATIVE)
    sets: dict[str, Any] = opt({}, "name -> data section (with `problems: N`, only the first N problems)")
    samples_per_problem: int = opt(4, "rollouts per problem", AT_LEAST_ONE)
    pass_at: list[int] = opt([1, 4], "values of k for which pass@k and maj@k are reported")
    temperature: float = opt(1.0, "sampling temperature of the evaluation", NOT_NEGATIVE)
    top_p: float = opt(1.0, "nucleus sampling of the evaluation", Bounds(above=0, most=1))
    max_tokens: int | None = opt(
        None, "maximum completion length of the evaluation, in tokens; null: `generator.max_tokens`", AT_LEAST_ONE
    )
    graders: list[Any] = opt(
        [],
        "rewards that decide correctness in the evaluation: the first decides, the others are reported too; []: the reward named by "
        "`correctness`",
    )


@dataclass
class EpistemicSettings:
    lexicons: list[str] = opt(
        ["paper10", "self_doubt", "hedges", "alternatives", "boosters", "neutral"],
        "lexicons whose markers are counted in every rollout; []: none",
    )
    lexicon: str = opt(
        "self_doubt",
        "lexicon whose markers are tracked per token: teacher gap, probability mass, entropy, share of the divergence",
    )
    baseline: int = opt(
        0,
        "number of rollouts of the reference model per training problem, sampled before the first step. Provides the columns `ref_rate` "
        "and `ref_std` to rewards, the `suppression` metrics, a step 0 in the log, and a level for guards to compare with; 0: none",
        NOT_NEGATIVE,
    )


@dataclass
class CheckpointSettings:
    every: int = opt(20, "save every N steps, and after the last; 0: only after the last", NOT_NEGATIVE)
    keep_last: int = opt(2, "number of latest checkpoints to keep, in addition to the best", AT_LEAST_ONE)
    best_metric: str | None = opt(
        None, "metric by which the best checkpoint is chosen and kept, e.g. `eval/ood/avg@4`; null: none"
    )


@dataclass
class LoggingSettings:
    trackers: list[Any] = opt(["jsonl", "tensorboard"], "where metrics are written; plug-ins of kind `tracker`")
    name: str | None = opt(
        None, "name of the run in trackers that show several; null: its folder's; a sweep gives `ARM/FACTOR/seed-N`"
    )
    group: str | None = opt(None, "group of the run in trackers that have groups; a sweep gives the arm")
    samples: int = opt(
        2, "rollouts per step written to samples.jsonl, with the student's and the teacher's prompt", NOT_NEGATIVE
    )
    tokens_every: int = opt(
        10,
        "record one rollout token by token every N steps, and in the first, for `onpolicy report`; 0: none",
        NOT_NEGATIVE,
    )


@dataclass
class PreflightSettings:
    enabled: bool = opt(
        True,
        "check prompts, token alignment, teacher, log-probs, training signal and a weight sync before the first step",
    )
    logprob_tolerance: float = opt(
        0.05, "maximum mean difference between the generator's and the trainer's log-probs, in nats per token", POSITIVE
    )


@dataclass
class DistributedSettings:
    address: str | None = opt(
        None,
        "Ray cluster to join, e.g. `auto` or `10.0.0.1:6379`; null: if a setting below needs Ray, start it on this machine",
    )
    num_generators: int = opt(0, "number of generators, each a Ray actor; 0: one, in the driver process", NOT_NEGATIVE)
    num_trainers: int = opt(
        0, "number of trainer ranks, each a Ray actor; 0: the driver process, or the ranks of torchrun", NOT_NEGATIVE
    )
    num_reward_workers: int = opt(0, "number of Ray workers that compute rewards; 0: the driver process", NOT_NEGATIVE)
    num_annotation_workers: int | None = opt(
        None,
        "number of processes of this machine, without Ray, that take each group as soon as it is sampled and compute rewards, text "
        "telemetry and token classes. Rewards that are asynchronous, objects, closures or in a module that uses torch stay in the driver "
        "process; those that move must not depend on earlier calls. null: one for four cores, at most 8, where a step may have 250,000 "
        "tokens, else none; 0: the driver process",
        NOT_NEGATIVE,
    )
    heartbeat_timeout_s: float = opt(
        120.0, "seconds without progress after which a process counts as hung and is replaced", POSITIVE
    )
    max_restarts: int = opt(
        5,
        "number of replacements in a row, without any work done between them, after which the run gives up",
        NOT_NEGATIVE,
    )

    @property
    def apart(self) -> list[str]:
        """The roles that run in separate processes, by the names under which faults are counted."""
        counts = {"generator": self.num_generators, "trainer": self.num_trainers, "rewards": self.num_reward_workers}
        return [role for role, count in counts.items() if count]


@dataclass
class Config:
    """A whole run. A YAML file holds what differs from these defaults."""

    model: ModelSettings = opt(ModelSettings, "the student, which is also the teacher")
    rendering: RenderingSettings = opt(RenderingSettings, "how messages become tokens")
    data: dict[str, Any] = opt({}, "the problems; a plug-in of kind `data`")
    generator: dict[str, Any] = opt({"name": "auto"}, "samples the rollouts; a plug-in of kind `generator`")
    environment: dict[str, Any] = opt(
        {},
        "what answers the student in rollouts of several turns, and grades them; a plug-in of kind `environment`. It takes part in the "
        "problems that its own `data` source gives; {}: every rollout is one turn",
    )
    rewards: list[Any] = opt([], "rewards of a completion: plug-ins of kind `reward`, summed with their `weight`")
    correctness: str | None = opt(
        None,
        "name of the reward that decides whether a completion is correct (>= 0.5), for contexts, routes, dynamic sampling and "
        "evaluation; null: the first under `rewards`",
    )
    contexts: dict[str, Any] = opt(
        {}, "name -> what the teacher sees in addition to the problem; plug-ins of kind `context`"
    )
    privileged_rollouts: dict[str, Any] = opt(
        {},
        "for groups whose rollouts all failed: the context, a plug-in of kind `context`, with which the same model samples further "
        "rollouts. Correct ones go to the terms with the route `privileged`, as answers to the student's prompt; {}: none are sampled",
    )
    custom_lexicons: dict[str, Any] = opt(
        {}, "name -> list of words and phrases: lexicons in addition to the built-in ones"
    )
    spans: dict[str, Any] = opt({}, "name -> parts of a completion to mark; plug-ins of kind `span`")
    teacher: dict[str, Any] = opt({"name": "live"}, "which weights the teacher has; a plug-in of kind `teacher`")
    credit: dict[str, Any] = opt(
        {"name": "group_std"}, "turns the rewards of a group into advantages; a plug-in of kind `credit`"
    )
    objective: list[Any] = opt([], "the loss: plug-ins of kind `term`, summed with their `weight`")
    trainer: dict[str, Any] = opt({"name": "local"}, "updates the weights; a plug-in of kind `trainer`")
    distributed: DistributedSettings = opt(
        DistributedSettings, "which parts run in separate processes, under Ray unless a setting says otherwise"
    )
    eval: EvalSettings = opt(EvalSettings, "named sets, evaluated during training and by `onpolicy eval`")
    epistemic: EpistemicSettings = opt(EpistemicSettings, "measures of expressed uncertainty, computed every step")
    guards: list[Any] = opt(GUARDS, "early warnings of collapse: plug-ins of kind `guard`; []: none")
    checkpoint: CheckpointSettings = opt(CheckpointSettings, "when checkpoints are saved, and which are kept")
    logging: LoggingSettings = opt(LoggingSettings, "where metrics and sample rollouts are written")
    preflight: PreflightSettings = opt(
        PreflightSettings, "checks before the first step that refuse a misconfigured run"
    )
    steps: int = opt(100, "optimizer steps", AT_LEAST_ONE)
    seed: int = opt(0, "random seed of sampling, shuffling and initialisation")
    run_dir: str | None = opt(
        None, "folder of the run; if it holds a checkpoint, the run is resumed; null: runs/<config>-<time>"
    )


SHARED_FIELDS: dict[str, type] = {
    "data": DataSettings,
    "generator": Sampling,
    "environment": EnvironmentSettings,
    "trainer": TrainerSettings,
    "reward": RewardSettings,
    "term": TermSettings,
    "guard": GuardSettings,
}
"""Kind -> settings that every plug-in of this kind takes in addition to its own options."""

PLUGIN_SECTIONS = ("data", "generator", "environment", "privileged_rollouts", "teacher", "credit", "trainer")
"""Sections that choose one plug-in; its name alone may stand in their place."""

INJECTED: dict[str, tuple[str, ...]] = {
    "generator": (
        "renderer",
        "model",
        "sampling",
        "max_model_len",
        "source",
        "beside_trainer",
        "adapter",
        "transfer_backend",
    ),
    "trainer": ("setup",),
    "environment": ("renderer",),
}
"""Keyword-only parameters that the framework fills, so that a config may not."""


@dataclass
class EvalSetSettings:
    problems: int | None = opt(None, "use the first N problems only; null: all", AT_LEAST_ONE)
    coverage: CoverageSettings = opt(
        CoverageSettings,
        "use a random subset of the problems; `coverage: ${data.coverage}` on the source of `data` are those trained on",
    )


@dataclass
class PrivilegedSettings:
    samples: int = opt(8, "rollouts sampled for each group whose rollouts all failed", AT_LEAST_ONE)
