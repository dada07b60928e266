"""The config of a run on verl: the section ``onpolicy:`` beside verl's own keys, read by the embedded trainer's schema."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from onpolicy.backends.verl.advantages import ESTIMATOR
from onpolicy.config import Config, build
from onpolicy.learning import build_objective, teacher_rule
from onpolicy.plan import Plan, plan
from onpolicy.registry import ConfigError

SECTION = "onpolicy"
MANAGER = "onpolicy"
"""Name of our reward manager."""
OURS = (
    "rendering",
    "rewards",
    "correctness",
    "contexts",
    "lexicons",
    "spans",
    "teacher",
    "credit",
    "objective",
    "epistemic",
)
"""Sections of the embedded trainer's config that mean the same here."""
THEIRS = {
    "model": "actor_rollout_ref.model",
    "data": "data",
    "generator": "actor_rollout_ref.rollout",
    "trainer": "actor_rollout_ref.actor",
    "roles": "trainer.n_gpus_per_node and trainer.nnodes",
    "eval": "data.val_files and trainer.test_freq",
    "checkpoint": "trainer.save_freq",
    "logging": "trainer.logger",
    "preflight": "onpolicy verl check",
    "guards": "trainer.logger, whose metrics they would watch",
    "steps": "trainer.total_training_steps",
    "seed": "data.seed and actor_rollout_ref.actor.data_loader_seed",
    "run_dir": "trainer.default_local_dir",
}
"""The others, and what verl has in their place."""


