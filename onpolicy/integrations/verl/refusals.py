"""Settings that cannot work on verl, or would silently have no effect there."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from onpolicy.config.problems import Problems
from onpolicy.config.resolve import resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.contracts import reads_siblings
from onpolicy.epistemic.ids import span_names
from onpolicy.integrations.verl.names import ENVIRONMENT, ESTIMATOR, MANAGER, SECTION, SEPARATE_MODE, SERVED
from onpolicy.integrations.verl.rows import MOST_SPANS
from onpolicy.integrations.verl.served_head import is_exact
from onpolicy.trainer.build import build_objective, teacher_rule
from onpolicy.utils.errors import first_line

UNWANTED = {
    "actor_rollout_ref.model.enable_activation_offload": "it counts forward passes, and teachers make some without a backward",
    "actor_rollout_ref.actor.fsdp_config.pad_to_length": "the teacher's rows are found by their lengths",
    "algorithm.use_kl_in_reward": "advantages are made of rewards alone; use a term, e.g. {name: ref_kl}",
}
CLIPS = "the options clip_low, clip_high and dual_clip of policy_gradient"
UPSTREAM = "https://github.com/verl-project/verl"
WHY_NOT = {
    "fsdp": ", which has the same keys; FSDP1 flattens a layer's parameters, and the loss reads the head's own",
    "megatron": f": Megatron splits the head over ranks; the loss waits for a head at response tokens ({UPSTREAM}/pull/7686)",
    "mindspeed": f": as with megatron, the loss waits for a head at response tokens ({UPSTREAM}/pull/7686)",
    **dict.fromkeys(
        ("veomni", "torchtitan", "automodel"),
        f": no engine but that one reads a teacher's prompt; upstream this is asked for in {UPSTREAM}/issues/6827",
    ),
}
"""By strategy, what follows the refusal."""
REPLACED: dict[str, tuple[Any, str]] = {
    "actor_rollout_ref.actor.use_kl_loss": (False, "{name: ref_kl}"),
    "actor_rollout_ref.actor.entropy_coeff": (0, "a term of your own"),
    "actor_rollout_ref.actor.policy_loss.loss_mode": (
        "vanilla",
        "{name: policy_gradient}, {name: gspo} or {name: cispo}",
    ),
    "actor_rollout_ref.actor.loss_agg_mode": ("token-mean", "the option normalize of a term"),
    "actor_rollout_ref.actor.loss_scale_factor": (None, "normalize: max_tokens"),
    "actor_rollout_ref.actor.clip_ratio": (0.2, CLIPS),
    "actor_rollout_ref.actor.clip_ratio_low": (0.2, CLIPS),
    "actor_rollout_ref.actor.clip_ratio_high": (0.2, CLIPS),
    "actor_rollout_ref.actor.clip_ratio_c": (3.0, CLIPS),
    "algorithm.rollout_correction.rollout_is": (None, "the option importance_cap of a term"),
    "algorithm.rollout_correction.loss_type": ("ppo_clip", "a term"),
}
"""Keys of verl's actor loss, which the objective replaces: key -> (verl's default, what to use instead)."""
NOT_OUR_CREDIT: dict[str, tuple[Any, str]] = {
    "algorithm.norm_adv_by_std_in_grpo": (True, f"{SECTION}.credit: {{name: group_mean}}"),
    "algorithm.gamma": (1.0, "a credit of your own"),
    "algorithm.lam": (1.0, "a credit of your own"),
}
"""Keys of verl's estimators, which ``credit`` replaces."""
VERLS_LOOP = "single_turn_agent"
"""verl's default, which an environment replaces."""
REJECTION = "algorithm.rollout_correction.rollout_rs"


