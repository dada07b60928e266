"""The config of a run on verl: verl's own keys and the section ``onpolicy:``, which has the embedded trainer's schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from onpolicy.config.load import build
from onpolicy.config.problems import Problems, collected
from onpolicy.config.resolve import resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schema import Config
from onpolicy.contracts import keep_to_contracts
from onpolicy.integrations.verl import refusals
from onpolicy.integrations.verl.names import ENVIRONMENT, READING, SECTION
from onpolicy.models import context_window, resolve_model, teacher_prompt_limit
from onpolicy.trainer.build import teacher_rule
from onpolicy.utils.errors import ConfigError

OURS = (
    "rendering",
    "environment",
    "rewards",
    "correctness",
    "contexts",
    "custom_lexicons",
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
    "distributed": "trainer.n_gpus_per_node and trainer.nnodes",
    "eval": "data.val_files and trainer.test_freq",
    "checkpoint": "trainer.save_freq",
    "logging": "trainer.logger",
    "preflight": "onpolicy verl check",
    "guards": "trainer.logger, whose metrics they would watch",
    "steps": "trainer.total_training_steps",
    "seed": "data.seed and actor_rollout_ref.actor.data_loader_seed",
    "run_dir": "trainer.default_local_dir",
}
"""The other sections, and the keys of verl that replace them."""


def method(config: DictConfig, problems: Problems | None = None) -> ResolvedConfig:
    """Resolves and checks a config with the section ``onpolicy:``.

    Args:
        problems: where problems are reported; what is sound is then returned

    Raises:
        ConfigError: a key that is wrong, or that verl has a key of its own for, or a combination that cannot work on verl; all
            of them, if ``problems`` is not given.
    """
    with collected(problems) as found:
        resolved = resolve(build(_embedded(config, found), found), found)
        keep_to_contracts(resolved, found)
        found.add(*refusals.find_problems(config, resolved, found))
        return resolved


def served(config: DictConfig, problems: Problems | None = None) -> ResolvedConfig:
    """Resolves and checks the config of a run with verl's own teacher servers: the section names the context that the teacher gets.

    Args:
        problems: where problems are reported; what is sound is then returned

    Raises:
        ConfigError: no context or several, another section, a context that queries the model; all of them, if ``problems`` is
            not given.
    """
    with collected(problems) as found:
        given = OmegaConf.select(config, SECTION) or {}
        kept = {key: value for key, value in given.items() if key in ("contexts", "rendering")}
        found.add(*(
            f"{SECTION}.{key}: a served teacher has verl's own loss and rewards; expected contexts and rendering alone."
            for key in given if key not in kept
        ))  # fmt: skip
        contexts = list(given.get("contexts") or {})
        found.add(*refusals.served_context_problems(config, contexts))
        embedded = _embedded(config, found)
        reading: list[Any] = [{"name": "distill", "divergence": "forward_kl", "context": name} for name in contexts]
        read = {key: value for key, value in embedded.items() if key in kept or key not in given}
        resolved = resolve(build({**read, "objective": reading or ["cross_entropy"]}, found), found)
        found.add(*refusals.querying_problems(resolved))
        return resolved


def pack_config(config: Config) -> DictConfig:
    """The form in which a config is sent to the workers."""
    return OmegaConf.create(dataclasses.asdict(config))


def unpack_config(config: DictConfig) -> ResolvedConfig:
    """The config that ``pack_config`` was given, resolved again."""
    return resolve(build(config))


def _embedded(config: DictConfig, problems: Problems) -> dict[str, Any]:
    """The config that the embedded trainer would read for the same method.

    Raises:
        ConfigError: there is no section, or a value that it refers to is missing.
    """
    section = OmegaConf.select(config, SECTION)
    if section is None:
        problems.add(
            f"{SECTION}: missing. Give it e.g. {SECTION}: {{contexts: ..., objective: ...}}, as in configs/verl"
        )
        problems.refuse()
    try:
        given = OmegaConf.to_container(section, resolve=True)
        assert isinstance(given, Mapping)
        return _with_verls_keys(config, given, problems)
    except OmegaConfBaseException as error:
        problems.add(f"{error.full_key or SECTION}: {str(error).splitlines()[0]}")
        problems.refuse()
        raise AssertionError from error


def _with_verls_keys(config: DictConfig, given: Mapping[Any, Any], problems: Problems) -> dict[str, Any]:
    """The sections of the embedded trainer that are ours, and what verl's own keys say in place of the others."""
    problems.add(
        *(f"{SECTION}.{key}: verl has keys of its own for this: {THEIRS[key]}." for key in given if key in THEIRS)
    )
    rendering: dict[str, Any] = {}
    with problems.collect():
        rendering = _rendering(config, given.get("rendering") or {})
    actor = config.actor_rollout_ref
    return {
        **{key: value for key, value in given.items() if key not in THEIRS},
        "rendering": rendering,
        "model": {"path": actor.model.path, "trust_remote_code": bool(actor.model.get("trust_remote_code"))},
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
    """Applies verl's switch for thinking to the teacher's prompts too, unless ``teacher_thinking`` is given, and verl's clock."""
    theirs = (config.data.get("apply_chat_template_kwargs") or {}).get("enable_thinking")
    ours = given.get("thinking", theirs)
    if ours != theirs:
        raise ConfigError(
            f"{SECTION}.rendering.thinking: got {ours}, but verl renders the student with "
            f"data.apply_chat_template_kwargs.enable_thinking={theirs}; set that, and leave ours out."
        )
    if given.get("chat_template"):
        raise ConfigError(f"{SECTION}.rendering.chat_template: set actor_rollout_ref.model.custom_chat_template.")
    return {"max_prompt_tokens": config.data.max_prompt_length, "date": None, **given, "thinking": ours}


def longest_teacher_prompt(resolved: ResolvedConfig) -> int:
    """Tokens of the longest prompt that a teacher may read, in its context window and in the student's."""
    model, other = resolved.config.model, teacher_rule(resolved).path
    paths = [model.path] if other is None else [model.path, resolve_model(other)]
    windows = [context_window(path, trust_remote_code=model.trust_remote_code) for path in paths]
    return teacher_prompt_limit(resolved, min((window for window in windows if window is not None), default=None))


def prepare(config: DictConfig, resolved: ResolvedConfig, mode: str) -> None:
    """Stores the method where workers find it, and sets the trainer's mode to verl's own, which verl compares with.

    Where the config names no manager of agent loops, ours is set, whose workers read the texts. With an environment, ours holds every
    row's conversation.
    """
    agent = config.actor_rollout_ref.rollout.agent
    with open_dict(config):
        config.trainer.v1.trainer_mode = mode
        agent.agent_loop_manager_class = agent.get("agent_loop_manager_class") or READING
        if resolved.environment is not None:
            agent.default_agent_loop = ENVIRONMENT
        config.actor_rollout_ref[SECTION] = pack_config(resolved.config)
