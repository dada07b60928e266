"""``onpolicy diff A B``: what two configs change, axis by axis, then setting by setting."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from onpolicy.experiments.methods.axes import axes, read, settings
from onpolicy.utils.terminal import plain


def print_difference(one: Path, other: Path) -> int:
    """0 where the two are the same method with the same settings, else 1, as diff does."""
    first, second = read(one), read(other)
    console = Console()
    differs = [
        _print(console, "axes", axes(first), axes(second), (one.stem, other.stem)),
        _print(console, "settings", settings(first), settings(second), (one.stem, other.stem)),
    ]
    if not any(differs):
        console.print(f"{plain(one)} and {plain(other)} say the same", soft_wrap=True)
    return int(any(differs))


def _print(console: Console, title: str, first: dict[str, str], second: dict[str, str], heads: tuple[str, str]) -> bool:
    keys = [key for key in dict.fromkeys([*first, *second]) if first.get(key, "") != second.get(key, "")]
    if not keys:
        return False
    table = Table(title=title, title_justify="left")
    for head in ("axis" if title == "axes" else "key", *heads):
        table.add_column(plain(head), overflow="fold")
    for key in keys:
        table.add_row(plain(key), *(plain(side.get(key, "")) or "[dim]–[/dim]" for side in (first, second)))
    console.print(table)
    return True
