"""Tokens <-> characters: which part of a completion's text each of its tokens holds."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable, Sequence
from itertools import accumulate

from onpolicy.data.decoder import Decoder

LONGEST_CHARACTER = 8
"""Tokens of which one character can be made; more of them are no character at all."""
UNREADABLE = "\ufffd"
"""What a decoder writes for bytes that are no whole character."""


class TokenAlignment:
    """Finds the tokens of a span of text and the text of a token; keeps what it has found of the last completions."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._alone = _Texts(decoder)

    def mark(self, ids: Sequence[int], spans: Iterable[tuple[int, int]]) -> tuple[bool, ...]:
        """[T] which tokens of a completion hold a character of the spans, given as ``(start, end)`` of ``completion_text``."""
        return mask_of(self.ranges(ids, spans, self._decoder.completion_text(ids)), len(ids))

    def ranges(self, ids: Sequence[int], spans: Iterable[tuple[int, int]], text: str) -> list[tuple[int, int]]:
        """For each span that is not empty the range of tokens that hold a character of it, as ``(first, stop)``.

        Args:
            ids: of a completion
            spans: ``(start, end)`` in its text
            text: its text as far as it is known, which saves decoding it
        """
        spans = [(start, end) for start, end in spans if end > start]
        if not spans:
            return []
        starts, ends, _ = self._places(tuple(ids), text)
        found = [(bisect.bisect_right(ends, start), bisect.bisect_left(starts, end)) for start, end in spans]
        return [(first, stop) for first, stop in found if stop > first]

    def reads(self, ids: Sequence[int], text: str) -> bool:
        """Whether this is the text of these tokens."""
        return self._places(tuple(ids), text)[2] == text

    def split(self, ids: Sequence[int]) -> list[str]:
        """[T] the text of each token, for showing; of tokens that share a character the first has it, the others are empty.

        Special tokens have their own text here, which ``completion_text`` leaves out.
        """
        text = self._decoder.completion_text(ids)
        starts, ends, _ = self._places(tuple(ids), text)
        shown = []
        for t, index in enumerate(ids):
            shared = t > 0 and (starts[t], ends[t]) == (starts[t - 1], ends[t - 1]) and ends[t] > starts[t]
            shown.append("" if shared else text[starts[t] : ends[t]] or self._decoder.decode([index]))
        return shown

    @functools.lru_cache(maxsize=8)  # noqa: B019 one lives as long as its process
    def _places(self, ids: tuple[int, ...], text: str) -> tuple[list[int], list[int], str]:
        """[T] twice: where each token's characters begin and end. Tokens that share a character share its place. And their text."""
        texts = list(map(self._alone.__getitem__, ids))
        shared, at = [], 0
        for t in [t for t, text in enumerate(texts) if UNREADABLE in text]:
            if t < at:
                continue
            at, whole = t + 1, texts[t]
            while UNREADABLE in whole and at - t < LONGEST_CHARACTER:  # a part of a character; its other bytes follow
                if at == len(ids):
                    return self._places_by_prefixes(ids)
                at += 1
                whole = self._text_of(ids[t:at])
            texts[t:at] = [whole, *[""] * (at - t - 1)]
            shared.append((t, at))
        joined = "".join(texts)
        if joined != text and joined != self._decoder.completion_text(ids):
            return self._places_by_prefixes(ids)
        ends = list(accumulate(map(len, texts)))
        starts = [0, *ends[:-1]] if ends else []
        for first, stop in shared:
            starts[first:stop] = [starts[first]] * (stop - first)
        return starts, ends, joined

    def _places_by_prefixes(self, ids: tuple[int, ...]) -> tuple[list[int], list[int], str]:
        """For tokenizers whose tokens read differently alone: the slow way, a piece of the text at a time."""
        lengths = [len(self._decoder.completion_text(ids[: t + 1]).rstrip(UNREADABLE)) for t in range(len(ids))]
        return [0, *lengths[:-1]], lengths, self._decoder.completion_text(ids)

    @functools.lru_cache(maxsize=200_000)  # noqa: B019
    def _text_of(self, ids: tuple[int, ...]) -> str:
        return self._decoder.completion_text(ids)


def mask_of(ranges: Iterable[tuple[int, int]], length: int) -> tuple[bool, ...]:
    """[length] which tokens lie inside of one of the ranges ``(first, stop)``."""
    inside = [False] * length
    for first, stop in ranges:
        for t in range(first, stop):  # few: a slice takes longer
            inside[t] = True
    return tuple(inside)


class _Texts(dict[int, str]):
    """Token id -> the text that the token has alone, decoded once."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self._decoder = decoder

    def __missing__(self, index: int) -> str:
        self[index] = text = self._decoder.completion_text((index,))
        return text