def find_problems(config: DictConfig, resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """Every refusal; one that depends on a section with a problem of its own is left out.

    Args:
        problems: those of the section ``onpolicy:``
    """
    yield from _engine_problems(config)
    yield from _rollout_problems(config)
    if config.trainer.v1.trainer_mode == SEPARATE_MODE:
        yield from _separate_problems(config)
    if problems.sound("rewards"):
        yield from _reward_problems(config, resolved)
    yield from _keys_without_effect(config)
    if problems.sound("teacher", "objective"):
        yield from _teacher_problems(config, resolved)
        if is_served(config) and problems.sound("contexts", "spans", "epistemic"):
            yield from _served_problems(config, resolved)
    if problems.sound("objective"):
        yield from _temperature_problems(config, resolved)
    yield from querying_problems(resolved)
    if resolved.environment is not None:
        yield from _environment_problems(config)
    marked = list(span_names(resolved)) if problems.sound("objective", "spans", "epistemic") else []
    if len(marked) > MOST_SPANS:
        yield f"{SECTION}.spans: {len(marked)} kinds of marked tokens, with those of telemetry; expected at most {MOST_SPANS}."


def querying_problems(resolved: ResolvedConfig) -> Iterator[str]:
    asking = dict(resolved.querying_plugins)
    if resolved.privileged_rollouts is not None:
        del asking[key := resolved.privileged_rollouts.plugin.key]
        yield (
            f"{SECTION}.{key}: samples failed groups again while a step is made, which verl has no place for; leave it out, with the terms "
            "whose route is privileged."
        )
    for key, plugin in asking.items():
        yield (
            f"{SECTION}.{key}: {plugin.name!r} asks the model while a step is made, which verl has no place for; "
            "put what it would ask for into a column of the data."
        )


def _environment_problems(config: DictConfig) -> Iterator[str]:
    loop = config.actor_rollout_ref.rollout.agent.default_agent_loop
    if loop not in (VERLS_LOOP, ENVIRONMENT):
        yield (
            f"actor_rollout_ref.rollout.agent.default_agent_loop: got {loop!r}, which has no effect beside {SECTION}.environment; expected "
            f"{VERLS_LOOP!r}, verl's default, or an agent loop of verl's and no environment."
        )
    if (estimator := config.algorithm.adv_estimator) not in (ESTIMATOR, "grpo"):
        yield (
            f"algorithm.adv_estimator: got {estimator!r} with {SECTION}.environment, expected {ESTIMATOR!r} or 'grpo': to others each "
            "segment of a conversation is a rollout of its own, which enters its group's baseline again."
        )
    if is_served(config):
        yield (
            f"{SECTION}.environment: a served teacher scores the last segment of a conversation alone; expected a teacher that is not "
            "served (distillation.enabled=false)."
        )


def _engine_problems(config: DictConfig) -> Iterator[str]:
    for key, why in UNWANTED.items():
        if OmegaConf.select(config, key):
            yield f"{key}: got true, expected false: {why}."
    if not config.trainer.use_v1:
        yield "trainer.use_v1: got false, expected true: verl's older trainer knows no plug-ins."
    if sequence_parallel(config, "actor") > 1 and not config.actor_rollout_ref.model.use_remove_padding:
        yield "actor_rollout_ref.model.use_remove_padding: got false, expected true with ulysses_sequence_parallel_size above 1."
    for key in ("actor_rollout_ref.actor.strategy", "actor_rollout_ref.ref.strategy"):
        if (strategy := OmegaConf.select(config, key)) != "fsdp2":
            yield f"{key}: got {strategy!r}, expected 'fsdp2'{WHY_NOT.get(str(strategy), '')}."


def _separate_problems(config: DictConfig) -> Iterator[str]:
    """What verl's trainer with rollouts on devices of their own asserts once its processes are there."""
    rollout, size = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor.ppo_mini_batch_size
    syncs = config.trainer.v1.separate_async.parameter_sync_step
    if config.data.train_batch_size != syncs * size:
        yield (
            f"data.train_batch_size: got {config.data.train_batch_size}, expected {syncs * size}: "
            f"trainer.v1.separate_async.parameter_sync_step ({syncs}) × actor_rollout_ref.actor.ppo_mini_batch_size ({size})."
        )
    for key in ("nnodes", "n_gpus_per_node"):
        if not rollout[key] > 0:
            yield f"actor_rollout_ref.rollout.{key}: got {rollout[key]}, expected at least 1: rollouts have devices of their own."
    if (backend := rollout.checkpoint_engine.backend) == "naive":
        yield f"actor_rollout_ref.rollout.checkpoint_engine.backend: got {backend!r}, expected e.g. 'nccl', by which weights reach them."


def _rollout_problems(config: DictConfig) -> Iterator[str]:
    rollout = config.actor_rollout_ref.rollout
    neutral = {"temperature": (1.0,), "top_p": (1.0,), "top_k": (-1, 0)}
    edited = [f"{name} {rollout[name]}" for name, values in neutral.items() if rollout[name] not in values]
    if edited and rollout.logprobs_mode != "raw_logprobs":
        yield (
            f"actor_rollout_ref.rollout.logprobs_mode: got {rollout.logprobs_mode!r} with {', '.join(edited)}, expected 'raw_logprobs': "
            "the losses are about the model's own distribution, not the one that is sampled from."
        )
    if edited and rollout.name == "sglang":
        yield (
            f"actor_rollout_ref.rollout.name: got 'sglang' with {', '.join(edited)}, expected 'vllm': only there rollout.logprobs_mode "
            "makes log-probs those of the model itself."
        )


def _reward_problems(config: DictConfig, resolved: ResolvedConfig) -> Iterator[str]:
    manager = config.reward.reward_manager.name
    for section in resolved.rewards:
        if "trainer_state" in inspect.signature(section.plugin.function).parameters:
            yield (
                f"{SECTION}.{section.plugin.key}: {section.plugin.name!r} reads trainer_state, which is not known on verl; a scheduled "
                "weight or option changes with the step."
            )
    if resolved.rewards and manager != MANAGER:
        yield (
            f"reward.reward_manager.name: got {manager!r}, expected {MANAGER!r}, which computes {SECTION}.rewards; or leave those out and "
            "keep verl's reward function."
        )
    if manager != MANAGER:
        return
    if not resolved.rewards:
        yield (
            f"reward.reward_manager.name: {MANAGER!r} computes {SECTION}.rewards, and there are none: every answer would get 0. Add some, "
            "or name one of verl's managers, e.g. naive."
        )
    for key in ("reward.custom_reward_function.path", "reward.reward_model.enable"):
        if value := OmegaConf.select(config, key):
            yield f"{key}: got {value!r}, which has no effect beside reward.reward_manager.name={MANAGER}; expected one of the two."


def _keys_without_effect(config: DictConfig) -> Iterator[str]:
    ours = config.algorithm.adv_estimator == ESTIMATOR
    replaced = REPLACED | (NOT_OUR_CREDIT if ours else {})
    if ours or config.algorithm.rollout_correction.bypass_mode:
        replaced = replaced | {REJECTION: (None, "one of verl's estimators, without bypass_mode")}
    for key, (neutral, instead) in replaced.items():
        value = OmegaConf.select(config, key)
        if value is not None and value != neutral:
            yield (
                f"{key}: got {value!r}, which has no effect: the loss is {SECTION}.objective, advantages come from "
                f"{config.algorithm.adv_estimator!r}. Use {instead}, and leave this at {'null' if neutral is None else neutral!r}."
            )


def _teacher_problems(config: DictConfig, resolved: ResolvedConfig) -> Iterator[str]:
    rule, name = teacher_rule(resolved), resolved.teacher.name
    moves = rule.update is not None
    sizes = [sequence_parallel(config, role) for role in ("actor", "ref")]
    if needs_reference(config, resolved) and sizes[0] != sizes[1]:
        yield (
            f"actor_rollout_ref.ref.fsdp_config.ulysses_sequence_parallel_size: got {sizes[1]}, expected {sizes[0]}, that of the actor, "
            "whose ranks read the teacher too."
        )
    if rule.path is not None and not is_served(config) and build_objective(resolved).needs_ref:
        yield (
            f"{SECTION}.teacher: {name!r} is another model, and the objective reads the reference model: that would be a third one in "
            "memory; use a teacher that is the student or a served one (distillation.enabled), or leave out what reads the reference model."
        )
    if rule.reads_ref:
        yield f"{SECTION}.teacher: {name!r} needs reference model and teacher beside the student; use trust_region_logits."
    if moves and build_objective(resolved).needs_ref:
        yield (
            f"{SECTION}.teacher: {name!r} moves, and the objective reads the reference model: that would be a third copy of the weights; "
            "use a frozen or live teacher."
        )
    if moves and has_adapters(config):
        yield f"{SECTION}.teacher: {name!r} does not go with adapters (actor_rollout_ref.model.lora_rank); expected live or frozen."
    dtype = OmegaConf.select(config, "actor_rollout_ref.ref.fsdp_config.model_dtype")
    if moves and dtype not in ("fp32", "float32"):
        yield (
            f"actor_rollout_ref.ref.fsdp_config.model_dtype: got {dtype!r}, expected 'fp32': the steps of a teacher that moves are "
            "too small for 16 bits."
        )


def _served_problems(config: DictConfig, resolved: ResolvedConfig) -> Iterator[str]:
    """Of a teacher on verl's teacher servers, which score each trajectory alone, as soon as it is there."""
    from verl.utils.config import omega_conf_to_dataclass

    path, contexts = teacher_rule(resolved).path, list(resolved.contexts)
    try:
        omega_conf_to_dataclass(config.distillation)  # verl would say so once its workers are there
    except Exception as error:  # hydra's, around whatever verl's checks raise
        yield f"distillation: {first_line(error.__cause__ or error)}"
    models = [teacher.get("model_path") for teacher in config.distillation.teacher_models.values() if teacher]
    if path is None or models != [path]:
        yield (
            f"distillation.teacher_models: got {models}, expected one with the model of {SECTION}.teacher: {{name: model, path: ...}}, "
            "e.g. distillation.teacher_models.teacher_model.model_path=${onpolicy.teacher.path}."
        )
    yield from served_context_problems(config, contexts)
    for name, plugin in resolved.contexts.items():
        if reads_siblings(plugin.bind()):
            yield (
                f"{SECTION}.contexts.{name}: {plugin.name!r} shows other rollouts, but servers score each as soon as it is there; "
                "expected a context of the row, or a teacher that is not served."
            )
    k = served_tokens(config)
    told = f"the sampled token and the {k} most likely ones" if k else "the sampled token"
    if len(contexts) == 1 and not is_exact(resolve(resolved.config), k):
        yield (
            f"{SECTION}.objective: it reads more of the teacher than {told}, which is what its servers give "
            "(distillation.distillation_loss.topk with loss_mode=forward_kl_topk adds likely ones); expected support: "
            "{name: teacher_topk, k: ...} at most as wide, at temperature 1, or a teacher that is not served (distillation.enabled=false)."
        )


def served_context_problems(config: DictConfig, contexts: Sequence[str]) -> Iterator[str]:
    """Whether one context reaches a served teacher, whoever's losses it teaches."""
    if len(contexts) != 1:
        yield f"{SECTION}.contexts: got {contexts}, expected one context, which the served teacher reads."
    manager = config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class")
    if manager != SERVED:
        yield (
            f"actor_rollout_ref.rollout.agent.agent_loop_manager_class: got {manager!r}, expected {SERVED!r}, without which no context "
            "reaches the teacher."
        )


def _temperature_problems(config: DictConfig, resolved: ResolvedConfig) -> Iterator[str]:
    """The counterpart of the embedded trainer's check of ``trainer.updates_per_step``."""
    actor, rows = config.actor_rollout_ref.actor, config.data.train_batch_size
    updates = math.ceil(rows / actor.ppo_mini_batch_size) * actor.ppo_epochs
    for plugin in resolved.tempered_old_readers if updates > 1 else ():
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size: got {actor.ppo_mini_batch_size} with data.train_batch_size={rows} and "
            f"ppo_epochs={actor.ppo_epochs}, {updates} updates a step, but {SECTION}.{plugin.key} reads log-probabilities of the start of "
            f"a step, which are kept at temperature 1; expected one update, or {SECTION}.{plugin.key}.temperature=1."
        )


