"""``onpolicy preview``: what a run would read, on the terminal or as JSON."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from onpolicy.config.resolve import load_resolved
from onpolicy.run.check_run import training_command
from onpolicy.run.preview import (
    MEASURED,
    Lengths,
    Preview,
    RenderedPrompt,
    SourcePreview,
    TeacherPreview,
    preview,
)
from onpolicy.utils.errors import UserError
from onpolicy.utils.terminal import plain, print_json, print_next, printable

LONGEST = 3000
"""Characters of a prompt that a terminal is shown; of a longer one both ends."""
NAMED = 5
"""Things of a kind that are named; of the others there is the number."""


class NotTrainable(UserError, ValueError):
    """A run would stop at some of the problems; names the first ones."""


def print_preview(source: Path, overrides: Sequence[str], rows: int, as_json: bool) -> None:
    """Prints what student and teachers read for the first problems, and how the data were read.

    Raises:
        UserError: a run would not start with this config, or would stop at one of the problems; that is known once all is printed.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):  # what a user's module prints is no JSON
        if not as_json:
            warnings.simplefilter("ignore", UserWarning)  # rows that were left out are shown below
        found = preview(load_resolved(source, overrides), rows)
    if as_json:
        print_json([row.plain() for row in found.rows])
    else:
        _show(found, source, Console())
    if found.problems:
        raise NotTrainable(
            f"training would stop with {'this error' if len(found.problems) == 1 else f'one of {len(found.problems)} errors'}:\n  "
            + "\n  ".join(_first(found.problems))
        )
    if not as_json:
        print_next(training_command(source, overrides))


def _show(found: Preview, source: Path, console: Console) -> None:
    window = "" if found.window is None else f" [dim]with a window of[/dim] {found.window} [dim]tokens[/dim]"
    console.print(
        f"[bold]onpolicy preview[/bold] {plain(source)}  [dim]model[/dim] {plain(found.model)}{window}", highlight=False
    )
    for origin in found.sources:
        console.print(f"\n[bold]{plain(origin.name)}[/bold]", highlight=False)
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim")
        facts.add_column(overflow="fold")
        for name, text in _facts(origin, found):
            facts.add_row(name, Text(printable(text)))
        console.print(facts)
    for row in found.rows:
        console.print()
        _panel(console, f"{row.id}: the student reads", row.student)
        for context, teacher in row.teachers.items():
            _teacher(console, context, teacher)
        answer = "no reference answer" if row.answer is None else f"reference answer: {row.answer}"
        console.print(Text(printable(answer[:LONGEST])))


def _facts(origin: SourcePreview, found: Preview) -> Iterator[tuple[str, str]]:
    used = len(origin.prompts)
    yield "problems", str(used) if used == origin.read else f"{used} of {origin.read}"
    for role, where in origin.columns.items():
        yield role, f"from {where}"
    if origin.others:
        yield "other columns", ", ".join(origin.others)
    if origin.dropped:
        yield "left out", "\n".join(_first(origin.dropped))
    yield "references", _references(origin)
    yield "student", _measured(origin.lengths)
    if origin is found.sources[0]:
        first = f", of the first {MEASURED} problems" if used > MEASURED else ""
        for context, lengths in found.teacher_lengths.items():
            yield f"context {context}", _measured(lengths) + first


def _references(origin: SourcePreview) -> str:
    given, used = origin.with_answer, len(origin.prompts)
    if origin.unreadable is None or not given:
        return f"{given} of {used} problems have an answer" + ("; no grader of ours compares with it" if given else "")
    names = ", ".join(_first([prompt.id for prompt in origin.unreadable]))
    found = f"{given - len(origin.unreadable)} of {given} can be read by a grader" + (
        f"; not: {names}" if names else ""
    )
    return found + (f"; {used - given} problems have none" if used > given else "")


def _measured(lengths: Lengths) -> str:
    low, high = min(lengths.tokens), max(lengths.tokens)
    span = f"{low} tokens" if low == high else f"{low} to {high} tokens, median {median(lengths.tokens):g}"
    said = f"prompts of {span}; limit {lengths.limit}"
    if lengths.unknown:
        said += f"; {lengths.unknown} of {len(lengths.tokens)} hold text that the tokenizer does not know"
    return said


def _teacher(console: Console, context: str, teacher: TeacherPreview) -> None:
    if teacher.prompt is None:
        console.print(Text(printable(f"the teacher ({context}): {teacher.note}"), style="yellow"))
    else:
        _panel(console, f"the teacher reads ({context})", teacher.prompt, teacher.note)


def _panel(console: Console, title: str, prompt: RenderedPrompt, note: str = "") -> None:
    shown = Text()
    for text, is_special in prompt.pieces:
        shown.append(printable(text), "cyan" if is_special else "")
    if len(shown) > LONGEST:
        left_out = f"\n… {len(shown) - LONGEST} characters more, see --json …\n"
        shown = shown[: LONGEST // 2] + Text(left_out, "dim") + shown[len(shown) - LONGEST // 2 :]
    size = f"{len(prompt.ids)} tokens" + (f", {note}" if note else "")
    console.print(
        Panel(
            shown,
            title=plain(title),
            subtitle=plain(size),
            title_align="left",
            subtitle_align="right",
            border_style="dim",
        )
    )


def _first(items: Sequence[str]) -> list[str]:
    more = len(items) - NAMED
    return [*items[:NAMED], f"and {more} more"] if more > 0 else list(items)
