"""``onpolicy show`` and ``onpolicy list``: every option and every name, read off the code that uses them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from onpolicy.config.builtins import TABLES
from onpolicy.config.registry import find_function, options_of
from onpolicy.config.schema import INJECTED, SHARED_FIELDS, Config, EvalSetSettings, PrivilegedSettings
from onpolicy.config.shipped import config_summary, shipped_configs
from onpolicy.utils.errors import ConfigError, suggest
from onpolicy.utils.terminal import plain

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


CONFIGS = "configs"
"""What ``onpolicy list`` calls the shipped configs."""


@dataclass(frozen=True)
class Option:
    """One line of documentation."""

    key: str
    default: str
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


def _fields(schema: type, prefix: str, source: str) -> Iterator[Option]:
    for field in dataclasses.fields(schema):
        nested = field.default_factory
        if isinstance(nested, type) and dataclasses.is_dataclass(nested):
            yield from _fields(nested, f"{prefix}{field.name}.", f"{nested.__module__}:{nested.__name__}")
            continue
        default = field.default if nested is dataclasses.MISSING else nested()
        yield Option(f"{prefix}{field.name}", _shown(default), field.metadata.get("help", ""), source)


def _plugin_options(kind: str, name: str, target: str) -> Iterator[Option]:
    function = find_function(kind, name, kind)
    meanings = option_meanings(function)
    for option, parameter in options_of(function).items():
        if option in INJECTED.get(kind, ()):
            continue
        key = f"{SECTION_OF.get(kind, kind)}.{option}"
        required = parameter.default is inspect.Parameter.empty
        yield Option(
            f"{key} ({name})", "required" if required else _shown(parameter.default), meanings.get(option, ""), target
        )


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


def show(prefix: str, as_markdown: bool) -> int:
    """Prints docs/configuration.md, or the options whose keys begin with ``prefix``."""
    if as_markdown:
        print(markdown())
    else:
        _print_options(prefix)
    return 0


def _print_options(prefix: str) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("key", "default", "meaning", "source"):
        table.add_column(column, overflow="fold", style="dim" if column == "source" else None)
    rows = [option for option in options() if option.key.startswith(prefix)]
    if not rows:
        heads = {option.key.split(".")[0].split("[")[0] for option in options()}
        raise ConfigError(
            f"no option starts with {prefix!r}.{suggest(prefix, heads)} Sections: {', '.join(sorted(heads))}."
        )
    for option in rows:
        table.add_row(*map(plain, (option.key, option.default, option.meaning, option.source)))
    Console().print(table)


def print_names(kind: str | None) -> int:
    """Prints the names of one kind of plug-in with what each is, those of all kinds, or the shipped configs."""
    if kind == CONFIGS:
        return _print_configs()
    if kind is not None and kind not in TABLES:
        kinds = [CONFIGS, *TABLES]
        raise ConfigError(f"unknown kind {kind!r}.{suggest(kind, kinds)} Kinds: {', '.join(kinds)}.")
    console = Console()
    for each in [kind] if kind else TABLES:
        table = Table(
            title=f"{each}  [dim]{SECTION_OF.get(each, each)}[/dim]",
            title_justify="left",
            box=None,
            pad_edge=False,
            show_header=False,
        )
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name in TABLES[each]:
            table.add_row(f"  {name}", plain(summary_of(find_function(each, name, each))))
        console.print(table)
        console.print()
    console.print("[dim]Your own function: write `module:function` where a name stands (docs/extending.md).[/dim]")
    return 0


def _print_configs() -> int:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, path in shipped_configs().items():
        table.add_row(plain(name), plain(config_summary(path)))
    Console().print(table)
    return 0


def markdown() -> str:
    """docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "<!-- written by `onpolicy show --markdown`; a test keeps it in step with the code -->",
        "",
        "A YAML file holds what differs from the defaults; `key=value` on the command line overrides it, and",
        "`objective[0].weight=2` reaches into lists. A section with a `name` chooses a plug-in and takes that plug-in's options;",
        "`module:function` in place of a name is your own. `onpolicy check FILE` validates without loading a model.",
        "",
        "| key | default | meaning | source |",
        "| --- | --- | --- | --- |",
    ]
    for option in options():
        cells = (f"`{option.key}`", f"`{option.default}`", option.meaning.replace("|", "\\|"), f"`{option.source}`")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Names", ""]
    for kind, table in TABLES.items():
        lines += [f"### {kind} (`{SECTION_OF.get(kind, kind)}`)", "", "| name | what it is |", "| --- | --- |"]
        for name in table:
            what = summary_of(find_function(kind, name, kind)).replace("|", "\\|")
            lines.append(f"| `{name}` | {what} |")
        lines.append("")
    return "\n".join(lines)
