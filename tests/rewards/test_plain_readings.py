"""What is found fast is what the plain way finds, in any text: words, quotations, markers, and words of a style.

The plain ways go through a text word by word, or try every marker at every place.
"""

from __future__ import annotations

import re
from bisect import bisect_right

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onpolicy.epistemic.ids import CLASSES, EITHER_CASE, STYLE
from onpolicy.rewards import lexicon
from onpolicy.rewards.lexicon import LEXICONS, occurrences, quotations
from onpolicy.rewards.literal import literal
from onpolicy.rewards.uncertainty import repetition
from onpolicy.rewards.words import folded_words, word_places

ODD = (
    *(
        "\u2019",
        "\u02bc",
        "\u2011",
        "\u2013",
        "\u2212",
        "\uff0d",
        "\u0130",
        "\u0131",
        "\u017f",
        "\u212a",
        "\u0345",
        "ß",
        "ŉ",
        "等",
        "ー",
        "한",
    ),
    *(
        "_",
        "__",
        "-",
        "\\",
        "^{",
        "_{",
        "}",
        "{",
        "$",
        "$$",
        "\\(",
        "\\)",
        "`",
        "```",
        ".",
        ",",
        "!",
        "…",
        "5",
        "12.5",
        "\ufffd",
        "𝟙",
    ),
    *(
        "HMMMM",
        "Wait",
        "WAIT",
        "x–ray",
        "**",
        "#",
        "•",
        "\n",
        "\t",
        "\u00a0",
        "\x1c",
        " ",
        "i\nthink",
        "i  think",
        "x ray",
    ),
)
OWN = ("x-ray", "hmm", "a b", "wait a moment", "a moment", "wait", "double-check", "double check", "é moi", "so")
PIECES = st.one_of(
    st.sampled_from([marker for markers in LEXICONS.values() for marker in markers]),
    st.sampled_from([*ODD, *OWN, *(word.replace("?", "") for word in STYLE)]),
    st.text(max_size=3),
)
PROMPTS = st.lists(PIECES, max_size=10).map(" ".join)


@st.composite
def texts(draw: st.DrawFn, prompt: st.SearchStrategy[str]) -> tuple[str, str]:
    """A prompt, and a text that may quote it."""
    asked = draw(prompt)
    parts = draw(st.lists(st.one_of(PIECES, st.just(asked)), max_size=40))
    return asked, draw(st.sampled_from(["", " "])).join(parts)


def plain_words(text: str) -> list[tuple[str, int, int]]:
    return [(m.group().casefold(), m.start(), m.end()) for m in re.finditer(r"\w+", text)]


def plain_quotations(text: str, prompt: str) -> list[tuple[int, int]]:
    asked = [word for word, _, _ in plain_words(prompt)]
    runs, words = [asked[i : i + 6] for i in range(len(asked) - 5)], plain_words(text)
    found: list[tuple[int, int]] = []
    for i in range(len(words) - 5):
        if [word for word, _, _ in words[i : i + 6]] in runs:
            start, end = words[i][1], words[i + 5][2]
            found[-1:] = [(found[-1][0], end)] if found and start <= found[-1][1] else [*found[-1:], (start, end)]
    return found


def plain_occurrences(text: str, name: str, prompt: str) -> list[tuple[int, int, str]]:
    """The first of the longest markers at each place, from left to right, and what lies in no formula and no quotation."""
    read_as = [lexicon.ALIKE.get(c, c) for c in text]
    folded = "".join(small if len(small := c.casefold()) == 1 else c for c in read_as)
    outside = literal(text), plain_quotations(text, prompt)
    found, at = [], 0
    for place in range(len(text)):
        if place < at or not any(folded.startswith(marker[:2], place) for marker in LEXICONS[name]):
            continue
        for marker in sorted(LEXICONS[name], key=len, reverse=True):
            match = lexicon._pattern(marker).match(folded, place)
            if match is not None:
                found.append((place, match.end(), marker))
                at = match.end()
                break

    def within(spans: list[tuple[int, int]], start: int, end: int) -> bool:
        i = bisect_right(spans, start, key=lambda span: span[0])
        return i > 0 and end <= spans[i - 1][1]

    return [one for one in found if not any(within(spans, one[0], one[1]) for spans in outside)]


@pytest.fixture(autouse=True)
def own_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEXICONS, "own", OWN)


@given(texts(PROMPTS))
@settings(max_examples=150, deadline=None)
@example(("", ""))
@example(("", "x–ray i\nthink \u02bcwait\u2019s it double–check İwait ſo Kwait 等wait一下 _wait_ x_wait wait a moment"))
@example(
    ("so we add the two sides now", "So we add THE two sides now: wait! so we add the two sides now so we add the two")
)
def test_words_quotations_and_markers(given_texts: tuple[str, str]) -> None:
    prompt, text = given_texts
    words = plain_words(text)
    assert list(folded_words(text)) == [word for word, _, _ in words]
    assert word_places(text) == (tuple(start for _, start, _ in words), tuple(end for _, _, end in words))
    assert quotations(text, prompt) == plain_quotations(text, prompt)
    for name in LEXICONS:
        assert occurrences(text, name, prompt=prompt) == plain_occurrences(text, name, prompt)
    folded = [word for word, _, _ in plain_words(text.casefold())]
    runs = [tuple(folded[i : i + 4]) for i in range(len(folded) - 3)]
    assert repetition(text) == (-(1.0 - len(set(runs)) / len(runs)) if runs else 0.0)


@given(texts(st.just("So we know")))
@settings(max_examples=150, deadline=None)
@example(("", "İn order KNOW ſtep ındeed • Let's LETS okay okays ok_ the  following\n\n\n**# to"))
def test_words_of_a_style_in_any_case(given_texts: tuple[str, str]) -> None:
    text = given_texts[1]
    plain = rf"(?i:\b(?:{'|'.join(STYLE)})\b)|\*\*|^#+|^\s*[-•]\s|\n{{2,}}"
    assert [m.span() for m in re.finditer(CLASSES["style"], text)] == [m.span() for m in re.finditer(plain, text)]


def test_which_characters_are_a_letter_in_any_case() -> None:
    everything = "".join(map(chr, range(0x110000)))
    for letter, characters in EITHER_CASE.items():
        assert "".join(sorted(re.findall(f"(?i:{letter})", everything))) == "".join(sorted(characters))
