"""Counting markers: the paper's substrings, and words. "unlikely", "waiting" and "double-check" are other words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from onpolicy.rewards.lexicon import LEXICONS, count, occurrences

TEXT = "Wait, unlikely. WAIT wait—waiting; double-check, check. Hmm… hmmm maybe MAYBE. 等等，也许 seems seem"


def test_the_papers_mode_counts_substrings() -> None:
    lowered = TEXT.lower()
    expected = {word: lowered.count(word) for word in LEXICONS["paper10"]}
    assert count(TEXT, mode="paper") == expected
    assert expected["wait"] == 4 and expected["likely"] == 1 and expected["check"] == 2


CASES = json.loads((Path(__file__).parent / "texts.json").read_text())
"""Texts with the markers that stand in them as words, counted by eye: casing, punctuation, hyphens, Chinese, code, LaTeX."""


def test_the_committed_texts_in_both_modes() -> None:
    for case in CASES:
        text = case["text"].lower()
        reference = {word: text.count(word) for word in LEXICONS["paper10"]}
        assert count(case["text"], "paper10", "paper") == reference
        assert Counter(word for *_, word in occurrences(case["text"], "paper10")) == case["words"], case["text"]


def test_words() -> None:
    found = count(TEXT)
    assert found["wait"] == 3 and found["likely"] == 0 and found["check"] == 1
    assert found["hmm"] == 2 and found["maybe"] == 2 and found["seems"] == 1


def test_phrases_and_curly_apostrophes() -> None:
    found = count("Hold  on. That\u2019s not right; I'm not sure.", lexicon="self_doubt")
    assert found["hold on"] == 1 and found["that's not right"] == 1 and found["i'm not sure"] == 1


def test_lists() -> None:
    assert len(LEXICONS["paper10"]) == 10 and set(LEXICONS["companion9"]) == set(LEXICONS["paper10"]) - {"likely"}
    held_out = [set(LEXICONS[tier]) for tier in ("self_doubt", "hedges", "alternatives", "boosters", "neutral")]
    assert all(not a & b for i, a in enumerate(held_out) for b in held_out[i + 1 :]), "tiers must not overlap"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="paper10"):
        count("x", lexicon="seed11")
    with pytest.raises(ValueError, match="paper"):
        count("x", mode="letters")  # type: ignore[arg-type]
