"""Messages <-> token ids: the only caller of the chat template, for student and teacher alike.

Text that comes from data cannot act as markup: where a message holds the text of a special or added token
(``<|im_end|>``, ``<think>``), that text is tokenised as the ordinary characters it is, so it neither closes a turn nor
opens a tag. Templates whose delimiters are plain text (``[INST]``) cannot be guarded this way.

The assistant's turns hold what a model writes, so there only markup of turns is hidden: thinking tags and the like keep their meaning,
for the template too, which may leave out the thinking of earlier turns. A conversation that ends with an assistant's message is a turn to
be continued: the completion follows the message inside the same turn, and nothing in it can close the turn.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from onpolicy.data import tools
from onpolicy.data.chat_template import ChatTemplate, RenderingError
from onpolicy.data.decoder import FastDecoder
from onpolicy.data.literal_text import LiteralText
from onpolicy.types import Message
from onpolicy.utils.errors import UserError
from onpolicy.utils.thinking import ThinkingSplit, opens_thinking, split_thinking, strip_thinking
from onpolicy.utils.thinking_tags import ThinkingTags, find_tags

PROBES = ("a", "b", "1.", "x?", "\\boxed{}.", "y\n")
"""Questions with different ends: where a tokenizer merges an end with what follows, that is no common ending."""


class PromptTooLong(UserError, ValueError):
    """A prompt over the limit; never cut, because either end of a prompt matters."""

    def __init__(self, num_tokens: int, limit: int, where: str = "prompt") -> None:
        super().__init__(
            f"{where}: {num_tokens} tokens, the limit is {limit}: the setting, or what generator.max_tokens leaves of the model's context "
            "window, whichever is less. Change that one, or set rendering.overlong=drop."
        )
        self.num_tokens, self.limit = num_tokens, limit


class Renderer:
    """Renders prompts with one tokenizer and one thinking mode."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        thinking: bool | None = None,
        max_prompt_tokens: int | None = None,
        thinking_tags: Sequence[str] | None = None,
        date: str | None = None,
        eos_ids: Iterable[int] = (),
    ) -> None:
        """
        Args:
            tokenizer: with its chat template
            thinking: ``enable_thinking`` of the template; None: not passed
            max_prompt_tokens: length that no prompt may exceed
            thinking_tags: what opens and closes thinking; None: found in the generation prompt, the tokenizer or the template
            date: the day, as YYYY-MM-DD, that the template takes for today; None: the clock's
            eos_ids: ids that end a completion besides those that tokenizer and template name

        Raises:
            RenderingError: the tokenizer has no chat template, or one that cannot be used.
        """
        self.tokenizer, self.max_prompt_tokens = tokenizer, max_prompt_tokens
        self.template, self._literal = ChatTemplate(tokenizer, thinking=thinking, date=date), LiteralText(tokenizer)
        added = tokenizer.added_tokens_decoder
        texts = [self.template.text([_user(probe)]) for probe in PROBES]
        suffix = functools.reduce(_common_suffix, texts)
        self.generation_suffix: tuple[int, ...] = tuple(functools.reduce(_common_suffix, map(self._encode, texts)))
        """Token ids at the end of every prompt: how the template hands over to the completion."""
        found = find_tags(suffix, (token.content for token in added.values()), self.template.source)
        given = None if thinking_tags is None else (ThinkingTags(*thinking_tags), "rendering.thinking_tags")
        self.thinking_tags, self.tags_source = given or found
        """What opens and closes thinking in completions, and what says so."""
        self.opens_thinking = opens_thinking(suffix, self.thinking_tags)
        """Whether completions start inside a thinking span."""
        begins = max(suffix.rfind(self.thinking_tags.open), 0)
        self.opened_text = suffix[begins:] if self.thinking_tags.open in suffix else ""
        """What the prompt has of the thinking already: an opening tag, or a span that is closed; empty where it has no tag."""
        given_ends = [i for i in eos_ids if i is not None]
        special = {i for i, token in added.items() if token.special}
        behind = self._encode(self.template.behind_answer())
        self.turn_end_id: int | None = next(
            (i for i in behind if i in special.union(given_ends)), tokenizer.eos_token_id
        )
        """The id that ends a turn as the template writes it; None where template and tokenizer have none."""
        ends = (tokenizer.eos_token_id, self.turn_end_id, *given_ends)
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in ends if i is not None))
        """Ids that end a completion: the tokenizer's end token, the one its template puts behind an answer, and those that were given."""
        tags = {self.thinking_tags.open, self.thinking_tags.close}
        markup = special.union(self.eos_ids, behind, self._encode(texts[0]))
        self._written = {token.content for i, token in added.items() if i not in markup} | tags
        shown = {i for i, token in added.items() if token.content in tags}
        self._skipped = frozenset(special.union(tokenizer.all_special_ids) - shown) if special & shown else frozenset()

    def prompt_ids(self, messages: Sequence[Message], *, limit: int | None = None) -> tuple[int, ...]:
        """[P] the conversation and the opening of the assistant's turn, up to where the completion begins.

        Raises:
            PromptTooLong: over ``limit``, or over ``max_prompt_tokens`` where no limit is given.
            RenderingError: the template fails on these messages, or leaves out what one of them says.
        """
        continues = len(messages) > 1 and messages[-1]["role"] == "assistant"
        before, hidden = (messages[:-1] if continues else messages), list[str]()
        shown = self.hide(before, hidden)
        text = self.template.text(shown)
        self._refuse_changed(before, shown, text, hidden)
        ids = self.encode_hidden(text, hidden)
        if continues:
            begun = self._literal.hide(messages[-1]["content"], hidden, self._written)
            ids += self._literal.encode(begun, hidden)
        limit = self.max_prompt_tokens if limit is None else limit
        if limit is not None and len(ids) > limit:
            raise PromptTooLong(len(ids), limit)
        return tuple(ids)

    def hide(self, messages: Sequence[Message], hidden: list[str]) -> list[Message]:
        """The messages as the template may be given them: with marks, whose texts are appended to ``hidden``, for what acts as markup."""
        return [self._hidden(message, hidden) for message in messages]

    def encode_hidden(self, text: str, hidden: list[str]) -> list[int]:
        """The ids of a text that the template made of messages that ``hide`` returned."""
        return self._literal.encode(text, hidden)

    def completion_text(self, ids: Sequence[int]) -> str:
        """Without special tokens; thinking tags stay, as text."""
        if not self._skipped:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return self.decode([i for i in ids if i not in self._skipped])

    def fast_decoder(self) -> FastDecoder | None:
        """What decodes as this does and can be handed to another process; None where the tokenizer has nothing of the kind."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return None if backend is None else FastDecoder(backend, self._skipped)

    def final_answer_text(self, text: str) -> str:
        """The part of a completion after its thinking: what rewards and graders read."""
        return self.split_thinking(text).answer

    def decode(self, ids: Sequence[int]) -> str:
        """With everything, for showing."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def split_thinking(self, text: str) -> ThinkingSplit:
        """Thinking and answer of a completion that followed one of these prompts."""
        return split_thinking(text, opened=self.opens_thinking, tags=self.thinking_tags)

    def in_open_turn(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends inside the assistant's turn: behind the generation prompt, nothing has closed the turn."""
        suffix, n = self.generation_suffix, len(self.generation_suffix)
        starts = (i for i in range(len(prompt_ids) - n, -1, -1) if tuple(prompt_ids[i : i + n]) == suffix)
        start = next(starts, None)
        return start is not None and not set(self.eos_ids).intersection(prompt_ids[start + n :])

    def _hidden(self, message: Message, hidden: list[str]) -> Message:
        """The message with marks in the place of what must not act as markup."""
        allowed = self._written if message["role"] == "assistant" else ()
        return {
            "role": self._literal.hide(message["role"], hidden),
            "content": self._literal.hide(message["content"], hidden, allowed),
            **tools.extras(message, lambda text: self._literal.hide(text, hidden)),  # type: ignore[typeddict-item]
        }

    def _refuse_changed(
        self, messages: Sequence[Message], shown: Sequence[Message], text: str, hidden: list[str]
    ) -> None:
        """Raises RenderingError where the template leaves out a text, or makes something else of an answer than of its marks."""
        answers = [m["role"] == "assistant" for m in messages]
        said = [
            {**m, "content": strip_thinking(m["content"], opened=False, tags=self.thinking_tags)} if answer else m
            for m, answer in zip(shown, answers, strict=True)
        ]
        self.template.refuse_lost(said, text)  # type: ignore[arg-type]
        plain: list[Message] = [
            {**s, "content": self._literal.hide(m["content"], hidden, self._literal.texts) if answer else s["content"]}
            for m, s, answer in zip(messages, shown, answers, strict=True)
        ]
        if plain != list(shown) and self._literal.restore(self.template.text(plain), hidden) != self._literal.restore(
            text, hidden
        ):
            raise RenderingError(
                f"the chat template of {self.template.name} reads special tokens in an 'assistant' message, where they are text here; "
                "leave them out of the data"
            )

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _common_suffix(one: Any, other: Any) -> Any:
    """Returns the longest common ending of two strings or two lists."""
    n = 0
    while n < min(len(one), len(other)) and one[-1 - n] == other[-1 - n]:
        n += 1
    tail = one[len(one) - n :]
    return tail if isinstance(tail, str) else tuple(tail)
