"""A run on verl in some fifteen lines, as ``onpolicy check`` prints one of the embedded trainer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.integrations.verl.refusals import is_served, served_tokens
from onpolicy.run.method_in_words import method_in_words


def summarize_verl_run(config: Any, resolved: ResolvedConfig, *, served: bool) -> dict[str, str]:
    """What a run does -> in a line of text.

    Args:
        config: verl's, composed
        resolved: the section ``onpolicy:`` of it
        served: whether the loss is verl's own, and only what the teacher reads is ours
    """
    method = dict(method_in_words(resolved))
    if served:
        loss = config.distillation.distillation_loss.loss_mode
        shown = method["teacher"].partition("; ")[2]
        method = {"method": f"verl's own distillation, {loss}", "teacher": f"served by verl; {shown}"}
    elif is_served(config):
        k = served_tokens(config)
        told = "sampled tokens" if not k else f"sampled tokens and the {k} most likely ones"
        method["teacher"] += f"; on verl's teacher servers, which tell of {told}"
    return method | dict([*_inputs(config), *_sizes(config), *_machines(config)])


def _inputs(config: Any) -> Iterator[tuple[str, str]]:
    actor = config.actor_rollout_ref
    yield "model", str(actor.model.path)
    yield "data", f"{_listed(config.data.train_files)}; evaluation on {_listed(config.data.val_files)}"
    yield "generator", f"{actor.rollout.name}, temperature {actor.rollout.temperature:g}"


def _sizes(config: Any) -> Iterator[tuple[str, str]]:
    actor, data, trainer = config.actor_rollout_ref, config.data, config.trainer
    most = data.train_batch_size * actor.rollout.n * data.max_response_length
    updates = max(1, data.train_batch_size // actor.actor.ppo_mini_batch_size) * actor.actor.ppo_epochs
    yield (
        "each step",
        f"{data.train_batch_size} prompts × group of {actor.rollout.n} × at most {data.max_response_length} tokens = {most:,} tokens"
        + (f", {updates} optimizer updates" if updates > 1 else ""),
    )
    steps = trainer.total_training_steps
    yield "steps", str(steps) if steps is not None else f"{trainer.total_epochs} epochs"
    optim = actor.actor.optim
    warmup = f" after {optim.lr_warmup_steps} steps of warm-up" if (optim.get("lr_warmup_steps") or 0) > 0 else ""
    yield "learning rate", f"{optim.lr:g}, {optim.get('lr_scheduler_type', 'constant')}{warmup}"
    yield "evaluation", f"every {trainer.test_freq} steps" if trainer.test_freq > 0 else "never"


def _machines(config: Any) -> Iterator[tuple[str, str]]:
    engine = config.actor_rollout_ref.actor.fsdp_config
    weights, passes = (OmegaConf.select(engine, key) for key in ("model_dtype", "dtype"))
    generator = config.actor_rollout_ref.rollout.dtype
    yield "precision", f"{passes or 'bfloat16'}, weights {weights or 'fp32'}; generator {generator}"
    yield "GPUs", f"{config.trainer.nnodes} nodes × {config.trainer.n_gpus_per_node}"


def _listed(files: Any) -> str:
    return files if isinstance(files, str) else ", ".join(map(str, files or ())) or "nothing"
