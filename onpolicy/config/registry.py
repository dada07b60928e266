"""Names to functions: the one way in which a config reaches code, ours or a user's.

A plug-in is a plain function. Its positional parameters are what the framework hands it, its keyword-only parameters
are its options: **the signature is the schema**. Built-ins stand in tables of names to ``module:function``; anything
else is written ``module:function`` in the config and imported when the config is checked. Nothing registers itself,
so every process that can import the module finds the plug-in.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onpolicy.config.schedules import Bound, Coefficient
from onpolicy.rewards import BUILTIN as REWARDS
from onpolicy.utils.errors import ConfigError, suggest

TABLES: dict[str, Mapping[str, str]] = {
    "data": {
        "file": "onpolicy.data:file",
        "hub": "onpolicy.data:hub",
        "gym": "onpolicy.data:gym",
        "champ": "onpolicy.data:champ",
        "lab": "onpolicy.experiments.lab.data:lab",
    },
    "generator": {
        "vllm": "onpolicy.rollout.vllm_generator:VLLMGenerator",
        "transformers": "onpolicy.rollout.hf_generator:HFGenerator",
    },
    "reward": REWARDS,
    "context": {
        "none": "onpolicy.annotation.contexts.none:none",
        "final_answer": "onpolicy.annotation.contexts.final_answer:final_answer",
        "reference_solution": "onpolicy.annotation.contexts.reference_solution:reference_solution",
        "partial": "onpolicy.annotation.contexts.partial:partial",
        "without_thinking": "onpolicy.annotation.contexts.without_thinking:without_thinking",
        "successful_sibling": "onpolicy.annotation.contexts.successful_sibling:successful_sibling",
        "failed_sibling": "onpolicy.annotation.contexts.failed_sibling:failed_sibling",
        "feedback": "onpolicy.annotation.contexts.feedback:feedback",
        "wrong_answer": "onpolicy.annotation.contexts.wrong_answer:wrong_answer",
        "instruction": "onpolicy.annotation.contexts.instruction:instruction",
        "regenerated": "onpolicy.annotation.contexts.regenerated:regenerated",
        "key_points": "onpolicy.annotation.contexts.key_points:key_points",
        "critique": "onpolicy.annotation.contexts.critique:critique",
        "other_problem": "onpolicy.annotation.contexts.other_problem:other_problem",
        "revision": "onpolicy.annotation.contexts.revision:revision",
    },
    "teacher": {
        "live": "onpolicy.trainer.teacher_rules:live",
        "frozen": "onpolicy.trainer.teacher_rules:frozen",
        "ema": "onpolicy.trainer.teacher_rules:ema",
        "snapshot": "onpolicy.trainer.teacher_rules:snapshot",
        "trust_region_weights": "onpolicy.trainer.teacher_rules:trust_region_weights",
        "trust_region_logits": "onpolicy.trainer.teacher_rules:trust_region_logits",
        "model": "onpolicy.trainer.teacher_rules:model",
    },
    "credit": {
        "group_mean": "onpolicy.annotation.credit:group_mean",
        "group_std": "onpolicy.annotation.credit:group_std",
        "leave_one_out": "onpolicy.annotation.credit:leave_one_out",
    },
    "term": {
        "distill": "onpolicy.losses.terms.distill:distill",
        "teacher_advantage": "onpolicy.losses.terms.teacher_advantage:teacher_advantage",
        "policy_gradient": "onpolicy.losses.terms.policy_gradient:policy_gradient",
        "gspo": "onpolicy.losses.terms.gspo:gspo",
        "cispo": "onpolicy.losses.terms.cispo:cispo",
        "cross_entropy": "onpolicy.losses.terms.cross_entropy:cross_entropy",
        "ref_kl": "onpolicy.losses.terms.ref_kl:ref_kl",
        "sampled_kl": "onpolicy.losses.terms.sampled_kl:sampled_kl",
    },
    "advantage": {
        "group": "onpolicy.losses.advantages:group",
        "add": "onpolicy.losses.advantages:add",
        "add_keeping_sign": "onpolicy.losses.advantages:add_keeping_sign",
        "multiply": "onpolicy.losses.advantages:multiply",
        "bounded_reversal": "onpolicy.losses.advantages:bounded_reversal",
        "gap": "onpolicy.losses.advantages:gap",
        "future_gap": "onpolicy.losses.advantages:future_gap",
        "rebellious": "onpolicy.losses.advantages:rebellious",
        "contrastive": "onpolicy.losses.advantages:contrastive",
        "entropy_directed": "onpolicy.losses.advantages:entropy_directed",
        "on_markers": "onpolicy.losses.advantages:on_markers",
        "surprise": "onpolicy.losses.advantages:surprise",
    },
    "support": {
        "full": "onpolicy.losses.supports:full",
        "teacher_topk": "onpolicy.losses.supports:teacher_topk",
        "student_topk": "onpolicy.losses.supports:student_topk",
    },
    "target": {
        "identity": "onpolicy.losses.targets:identity",
        "temperature": "onpolicy.losses.targets:temperature",
        "top_k": "onpolicy.losses.targets:top_k",
        "arithmetic_mix": "onpolicy.losses.targets:arithmetic_mix",
        "prior_anchor": "onpolicy.losses.targets:prior_anchor",
        "geometric_mix": "onpolicy.losses.targets:geometric_mix",
        "pmi_residual": "onpolicy.losses.targets:pmi_residual",
        "marker_mass_floor": "onpolicy.losses.targets:marker_mass_floor",
    },
    "divergence": {
        "forward_kl": "onpolicy.losses.divergences:forward_kl",
        "reverse_kl": "onpolicy.losses.divergences:reverse_kl",
        "jsd": "onpolicy.losses.divergences:jsd",
        "skew_forward_kl": "onpolicy.losses.divergences:skew_forward_kl",
        "skew_reverse_kl": "onpolicy.losses.divergences:skew_reverse_kl",
    },
    "token_weights": {
        "uniform": "onpolicy.losses.token_weights:uniform",
        "position": "onpolicy.losses.token_weights:position",
        "skip_first": "onpolicy.losses.token_weights:skip_first",
        "entropy": "onpolicy.losses.token_weights:entropy",
        "gap": "onpolicy.losses.token_weights:gap",
        "random": "onpolicy.losses.token_weights:random",
        "shuffled": "onpolicy.losses.token_weights:shuffled",
        "gap_above": "onpolicy.losses.token_weights:gap_above",
        "teacher_entropy": "onpolicy.losses.token_weights:teacher_entropy",
        "teacher_certainty": "onpolicy.losses.token_weights:teacher_certainty",
        "opportunity": "onpolicy.losses.token_weights:opportunity",
        "spans": "onpolicy.losses.token_weights:spans",
        "normalized": "onpolicy.losses.token_weights:normalized",
        "entropy_matched": "onpolicy.losses.token_weights:entropy_matched",
    },
    "route": {
        "all": "onpolicy.annotation.routes:all",
        "failures": "onpolicy.annotation.routes:failures",
        "correct": "onpolicy.annotation.routes:correct",
        "mixed": "onpolicy.annotation.routes:mixed",
        "frontier": "onpolicy.annotation.routes:frontier",
        "zero_variance": "onpolicy.annotation.routes:zero_variance",
        "above_average": "onpolicy.annotation.routes:above_average",
    },
    "span": {
        "pattern": "onpolicy.annotation.spans:pattern",
        "markers": "onpolicy.annotation.spans:markers",
        "quoted_by_model": "onpolicy.annotation.spans:quoted_by_model",
    },
    "schedule": {
        "constant": "onpolicy.config.schedules:constant",
        "linear": "onpolicy.config.schedules:linear",
        "trapezoid": "onpolicy.config.schedules:trapezoid",
        "phases": "onpolicy.config.schedules:phases",
        "schmitt_gate": "onpolicy.config.schedules:schmitt_gate",
        "dual_ascent": "onpolicy.config.schedules:dual_ascent",
    },
    "guard": {
        "falls": "onpolicy.run.guards:falls",
        "rises": "onpolicy.run.guards:rises",
        "stays": "onpolicy.run.guards:stays",
    },
    "trainer": {
        "local": "onpolicy.trainer.trainer:LocalTrainer",
        "deepspeed": "onpolicy.trainer.deepspeed:DeepSpeedTrainer",
    },
    "tracker": {
        "jsonl": "onpolicy.run.trackers:jsonl",
        "tensorboard": "onpolicy.run.trackers:tensorboard",
        "wandb": "onpolicy.run.trackers:wandb",
    },
}
"""Kind -> name -> ``module:function``. An option whose name is a kind takes a plug-in of that kind, unless it is annotated ``str``."""


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A plug-in found and checked."""

    kind: str
    name: str
    key: str
    """Where it stands in the config, e.g. ``objective[0].divergence``."""
    function: Callable[..., Any]
    options: Mapping[str, Any]
    """Those given in the config, converted; nested plug-ins already bound."""

    def bind(self) -> Callable[..., Any]:
        """The function with its options filled in; of a module-level function, so it can be pickled."""
        return Bound(self.function, **self.options) if self.options else self.function


