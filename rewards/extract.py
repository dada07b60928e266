"""Finds the final answer in a completion."""

from __future__ import annotations

import re


def extract_answer(text: str) -> str | None:
    """The content of the last complete ``\\boxed{}``, else what follows the last ``####`` (GSM8K's mark), after the thinking.

    Returns None where there is neither.
    """
    text = after_thinking(text)
    boxes = boxed(text)
    if boxes:
        return boxes[-1].strip()
    marks = re.findall(r"####[ \t]*([^\n]+)", text)
    return marks[-1].strip() if marks else None


def plain_answer(answer: str) -> str:
    """An answer without spaces, case, ``$`` and a final full stop, to compare it as text."""
    return "".join(answer.strip().strip("$").rstrip(".").split()).casefold()


def after_thinking(text: str) -> str:
    """The text after the last closing tag, or the whole text where there is none."""
    return text.rpartition("</think>")[2]


def boxed(text: str) -> list[str]:
    """Contents of every brace-balanced ``\\boxed{...}``, in order; unclosed ones are left out."""
    found = []
    for match in re.finditer(r"\\boxed\s*\{", text):
        end = _closing_brace(text, match.end())
        if end is not None:
            found.append(text[match.end() : end])
    return found


def last_in_tag(text: str, tag: str) -> str | None:
    """What stands between the last ``<tag>`` that is closed and its ``</tag>``; None where there is none."""
    before, closed, _ = text.rpartition(f"</{tag}>")
    _, opened, inside = before.rpartition(f"<{tag}>")
    return inside if closed and opened else None


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for i in range(start, len(text)):
        if text[i] in "{}" and not (i and text[i - 1] == "\\"):  # \{ and \} are characters, not braces
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return i
    return None


def stated_answers(text: str) -> list[tuple[int, str]]:
    """Every answer that a text states, thinking included, as ``(place, answer)`` in order.

    An answer is stated in ``\\boxed{}``, after ``####``, or as a number after "(the) answer is".
    """
    found = []
    for match in re.finditer(r"\\boxed\s*\{", text):
        end = _closing_brace(text, match.end())
        if end is not None:
            found.append((match.start(), text[match.end() : end].strip()))
    found += [(m.start(), m.group(1).strip()) for m in re.finditer(r"####[ \t]*([^\n]+)", text)]
    found += [(m.start(), m.group(1).rstrip(".,")) for m in _ANSWER_IS.finditer(text)]
    return sorted(found)


_ANSWER_IS = re.compile(r"\banswer (?:is|would be|should be|must be)[: ]*\$?([-+]?[\d.,/]*\d)", re.IGNORECASE)
