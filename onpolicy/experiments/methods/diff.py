"""``onpolicy diff A B``: what two configs change, axis by axis, then setting by setting."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.table import Table

from onpolicy.config.compare import ABSENT, ConfigDifference, config_differences, shown
from onpolicy.run.axes import axes, read, settings
from onpolicy.utils.terminal import plain, print_json, print_next


def print_difference(one: Path, other: Path, as_json: bool) -> int:
    """0 where the two are the same method with the same settings, else 1, as diff does."""
    first, second = read(one), read(other)
    found = {
        "axes": list(config_differences(axes(first), axes(second))),
        "settings": list(config_differences(settings(first), settings(second))),
    }
    if as_json:
        print_json({title: [_plain_row(row) for row in rows] for title, rows in found.items()})
        return int(any(found.values()))
    console = Console()
    for title, rows in found.items():
        if rows:
            console.print(_table(title, rows, (one.stem, other.stem)))
    if not any(found.values()):
        console.print(f"{plain(one)} and {plain(other)} say the same", soft_wrap=True)
    sections = [re.split(r"\W", row.key)[0] for row in found["settings"]]
    print_next(["show", sections[0]] if sections else ["list", "configs"])
    return int(any(found.values()))


def _table(title: str, rows: list[ConfigDifference], names: tuple[str, str]) -> Table:
    table = Table(title=title, title_justify="left")
    for head in ("axis" if title == "axes" else "key", *names):
        table.add_column(plain(head), overflow="fold")
    for key, one, other in rows:
        table.add_row(plain(key), *(_cell(side) for side in (one, other)))
    return table


def _plain_row(row: ConfigDifference) -> dict[str, object]:
    """A difference as JSON has it, with nothing for a value that one of the two does not have."""
    return {name: None if value is ABSENT else value for name, value in row._asdict().items()}


def _cell(value: object) -> str:
    return "[dim]–[/dim]" if value is ABSENT or value == "" else plain(shown(value))
