"""Multiple-choice questions whose options stand in columns of their own: what the student reads of a row, and which letter is correct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_uppercase
from typing import Any

from onpolicy.data.references import Found

CORRECT, EXPLANATION = "Correct Answer", "Explanation"
INCORRECT = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


@dataclass(frozen=True)
class ScienceQuestion:
    """A question of SciKnowEval or GPQA, each part with the columns that it is from."""

    question: Found
    """With the options below it, each on a line with its letter."""
    answer: Found | None
    """The letter of the correct option; None where the answer is free and stands in the usual columns."""
    solution: Found | None
    options: Mapping[str, str]
    """Letter -> text; empty where the answer is free."""


def science_question(row: Mapping[str, Any]) -> ScienceQuestion | None:
    """The question of a row in the shape of SciKnowEval (and ARC, with which it shares the columns), or of GPQA. None for any other row.

    GPQA's options come in an order that depends on the row's question alone, so that the correct one stands nowhere by habit. None of what
    the row holds beside question and options is in the prompt.

    Raises:
        ValueError: the correct option is not among the options, two options have one text, or a column that has to be text is none.
    """
    if CORRECT in row and INCORRECT[0] in row:
        return _gpqa(row)
    if "answerKey" in row and "question" in row:
        return _sciknoweval(row)
    return None


def _gpqa(row: Mapping[str, Any]) -> ScienceQuestion:
    question = _text(row, "Question")
    texts = [_text(row, name) for name in (CORRECT, *INCORRECT)]
    correct = texts[0]
    Random(question).shuffle(texts)
    options = _lettered(texts, f"{CORRECT} and {INCORRECT[0]} to {len(INCORRECT)}")
    letter = next(letter for letter, text in options.items() if text == correct)
    explanation = row.get(EXPLANATION)
    return ScienceQuestion(
        Found(_asked(question, options), "Question, with the answers shuffled"),
        Found(letter, f"letter of {CORRECT}"),
        Found(explanation, EXPLANATION) if isinstance(explanation, str) and explanation.strip() else None,
        options,
    )


def _sciknoweval(row: Mapping[str, Any]) -> ScienceQuestion:
    question, choices, key = _text(row, "question"), row.get("choices"), row["answerKey"]
    if not isinstance(choices, Mapping) or not (texts := list(choices.get("text") or ())):
        return ScienceQuestion(Found(question, "question"), None, None, {})
    labels = [str(label).strip() for label in choices.get("label") or ascii_uppercase[: len(texts)]]
    if len(labels) != len(texts):
        raise ValueError(f"column 'choices': got {len(texts)} texts and {len(labels)} labels, expected as many")
    if str(key).strip() not in labels:
        raise ValueError(f"column 'answerKey': got {key!r}, expected one of the choices' labels, {', '.join(labels)}")
    options = _lettered(texts, "choices")
    letter = ascii_uppercase[labels.index(str(key).strip())]
    return ScienceQuestion(
        Found(_asked(question, options), "question, choices"), Found(letter, "answerKey"), None, options
    )


def _lettered(texts: Sequence[Any], where: str) -> dict[str, str]:
    """Letters from A on, whatever the row calls its options."""
    if wrong := [text for text in texts if not isinstance(text, str) or not text.strip()]:
        raise ValueError(f"column {where!r}: got the option {wrong[0]!r}, expected a text")
    stripped = [text.strip() for text in texts]
    if len(set(stripped)) < len(stripped):
        raise ValueError(f"column {where!r}: two options have the same text, expected different ones")
    return dict(zip(ascii_uppercase, stripped, strict=False))


def _asked(question: str, options: Mapping[str, str]) -> str:
    return "\n".join([question.strip(), "", *(f"{letter}. {text}" for letter, text in options.items())])


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"column {column!r}: got {value!r}, expected a text")
    return value.strip()
