"""Whether the chosen option of a multiple-choice question is the correct one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from .answer import math_answer
from .extract import after_thinking, extract_answer, last_in_tag
from .notation import clean
from .quantities import choice_letter, chosen_letter

_LEADING = re.compile(r"(?i:(?:option|choice|answer) )?\(?[A-Ja-j]\)?[ .:),-]*")
_ANOTHER = re.compile(r"(?:^|[\s,;/&(])(?:(?i:and|or|option|choice) *)*\(?([A-J])\)?(?=$|[\s.,;:/)&])")


def choice_answer(
    completion: str,
    answer: str,
    options: Mapping[str, str] | Sequence[str] | None = None,
    final: str | None = None,
    *,
    only_tag: bool = False,
) -> bool:
    """Whether the completion chooses the option with the reference's letter.

    The answer is what ``extract_answer`` finds: in the last ``<answer>`` tag or box, or after the last "Answer:". It chooses an option by
    its letter, with or without the option's text behind it, or by the whole text of one option and no other. An answer that names two
    letters, or one letter with the text of another option, is incorrect. A reference that is no letter is a free
    answer, as for ``math_answer``.

    Args:
        only_tag: only a single capital letter within the last ``<answer>`` tag counts (SDPO's published grader, arXiv 2601.20802)
    """
    text = after_thinking(completion) if final is None else final
    if only_tag:
        return (last_in_tag(text, "answer") or "").strip() == answer.strip()
    letter = choice_letter(clean(answer))
    if letter is None:
        return math_answer(completion, answer, text)
    found = extract_answer(text)
    return found is not None and _chosen(found, lettered(options)) == letter


def lettered(options: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    """Letter -> text; a list is lettered in its order. What is no text is left out."""
    named = options.items() if isinstance(options, Mapping) else zip(ascii_uppercase, options or (), strict=False)
    return {letter: text for letter, text in named if isinstance(text, str) and text.strip()}


def _chosen(found: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer chooses; None where it chooses none, or more than one."""
    cleaned = clean(found)
    letter = chosen_letter(cleaned)
    rest = "" if letter is None else _LEADING.sub("", cleaned, count=1)
    if letter is not None and not rest:
        return letter
    by_text = _with_text(found, options) or _with_text(cleaned, options)
    if by_text is not None or letter is None:
        return by_text
    same = _with_text(rest, options)
    if same is not None:
        return letter if same == letter else None
    others = {other for other in _ANOTHER.findall(rest) if other in options or not options} - {letter}
    return None if others else letter


def _with_text(answer: str, options: Mapping[str, str]) -> str | None:
    """The one option with this text; upper and lower case differ where that alone tells two options apart (``Co`` and ``CO``)."""
    for key in (_key, lambda text: _key(text).casefold()):
        same = [letter for letter, text in options.items() if key(answer) in (key(text), key(clean(text)))]
        if same:
            return same[0] if len(same) == 1 else None
    return None


def _key(text: str) -> str:
    return " ".join(text.split()).strip(" .$*")
