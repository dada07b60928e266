"""Names to functions: the one way in which a config reaches code, ours or a user's.

A plug-in is a plain function. Its positional parameters are what the framework hands it, its keyword-only parameters
are its options: **the signature is the schema**. Built-ins stand in tables of names to ``module:function``; anything
else is written ``module:function`` in the config and imported when the config is checked. Nothing registers itself,
so every process that can import the module finds the plug-in.
"""

from __future__ import annotations

import dataclasses
import difflib
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

import rewards as _rewards
from onpolicy.schedule import Bound, Coefficient

TABLES: dict[str, Mapping[str, str]] = {
    "data": {
        "file": "onpolicy.data:file",
        "hub": "onpolicy.data:hub",
        "gym": "onpolicy.data:gym",
        "champ": "onpolicy.data:champ",
        "lab": "onpolicy.lab.data:lab",
    },
    "generator": {
        "vllm": "onpolicy.backends.vllm_generator:VLLMGenerator",
        "transformers": "onpolicy.backends.hf_generator:HFGenerator",
    },
    "reward": _rewards.BUILTIN,
    "context": {
        "none": "onpolicy.contexts.none:none",
        "final_answer": "onpolicy.contexts.final_answer:final_answer",
        "reference_solution": "onpolicy.contexts.reference_solution:reference_solution",
        "partial": "onpolicy.contexts.partial:partial",
        "without_thinking": "onpolicy.contexts.without_thinking:without_thinking",
        "successful_sibling": "onpolicy.contexts.successful_sibling:successful_sibling",
        "failed_sibling": "onpolicy.contexts.failed_sibling:failed_sibling",
        "feedback": "onpolicy.contexts.feedback:feedback",
        "wrong_answer": "onpolicy.contexts.wrong_answer:wrong_answer",
        "instruction": "onpolicy.contexts.instruction:instruction",
        "regenerated": "onpolicy.contexts.regenerated:regenerated",
        "key_points": "onpolicy.contexts.key_points:key_points",
        "critique": "onpolicy.contexts.critique:critique",
        "other_problem": "onpolicy.contexts.other_problem:other_problem",
        "revision": "onpolicy.contexts.revision:revision",
    },
    "teacher": {
        "live": "onpolicy.teachers:live",
        "frozen": "onpolicy.teachers:frozen",
        "ema": "onpolicy.teachers:ema",
        "snapshot": "onpolicy.teachers:snapshot",
        "trust_region_weights": "onpolicy.teachers:trust_region_weights",
        "trust_region_logits": "onpolicy.teachers:trust_region_logits",
        "model": "onpolicy.teachers:model",
    },
    "credit": {
        "group_mean": "onpolicy.credit:group_mean",
        "group_std": "onpolicy.credit:group_std",
        "leave_one_out": "onpolicy.credit:leave_one_out",
    },
    "term": {
        "distill": "onpolicy.objectives.distill:distill",
        "teacher_advantage": "onpolicy.objectives.teacher_advantage:teacher_advantage",
        "policy_gradient": "onpolicy.objectives.policy_gradient:policy_gradient",
        "gspo": "onpolicy.objectives.gspo:gspo",
        "cispo": "onpolicy.objectives.cispo:cispo",
        "cross_entropy": "onpolicy.objectives.cross_entropy:cross_entropy",
        "start_kl": "onpolicy.objectives.start_kl:start_kl",
        "sampled_kl": "onpolicy.objectives.sampled_kl:sampled_kl",
    },
    "advantage": {
        "group": "onpolicy.objectives.advantage:group",
        "add": "onpolicy.objectives.advantage:add",
        "add_keeping_sign": "onpolicy.objectives.advantage:add_keeping_sign",
        "multiply": "onpolicy.objectives.advantage:multiply",
        "bounded_reversal": "onpolicy.objectives.advantage:bounded_reversal",
        "gap": "onpolicy.objectives.advantage:gap",
        "future_gap": "onpolicy.objectives.advantage:future_gap",
        "rebellious": "onpolicy.objectives.advantage:rebellious",
        "contrastive": "onpolicy.objectives.advantage:contrastive",
        "entropy_directed": "onpolicy.objectives.advantage:entropy_directed",
        "on_markers": "onpolicy.objectives.advantage:on_markers",
        "surprise": "onpolicy.objectives.advantage:surprise",
    },
    "support": {
        "full": "onpolicy.distill.support:full",
        "teacher_topk": "onpolicy.distill.support:teacher_topk",
        "student_topk": "onpolicy.distill.support:student_topk",
    },
    "target": {
        "identity": "onpolicy.distill.target:identity",
        "temperature": "onpolicy.distill.target:temperature",
        "top_k": "onpolicy.distill.target:top_k",
        "arithmetic_mix": "onpolicy.distill.target:arithmetic_mix",
        "prior_anchor": "onpolicy.distill.target:prior_anchor",
        "geometric_mix": "onpolicy.distill.target:geometric_mix",
        "pmi_residual": "onpolicy.distill.target:pmi_residual",
        "marker_mass_floor": "onpolicy.distill.target:marker_mass_floor",
    },
    "divergence": {
        "forward_kl": "onpolicy.distill.divergence:forward_kl",
        "reverse_kl": "onpolicy.distill.divergence:reverse_kl",
        "jsd": "onpolicy.distill.divergence:jsd",
        "skew_forward_kl": "onpolicy.distill.divergence:skew_forward_kl",
        "skew_reverse_kl": "onpolicy.distill.divergence:skew_reverse_kl",
    },
    "token_weights": {
        "uniform": "onpolicy.distill.token_weight:uniform",
        "position": "onpolicy.distill.token_weight:position",
        "skip_first": "onpolicy.distill.token_weight:skip_first",
        "entropy": "onpolicy.distill.token_weight:entropy",
        "gap": "onpolicy.distill.token_weight:gap",
        "random": "onpolicy.distill.token_weight:random",
        "shuffled": "onpolicy.distill.token_weight:shuffled",
        "gap_above": "onpolicy.distill.token_weight:gap_above",
        "teacher_entropy": "onpolicy.distill.token_weight:teacher_entropy",
        "teacher_certainty": "onpolicy.distill.token_weight:teacher_certainty",
        "opportunity": "onpolicy.distill.token_weight:opportunity",
        "spans": "onpolicy.distill.token_weight:spans",
        "normalized": "onpolicy.distill.token_weight:normalized",
        "entropy_matched": "onpolicy.distill.token_weight:entropy_matched",
    },
    "route": {
        "all": "onpolicy.routing:all",
        "failures": "onpolicy.routing:failures",
        "correct": "onpolicy.routing:correct",
        "mixed": "onpolicy.routing:mixed",
        "frontier": "onpolicy.routing:frontier",
        "zero_variance": "onpolicy.routing:zero_variance",
        "above_average": "onpolicy.routing:above_average",
    },
    "span": {
        "pattern": "onpolicy.spans:pattern",
        "markers": "onpolicy.spans:markers",
        "quoted_by_model": "onpolicy.spans:quoted_by_model",
    },
    "schedule": {
        "constant": "onpolicy.schedule:constant",
        "linear": "onpolicy.schedule:linear",
        "trapezoid": "onpolicy.schedule:trapezoid",
        "phases": "onpolicy.schedule:phases",
        "schmitt_gate": "onpolicy.schedule:schmitt_gate",
        "dual_ascent": "onpolicy.schedule:dual_ascent",
    },
    "guard": {
        "falls": "onpolicy.guards:falls",
        "rises": "onpolicy.guards:rises",
        "stays": "onpolicy.guards:stays",
    },
    "trainer": {
        "local": "onpolicy.backends.local:LocalTrainer",
        "deepspeed": "onpolicy.backends.deepspeed_trainer:DeepSpeedTrainer",
    },
    "tracker": {
        "jsonl": "onpolicy.trackers:jsonl",
        "tensorboard": "onpolicy.trackers:tensorboard",
        "wandb": "onpolicy.trackers:wandb",
    },
}
"""Kind -> name -> ``module:function``. An option whose name is a kind takes a plug-in of that kind."""


class ConfigError(ValueError):
    """A config that cannot be run; the message names the full key, the value given and what is wanted."""


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


def suggest(given: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` or nothing."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def find(kind: str, name: str, key: str) -> Callable[..., Any]:
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


def resolve(kind: str, spec: Any, key: str, *, supplied: Iterable[str] = ()) -> Plugin:
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
    function = find(kind, spec["name"], name_key)
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
    if option in TABLES and (value is None or isinstance(value, str | Mapping)):
        return None if value is None else resolve(option, value, key).bind()
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
        return Coefficient(key, resolve("schedule", spec, key).bind())
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
