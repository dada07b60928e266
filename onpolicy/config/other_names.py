"""What other frameworks call our keys: one who comes from there is told where the same thing stands here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

UPDATES = "trainer.updates_per_step"
ACCUMULATED = "trainer.micro_batch_tokens, which changes memory and not the gradient"
REF_KL = "objective: [..., {name: ref_kl, weight: 0.04}], a term of its own"
CLIP = "the options clip_low and clip_high of the term policy_gradient"
EPOCHS = "steps, each with data.prompts_per_step problems: problems / data.prompts_per_step of them are an epoch"
CREDIT = "credit (group_std as GRPO, group_mean as Dr. GRPO, leave_one_out as RLOO)"
TERMS = "the terms under objective (`onpolicy list term`)"
TRACKERS = "logging.trackers, a list"
ENGINE = "generator.name (`onpolicy list generator`)"
OTHER_NAMES: dict[str, str] = {
    "learning_rate": "trainer.lr",
    "lr_scheduler_type": "trainer.lr_schedule",
    "warmup_ratio": "trainer.warmup_steps, a number of steps",
    "weight_decay": "trainer.weight_decay",
    "max_grad_norm": "trainer.max_grad_norm",
    "gradient_accumulation_steps": ACCUMULATED,
    "num_iterations": UPDATES,
    "beta": REF_KL,
    "kl_coef": REF_KL,
    "kl_loss_coef": REF_KL,
    "epsilon": CLIP,
    "epsilon_high": CLIP,
    "clip_ratio": CLIP,
    "clip_ratio_low": CLIP,
    "clip_ratio_high": CLIP,
    "scale_rewards": CREDIT,
    "adv_estimator": CREDIT,
    "loss_type": TERMS + ", and their option normalize",
    "loss_agg_mode": "the option normalize of a term",
    "reward_funcs": "rewards",
    "reward_weights": "rewards[].weight",
    "num_generations": "generator.group_size",
    "temperature": "generator.temperature",
    "top_p": "generator.top_p",
    "top_k": "generator.top_k",
    "max_completion_length": "generator.max_tokens",
    "max_new_tokens": "generator.max_tokens",
    "max_response_length": "generator.max_tokens",
    "mask_truncated_completions": "route: finished of a term",
    "max_prompt_length": "rendering.max_prompt_tokens",
    "use_vllm": ENGINE,
    "vllm_mode": ENGINE,
    "per_device_train_batch_size": "data.prompts_per_step",
    "train_batch_size": "data.prompts_per_step",
    "batch_size": "data.prompts_per_step",
    "train_files": "data.path",
    "val_files": "eval.sets",
    "prompt_key": "data.columns={prompt: ...}",
    "num_train_epochs": EPOCHS,
    "total_epochs": EPOCHS,
    "max_steps": "steps",
    "total_training_steps": "steps",
    "mini_batch_size": UPDATES,
    "ppo_mini_batch_size": UPDATES,
    "ppo_epochs": UPDATES,
    "ppo_micro_batch_size_per_gpu": ACCUMULATED,
    "fp16": "trainer.precision=bfloat16",
    "vllm_gpu_memory_utilization": "generator.gpu_memory_utilization",
    "reward_model": "rewards",
    "dataset_name": "data.name=hub data.path",
    "cliprange": CLIP,
    "lora_r": "trainer.lora_rank",
    "save_steps": "checkpoint.every",
    "save_freq": "checkpoint.every",
    "eval_steps": "eval.every",
    "test_freq": "eval.every",
    "report_to": TRACKERS,
    "logger": TRACKERS,
    "output_dir": "run_dir",
    "default_local_dir": "run_dir",
    "model_name_or_path": "model.path",
    "bf16": "trainer.precision=bfloat16",
    "gradient_checkpointing": "trainer.gradient_checkpointing",
    "n_gpus_per_node": "distributed (`onpolicy show distributed`)",
}
"""A name in TRL, transformers or verl -> where it stands here."""
VERL = {
    "actor_rollout_ref.rollout.n": "generator.group_size",
    "actor_rollout_ref.actor.optim.lr": "trainer.lr",
    "actor_rollout_ref.actor.optim.lr_warmup_steps": "trainer.warmup_steps",
    "actor_rollout_ref.actor.ppo_mini_batch_size": "trainer.updates_per_step",
    "actor_rollout_ref.rollout.name": ENGINE,
    "actor_rollout_ref.model.path": "model.path",
    "reward.custom_reward_function.path": "rewards: [module:function]",
}
"""verl's names that mean something only in their place."""
SECTIONS = {"actor_rollout_ref", "algorithm", "critic", "custom_reward_function", "reward", "reward_model"}
"""Sections that only verl has."""


def name_elsewhere(key: str, value: Any = None) -> str:
    """`` Here this is trainer.lr.`` for a key by another framework's name, or nothing; options of options are others' own.

    Args:
        key: which is not known
        value: what stands there; a section of verl's is known by what it holds
    """
    found = {there: here for there in _leaves(key, value) if (here := _here(there))}
    if found.get(key) == key:  # it is where it belongs, and this plug-in lacks it
        return ""
    if found.keys() == {key}:
        return f" Here this is {found[key]}."
    named = "; ".join(f"{there} is {here}" for there, here in found.items())
    if key.partition(".")[0] in SECTIONS:
        with_verl = "this is a config of verl's: `onpolicy verl train` runs those (docs/verl.md)"
        return f" Here {named}; or {with_verl}." if named else f" In full {with_verl}."
    return ""


def _here(key: str) -> str | None:
    section, _, name = key.rpartition(".")
    if key in VERL:
        return VERL[key]
    return OTHER_NAMES.get(name) if "." not in section or section.partition(".")[0] in SECTIONS else None


def _leaves(key: str, value: Any) -> Iterator[str]:
    """The full keys at and below a key."""
    if not isinstance(value, Mapping):
        yield key
        return
    for name, inner in value.items():
        yield from _leaves(f"{key}.{name}", inner)
