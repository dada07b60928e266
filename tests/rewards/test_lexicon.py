"""Counting markers: the paper's substrings, and words. "unlikely", "waiting" and "double-check" are other words.

1. the paper's counts; 2. words: casing, hyphens, apostrophes, emphasis, verbs; 3. what is in mathematics or code is none, and prices and
line breaks of LaTeX are no mathematics; 4. time grows with the text, whatever it is; ``vacuous`` is what its definition says.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onpolicy.rewards.lexicon import LEXICONS, add, count, find, occurrences, quotations
from onpolicy.rewards.literal import literal
from onpolicy.rewards.uncertainty import paid
from onpolicy.rewards.vacuous import vacuous

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


@pytest.mark.parametrize(
    ("text", "lexicon", "expected"),
    [
        ("Let me double\u2011check. Let me double\u2010check. LET ME DOUBLE-CHECK", "self_doubt", 3),
        ("Let me double check, let me double\u2013check, let me double\n check", "self_doubt", 3),
        ("a double\u2011check, a double\u2010check, double\uff0dcheck", "paper10", 0),
        ("I\u2019m not sure. I\u02bcm not sure. I\u2018m not sure. That\uff07s not right", "self_doubt", 4),
        ("wait\u2014no. wait \u2013 no. Wait\u2013what?", "self_doubt", 3),
        ("_Wait_, __wait__ and *_wait_* (_hmm, wait_) _Hold on_", "self_doubt", 6),
        ("x_wait wait_time x_1_wait wait_ing _wait_time_ dunder__wait a__wait__b", "self_doubt", 0),
        ("x_{wait} t^{wait}, t_{\\text{wait}} and wait_{max}", "self_doubt", 0),
        ("we put \\check{x} and \\likely beside it", "paper10", 0),
        ("He had to wait 5 minutes. She must wait. They can't wait, he\u2019ll wait", "self_doubt", 0),
        ("wait 5 minutes; wait 2.5 more hours; wait times; the wait is long; a wait of 3 days", "self_doubt", 0),
        ("So wait. Wait 5 is odd. Wait, to check: wait! so wait, a 5", "self_doubt", 5),
    ],
)
def test_markers_as_they_are_written(text: str, lexicon: str, expected: int) -> None:
    found = occurrences(text, lexicon)
    assert len(found) == expected, [text[a:b] for a, b, _ in found]


def test_hyphens_of_a_list_of_ones_own() -> None:
    add("hyphens", ["self\u2011correct", "re-check it"])
    try:
        assert LEXICONS["hyphens"] == ("self-correct", "re-check it")
        assert len(find("self correct, Self\u2010Correct; re\u2013check  it. RE-CHECK it", "hyphens")) == 4
    finally:
        del LEXICONS["hyphens"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\begin{align} a \\\\[4pt] b \\end{align} wait, hmm \\[ c \\]", ["\\[ c \\]"]),
        ("a \\\\[-0.5em] wait \\\\(b) hmm \\(c\\)", ["\\(c\\)"]),
        ("It costs 5$. Wait, so 6$", []),
        ("5$, wait, 6$; 7$/hour, wait: 8$/hour. (9$) wait (10$)", []),
        ("From $5 to $10, wait, $20.", []),
        ("\\$5, wait, \\$x", []),
        ("It costs $5. Wait, so it is 6$, hmm. $5, then 7$!", []),
        ("$2x, y$ and $5 wait$ and $3.5$ and $0, 1, 2$", ["$2x, y$", "$5 wait$", "$3.5$", "$0, 1, 2$"]),
        ("An angle of 90$^\\circ$, 50$\\%$, 3$\\times$ 4 and 2$x$", ["$^\\circ$", "$\\%$", "$\\times$", "$x$"]),
        ("$x$$y$ $$a\nb$$ $.5$ $-1$", ["$x$", "$y$", "$$a\nb$$", "$.5$", "$-1$"]),
        ("`a` and ``b``, `c\nd` ```e\n\\(```", ["`a`", "`b`", "`, `", "```e\n\\(```"]),
        ("an unclosed $$x$, hmm", ["$x$"]),
        ("x_{wait} and a^{b_{c}} and y_{open", ["_{wait}", "^{b_{c}}"]),
        ("open \\( wait, open $$ wait, open \\[ wait", []),
        ("open ``` wait", ["``` wait"]),
    ],
)
def test_what_is_mathematics_or_code(text: str, expected: list[str]) -> None:
    assert [text[a:b] for a, b in literal(text)] == expected


PIECES = ("Wait, \\(x ", "wait $x ", "$x wait ", "Wait, $$x ", "wait ` ", "wait ``` ", "hmm \\[ ", "wait _{ ", "_wait ", "wait \\\\[",
          "wait, 7 and so on. ", "wait " * 9 + "\\(y\\) ", "let me ", "\u2011wait\u2019 ")  # fmt: skip


def seconds(function: Callable[[str], object], text: str) -> float:
    best = 1e9
    for attempt in range(3):  # never the same text, of which much would be known
        start = time.process_time()
        function(text + " " * attempt)
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize("piece", PIECES)
def test_time_grows_with_the_text_whatever_it_is(piece: str) -> None:
    """Eight times the text: 64 times as long if every marker looks at all of it; 32 leaves room for memory that is not in a cache."""

    def everything(text: str) -> None:
        vacuous(text, find(text, "self_doubt", prompt=PIECES[10] * 20, merge=False))
        paid(text, "", "paper10", 20)

    assert seconds(everything, piece * 4000) < 32 * seconds(everything, piece * 500) + 0.05


def reference(text: str, spans: list[tuple[int, int]]) -> list[bool]:
    """``vacuous`` by its definition, marker by marker."""
    words = list(re.finditer(r"\w+", text))
    found = []
    for i, (start, end) in enumerate(spans):
        until = spans[i + 1][0] if i + 1 < len(spans) else len(text)
        before = [w.group().casefold() for w in words if w.end() <= start][-60:]
        after = [w for w in words if end <= w.start() and w.end() <= until][:60]
        if len(after) < 2:
            found.append(True)
            continue
        numbers = set(re.findall(r"\d+(?:\.\d+)?", text[after[0].start() : after[-1].end()]))
        new = numbers - set(re.findall(r"\d+(?:\.\d+)?", text[: after[0].start()]))
        pairs = list(pairwise(w.group().casefold() for w in after))
        found.append(not new and sum(p in set(pairwise(before)) for p in pairs) >= 0.8 * len(pairs))
    return found


@given(
    st.lists(
        st.sampled_from(["wait", "we", "add", "3.5", "3", "5", ".", ",", "so then 7", "_wait_", "we add 3 so"]),
        max_size=90,
    )
)
@settings(max_examples=80, deadline=None)
@example(["we add 3 so"] * 30 + ["wait"] + ["we add 3 so"] * 20)
def test_vacuous_is_what_its_definition_says(pieces: list[str]) -> None:
    text = " ".join(pieces)
    spans = find(text, "self_doubt", merge=True)
    assert vacuous(text, spans) == reference(text, spans)


def test_markers_in_quotations_and_formulas_of_a_long_text() -> None:
    question = "How long does the old man at the corner wait for the bus"
    text = f"I wait. {question}? $wait$ so wait, {question} " * 50
    assert len(quotations(text, question)) == 100 and len(find(text, "self_doubt", prompt=question)) == 100
