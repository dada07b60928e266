"""A table of commands -> the parser that reads them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onpolicy.utils.arguments import Renamed, unrecognized


@dataclass(frozen=True)
class Argument:
    """One argument of a command, as ``argparse`` takes it."""

    flags: tuple[str, ...]
    options: Mapping[str, Any]
    is_config: bool = False
    """A file, or the name of a shipped config."""
    complete: Mapping[str, str] | None = None
    """Shell -> what completes it there, as shtab takes it."""
    exclusive: bool = False
    """Cannot be given together with the command's other exclusive arguments."""


@dataclass(frozen=True)
class Command:
    """What a command runs; it returns the exit status."""

    run: str | Callable[[argparse.Namespace], int | None]
    """``module:function`` is imported when the command is run, and called with the arguments in their order. A function of
    the table's is called with the parsed arguments."""
    help: str
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True)
class Group:
    """Commands under a common word: ``onpolicy analyze pressure``."""

    help: str
    commands: Mapping[str, Command]


def build_parser(
    program: str, description: str, version: str, table: Mapping[str, Command | Group]
) -> argparse.ArgumentParser:
    """The parser of a program: ``run`` and ``passed_on`` of what it parses are the command's."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--version", action="version", version=f"{program} {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, entry in table.items():
        if isinstance(entry, Command):
            _add(commands, name, entry)
            continue
        kinds = commands.add_parser(name, help=entry.help, description=entry.help)
        inner = kinds.add_subparsers(dest="what", required=True, metavar="WHAT")
        for kind, command in entry.commands.items():
            _add(inner, kind, command)
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """``key=value`` may also follow options; nothing at all asks for help."""
    given = sys.argv[1:] if arguments is None else arguments
    parsed, rest = parser.parse_known_args(given or ["--help"])
    if any(word.startswith("-") or "=" not in word for word in rest) or (rest and not hasattr(parsed, "overrides")):
        parser.error(unrecognized(rest, hasattr(parsed, "overrides")))
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _add(commands: Any, name: str, command: Command) -> None:
    parser = commands.add_parser(name, help=command.help, description=command.help)
    some_exclude_each_other = any(argument.exclusive for argument in command.arguments)
    exclusive = parser.add_mutually_exclusive_group() if some_exclude_each_other else parser
    passed_on = {}
    for argument in command.arguments:
        place = exclusive if argument.exclusive else parser
        added = place.add_argument(*argument.flags, **argument.options)
        if argument.complete is not None:
            added.complete = argument.complete
        if not isinstance(added, Renamed):
            passed_on[added.dest] = argument
    parser.set_defaults(run=command.run, passed_on=passed_on)
