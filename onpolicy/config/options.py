"""Every option and every plug-in of a config, read off the code that uses them."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from onpolicy.config.bounds import FINITE, Bounds
from onpolicy.config.builtins import TABLES
from onpolicy.config.registry import find_function, options_of
from onpolicy.config.schema import INJECTED, SHARED_FIELDS, Config, EvalSetSettings, PrivilegedSettings
from onpolicy.utils.errors import ConfigError

SECTION_OF = {
    "reward": "rewards[]",
    "term": "objective[]",
    "context": "contexts.<context>",
    "tracker": "logging.trackers[]",
    "span": "spans.<name>",
    "guard": "guards[]",
    "schedule": "<any number>",
    "route": "objective[].route",
    "support": "objective[].support",
    "target": "objective[].target",
    "divergence": "objective[].divergence",
    "token_weights": "objective[].token_weights",
    "advantage": "objective[].advantage",
}
"""Where a plug-in of a kind stands in the config, if not under the name of its kind."""


@dataclass(frozen=True)
class Option:
    """What is documented of an option, or of a plug-in."""

    key: str
    type: str
    default: str
    """Empty for a plug-in."""
    meaning: str
    source: str


def options() -> Iterator[Option]:
    """Every field of the config, then every option of every built-in plug-in."""
    yield from _fields(Config, "", "onpolicy.config.schema:Config")
    for kind, settings in SHARED_FIELDS.items():
        yield from _fields(settings, f"{SECTION_OF.get(kind, kind)}.", f"{settings.__module__}:{settings.__name__}")
    yield from _fields(PrivilegedSettings, "privileged_rollouts.", "onpolicy.config.schema:PrivilegedSettings")
    yield from _fields(EvalSetSettings, "eval.sets.<set>.", "onpolicy.config.schema:EvalSetSettings")
    for kind, table in TABLES.items():
        for name, target in table.items():
            yield from _plugin_options(kind, name, target)


def plug_ins() -> Iterator[Option]:
    """Every built-in plug-in, at the place where its name stands."""
    for kind, table in TABLES.items():
        for name, target in table.items():
            meaning = summary_of(find_function(kind, name, kind))
            yield Option(f"{SECTION_OF.get(kind, kind)} ({name})", kind, "", meaning, target)


def _fields(schema: type, prefix: str, source: str) -> Iterator[Option]:
    types = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        nested = field.default_factory
        if isinstance(nested, type) and dataclasses.is_dataclass(nested):
            yield from _fields(nested, f"{prefix}{field.name}.", f"{nested.__module__}:{nested.__name__}")
            continue
        default = field.default if nested is dataclasses.MISSING else nested()
        meaning = _with_bounds(field.metadata.get("help", ""), [field.metadata.get("bounds")])
        yield Option(f"{prefix}{field.name}", _type_name(types[field.name]), _shown(default), meaning, source)


def _type_name(annotation: Any) -> str:
    """As a reader of YAML knows it: ``int``, ``error | skip``, ``list``, ``plug-in``."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(inner[0])
    if origin is Literal:
        return " | ".join(map(_shown, inner))
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(map(_type_name, inner)))
    kind = origin or annotation
    names = {
        type(None): "null",
        str: "text",
        Any: "any",
        dict: "mapping",
        Mapping: "mapping",
        tuple: "list",
        Sequence: "list",
    }
    names[Callable] = "plug-in"
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _with_bounds(meaning: str, marks: Iterable[Any]) -> str:
    bounds = [str(mark) for mark in marks if isinstance(mark, Bounds) and mark != FINITE]
    return f"{meaning} ({'; '.join(bounds)})" if bounds else meaning


def _plugin_options(kind: str, name: str, target: str) -> Iterator[Option]:
    function = find_function(kind, name, kind)
    meanings = option_meanings(function)
    for option, parameter in options_of(function).items():
        if option in INJECTED.get(kind, ()):
            continue
        key = f"{SECTION_OF.get(kind, kind)}.{option}"
        required = parameter.default is inspect.Parameter.empty
        meaning = _with_bounds(meanings.get(option, ""), getattr(parameter.annotation, "__metadata__", ()))
        default = "required" if required else _shown(parameter.default)
        yield Option(f"{key} ({name})", _type_name(parameter.annotation), default, meaning, target)


def option_meanings(function: Callable[..., Any]) -> dict[str, str]:
    """The ``Args:`` lines of a docstring, of ``__init__`` for a class; a line indented further continues the one before."""
    text = inspect.getdoc(function.__init__ if inspect.isclass(function) else function) or ""
    _, _, block = text.partition("Args:\n")
    meanings: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        if not line.startswith("    "):
            break
        if match := re.match(r"    (\w+): (.*)", line):
            name, meanings[match.group(1)] = match.group(1), match.group(2)
        elif name:
            meanings[name] += f" {line.strip()}"
    return meanings


def summary_of(function: Callable[..., Any]) -> str:
    """First line of the docstring."""
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _shown(value: Any) -> str:
    if value == "???":
        return "required"
    if callable(value):
        return str(getattr(value, "__name__", value))
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )


def find_options(text: str) -> list[Option]:
    """The options and plug-ins that a text means: a key or section in full, else all whose key, name or meaning has its words, keys first.

    Raises:
        ConfigError: there are none; names what is close.
    """
    every = [*options(), *plug_ins()]
    if below := [
        o for o in every if o.key == text or o.key.startswith(tuple(f"{text}{mark}" for mark in (".", "[", " ")))
    ]:
        return below
    words, whole = text.lower().split(), _squashed(text)

    def rank(option: Option) -> int:
        """The lower the better; 4: it is something else."""
        for i, place in enumerate((option.key, f"{option.key} {option.meaning}")):
            if all(re.search(rf"(?<![a-z0-9]){re.escape(word)}", place.lower()) for word in words):
                return 2 * i
            if len(whole) > 3 and whole in _squashed(place):
                return 2 * i + 1
        return 4

    found = sorted((option for option in every if rank(option) < 4), key=rank)
    if not found:
        known = {name for option in every for name in (option.key.partition(" ")[0], *re.findall(r"\w+", option.key))}
        close = difflib.get_close_matches(text.lower(), known, n=5, cutoff=0.6)
        near = f" Did you mean {', '.join(map(repr, close))}?" if close else ""
        raise ConfigError(f"no option, plug-in or meaning has {text!r}.{near} `onpolicy show` prints all of them.")
    return found


def _squashed(text: str) -> str:
    """``warm-up`` and ``warmup_`` are the same."""
    return re.sub(r"[\W_]+", "", text.lower())