def find_function(kind: str, name: str, key: str) -> Callable[..., Any]:
    """The function behind a name.

    Raises:
        ConfigError: the name is neither in the table of this kind nor an importable ``module:function``.
    """
    table = TABLES[kind]
    target = table.get(name, name)
    if ":" not in target:
        raise ConfigError(
            f"{key}: unknown {kind} {name!r}.{suggest(name, table)} Known: {', '.join(sorted(table))}. "
            "For your own, write 'module:function'."
        )
    module_name, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ConfigError(f"{key}: got {name!r}, wanted 'module:function' as Python writes them.")
    if str(Path.cwd()) not in sys.path:  # a console script does not look beside the user's own files
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{key}: cannot import {module_name!r} for {kind} {name!r}: {error}") from error
    try:
        function = getattr(module, attribute)
    except AttributeError:
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"{key}: module {module_name!r} has no {attribute!r}.{suggest(attribute, names)}") from None
    if not callable(function):
        raise ConfigError(f"{key}: {target!r} is a {type(function).__name__}, wanted a function")
    return function


def options_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Keyword-only parameters by name, with annotations resolved to types."""
    target: Any = function.__init__ if inspect.isclass(function) else function
    return {
        name: parameter.replace(annotation=_evaluated(parameter.annotation, getattr(target, "__globals__", {})))
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    """One that exists for type checkers only, or is missing, accepts anything."""
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return eval(annotation, dict(names)) if isinstance(annotation, str) else annotation
    except NameError:
        return Any


def resolve_plugin(kind: str, spec: Any, key: str, *, supplied: Iterable[str] = ()) -> Plugin:
    """Finds the plug-in that a config entry names and checks its options against its signature.

    Args:
        kind: a key of TABLES
        spec: a bare name or a mapping with ``name`` and options
        key: full key, for messages
        supplied: keyword-only parameters that the framework fills and the config may not

    Raises:
        ConfigError: unknown name or option, missing option, wrong type.
    """
    name_key = key if isinstance(spec, str) else f"{key}.name"
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise ConfigError(f"{key}: wanted a name or a mapping with 'name' and options, got {spec!r}")
    function = find_function(kind, spec["name"], name_key)
    given = {option: value for option, value in spec.items() if option != "name"}
    try:
        inspect.signature(function)
        known = {n: p for n, p in options_of(function).items() if n not in set(supplied)}
    except ValueError as error:  # some written in C keep their parameters to themselves
        raise ConfigError(
            f"{name_key}: {spec['name']!r} has no signature to be read; wrap it in a function."
        ) from error
    options = _check(spec["name"], given, known, key)
    return Plugin(kind=kind, name=spec["name"], key=key, function=function, options=options)


def _check(name: str, given: Mapping[str, Any], known: Mapping[str, inspect.Parameter], key: str) -> dict[str, Any]:
    for option in given:
        if option not in known:
            choices = ", ".join(sorted(known)) or "none"
            raise ConfigError(
                f"{key}.{option}: {name!r} has no such option.{suggest(option, known)} Its options: {choices}."
            )
    for option, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and option not in given:
            raise ConfigError(f"{key}.{option}: missing; {name!r} needs it ({_type_name(parameter.annotation)}).")
    return {option: _convert(value, known[option].annotation, f"{key}.{option}") for option, value in given.items()}


def _convert(value: Any, annotation: Any, key: str) -> Any:
    option = key.rpartition(".")[2]
    if is_schedule(value) and _is_number(annotation):
        return coefficient(value, key)
    if option in TABLES and annotation is not str and (value is None or isinstance(value, str | Mapping)):
        return None if value is None else resolve_plugin(option, value, key).bind()
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        if value not in choices:
            raise ConfigError(f"{key}: got {value!r}, wanted one of {', '.join(map(repr, choices))}.")
        return value
    return typed(value, annotation, key)


def is_schedule(value: Any) -> bool:
    """Whether a config value describes how a number changes instead of naming it."""
    return isinstance(value, Mapping) and isinstance(value.get("name"), str)


def coefficient(spec: Any, key: str) -> Coefficient:
    """The scheduled number that a config entry describes."""
    try:
        return Coefficient(key, resolve_plugin("schedule", spec, key).bind())
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from None


def _is_number(annotation: Any) -> bool:
    return annotation is float or float in typing.get_args(annotation)


def typed(value: Any, annotation: Any, key: str) -> Any:
    """``value`` as ``annotation``, by OmegaConf's rules (``1`` is a float, ``"x"`` is not)."""
    schema = dataclasses.make_dataclass("Option", [("value", annotation if _plain(annotation) else Any)])
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), {"value": value})).value  # type: ignore[union-attr]
        if not _fits(found, annotation):
            raise ValueError("a list among a list's numbers")
    except (
        OmegaConfBaseException,
        TypeError,
        ValueError,
    ) as error:  # the latter: a list for a mapping, or the other way round
        raise ConfigError(f"{key}: got {value!r}, wanted {_type_name(annotation)}.") from error
    return found


def _fits(value: Any, annotation: Any) -> bool:
    """Whether lists and mappings stand where the annotation has them: OmegaConf does not look into a list for others."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    return annotation not in (int, float, str, bool) or not isinstance(value, list | dict)


def _plain(annotation: Any) -> bool:
    """Whether OmegaConf 2.3 and 2.4 both take this annotation."""
    if annotation in (int, float, bool, str, type(None), Any):
        return True
    origin = typing.get_origin(annotation)
    if origin in (list, dict) or origin in (typing.Union, types.UnionType):
        return all(_plain(a) for a in typing.get_args(annotation))
    return dataclasses.is_dataclass(annotation)


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(annotation)))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
