"""``onpolicy diff A B``: what two configs change, axis by axis, then setting by setting."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from onpolicy.config.compare import ABSENT, ConfigDifference, config_differences, shown
from onpolicy.experiments.methods.axes import axes, read, settings
from onpolicy.utils.terminal import plain


def print_difference(one: Path, other: Path) -> int:
    """0 where the two are the same method with the same settings, else 1, as diff does."""
    first, second = read(one), read(other)
    found = {
        "axes": list(config_differences(axes(first), axes(second))),
        "settings": list(config_differences(settings(first), settings(second))),
    }
    console = Console()
    for title, rows in found.items():
        if rows:
            console.print(_table(title, rows, (one.stem, other.stem)))
    if not any(found.values()):
        console.print(f"{plain(one)} and {plain(other)} say the same", soft_wrap=True)
    return int(any(found.values()))


def _table(title: str, rows: list[ConfigDifference], names: tuple[str, str]) -> Table:
    table = Table(title=title, title_justify="left")
    for head in ("axis" if title == "axes" else "key", *names):
        table.add_column(plain(head), overflow="fold")
    for key, one, other in rows:
        table.add_row(plain(key), *(_cell(side) for side in (one, other)))
    return table


def _cell(value: object) -> str:
    return "[dim]–[/dim]" if value is ABSENT or value == "" else plain(shown(value))
