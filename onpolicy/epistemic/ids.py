"""Which tokens of a vocabulary are markers."""

from __future__ import annotations

import re
from typing import Any

from onpolicy.rewards.lexicon import LEXICONS
from onpolicy.utils.errors import UserError


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
        raise LexiconError(f"lexicon: got {lexicon!r}, wanted one of {', '.join(LEXICONS)}")
    wanted = {marker.casefold() for marker in LEXICONS[lexicon]}
    found = [
        index
        for token, index in tokenizer.get_vocab().items()
        if _word(tokenizer.convert_tokens_to_string([token])).casefold() in wanted
    ]
    if not found:
        raise LexiconError(
            f"lexicon {lexicon!r}: none of its markers is a single token of {tokenizer.name_or_path!r}, so their probability "
            f"cannot be read off one position. Markers: {', '.join(sorted(wanted))}."
        )
    return sorted(found)


def _word(text: str) -> str:
    """Without the spaces before it."""
    return re.sub(r"^[\s\u2581]+", "", text)
