"""Tags between which a model thinks: recognised by how they are written, not by a list of models."""

from __future__ import annotations

import pytest

from onpolicy.utils.thinking import split_thinking, strip_closed_thinking
from onpolicy.utils.thinking_tags import THINK, ThinkingTags, find_tags

PAIRS = [
    ("<think>", "</think>"), ("<seed:think>", "</seed:think>"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"), ("<|START_THINKING|>", "<|END_THINKING|>"), ("<reasoning>", "</reasoning>"),
    ("<｜thinking｜>", "<｜/thinking｜>"), ("<start-of-thought>", "<end-of-thought>"), ("<extended_thinking>", "</extended_thinking>"),
]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_every_way_of_writing_a_pair(pair: tuple[str, str]) -> None:
    tags = ThinkingTags(*pair)
    assert find_tags("<|im_end|>", ["<|im_end|>", *pair], "")[0] == tags
    assert find_tags("<|im_end|>", ["<|im_end|>"], f"{{{{ m.split('{pair[1]}') }}}} {pair[0]}")[0] == tags
    assert find_tags(f"assistant\n{pair[0]}\n", [], "")[0] == tags, "half a pair is enough where completions go on"
    assert find_tags(f"assistant\n{pair[0]}\n\n{pair[1]}\n\n", ["<think>", "</think>"], "")[0] == tags
    text = f"hm{pair[1]}4"
    assert split_thinking(text, opened=True, tags=tags).answer == "4"
    assert strip_closed_thinking(f"{pair[0]}a{pair[1]} 4", tags=tags) == "4"


@pytest.mark.parametrize(
    "template", ["{{ message['reasoning_content'] }} {% if enable_thinking %}x{% endif %}", "/think /no_think", "<|think|>", "[thinks]"]
)  # fmt: skip
def test_what_is_no_pair(template: str) -> None:
    tags, source = find_tags("assistant\n", [], template)
    assert tags == THINK and source.endswith("assumed")


def test_other_tags_are_text() -> None:
    seed = ThinkingTags("<seed:think>", "</seed:think>")
    split = split_thinking("<think>a</think>4", opened=False, tags=seed)
    assert (split.answer, split.state) == ("<think>a</think>4", "none")
