"""YAML from outside, read as values and nothing else: no environment, no code, no files without an end.

Files and overrides are read by one loader: what it makes of a text without quotes stands in ``onpolicy.config.plain``.

``${seed}`` points to another value of the same config. ``${oc.env:HOME}`` and every other ``${name:...}`` would run a function
while the config is read, so it is refused before anything is resolved.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.reader import ReaderError

from onpolicy.config.merge import UNKNOWN
from onpolicy.config.plain import Plain, read_plain, text_of
from onpolicy.config.problems import Problems, collected
from onpolicy.utils.errors import ConfigError

MOST_VALUES = 10_000
"""Values that a file may come to, anchors written out."""
SHOWN = 80
"""Characters of a value in a message."""
PLAIN = "tag:onpolicy,2026:plain"
"""What a scalar without quotes is, until it is read."""
MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Mappings, lists and scalars; a scalar without quotes becomes what ``read_plain`` makes of it, a key its text."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        "tag:yaml.org,2002:map": SafeConstructor.construct_yaml_map,
        "tag:yaml.org,2002:seq": SafeConstructor.construct_yaml_seq,
        "tag:yaml.org,2002:str": SafeConstructor.construct_yaml_str,
        None: SafeConstructor.construct_undefined,
    }

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return MERGE if value == "<<" else PLAIN
        return str(super().resolve(kind, value, implicit))

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:  # type: ignore[override]
        self.flatten_mapping(node)
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "expected a name as a key", key.start_mark)
        return {str(key.value): self.construct_object(value, deep=deep) for key, value in node.value}  # type: ignore[no-untyped-call]


for tag in (PLAIN, *(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null"))):
    _Loader.add_constructor(tag, lambda loader, node: read_plain(node.value))


def read_yaml(path: Path, what: str = "config file", problems: Problems | None = None) -> dict[str, Any]:
    """The file's mappings and lists, nothing resolved; a value whose text says more than itself is a ``Plain``.

    Args:
        problems: where values that call a function are reported; without it they raise

    Raises:
        ConfigError: not text, not YAML, not a mapping, or it calls a function.
    """
    try:
        node, tree = _read(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what} {str(path)!r} is not valid YAML: {_reason(error)}") from error
    if not isinstance(node, yaml.MappingNode | None):
        held = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise ConfigError(f"{what} {str(path)!r} holds {held}, expected sections (key: value)")
    with collected(problems) as found:
        return without_functions(tree or {}, found)


def read_value(text: str) -> Any:
    """The value of an override; a ``Plain`` where its text says more than its value, or YAML cannot read it.

    Raises:
        ValueError: it holds characters that no text has.
    """
    try:
        node, value = _read(text)
    except ReaderError as error:
        raise ValueError(f"character {error.character!r}: {error.reason}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return Plain(text, None, _reason(error).splitlines()[0])
    if isinstance(node, yaml.ScalarNode) and node.style in ("'", '"') and node.end_mark.index == len(text.rstrip()):
        return value
    if isinstance(value, Plain):
        value = value.value("")
    if isinstance(value, str):
        return text
    return value if not isinstance(value, dict | list) and text in ("", text_of(value)) else Plain(text, value)


def without_functions(tree: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """Reports each value that would call a function when it is resolved; a stand-in takes its place."""

    def checked(key: str, value: Any) -> Any:
        if isinstance(value, str | Plain) and calls_function(str(value)):
            value = str(value)
            shown = value if len(value) <= SHOWN else value[: SHOWN - 3] + "..."
            problems.add(
                f"{key}: got {shown!r}; a config may not read the environment or call functions, only point to its own values "
                f'(${{seed}}). Give the value as an override from the shell instead: {key}="$VALUE"'
            )
            return UNKNOWN
        return value

    return mapped(tree, "", checked)  # type: ignore[no-any-return]


def leftovers(tree: Any) -> list[str]:
    """A problem for each resolved value that still looks like a reference: whoever read it again would follow it."""
    found: list[str] = []

    def look(key: str, value: Any) -> None:
        if isinstance(value, str) and "${" in value:
            found.append(
                f"{key}: got a text with '${{' in it; expected none, this stands for references to other values."
            )

    mapped(tree, "", look)
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


def _read(text: str) -> tuple[Any, Any]:
    """The document's root, None for an empty one, and what it holds.

    Raises:
        ValueError: anchors that hold themselves or multiply without end.
        yaml.YAMLError: not YAML, or the same key twice.
    """
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_VALUES + 1  # what is found again inside itself has no end
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            children = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = 1 + sum(map(size, children))
            _refuse_doubles(node)
        return sizes[id(node)]

    loader = _Loader(text)
    try:
        node = loader.get_single_node()  # type: ignore[no-untyped-call]
        if node is not None and size(node) > MOST_VALUES:
            raise ValueError(f"its anchors come to more than {MOST_VALUES} values, or hold themselves")
        return node, None if node is None else loader.construct_document(node)  # type: ignore[no-untyped-call]
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def _refuse_doubles(node: Any) -> None:
    seen: set[Any] = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key.value, str) and key.tag != MERGE:
            if key.value in seen:
                raise ConstructorError(None, None, f"found duplicate key {key.value}", key.start_mark)
            seen.add(key.value)


def mapped(tree: Any, key: str, change: Callable[[str, Any], Any]) -> Any:
    """The tree with ``change(full key, value)`` in place of each value."""
    if isinstance(tree, dict):
        return {name: mapped(value, f"{key}.{name}" if key else str(name), change) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [mapped(value, f"{key}[{i}]", change) for i, value in enumerate(tree)]
    return change(key, tree)


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
