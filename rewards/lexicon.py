"""Lists of epistemic markers, and how they are counted.

``seed10`` and ``companion9`` are those of arXiv 2603.24472 and 2603.15500. The tiers sort words by what they do: A says
that the speaker doubts what was just said, B weakens a claim, C opens another branch, D strengthens a claim, F does
none of these and is as frequent in reasoning text: the control.
"""

from __future__ import annotations

import functools
import re
from typing import Literal

LEXICONS: dict[str, tuple[str, ...]] = {
    "seed10": ("wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "likely", "check"),
    "companion9": ("wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "check"),
    "A": (
        "wait",
        "hmm",
        "hold on",
        "let me double-check",
        "let me recheck",
        "i made a mistake",
        "that's not right",
        "i'm not sure",
    ),
    "B": ("perhaps", "maybe", "might", "possibly", "probably", "seems", "likely", "appears", "i think", "i guess"),
    "C": ("alternatively", "another approach", "another way", "or maybe", "what if", "let's try", "instead"),
    "D": ("clearly", "obviously", "certainly", "definitely", "of course", "undoubtedly", "surely", "without doubt"),
    "F": ("so", "then", "now", "thus", "therefore", "first", "next", "also", "here", "since"),
}

Mode = Literal["paper", "words"]


def count(text: str, lexicon: str = "seed10", mode: Mode = "words") -> dict[str, int]:
    """Occurrences of each marker.

    ``mode="paper"`` counts as arXiv 2603.24472 does: substrings of the lower-cased text, so that "unlikely" holds a
    "likely". ``mode="words"`` counts whole words and phrases in any case, and drawn-out ones ("hmmm") as one.

    Raises:
        ValueError: unknown lexicon or mode.
    """
    if lexicon not in LEXICONS:
        raise ValueError(f"lexicon: got {lexicon!r}, wanted one of {', '.join(LEXICONS)}")
    if mode == "paper":
        lowered = text.lower()
        return {marker: lowered.count(marker) for marker in LEXICONS[lexicon]}
    if mode != "words":
        raise ValueError(f"mode: got {mode!r}, wanted 'paper' or 'words'")
    folded = text.casefold().replace("\u2019", "'")
    return {marker: len(_pattern(marker).findall(folded)) for marker in LEXICONS[lexicon]}


def find(text: str, lexicon: str = "seed10") -> list[tuple[int, int]]:
    """Where the whole words and phrases of a lexicon stand, as ``(start, end)``, in order.

    Raises:
        ValueError: unknown lexicon.
    """
    if lexicon not in LEXICONS:
        raise ValueError(f"lexicon: got {lexicon!r}, wanted one of {', '.join(LEXICONS)}")
    plain = text.replace(
        "\u2019", "'"
    )  # lower, unlike casefold, keeps most lengths; where it does not, the text stays as it is
    lowered = plain.lower() if len(plain.lower()) == len(plain) else plain
    return sorted(match.span() for marker in LEXICONS[lexicon] for match in _pattern(marker).finditer(lowered))


@functools.cache
def _pattern(marker: str) -> re.Pattern[str]:
    """Neither a letter nor a hyphen may touch a word: "double-check" and "waiting" are other words."""
    body = r"\s+".join(map(re.escape, marker.casefold().split()))
    if marker == "hmm":
        body = "hm{2,}"
    return re.compile(rf"(?<![\w-]){body}(?!\w|-\w)")
