"""Which tokens of a vocabulary are markers, and the classes of tokens that are marked in completions."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.rewards.lexicon import LEXICONS
from onpolicy.utils.errors import UserError

STYLE = (
    *(
        "okay",
        "ok",
        "alright",
        "well",
        "let'?s?",
        "we",
        "i",
        "you",
        "us",
        "need",
        "want",
        "know",
        "given",
        "here",
        "note",
        "step",
    ),
    *(
        "first",
        "second",
        "next",
        "then",
        "now",
        "so",
        "thus",
        "hence",
        "therefore",
        "finally",
        "indeed",
        "simply",
        "just",
        "to",
    ),
    *("in order", "the following", "as follows"),
)
"""Words of ``style``."""
EITHER_CASE = {letter: letter + letter.upper() for letter in "abcdefghijklmnopqrstuvwxyz"} | {
    "i": "iI\u0130\u0131",
    "k": "kK\u212a",
    "s": "sS\u017f",
}
"""Letter -> the characters that are this letter where case does not matter."""


def in_any_case(words: Sequence[str]) -> str:
    """A regular expression of whole words in any case: it matches what ``(?i:\\b(?:one|two)\\b)`` does, in half the time.

    The first letter of a word is looked at once for all words that begin with it.

    Args:
        words: regular expressions, each of which begins with a small letter
    """
    by_letter: dict[str, list[str]] = {}
    for word in words:
        by_letter.setdefault(word[0], []).append(word[1:])
    begun = (f"[{EITHER_CASE[letter]}](?i:{'|'.join(rest)})" for letter, rest in by_letter.items())
    return rf"\b(?:{'|'.join(begun)})\b"


CLASSES = {
    "number": r"\d+(?:[.,]\d+)*",
    "operator": r"[=+\-*/^<>×÷±≤≥≠≈]|\\(?:times|frac|cdot|sqrt|leq?|geq?|neq?)\b",
    "style": in_any_case(STYLE) + r"|\*\*|^#+|^\s*[-•]\s|\n{2,}",
}
"""Classes of tokens beside the lexicons: name -> regular expression. ``style`` is how a solution is told: address, connectives, layout."""


class LexiconError(UserError, ValueError):
    """A lexicon that cannot be used with this tokenizer."""


def marker_ids(tokenizer: Any, lexicon: str) -> list[int]:
    """Ids of every token that is a whole marker by itself: in any case, with or without a space before it.

    A marker that the tokenizer splits has none: its pieces mean other things elsewhere. Punctuation behind a word is
    another token, or makes it another token, which does not count.

    Raises:
        LexiconError: unknown lexicon, or none of its markers is one token.
    """
    if lexicon not in LEXICONS:
        raise LexiconError(f"lexicon: got {lexicon!r}, expected one of {', '.join(LEXICONS)}")
    marker_words = {marker.casefold() for marker in LEXICONS[lexicon]}
    found = [
        index
        for token, index in tokenizer.get_vocab().items()
        if _word(tokenizer.convert_tokens_to_string([token])).casefold() in marker_words
    ]
    if not found:
        raise LexiconError(
            f"lexicon {lexicon!r}: none of its markers is a single token of {tokenizer.name_or_path!r}, so their probability "
            f"cannot be read off one position. Markers: {', '.join(sorted(marker_words))}."
        )
    return sorted(found)


def markers_not_read(lexicons: Iterable[str], ids: Mapping[str, Sequence[int]], tokenizer: Any) -> list[str]:
    """A sentence for each lexicon with markers of several tokens, which a loss by marker mass does not see.

    Args:
        lexicons: those that the objective reads
        ids: lexicon -> its ``marker_ids``
        tokenizer: the model's
    """
    found = []
    for lexicon in lexicons:
        tokens = tokenizer.convert_ids_to_tokens(list(ids[lexicon]))
        read = {_word(tokenizer.convert_tokens_to_string([token])).casefold() for token in tokens}
        if left := [marker for marker in LEXICONS[lexicon] if marker.casefold() not in read]:
            found.append(
                f"lexicon {lexicon!r}: the loss reads the markers that are one token of this model, "
                f"{', '.join(sorted(read))}; it does not read {', '.join(left)}"
            )
    return found


def _word(text: str) -> str:
    """Without the spaces before it."""
    return re.sub(r"^[\s\u2581]+", "", text)


def span_name(token_class: str) -> str:
    """Under which name a class of tokens is marked; no span of a config has it by accident."""
    return f"<{token_class}>"


def class_names(resolved: ResolvedConfig) -> tuple[str, ...]:
    """The token classes that are marked: those that telemetry tells apart, and the lexicons that the objective reads."""
    epistemic = resolved.config.epistemic
    watched = (epistemic.lexicon, *epistemic.lexicons, *CLASSES) if epistemic.lexicons else ()
    return tuple(dict.fromkeys((*watched, *resolved.lexicons)))


def span_names(resolved: ResolvedConfig) -> tuple[str, ...]:
    """Every span of an example: those of the config, and one for each token class."""
    return (*resolved.spans, *map(span_name, class_names(resolved)))


def lexicon_ids(resolved: ResolvedConfig, tokenizer: Any) -> dict[str, list[int]]:
    """Marker ids of each lexicon that the objective reads, and of the tracked one if any of its markers is one token."""
    tracked = (resolved.config.epistemic.lexicon,) if resolved.config.epistemic.lexicons else ()
    return tokens_of(tokenizer, tracked) | {name: marker_ids(tokenizer, name) for name in resolved.lexicons}


def tokens_of(tokenizer: Any, lexicons: Iterable[str]) -> dict[str, list[int]]:
    """Marker ids of those lexicons that have a marker which is one token."""
    ids = {}
    for name in lexicons:
        with contextlib.suppress(LexiconError):
            ids[name] = marker_ids(tokenizer, name)
    return ids
