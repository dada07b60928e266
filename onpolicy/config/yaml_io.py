"""YAML from outside, read as values and nothing else: no environment, no code, no files without an end.

``${seed}`` points to another value of the same config. ``${oc.env:HOME}`` and every other ``${name:...}`` would run a function
while the config is read, so it is refused before anything is resolved.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onpolicy.config.merge import UNKNOWN
from onpolicy.config.problems import Problems, collected
from onpolicy.utils.errors import ConfigError

MOST_VALUES = 10_000
"""Values that a file may come to, anchors written out."""
SHOWN = 80
"""Characters of a value in a message."""


def read_yaml(path: Path, what: str = "config file", problems: Problems | None = None) -> DictConfig:
    """The file's mappings and lists as OmegaConf holds them, nothing resolved.

    Args:
        problems: where values that call a function are reported; without it they raise

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
        raise ConfigError(f"{what} {str(path)!r} holds {held}, expected sections (key: value)")
    with collected(problems) as found:
        return without_functions(raw, found)


def read_value(text: str) -> Any:
    """The value of an override; raises as YAML does, or ValueError."""
    if not text:
        return None
    try:
        _composed(text)
        return yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError(_reason(error)) from error


def without_functions(raw: DictConfig, problems: Problems) -> DictConfig:
    """Reports each value that would call a function when it is resolved, or is not a number; a stand-in takes its place."""

    def checked(key: str, value: Any) -> Any:
        if isinstance(value, float) and math.isnan(value):
            problems.add(f"{key}: got nan, expected a number.")
            return UNKNOWN
        if isinstance(value, str) and calls_function(value):
            shown = value if len(value) <= SHOWN else value[: SHOWN - 3] + "..."
            problems.add(
                f"{key}: got {shown!r}; a config may not read the environment or call functions, only point to its own values "
                f'(${{seed}}). Give the value as an override from the shell instead: {key}="$VALUE"'
            )
            return UNKNOWN
        return value

    tree = _mapped(OmegaConf.to_container(raw, resolve=False), "", checked)
    return OmegaConf.create(tree)  # type: ignore[no-any-return]


def leftovers(tree: Any) -> list[str]:
    """A problem for each resolved value that still looks like a reference: whoever read it again would follow it."""
    found: list[str] = []

    def look(key: str, value: Any) -> None:
        if isinstance(value, str) and "${" in value:
            found.append(
                f"{key}: got a text with '${{' in it; expected none, this stands for references to other values."
            )

    _mapped(tree, "", look)
    return found


def file_name(name: str, key: str) -> None:
    """Raises ConfigError for a name of a config that becomes a file or folder and would lead out of its place."""
    if not name or name in (".", "..") or not name.isprintable() or any(character in name for character in "/\\"):
        raise ConfigError(
            f"{key}: got the name {name!r}, which becomes a file; expected one without slashes or control characters."
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


def _mapped(tree: Any, key: str, change: Callable[[str, Any], Any]) -> Any:
    """The tree with ``change(full key, value)`` in place of each value."""
    if isinstance(tree, dict):
        return {name: _mapped(value, f"{key}.{name}" if key else str(name), change) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_mapped(value, f"{key}[{i}]", change) for i, value in enumerate(tree)]
    return change(key, tree)


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
