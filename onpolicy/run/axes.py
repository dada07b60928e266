"""A config as a point in the space of methods: one short text for each axis. For ``onpolicy diff`` and docs/methods.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from onpolicy.config.load import build
from onpolicy.config.problems import collected
from onpolicy.config.registry import find_function, is_schedule
from onpolicy.config.resolve import resolve
from onpolicy.config.schema import SHARED_FIELDS, Config
from onpolicy.config.yaml_io import read_yaml
from onpolicy.losses.terms.base import spec_of
from onpolicy.types import Sampling

MISSING = "…"
"""Stands for a value that the config leaves to its user."""
TERM_AXES = ("target", "support", "divergence", "token_weights", "select", "route", "advantage")
"""Options of terms that are axes of their own, under design's names."""


def read(path: Path) -> Config:
    """A config whose missing values are left open; everything else is checked.

    Raises:
        ConfigError: with every problem of the config.
    """
    with collected(None) as problems:
        return resolve(build(_filled(read_yaml(path, problems=problems)), problems), problems).config


def axes(config: Config) -> dict[str, str]:
    """Axis -> value; an axis at its default is an empty text. Several terms' values stand in their order, `|` between them."""
    sampling = {**vars(Sampling()), **{k: v for k, v in config.generator.items() if k in vars(Sampling())}}
    terms = [term if isinstance(term, Mapping) else {"name": term} for term in config.objective]
    return {
        "rollout": ", ".join(f"{name} {value}" for name, value in sampling.items() if value != _rest_state(name)),
        "context": "; ".join(f"{context}: {short(spec)}" for context, spec in config.contexts.items()),
        "spans": "; ".join(f"{name}: {short(spec)}" for name, spec in config.spans.items()),
        "teacher": short(config.teacher) if config.contexts else "",
        "objective": " | ".join(_term(term) for term in terms),
        **{axis: _joined([term.get(axis) for term in terms]) for axis in TERM_AXES},
        "normalize": _joined([term.get("normalize") for term in terms]),
        "credit": short(config.credit)
        if config.rewards and any(_reads_rewards(term["name"]) for term in terms)
        else "",
        "rewards": "; ".join(short(reward) for reward in config.rewards),
        "schedule": "; ".join(_schedules(config.objective, "objective")),
        "coverage": ", ".join(f"{k} {v}" for k, v in config.data.get("coverage", {}).items()),
        "environment": short(config.environment) if config.environment else "",
        "privileged rollouts": short(config.privileged_rollouts) if config.privileged_rollouts else "",
        "dynamic sampling": str(config.data.get("dynamic_sampling") or ""),
    }


def settings(config: Config) -> dict[str, Any]:
    """Every other setting that a comparison of two configs should show, defaults filled in, as nested dictionaries."""
    kept = ("model", "rendering", "data", "generator", "trainer", "eval", "steps", "seed", "correctness")
    tree = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(tree, dict)
    chosen = {name: tree[name] for name in kept}
    for section in ("data", "trainer"):
        chosen[section] = asdict(SHARED_FIELDS[section]()) | chosen[section]
    chosen["generator"] = {k: v for k, v in chosen["generator"].items() if k not in vars(Sampling())}
    for axis in ("coverage", "dynamic_sampling"):
        chosen["data"].pop(axis, None)
    return chosen


def short(spec: Any) -> str:
    """``{name: jsd, beta: 0.5}`` -> ``jsd(beta=0.5)``."""
    if isinstance(spec, Mapping):
        if "name" not in spec:
            return ", ".join(f"{k}={short(v)}" for k, v in spec.items())
        options = ", ".join(f"{k}={short(v)}" for k, v in spec.items() if k != "name")
        return f"{spec['name']}({options})" if options else str(spec["name"])
    if isinstance(spec, str) and len(spec) > 40:
        return f"{spec[:30]!r}…"
    return str(spec)


def _rest_state(name: str) -> Any:
    """What is not worth a word; the number and length of rollouts always are."""
    return {"temperature": 1.0, "top_p": 1.0, "top_k": 0}.get(name)


def _reads_rewards(name: str) -> bool:
    """Whether a term trains every sampled token, as those that read advantages do."""
    return spec_of(find_function("term", name, "objective")).tokens == "sampled_mask"


def _term(term: Mapping[str, Any]) -> str:
    options = {k: v for k, v in term.items() if k not in (*TERM_AXES, "normalize") and not is_schedule(v)}
    return short(options)


def _joined(values: Sequence[Any]) -> str:
    return " | ".join("–" if v is None else short(v) for v in values) if any(v is not None for v in values) else ""


def _schedules(value: Any, key: str) -> list[str]:
    if isinstance(value, list):
        return [found for i, inner in enumerate(value) for found in _schedules(inner, f"{key}[{i}]")]
    if not isinstance(value, Mapping):
        return []
    found = []
    for name, inner in value.items():
        if is_schedule(inner) and name not in (*TERM_AXES, "name"):
            found.append(f"{key}.{name}: {short(inner)}")
        else:
            found += _schedules(inner, f"{key}.{name}")
    return found


def _filled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _filled(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_filled(v) for v in value]
    return MISSING if value == "???" else value
