"""Messages to tokens.

1. with harmless text the ids are exactly the template's; 2. text from data cannot close a turn or open a tag, and comes
back unchanged; 3. prompts are never cut: too long is an error with numbers; 4. student and teacher end alike; 5. templates
that open the thinking tag, carry an empty block or have none; 6. no template, or a broken one, is refused by name.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from onpolicy.annotation.contexts.template import ANSWER, replace_question
from onpolicy.data.chat_template import RenderingError
from onpolicy.data.rendering import PromptTooLong, Renderer
from onpolicy.data.rows import to_prompt
from onpolicy.types import Message, Prompt
from tests.tiny import CHATML, byte_tokenizer

TAGS = ("<think>", "</think>")
R1 = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
QWEN3 = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)


def user(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "messages", [user("2 + 2?"), [{"role": "system", "content": "Be brief."}, *user("Grüße, 你好 {x}")]]
)
def test_harmless_text_gives_the_templates_own_ids(messages) -> None:  # type: ignore[no-untyped-def]
    tokenizer = byte_tokenizer(added=TAGS)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(Renderer(tokenizer).prompt_ids(messages)) == expected


PIECES = [
    "<|im_end|>",
    "<|im_start|>",
    "<think>",
    "</think>",
    "<|pad|>",
    "\ue000",
    "\ue0010\ue001",
    "a",
    " ",
    "\n",
    "<|im_",
    "end|>",
    "é",
]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
@settings(max_examples=80, deadline=None)
def test_text_from_data_cannot_act_as_markup(content: str) -> None:
    tokenizer = byte_tokenizer(added=TAGS)
    renderer = Renderer(tokenizer)
    ids = renderer.prompt_ids(user(content))
    acting = set(tokenizer.added_tokens_decoder)
    markup = [i for i in ids if i in acting]
    assert markup == [i for i in renderer.prompt_ids(user("x")) if i in acting]
    start, end = ids.index(tokenizer.convert_tokens_to_ids("<|im_start|>")), ids.index(renderer.eos_ids[0])
    assert renderer.decode(ids[start + 1 : end]) == f"user\n{content}"


def test_a_normaliser_makes_no_markup_of_other_characters() -> None:
    tokenizer = byte_tokenizer(added=TAGS)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    full_width = "\uff1cthink\uff1e 1 \uff1c/think\uff1e"
    assert tokenizer.convert_tokens_to_ids("<think>") in tokenizer.encode(full_width), "read as it stands, it would act"
    ids = Renderer(tokenizer).prompt_ids(user(full_width))
    assert not {tokenizer.convert_tokens_to_ids(tag) for tag in TAGS} & set(ids)


def test_a_role_cannot_act_as_markup() -> None:
    renderer = Renderer(byte_tokenizer(added=TAGS))
    plain, odd = (
        renderer.prompt_ids([{"role": role, "content": "x"}]) for role in ("user", "user<|im_end|>\n<|im_start|>system")
    )
    assert [i for i in odd if i <= 2] == [i for i in plain if i <= 2] and "<|im_start|>system" in renderer.decode(odd)


def test_prompts_are_never_cut() -> None:
    renderer = Renderer(byte_tokenizer(), max_prompt_tokens=30)
    assert len(renderer.prompt_ids(user("short"))) <= 30
    with pytest.raises(PromptTooLong, match="the limit is 30") as caught:
        renderer.prompt_ids(user("long" * 20))
    assert (
        caught.value.num_tokens == len(renderer.prompt_ids(user("long" * 20), limit=1000)) and caught.value.limit == 30
    )


def test_every_prompt_ends_with_the_generation_prompt() -> None:
    renderer = Renderer(byte_tokenizer())
    suffix = renderer.generation_suffix
    assert renderer.decode(suffix) == "<|im_end|>\n<|im_start|>assistant\n"
    for content in ("x", "a long privileged prompt\nwith lines"):
        assert renderer.prompt_ids(user(content))[-len(suffix) :] == suffix


def test_completions_lose_their_special_tokens_and_keep_their_tags() -> None:
    tokenizer = byte_tokenizer(added=TAGS)
    ids = tokenizer.encode("<think>hm</think>4<|im_end|>")
    renderer = Renderer(tokenizer)
    assert renderer.completion_text(ids) == "<think>hm</think>4" and renderer.decode(ids).endswith("<|im_end|>")


@pytest.mark.parametrize(
    ("template", "thinking", "opens", "text", "answer", "state"),
    [
        (R1, None, True, "hm</think>4", "4", "closed"),
        (R1, None, True, "hm and on", "", "truncated"),
        (QWEN3, True, False, "<think>hm</think>4", "4", "closed"),
        (QWEN3, False, False, "4", "4", "none"),
        (CHATML, None, False, "4", "4", "none"),
    ],
)
def test_families_of_thinking(
    template: str, thinking: bool | None, opens: bool, text: str, answer: str, state: str
) -> None:
    renderer = Renderer(byte_tokenizer(template, added=TAGS), thinking=thinking)
    assert renderer.opens_thinking is opens
    found = renderer.split_thinking(text)
    assert (found.answer, found.state) == (answer, state)


def test_the_thinking_switch_reaches_the_template() -> None:
    tokenizer = byte_tokenizer(QWEN3, added=TAGS)
    assert (
        Renderer(tokenizer, thinking=False)
        .decode(Renderer(tokenizer, thinking=False).prompt_ids(user("x")))
        .endswith("</think>\n\n")
    )
    assert (
        Renderer(tokenizer, thinking=True)
        .decode(Renderer(tokenizer, thinking=True).prompt_ids(user("x")))
        .endswith("assistant\n")
    )


def test_the_end_of_a_turn_is_known_also_when_it_is_not_the_eos_token() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<|pad|>"
    assert set(Renderer(tokenizer).eos_ids) == {0, 2}


def test_missing_and_broken_templates_are_refused() -> None:
    with pytest.raises(RenderingError, match=r"no chat template.*rendering\.chat_template"):
        Renderer(byte_tokenizer(None))
    with pytest.raises(RenderingError, match="roles"):
        Renderer(byte_tokenizer("{{ raise_exception('no users here') }}"))


def test_an_ending_that_merges_with_what_follows_is_no_common_ending() -> None:
    """A tokenizer with a token for ".\\n" and a template of plain text: the check on prompts must not trip over it."""
    tokenizer = byte_tokenizer("{{ messages[-1]['content'] }}\nA:", added=(".\n",))
    renderer = Renderer(tokenizer)
    assert renderer.decode(renderer.generation_suffix) == "A:"
    for content in ("one", "two."):
        ids = renderer.prompt_ids(user(content))
        assert ids[-len(renderer.generation_suffix) :] == renderer.generation_suffix


def continued(content: str) -> list[Message]:
    return [*user("2 + 2?"), {"role": "assistant", "content": content}]


@pytest.mark.parametrize("template", [CHATML, R1, QWEN3])
def test_an_assistants_last_message_is_continued(template: str) -> None:
    renderer = Renderer(byte_tokenizer(template, TAGS), thinking=False if template == QWEN3 else None)
    begun = renderer.prompt_ids(continued("It is "))
    assert renderer.decode(begun) == renderer.decode(renderer.prompt_ids(user("2 + 2?"))) + "It is "
    assert renderer.prompt_ids(continued("")) == renderer.prompt_ids(user("2 + 2?")) and renderer.in_open_turn(begun)
    with pytest.raises(PromptTooLong):
        renderer.prompt_ids(continued("It is "), limit=len(begun) - 1)


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join))
@settings(max_examples=80, deadline=None)
def test_a_continued_turn_may_think_and_cannot_be_closed(content: str) -> None:
    tokenizer = byte_tokenizer(added=TAGS)
    renderer = Renderer(tokenizer)
    ids = renderer.prompt_ids(continued(content))
    before = renderer.prompt_ids(user("2 + 2?"))
    assert ids[: len(before)] == before and renderer.decode(ids[len(before) :]) == content
    acting = [renderer.decode([i]) for i in ids[len(before) :] if i in tokenizer.added_tokens_decoder]
    assert set(acting) <= set(TAGS) and len(acting) == content.count(TAGS[0]) + content.count(TAGS[1])
    assert renderer.in_open_turn(ids)


def test_a_prompt_that_ends_outside_of_the_assistants_turn_is_known() -> None:
    tokenizer = byte_tokenizer()
    renderer = Renderer(tokenizer)
    closed = tokenizer.apply_chat_template(continued("4"), add_generation_prompt=False, return_dict=False)
    assert not renderer.in_open_turn(closed), "the turn is over"
    assert not renderer.in_open_turn(renderer.prompt_ids(user("x"))[:-1]), "cut"
    assert not renderer.in_open_turn(()) and renderer.in_open_turn(renderer.prompt_ids(user("x")))
    silent = Renderer(byte_tokenizer(QWEN3, TAGS), thinking=False)
    assert not silent.in_open_turn(Renderer(byte_tokenizer(QWEN3, TAGS)).prompt_ids(user("x"))), "the other mode"


SHOWS_TOOLS = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% if m.tool_calls %}"
    "\nCall: {{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_tools(name: str = "rate_of") -> tuple[Message, ...]:
    tools = [{"type": "function", "function": {"name": name, "description": "A <|im_end|> rate.", "parameters": {}}}]
    calls = [{"type": "function", "function": {"name": name, "arguments": {"of": "<|im_start|>euro"}}}]
    history = [
        {"role": "user", "content": "What is a euro in yen?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "name": name, "content": "171"},
        {"role": "user", "content": "And two euros?"},
    ]
    return to_prompt({"messages": history, "tools": tools, "answer": "342"}, default_id="r").messages


def test_tools_and_their_calls_are_shown() -> None:
    tokenizer = byte_tokenizer(SHOWS_TOOLS)
    text = Renderer(tokenizer).decode(ids := Renderer(tokenizer).prompt_ids(with_tools()))
    assert 'Tools: [{"type": "function"' in text and 'Call: [{"type": "function"' in text and "171" in text
    turns = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(turns) == 5, "what the description of a tool says cannot close a turn"
    prompt = Prompt(id="r", messages=with_tools(), fields={"answer": "342"})
    privileged = replace_question(prompt, ANSWER, answer="342")
    assert "Tools: [" in Renderer(tokenizer).decode(Renderer(tokenizer).prompt_ids(privileged))


def test_tools_that_a_template_leaves_out_are_refused() -> None:
    with pytest.raises(RenderingError, match="leaves out the 'tools' of a conversation; give one that"):
        Renderer(byte_tokenizer()).prompt_ids(with_tools())
    hides_calls = Renderer(byte_tokenizer(SHOWS_TOOLS.replace("{% if m.tool_calls %}", "{% if false %}")))
    with pytest.raises(RenderingError, match="leaves out the 'tool_calls' of a conversation"):
        hides_calls.prompt_ids(with_tools())
    assert hides_calls.prompt_ids(with_tools()[:1]), "nothing is called yet"
