"""Tables: other people's text stays text, notes and colours are markup, numbers stand to the right."""

from __future__ import annotations

from rich.console import Console

from onpolicy.utils.tables import coloured, left, table, with_note


def shown(*rows: tuple[str, ...] | None) -> str:
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(table("[b]title[/b]", ["arm", left("of"), "[i]n"], rows))
    return capture.get()


def test_text_is_shown_as_it_stands() -> None:
    said = shown(("[red]arm[/red]", "\x1b[31m", "1"))
    assert "[b]title[/b]" in said and "[red]arm[/red]" in said and "[i]n" in said
    assert "\x1b" not in said and "\\x1b[31m" in said


def test_notes_and_colours() -> None:
    assert with_note("1", "[2]") == "1\n[dim]\\[2][/dim]" or with_note("1", "[2]") == "1\n[dim][2][/dim]"
    assert with_note("1", "") == "1" and with_note("1", "×2", between=" ") == "1 [dim]×2[/dim]"
    said = shown(("a", "b", with_note("0.5", "+0.1")), None, ("c", "d", coloured("open", "yellow")))
    assert "[" not in said.replace("[b]title[/b]", "").replace("[i]n", "")
    assert "│ 0.5" not in said.splitlines()[-3] and "open" in said


def test_columns_are_set_left_or_right() -> None:
    made = table("t", ["arm", left("of", wrap=False), "n"], [("a", "b", "1")])
    assert [c.justify for c in made.columns] == ["left", "left", "right"] and made.columns[1].no_wrap
