"""Lists of epistemic markers, and functions that count and locate them.

``paper10`` and ``companion9`` are the lists of arXiv 2603.24472 and 2603.15500. The others sort words by function: ``self_doubt``
questions what was just said, ``hedges`` weaken a claim, ``alternatives`` open another branch, ``boosters`` strengthen a claim, and
``neutral`` words do none of these and are as frequent in reasoning text: the control. ``add`` registers another list.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Literal

from .literal import Spans, literal
from .words import folded_words, word_places

LEXICONS: dict[str, tuple[str, ...]] = {
    "paper10": ("wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "likely", "check"),
    "companion9": ("wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "check"),
    "self_doubt": (
        "wait",
        "hmm",
        "hold on",
        "let me double-check",
        "let me recheck",
        "i made a mistake",
        "that's not right",
        "i'm not sure",
    ),
    "hedges": ("perhaps", "maybe", "might", "possibly", "probably", "seems", "likely", "appears", "i think", "i guess"),
    "alternatives": ("alternatively", "another approach", "another way", "or maybe", "what if", "let's try", "instead"),
    "boosters": (
        "clearly",
        "obviously",
        "certainly",
        "definitely",
        "of course",
        "undoubtedly",
        "surely",
        "without doubt",
    ),
    "neutral": ("so", "then", "now", "thus", "therefore", "first", "next", "also", "here", "since"),
}

Mode = Literal["paper", "words"]

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
"""Scripts that write words without spaces: such a character beside a marker does not make it another word."""
LETTER = rf"[^\W_{CJK}]"
BEFORE = rf"(?<!{LETTER})(?<!{LETTER}_)(?<!{LETTER}__)(?<!\w-)(?<!\\)"
"""No letter, no hyphen with a letter, no command of LaTeX; an underscore is emphasis ("_Wait_") unless it joins ("x_wait")."""
AFTER = rf"(?!_*{LETTER}|-\w|[_^]\{{)"
ALIKE = dict.fromkeys("\u2018\u2019\u02bc\uff07", "'") | dict.fromkeys("\u2010\u2011\u2012\ufe63\uff0d", "-")
"""Characters that are read as a plain apostrophe or hyphen. A dash (\u2013, \u2014) separates words; inside a marker \u2013 is a hyphen."""
HELPERS = ("to", "must", "should", "would", "could", "can", "cannot", "will", "shall", "may", "might", "the", "a")
TIME = "(?:s|sec|second|min|minute|h|hour|day|week|month|year)"
NO_VERB = (
    "".join(rf"(?<!\b{word}\swait)" for word in HELPERS)
    + rf"(?<!n't\swait)(?<!'ll\swait)(?!\s+(?:\d[\d.,]*\s*(?:more\s+)?{TIME}s?|times?)\b)"
)
"""After "wait", what shows a verb or a noun: "had to wait", "can't wait", "the wait", "wait 5 minutes", "wait time". That is part of them:
"they wait" and "wait for the bus" cannot be told from the marker by the words beside them, and count."""
_ALPHANUMERIC = re.compile(r"[^\W_]")
QUOTED = 6
"""Words in a row that make a repetition of the prompt a quotation."""


def add(name: str, words: Sequence[str]) -> None:
    """Registers a list under a name, in this process.

    Raises:
        ValueError: the name is taken by another list, or the list is empty or contains something that is not text.
    """
    cleaned = tuple(dict.fromkeys(" ".join(_folded(str(word)).split()) for word in words))
    if not cleaned or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError(f"lexicon {name!r}: expected a list of words or phrases, got {words!r}")
    if LEXICONS.get(name, cleaned) != cleaned:
        raise ValueError(f"lexicon {name!r}: the name is taken; known: {', '.join(LEXICONS)}")
    LEXICONS[name] = cleaned


def words_of(lexicon: str) -> tuple[str, ...]:
    """Raises ValueError for an unknown lexicon."""
    if lexicon not in LEXICONS:
        raise ValueError(f"lexicon: got {lexicon!r}, expected one of {', '.join(LEXICONS)}")
    return LEXICONS[lexicon]


def count(text: str, lexicon: str = "paper10", mode: Mode = "words") -> dict[str, int]:
    """Occurrences of each marker.

    ``mode="paper"`` counts as arXiv 2603.24472 does: substrings of the lower-cased text, so that "unlikely" contains a
    "likely". ``mode="words"`` counts whole words and phrases in any case, and drawn-out ones ("hmmm") as one.

    Raises:
        ValueError: unknown lexicon or mode.
    """
    words = words_of(lexicon)
    if mode == "paper":
        lowered = text.lower()
        return {marker: lowered.count(marker) for marker in words}
    if mode != "words":
        raise ValueError(f"mode: got {mode!r}, expected 'paper' or 'words'")
    folded = _folded(text)
    return {marker: len(_pattern(marker).findall(folded)) for marker in words}


def find(text: str, lexicon: str = "paper10", *, prompt: str = "", merge: bool = False) -> Spans:
    """The positions at which markers of a lexicon occur as words, as ``(start, end)``, in order.

    It leaves out those inside literal mathematics and code (``$...$``, ``\\(...\\)``, ``\\[...\\]``, back-quotes) and those
    inside a run of six or more words that repeats the prompt.

    Args:
        text: the completion
        lexicon: the list of markers
        prompt: the prompt of the completion; if it is empty, nothing counts as quoted
        merge: counts markers with nothing but punctuation between them ("wait, wait... hmm") as one

    Raises:
        ValueError: unknown lexicon.
    """
    kept = [(start, end) for start, end, _ in occurrences(text, lexicon, prompt=prompt)]
    return merged(kept, text) if merge else kept


def occurrences(text: str, lexicon: str, *, prompt: str = "") -> list[tuple[int, int, str]]:
    """The positions that ``find`` returns, each with its marker."""
    return list(_occurrences(text, words_of(lexicon), prompt))


@functools.lru_cache(maxsize=16)
def _occurrences(text: str, markers: tuple[str, ...], prompt: str) -> tuple[tuple[int, int, str], ...]:
    """Kept for the next who asks about the same text: token classes and telemetry read the same lexicons."""
    found = tuple(_matches(markers, _folded(text)))
    for starts, ends in _outside(text, prompt) if found else ():
        if starts:
            found = tuple(f for f in found if (i := bisect_right(starts, f[0])) == 0 or f[1] > ends[i - 1])
    return found


@functools.lru_cache(maxsize=4)
def _outside(text: str, prompt: str) -> tuple[tuple[list[int], list[int]], ...]:
    """What is not the writer's own: literal stretches and quotations, as starts and ends in order; kept for the next lexicon of the same
    text."""
    return tuple(([a for a, _ in spans], [b for _, b in spans]) for spans in (literal(text), quotations(text, prompt)))


def quotations(text: str, prompt: str) -> Spans:
    """The positions of runs of at least six words that occur in the prompt too."""
    source = _runs_in(prompt)
    if source.isdisjoint(_runs(folded_words(text))):
        return []
    starts, ends = word_places(text)
    joined: Spans = []
    for i, run in enumerate(_runs(folded_words(text))):
        if run not in source:
            continue
        if joined and starts[i] <= joined[-1][1]:
            joined[-1] = (joined[-1][0], ends[i + QUOTED - 1])
        else:
            joined.append((starts[i], ends[i + QUOTED - 1]))
    return joined


@functools.lru_cache(maxsize=16)
def _runs_in(prompt: str) -> frozenset[tuple[str, ...]]:
    """All runs of six words of a prompt, which the rollouts of a group share."""
    return frozenset(_runs(folded_words(prompt)))


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(QUOTED)), strict=False)


def merged(spans: Sequence[tuple[int, int]], text: str) -> Spans:
    """Joins spans with nothing but punctuation between them."""
    joined: Spans = []
    for start, end in spans:
        if joined and not _ALPHANUMERIC.search(text, joined[-1][1], start):
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


@functools.lru_cache(maxsize=4)
def _folded(text: str) -> str:
    """The text in lower case, character by character, so that positions in it are positions in the text; one apostrophe, one hyphen."""
    plain = text
    if not text.isascii():
        for character, read_as in ALIKE.items():
            plain = plain.replace(character, read_as)
    folded = plain.casefold()
    if len(folded) == len(plain):
        return folded
    return "".join(c if len(small := c.casefold()) != 1 else small for c in plain)


def _matches(markers: tuple[str, ...], folded: str) -> Iterator[tuple[int, int, str]]:
    """Every marker, the longest first, with its place."""
    beginnings, exactly = _patterns(markers)
    at = 0
    for place in sorted({place for beginning in beginnings for place in _places(beginning, folded)}):
        if place >= at and (match := exactly.match(folded, place)):
            yield place, match.end(), markers[int((match.lastgroup or "")[1:])]
            at = match.end()


def _places(beginning: str, folded: str) -> Iterator[int]:
    """Where a marker may begin: behind another letter of the alphabet none does, and most of what looks like one stands there."""
    at = folded.find(beginning)
    while at >= 0:
        if not "a" <= folded[at - 1 : at] <= "z":
            yield at
        at = folded.find(beginning, at + 1)


@functools.cache
def _pattern(marker: str) -> re.Pattern[str]:
    """A pattern of one marker. Neither a letter nor a hyphen may touch it: "double-check" and "waiting" are other words."""
    return re.compile(BEFORE + _body(marker) + AFTER)


@functools.cache
def _patterns(markers: tuple[str, ...]) -> tuple[tuple[str, ...], re.Pattern[str]]:
    """How markers begin, to find candidates fast; and a pattern of all markers, one group each, the longest first."""
    ordered = sorted(enumerate(markers), key=lambda pair: -len(pair[1]))
    exactly = BEFORE + "(?:" + "|".join(f"(?P<m{i}>{_body(marker)})" for i, marker in ordered) + ")" + AFTER
    return tuple(dict.fromkeys(map(_beginning, markers))), re.compile(exactly)


def _beginning(marker: str) -> str:
    """What every occurrence begins with: the first word up to a hyphen, and two characters at least if there are as many."""
    folded = _folded(marker)
    first = re.split(r"[\s-]", folded, maxsplit=1)[0]
    return first if len(first) >= 2 else folded[:2]


def _body(marker: str) -> str:
    """A drawn-out "hmm"; "wait" where it is no plain verb; a hyphen may be a space or a dash."""
    if marker == "hmm":
        return "hm{2,}"
    words = (re.escape(word).replace(r"\-", r"(?:[-\u2013\u2212]|\s+)") for word in _folded(marker).split())
    return r"\s+".join(words) + (NO_VERB if marker == "wait" else "")
