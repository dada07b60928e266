"""Reference answers and worked solutions: where they stand in each other."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from onpolicy.data.conversations import said_by_assistant
from onpolicy.data.text import as_text
from onpolicy.rewards.extract import after_thinking, boxed

AnswerFrom = Literal["boxed", "hash"]
MARK = re.compile(r"[ \t]*####(?!#)[ \t]*(\S[^\n]*)$")
"""GSM8K's line with the answer, the last one; elsewhere such a line is a heading."""


@dataclass(frozen=True)
class Found:
    """A value of a row and the column where it stood."""

    value: Any
    where: str


@dataclass(frozen=True)
class Text:
    """A text and where it stood."""

    value: str
    where: str
    """The column and which part of it, e.g. ``answer, after ####``."""


@dataclass(frozen=True)
class Reference:
    """The answer and the solution of one row, as texts."""

    answer: Text | None
    solution: Text | None
    ground_truth: object
    """The answer as it stands in the row."""

    @property
    def texts(self) -> dict[str, str]:
        """Those that there are, by role."""
        return {role: text.value for role, text in self._by_role if text is not None}

    @property
    def where(self) -> dict[str, str]:
        """Where those stood, by role."""
        return {role: text.where for role, text in self._by_role if text is not None}

    @property
    def _by_role(self) -> tuple[tuple[str, Text | None], ...]:
        return ("answer", self.answer), ("solution", self.solution)


def read_reference(answer: Found | None, solution: Found | None, answer_from: AnswerFrom | None) -> Reference:
    """The answer and the solution of a row that has one, both or none of them.

    An answer that holds a worked solution, ending with GSM8K's ``#### 27`` or with a box among other text, is split. Where there is no
    answer, the solution's last line after ``####``, or its last box, is it.

    Args:
        answer_from: `boxed`, `hash`: where the answer stands in every row, whatever else the row holds

    Raises:
        ValueError: one of them is no text and no finite number, or the answer does not stand where ``answer_from`` says.
    """
    worked = None if solution is None else _as_text(solution)
    written = None if answer is None else _as_text(answer)
    if answer_from is not None:
        part = next((p for text in (written, worked) if text and (p := _part(text, answer_from))), None)
        if part is None:
            columns = " nor ".join(repr(text.where) for text in (written, worked) if text) or "any column"
            raise ValueError(f"data.answer_from={answer_from}: no such answer stands in {columns}")
    elif written is not None:
        part = _part(written, "hash") or _box_among_text(written)
    else:
        part = None if worked is None else _part(worked, "hash") or _part(worked, "boxed")
    if part is None:
        stated = None if written is None else Text(_only_item(written.value), written.where)
        return Reference(stated, worked, None if answer is None else answer.value)
    return Reference(part.answer, worked or part.rest, part.answer.value)


@dataclass(frozen=True)
class _Part:
    answer: Text
    rest: Text | None


def _as_text(found: Found) -> Text:
    try:
        return Text(said_by_assistant(found.value) or as_text(found.value), found.where)
    except ValueError as error:
        raise ValueError(f"column {found.where!r} {error}") from error


def _part(text: Text, kind: AnswerFrom) -> _Part | None:
    """The answer in a worked solution, and the solution without GSM8K's last line; None where it is not there."""
    if kind == "boxed":
        boxes = [box.strip() for box in boxed(after_thinking(text.value))]
        return _Part(Text(boxes[-1], f"{text.where}, last box"), text) if boxes and boxes[-1] else None
    worked = text.value.rstrip()
    last = MARK.match(worked, worked.rfind("\n") + 1)
    if last is None:
        return None
    before = worked[: last.start()].strip()
    rest = Text(before, f"{text.where}, before ####") if before else None
    return _Part(Text(last.group(1), f"{text.where}, after ####"), rest)


def _box_among_text(text: Text) -> _Part | None:
    """The box of an answer that is more than a box; one that is nothing else stays as it is."""
    alone = re.fullmatch(r"[\s$]*\\boxed\s*\{.*\}[\s$.]*", text.value, flags=re.DOTALL)
    return None if alone else _part(text, "boxed")


def _only_item(text: str) -> str:
    """``["27"]``, a list of one text written as JSON, as that text."""
    if text.startswith('["'):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if len(items) == 1 and isinstance(items[0], str):
            return items[0]
    return text
