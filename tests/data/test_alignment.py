"""Tokens <-> characters: places that are added up at once are those of a walk from token to token, broken characters included."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from onpolicy.data.alignment import LONGEST_CHARACTER, TokenAlignment
from onpolicy.data.rendering import Renderer
from tests.tiny import byte_tokenizer

RENDERER = Renderer(byte_tokenizer())
ALIGNMENT = TokenAlignment(RENDERER)


def walked(ids: tuple[int, ...]) -> list[tuple[int, int]]:
    """Start and end of each token, a token after the other; by prefixes where that does not give the text."""
    places: list[tuple[int, int]] = []
    said, waiting = "", list[int]()
    for index in ids:
        waiting.append(index)
        text = RENDERER.completion_text(waiting)
        if "\ufffd" not in text or len(waiting) == LONGEST_CHARACTER:
            places += [(len(said), len(said) + len(text))] * len(waiting)
            said, waiting = said + text, []
    if not waiting and said == RENDERER.completion_text(ids):
        return places
    ends = [len(RENDERER.completion_text(ids[: t + 1]).rstrip("\ufffd")) for t in range(len(ids))]
    return list(zip([0, *ends[:-1]], ends, strict=True))


@given(
    st.one_of(
        st.text(st.characters(max_codepoint=0x2FF), max_size=20).map(RENDERER.tokenizer.encode),
        st.text(max_size=12).map(lambda text: RENDERER.tokenizer.encode(text.encode("utf-8", "replace").decode())),
        st.lists(st.integers(0, len(RENDERER.tokenizer) - 1), max_size=20),
    )
)
@settings(max_examples=200, deadline=None)
@example([])
@example(RENDERER.tokenizer.encode("é = ½!"))
@example(RENDERER.tokenizer.encode("é")[:1])
@example(RENDERER.tokenizer.encode("é")[:1] * 9 + RENDERER.tokenizer.encode("so"))
def test_places(ids: list[int]) -> None:
    text, places = RENDERER.completion_text(ids), walked(tuple(ids))
    for start, end in [(k, k + 1) for k in range(len(text))]:
        expected = tuple(a < end and start < b for a, b in places)
        assert ALIGNMENT.mark(ids, [(start, end)]) == expected
