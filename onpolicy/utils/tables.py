"""Tables for the terminal, all drawn alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from onpolicy.utils.terminal import plain, printable


class Markup(str):
    """A cell that rich reads as markup; every other cell is shown as it stands, brackets included."""


def table(
    title: str,
    columns: Sequence[str | Column],
    rows: Iterable[Sequence[str] | None],
    *,
    lines: bool = False,
    padding: int = 1,
) -> Table:
    """A table with a title above it.

    Args:
        title: shown as it stands
        columns: headings; the first column is set left, the others right, except those given as ``left(...)``
        rows: cells of each row, top to bottom; None draws a line
        lines: draw a line after every row
        padding: spaces on both sides of a cell
    """
    heads = [
        c if isinstance(c, Column) else Column(plain(c), justify="right" if i else "left", overflow="fold")
        for i, c in enumerate(columns)
    ]
    made = Table(*heads, title=plain(title), title_justify="left", show_lines=lines, padding=(0, padding))
    for row in rows:
        if row is None:
            made.add_section()
        else:
            made.add_row(*(cell if isinstance(cell, Markup) else plain(cell) for cell in row))
    return made


def left(heading: str, *, wrap: bool = True) -> Column:
    """A column of text."""
    return Column(header=plain(heading), justify="left", overflow="fold", no_wrap=not wrap)


def with_note(value: str, note: str, between: str = "\n") -> Markup:
    """A value, and a dim note after it or below it."""
    return Markup(f"{plain(value)}{between}[dim]{plain(note)}[/dim]" if note else plain(value))


def coloured(text: str, colour: str) -> Markup:
    """Text in a colour of the terminal."""
    return Markup(f"[{colour}]{plain(text)}[/{colour}]")


def print_facts(facts: Mapping[str, str], console: Console) -> None:
    """Prints a line for each fact, after its name; further lines of a text stand below its first."""
    for name, text in facts.items():
        told = printable(text).replace("\n", f"\n{'':14}")
        console.print(Text.assemble((f"{name:<14}", "dim"), told), soft_wrap=True)
