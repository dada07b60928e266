"""YAML that others wrote, read as values and nothing else: no environment, no code, no files without an end.

``${seed}`` points to another value of the same config. ``${oc.env:HOME}`` and every other ``${name:...}`` would run a function
while the config is read, so it is refused before anything is resolved.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onpolicy.utils.errors import ConfigError

MOST_VALUES = 10_000
"""Values that a file may come to, anchors written out."""
SHOWN = 80
"""Characters of a value in a message."""


def read_yaml(path: Path, what: str = "config file") -> DictConfig:
    """The file's mappings and lists as OmegaConf holds them, nothing resolved.

    Raises:
        ConfigError: not text, not YAML, not a mapping, or it calls a function.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = _composed(text)
        raw = OmegaConf.load(io.StringIO(text)) if isinstance(node, yaml.MappingNode | None) else None
    except (OSError, yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(f"{what} {str(path)!r} is not valid YAML: {_reason(error)}") from error
    if not isinstance(raw, DictConfig):
        held = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise ConfigError(f"{what} {str(path)!r} holds {held}, wanted sections (key: value)")
    refuse_functions(raw)
    return raw


def read_value(text: str) -> Any:
    """The value of an override; raises as YAML does, or ValueError."""
    if not text:
        return None
    try:
        _composed(text)
        return yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError(_reason(error)) from error


def refuse_functions(raw: Any) -> None:
    """Raises ConfigError where a value would call a function when it is resolved, or is not a number."""
    tree = OmegaConf.to_container(raw, resolve=False) if OmegaConf.is_config(raw) else raw
    for key, value in _values(tree, ""):
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"{key}: got nan, wanted a number.")
        if isinstance(value, str) and calls_function(value):
            shown = value if len(value) <= SHOWN else value[: SHOWN - 3] + "..."
            raise ConfigError(
                f"{key}: got {shown!r}; a config may not read the environment or call functions, only point to its own values "
                f'(${{seed}}). Give the value as an override from the shell instead: {key}="$VALUE"'
            )


def refuse_leftovers(tree: Any) -> None:
    """Raises ConfigError where a resolved value still looks like a reference: whoever read it again would follow it."""
    for key, value in _values(tree, ""):
        if isinstance(value, str) and "${" in value:
            raise ConfigError(
                f"{key}: got a text with '${{' in it; wanted none, this stands for references to other values."
            )


def file_name(name: str, key: str) -> None:
    """Raises ConfigError for a name of a config that becomes a file or folder and would lead out of its place."""
    if not name or name in (".", "..") or not name.isprintable() or any(character in name for character in "/\\"):
        raise ConfigError(
            f"{key}: got the name {name!r}, which becomes a file; wanted one without slashes or control characters."
        )


def calls_function(text: str) -> bool:
    """Whether a colon stands inside of ``${...}``: names of values hold none, calls always do.

    Escaped ones count too: they are text once and a call the next time they are read.
    """
    depth = 0
    for i, character in enumerate(text):
        if text.startswith("${", i):
            depth += 1
        elif character == "}" and depth:
            depth -= 1
        elif character == ":" and depth:
            return True
    return False


def _composed(text: str) -> Any:
    """The document's root, None for an empty one; raises ValueError for anchors that hold themselves or multiply without end."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_VALUES + 1  # what is found again inside itself has no end
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            children = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = 1 + sum(map(size, children))
        return sizes[id(node)]

    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is not None and size(node) > MOST_VALUES:
        raise ValueError(f"its anchors come to more than {MOST_VALUES} values, or hold themselves")
    return node


def _values(tree: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _values(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _values(value, f"{key}[{i}]")
    else:
        yield key, tree


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
