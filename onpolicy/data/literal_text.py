"""Text that holds the texts of special or added tokens, tokenised as the ordinary characters it is."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

# Private-use characters that stand for the k-th hidden text while the template runs.
MARK, END = "\ue000", "\ue001"
_MARKS = re.compile(f"{MARK}(\\d+){END}")


class LiteralText:
    """Hides texts of tokens while the template runs, and tokenises what it made, for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._acting = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
        self._all = _any_of(self._acting)
        self.texts = frozenset(self._acting)
        """The texts of all special and added tokens."""

    def hide(self, text: str, hidden: list[str], allowed: Collection[str] = ()) -> str:
        """The text with a mark in the place of each text of a token, which is appended to ``hidden``.

        Args:
            text: from data
            hidden: the texts that marks stand for
            allowed: texts of tokens that keep their meaning
        """

        def mark(match: re.Match[str]) -> str:
            hidden.append(match.group())
            return f"{MARK}{len(hidden) - 1}{END}"

        pattern = self._all if not allowed else _any_of(self._acting.keys() - set(allowed))
        return self._whole_where_normalised(text, pattern).sub(mark, text)

    @staticmethod
    def restore(text: str, hidden: list[str]) -> str:
        """The text with what its marks stand for."""
        return _MARKS.sub(lambda match: hidden[int(match.group(1))], text)

    def encode(self, text: str, hidden: list[str]) -> list[int]:
        """Token ids: ordinary pieces as usual; what was hidden, as plain characters."""
        ids: list[int] = []
        for i, piece in enumerate(_MARKS.split(text)):
            ids += self._encode_plain(hidden[int(piece)]) if i % 2 else self._encode(piece)
        return ids

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _encode_plain(self, text: str) -> list[int]:
        """Character by character where even a part of the text would be read as a token that acts."""
        ids = list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        if not set(self._acting.values()).intersection(ids):
            return ids
        return [i for character in text for i in self._encode(character)]

    def _whole_where_normalised(self, text: str, pattern: re.Pattern[str]) -> re.Pattern[str]:
        """What to hide in a text; all of it where the tokenizer would only make a token that acts out of its characters."""
        inner = getattr(self._tokenizer, "backend_tokenizer", None)
        normalizer = getattr(inner, "normalizer", None)
        if normalizer is None or text.isascii():
            return pattern
        read = self._all.search(normalizer.normalize_str(self._all.sub(" ", text)))
        return re.compile("(?s:.+)") if read else pattern


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, [*sorted(texts, key=len, reverse=True), MARK, END])))