def needs_reference(config: DictConfig, resolved: ResolvedConfig) -> bool:
    """Whether a second model is loaded next to the student: a teacher with weights of its own, or the reference model.

    With adapters only another model is: without them the student is the reference model. A served teacher is elsewhere.
    """
    rule = teacher_rule(resolved)
    other = rule.path is not None and not is_served(config)
    if has_adapters(config):
        return other
    return other or (rule.copies and rule.path is None) or build_objective(resolved).needs_ref


def sequence_parallel(config: DictConfig, role: str) -> int:
    """Ranks that share each packed batch of a role; verl has two keys for it."""
    keys = (f"actor_rollout_ref.{role}{place}.ulysses_sequence_parallel_size" for place in ("", ".fsdp_config"))
    return max(OmegaConf.select(config, key) or 1 for key in keys)


def is_served(config: DictConfig) -> bool:
    """Whether the teacher is on verl's teacher servers."""
    return bool(OmegaConf.select(config, "distillation.enabled"))


def served_tokens(config: DictConfig) -> int:
    """How many of its most likely tokens a served teacher returns beside the sampled one."""
    from verl.utils.config import omega_conf_to_dataclass

    loss = omega_conf_to_dataclass(config.distillation.distillation_loss)
    return int(loss.topk) if loss.loss_settings.use_topk else 0


def has_adapters(config: DictConfig) -> bool:
    """Whether only low-rank adapters are trained."""
    return (config.actor_rollout_ref.model.get("lora_rank") or 0) > 0