def method(config: DictConfig) -> Plan:
    """The checked plan of a verl config.

    Raises:
        ConfigError: a key that is wrong, or that verl has a key of its own for, or a combination that cannot work on verl.
    """
    try:
        result = plan(build(_embedded(config)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or SECTION}: {str(error).splitlines()[0]}") from error
    for problem in problems(config, result):
        raise ConfigError(problem)
    return result


def served(config: DictConfig) -> Plan:
    """Of a run whose teacher is verl's own: the section says what that teacher reads, and nothing else.

    Raises:
        ConfigError: no view or several, another section, a context that asks.
    """
    given = OmegaConf.select(config, SECTION) or {}
    for key in given:
        if key not in ("contexts", "rendering"):
            raise ConfigError(
                f"{SECTION}.{key}: a served teacher has verl's own loss and rewards; wanted contexts and rendering alone."
            )
    views = list(given.get("contexts") or {})
    if len(views) != 1:
        raise ConfigError(f"{SECTION}.contexts: got {views}, wanted one view, which the served teacher reads.")
    term = {"name": "distill", "divergence": "forward_kl", "view": views[0]}
    result = plan(build({**_embedded(config), "objective": [term]}))
    for problem in _askers(result):
        raise ConfigError(problem)
    return result


def packed(config: Config) -> DictConfig:
    """As a config travels to the workers."""
    return OmegaConf.create(dataclasses.asdict(config))


def unpacked(config: DictConfig) -> Plan:
    """What ``packed`` was given, checked again."""
    return plan(build(config))


def _embedded(config: DictConfig) -> dict[str, Any]:
    """The config that the embedded trainer would read for the same method."""
    section = OmegaConf.select(config, SECTION)
    if section is None:
        raise ConfigError(
            f"{SECTION}: missing. Give it e.g. {SECTION}: {{contexts: ..., objective: ...}}, as in configs/verl"
        )
    given = OmegaConf.to_container(section, resolve=True)
    assert isinstance(given, Mapping)
    for key in given:
        if key in THEIRS:
            raise ConfigError(f"{SECTION}.{key}: verl has keys of its own for this: {THEIRS[key]}.")
    actor = config.actor_rollout_ref
    return {
        **given,
        "rendering": _rendering(config, given.get("rendering") or {}),
        "model": {"path": actor.model.path},
        "data": {"name": "file", "path": str(config.data.train_files)},
        "generator": {
            "name": "transformers",
            "group_size": actor.rollout.n,
            "max_tokens": config.data.max_response_length,
            "temperature": actor.rollout.temperature,
        },
        "guards": [],
        "steps": config.trainer.total_training_steps or 1,
    }


def _rendering(config: DictConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Student and teacher are rendered alike: verl's own switch for thinking is the teacher's too."""
    theirs = (config.data.get("apply_chat_template_kwargs") or {}).get("enable_thinking")
    ours = given.get("thinking", theirs)
    if ours != theirs:
        raise ConfigError(
            f"{SECTION}.rendering.thinking: got {ours}, but verl renders the student with "
            f"data.apply_chat_template_kwargs.enable_thinking={theirs}; set that, and leave ours out."
        )
    if given.get("chat_template"):
        raise ConfigError(f"{SECTION}.rendering.chat_template: set actor_rollout_ref.model.custom_chat_template.")
    return {"max_prompt_tokens": config.data.max_prompt_length, **given, "thinking": ours}


def problems(config: DictConfig, result: Plan) -> Iterator[str]:
    """Everything that cannot work, each with the key, the value and what is wanted."""
    yield from _of_the_engine(config, result)
    yield from _without_effect(config)
    yield from _of_the_teacher(config, result)
    yield from _askers(result)


def _askers(result: Plan) -> Iterator[str]:
    for kind, plugins in (("contexts", result.contexts), ("spans", result.spans)):
        for name, plugin in plugins.items():
            if inspect.isgeneratorfunction(plugin.function):
                yield (
                    f"{SECTION}.{kind}.{name}: {plugin.name!r} asks the model while a step is made, which verl has no place for; "
                    "put what it would ask for into a column of the data."
                )


def _of_the_engine(config: DictConfig, result: Plan) -> Iterator[str]:
    actor = config.actor_rollout_ref
    unwanted = {
        "actor_rollout_ref.model.use_fused_kernels": "the loss reads the student's logits, which fused kernels never make",
        "actor_rollout_ref.actor.fsdp_config.pad_to_length": "the teacher's rows are found by their lengths",
        "distillation.enabled": "verl's own distillation takes the place of ours; see docs/verl.md for the served teacher",
        "algorithm.use_kl_in_reward": "advantages are made of rewards alone; use a term, e.g. {name: start_kl}",
    }
    for key, why in unwanted.items():
        if OmegaConf.select(config, key):
            yield f"{key}: got true, wanted false: {why}."
    for place in ("actor", "actor.fsdp_config"):
        key = f"actor_rollout_ref.{place}.ulysses_sequence_parallel_size"
        size = OmegaConf.select(config, key) or 1
        if size > 1:
            yield f"{key}: got {size}, wanted 1: a teacher's rows are not split over ranks."
    for key in ("actor_rollout_ref.actor.strategy", "actor_rollout_ref.ref.strategy"):
        if (strategy := OmegaConf.select(config, key)) != "fsdp2":
            yield f"{key}: got {strategy!r}, wanted 'fsdp2'."
    if actor.rollout.temperature != 1.0 and (mode := actor.rollout.logprobs_mode) != "raw_logprobs":
        yield (
            f"actor_rollout_ref.rollout.logprobs_mode: got {mode!r} with temperature {actor.rollout.temperature}, wanted 'raw_logprobs': "
            "the losses are about the model's own distribution, not the one after the temperature."
        )
    if result.rewards and (manager := config.reward.reward_manager.name) != MANAGER:
        yield (
            f"reward.reward_manager.name: got {manager!r}, wanted {MANAGER!r}, which computes {SECTION}.rewards; or leave those out and "
            "keep verl's reward function."
        )


def _without_effect(config: DictConfig) -> Iterator[str]:
    """The objective takes the place of verl's actor loss; whoever sets that loss should know."""
    replaced = {
        "actor_rollout_ref.actor.use_kl_loss": (False, "{name: start_kl}"),
        "actor_rollout_ref.actor.entropy_coeff": (0, "a term of your own"),
        "actor_rollout_ref.actor.policy_loss.loss_mode": (
            "vanilla",
            "{name: policy_gradient}, {name: gspo} or {name: cispo}",
        ),
        "actor_rollout_ref.actor.loss_agg_mode": ("token-mean", "the option normalize of a term"),
        "algorithm.rollout_correction.rollout_is": (None, "the option importance_cap of a term"),
    }
    if own_advantages(config):
        replaced["algorithm.rollout_correction.rollout_rs"] = (
            None,
            "one of verl's estimators under algorithm.adv_estimator",
        )
    for key, (neutral, instead) in replaced.items():
        value = OmegaConf.select(config, key)
        if value is not None and value != neutral:
            yield (
                f"{key}: got {value!r}, which has no effect: the loss is {SECTION}.objective. "
                f"Use {instead}, and leave this at {'null' if neutral is None else neutral!r}."
            )


def _of_the_teacher(config: DictConfig, result: Plan) -> Iterator[str]:
    rule, name = teacher_rule(result), result.teacher.name
    actor = config.actor_rollout_ref
    moves, adapters = rule.update is not None, (actor.model.get("lora_rank") or 0) > 0
    if rule.path is not None:
        yield f"{SECTION}.teacher: another model than the student cannot teach here; wanted live, frozen, ema or snapshot."
    if rule.reads_start:
        yield f"{SECTION}.teacher: {name!r} needs start model and teacher beside the student; use trust_region_logits."
    if moves and build_objective(result).needs_ref:
        yield (
            f"{SECTION}.teacher: {name!r} moves, and the objective reads the start model: that would be a third copy of the weights; "
            "use a frozen or live teacher."
        )
    if moves and adapters:
        yield f"{SECTION}.teacher: {name!r} does not go with adapters (actor_rollout_ref.model.lora_rank); wanted live or frozen."
    dtype = OmegaConf.select(config, "actor_rollout_ref.ref.fsdp_config.model_dtype")
    if moves and dtype not in ("fp32", "float32"):
        yield (
            f"actor_rollout_ref.ref.fsdp_config.model_dtype: got {dtype!r}, wanted 'fp32': the steps of a teacher that moves are "
            "too small for 16 bits."
        )


def needs_reference(config: DictConfig, result: Plan) -> bool:
    """Whether a second model has to stand beside the student: a teacher with weights of its own, or the start model.

    Adapters need none: without them the student is the start model.
    """
    adapters = (config.actor_rollout_ref.model.get("lora_rank") or 0) > 0
    return not adapters and (teacher_rule(result).copies or build_objective(result).needs_ref)


def prepare(config: DictConfig, result: Plan, mode: str) -> None:
    """Puts the method where workers find it, and the trainer's mode back to one of verl's own, which verl compares with."""
    with open_dict(config):
        config.trainer.v1.trainer_mode = mode
        config.actor_rollout_ref[SECTION] = packed(result.config)


def own_advantages(config: DictConfig) -> bool:
    """Whether ``credit`` makes the advantages, instead of one of verl's estimators."""
    return bool(config.algorithm.adv_estimator == ESTIMATOR)
