"""What both models are asked: the sets of a config, a dataset, or problems that come with the package."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schema import Config
from onpolicy.config.shipped import find_config, shipped_configs
from onpolicy.data.files import is_data_file
from onpolicy.data.rendering import Renderer
from onpolicy.data.subset import coverage
from onpolicy.rewards.lexicon import LEXICONS
from onpolicy.run.loading import evaluation_prompts
from onpolicy.types import Prompt
from onpolicy.utils.errors import ConfigError

BUILT_IN = "gsm_symbolic"
"""Asked where no data are given: grade-school word problems of reasoning-gym, with its verifier."""
UNCERTAINTY = "uncertainty"
"""The lexicon of all words that express uncertainty."""
DOUBTS = ("self_doubt", "hedges", "alternatives")
"""The lexicons that it is made of."""
PROBE_SAMPLES = 4
"""Answers per problem that probes change."""
TAKEN = {
    "model.path": "--base and --trained",
    "eval.samples_per_problem": "--samples",
    "eval.pass_at": "--samples",
    "run_dir": "--output",
}
"""Key -> the option that says it."""


def asked_config(data: str | None, overrides: Sequence[str], samples: int) -> Config:
    """The config that both models are evaluated with; ``model.path`` is set by ``resolved_for``.

    Args:
        data: a config's name or file, a dataset's file, folder or hub id; None: problems that come with the package
        overrides: settings, e.g. ``seed=1``
        samples: answers to each problem

    Raises:
        ConfigError: an override says what an option says, or the config cannot be.
    """
    for override in overrides:
        if option := TAKEN.get(override.partition("=")[0]):
            raise ConfigError(f"override {override!r}: expected {option} in its place")
    raw = dataclasses.asdict(load(_source(data)))
    if UNCERTAINTY in raw["custom_lexicons"]:
        raise ConfigError(f"custom_lexicons.{UNCERTAINTY}: diagnose has a lexicon of this name; expected another name")
    lexicons = {**raw["custom_lexicons"], UNCERTAINTY: [word for name in DOUBTS for word in LEXICONS[name]]}
    counted = dict.fromkeys((UNCERTAINTY, *DOUBTS, "boosters", "neutral", *raw["custom_lexicons"]))
    sets = raw["eval"]["sets"] or {"data": _as_set(raw["data"])}
    raw["model"] |= {"revision": None}  # of the config's own model
    raw["custom_lexicons"] = lexicons
    raw["eval"] |= {"sets": sets, "samples_per_problem": samples, "pass_at": [samples], "every": 0}
    raw["epistemic"] |= {"lexicon": UNCERTAINTY, "lexicons": list(counted), "baseline": 0}
    return _probed_as_evaluated(load(raw, overrides))


def _probed_as_evaluated(config: Config) -> Config:
    """Probes draw answers as evaluations do."""
    raw = dataclasses.asdict(config)
    drawn = {"temperature": config.eval.temperature, "top_p": config.eval.top_p, "group_size": PROBE_SAMPLES}
    limit = {} if config.eval.max_tokens is None else {"max_tokens": config.eval.max_tokens}
    raw["generator"] = {**raw["generator"], **drawn, **limit}
    return load(raw)


def _source(data: str | None) -> dict[str, Any] | Path:
    if data is not None and (Path(data).suffix in (".yaml", ".yml") or data in shipped_configs()):
        return find_config(data)
    section: dict[str, Any] = {"name": "gym", "task": BUILT_IN, "seed": 1}
    name, reward = BUILT_IN, "gym_answer"
    if data is not None:
        here = Path(data).exists() or is_data_file(data)
        section, name, reward = (
            {"name": "file" if here else "hub", "path": data},
            Path(data).stem or "data",
            "math_answer",
        )
    return {
        "model": {"path": "lab-reasoner"},  # until it is known
        "data": section,
        "rewards": [{"name": reward}],
        "objective": [{"name": "policy_gradient"}],  # nothing is trained
        "eval": {"sets": {name.replace(".", "_"): dict(section)}},
    }


def _as_set(data: Mapping[str, Any]) -> dict[str, Any]:
    """A config's training data as a set to evaluate on."""
    training = {"prompts_per_step", "shuffle", "coverage", "completions_column", "dynamic_sampling"}
    return {name: value for name, value in data.items() if name not in training}


def resolved_for(config: Config, model: str) -> ResolvedConfig:
    """The config with a model."""
    raw = dataclasses.asdict(config)
    raw["model"] |= {"path": model}
    return resolve(load(raw))


def asked_problems(resolved: ResolvedConfig, renderer: Renderer, problems: int) -> dict[str, list[Prompt]]:
    """Set -> its problems: so many in all, drawn at random by ``seed``, of each set alike as far as it has them."""
    sets = evaluation_prompts(resolved, renderer)
    chosen, left = {}, problems
    for place, (name, prompts) in enumerate(sorted(sets.items(), key=lambda pair: len(pair[1]))):
        number = min(len(prompts), -(-left // (len(sets) - place)))
        left -= number
        if number:
            chosen[name] = coverage(
                prompts, problems=number, seed=resolved.config.seed, key=f"eval.sets.{name}.coverage"
            )
    return {name: chosen[name] for name in sets if name in chosen}
