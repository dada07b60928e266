"""Thinking and answer, for every way a tag can be there, be missing, repeat or be cut off."""

from __future__ import annotations

import pytest

from onpolicy.utils.thinking import opens_thinking, split_thinking, strip_closed_thinking, strip_thinking


@pytest.mark.parametrize(
    ("text", "opened", "thinking", "answer", "state"),
    [
        ("4", False, "", "4", "none"),
        ("<think>a</think>\n\n4", False, "a", "4", "closed"),
        ("a</think>4", True, "a", "4", "closed"),
        ("a</think>4", False, "a", "4", "closed"),  # the model dropped the tag its template would have opened
        ("<think>a", False, "a", "", "truncated"),
        ("a and a", True, "a and a", "", "truncated"),
        ("<think>a</think>4<think>b</think>5", False, "ab", "45", "closed"),
        ("<think>a<think>b</think>4", False, "ab", "4", "closed"),
        ("<think>a</think>4</think>5", False, "a", "45", "closed"),
        ("<think>a</think>4<think>b", False, "ab", "", "truncated"),
        ("<think></think>4", False, "", "4", "closed"),
        ("", True, "", "", "truncated"),
        ("", False, "", "", "none"),
    ],
)
def test_split(text: str, opened: bool, thinking: str, answer: str, state: str) -> None:
    found = split_thinking(text, opened=opened)
    assert (found.thinking, found.answer, found.state) == (thinking, answer, state)
    assert strip_thinking(text, opened=opened) == answer


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("4", "4"),
        ("", ""),
        ("<think>a</think>\r\n\t 4 ", "4 "),
        ("Well, \n<think>a</think> 4", "Well, \n4"),  # what stands before a span is kept
        ("a</think>\n4", "4"),  # the opening tag stood in the prompt
        ("<think>a", "<think>a"),  # never closed: kept whole
        ("5<think>a</think>4<think>b", "54<think>b"),
        ("<think>ä<think>b</think> c</think>\n{4}", "{4}"),  # nested: the first closing tag ends the first span
        (
            "<think>a</think>4</think>5</think>6",
            "5</think>6",
        ),  # one stray closing tag is taken out, with what precedes it
        ("</think><think>", "<think>"),
    ],
)
def test_closed_thinking_alone_is_taken_out(text: str, left: str) -> None:
    assert strip_closed_thinking(text) == left


def test_what_a_generation_prompt_leaves_open() -> None:
    assert (
        opens_thinking("<|assistant|><think>\n")
        and not opens_thinking("<think>\n\n</think>\n\n")
        and not opens_thinking("x")
    )
