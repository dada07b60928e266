"""Messages <-> token ids: the only caller of the chat template, for student and teacher alike.

Text that comes from data cannot act as markup: where a message holds the text of a special or added token
(``<|im_end|>``, ``<think>``), that text is tokenised as the ordinary characters it is, so it neither closes a turn nor
opens a tag. Templates whose delimiters are plain text (``[INST]``) cannot be guarded this way.

A conversation that ends with an assistant's message is a turn to be continued: the completion follows the message inside the same
turn. Thinking tags keep their meaning there, because they stand where the model itself writes; nothing in it can close the turn.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from onpolicy.types import Message
from onpolicy.utils.errors import UserError
from onpolicy.utils.thinking import CLOSE, OPEN, ThinkingSplit, opens_thinking, split_thinking

# Private-use characters that stand for the k-th forbidden text while the template runs.
MARK, END = "\ue000", "\ue001"
PROBES = ("a", "b", "1.", "x?", "\\boxed{}.", "y\n")
"""Questions with different ends: where a tokenizer merges an end with what follows, that is no common ending."""


class RenderingError(UserError, ValueError):
    """A tokenizer or template that cannot be used; names the model and the key that helps."""


class PromptTooLong(UserError, ValueError):
    """A prompt over the limit; never cut, because either end of a prompt matters."""

    def __init__(self, num_tokens: int, limit: int, where: str = "prompt") -> None:
        super().__init__(
            f"{where}: {num_tokens} tokens, the limit is {limit}. Raise it, or set rendering.overlong=drop."
        )
        self.num_tokens, self.limit = num_tokens, limit


class Renderer:
    """Renders prompts with one tokenizer and one thinking mode."""

    def __init__(self, tokenizer: Any, *, thinking: bool | None = None, max_prompt_tokens: int | None = None) -> None:
        """
        Raises:
            RenderingError: the tokenizer has no chat template, or the template fails on a plain question.
        """
        self.tokenizer, self.max_prompt_tokens = tokenizer, max_prompt_tokens
        self._options = {} if thinking is None else {"enable_thinking": thinking}
        self._added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._forbidden = re.compile("|".join(map(re.escape, [*longest_first, MARK, END])))
        inside_turn = [text for text in longest_first if text not in (OPEN, CLOSE)]
        self._forbidden_inside_turn = re.compile("|".join(map(re.escape, [*inside_turn, MARK, END])))
        texts = [self._template_text([_user(probe)]) for probe in PROBES]
        suffix = functools.reduce(_common_suffix, texts)
        self.generation_suffix: tuple[int, ...] = tuple(functools.reduce(_common_suffix, map(self._encode, texts)))
        """Token ids at the end of every prompt: how the template hands over to the completion."""
        self.opens_thinking = opens_thinking(suffix)
        """Whether completions start inside a thinking span."""

    def prompt_ids(self, messages: Sequence[Message], *, limit: int | None = None) -> tuple[int, ...]:
        """[P] the conversation and the opening of the assistant's turn, up to where the completion begins.

        Raises:
            PromptTooLong: over ``limit``, or over ``max_prompt_tokens`` where no limit is given.
        """
        continues = len(messages) > 1 and messages[-1]["role"] == "assistant"
        hidden = _HiddenTexts()
        shown: list[Message] = [
            {
                "role": hidden.hide(self._forbidden, m["role"]),
                "content": hidden.hide(self._acting(m["content"], self._forbidden), m["content"]),
            }
            for m in (messages[:-1] if continues else messages)
        ]
        ids = self._encode_hidden(self._template_text(shown), hidden.texts)
        if continues:
            begun, hidden = messages[-1]["content"], _HiddenTexts()
            begun = hidden.hide(self._acting(begun, self._forbidden_inside_turn), begun)
            ids += self._encode_hidden(begun, hidden.texts)
        limit = self.max_prompt_tokens if limit is None else limit
        if limit is not None and len(ids) > limit:
            raise PromptTooLong(len(ids), limit)
        return tuple(ids)

    def completion_text(self, ids: Sequence[int]) -> str:
        """Without special tokens; thinking tags stay, as text."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def final_answer_text(self, text: str) -> str:
        """The part of a completion after its thinking: what rewards and graders read."""
        return self.split_thinking(text).answer

    def decode(self, ids: Sequence[int]) -> str:
        """With everything, for showing."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def split_thinking(self, text: str) -> ThinkingSplit:
        """Thinking and answer of a completion that followed one of these prompts."""
        return split_thinking(text, opened=self.opens_thinking)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a turn: the tokenizer's end token and the first token its template puts after an answer."""
        return tuple(dict.fromkeys(i for i in (self.tokenizer.eos_token_id, self._turn_end()) if i is not None))

    def _turn_end(self) -> int | None:
        """The first special token after an assistant message."""
        answer = "answer"
        messages = [_user("a"), {"role": "assistant", "content": answer}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, **self._options)
        after = self._encode(text[text.rindex(answer) + len(answer) :])
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return next((i for i in after if i in special), None)

    def _template_text(self, messages: Sequence[Message]) -> str:
        if not self.tokenizer.chat_template:
            raise RenderingError(
                f"the tokenizer of {self.tokenizer.name_or_path!r} has no chat template; "
                "give one as a Jinja file: rendering.chat_template=FILE"
            )
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=True, **self._options
                )
            )
        except Exception as error:  # templates raise whatever Jinja or their authors chose
            raise RenderingError(
                f"the chat template of {self.tokenizer.name_or_path!r} fails on roles "
                f"{[m['role'] for m in messages]}: {type(error).__name__}: {error}"
            ) from error

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _encode_hidden(self, text: str, forbidden: Sequence[str]) -> list[int]:
        """Ordinary pieces as usual; what was hidden, as plain characters."""
        ids: list[int] = []
        for i, piece in enumerate(re.split(f"{MARK}(\\d+){END}", text)):
            ids += self._encode_plain(forbidden[int(piece)]) if i % 2 else self._encode(piece)
        return ids

    def in_open_turn(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends inside the assistant's turn: behind the generation prompt, nothing has closed the turn."""
        suffix, n = self.generation_suffix, len(self.generation_suffix)
        starts = (i for i in range(len(prompt_ids) - n, -1, -1) if tuple(prompt_ids[i : i + n]) == suffix)
        start = next(starts, None)
        return start is not None and not set(self.eos_ids).intersection(prompt_ids[start + n :])

    def _acting(self, text: str, forbidden: re.Pattern[str]) -> re.Pattern[str]:
        """What to hide in a text; all of it where the tokenizer would only make a token that acts out of its characters."""
        inner = getattr(self.tokenizer, "backend_tokenizer", None)
        normalizer = getattr(inner, "normalizer", None)
        if normalizer is None or text.isascii():
            return forbidden
        read = self._forbidden.search(normalizer.normalize_str(self._forbidden.sub(" ", text)))
        return re.compile("(?s:.+)") if read else forbidden

    def _encode_plain(self, text: str) -> list[int]:
        """Character by character where even a part of the text would be read as a token that acts."""
        ids = list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        acting = set(self._added.values())
        if not acting.intersection(ids):
            return ids
        return [i for character in text for i in self._encode(character)]


class _HiddenTexts:
    """Texts that marks stand for while the template runs and the rest is tokenised."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def hide(self, pattern: re.Pattern[str], text: str) -> str:
        return pattern.sub(self._mark, text)

    def _mark(self, match: re.Match[str]) -> str:
        self.texts.append(match.group())
        return f"{MARK}{len(self.texts) - 1}{END}"


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _common_suffix(one: Any, other: Any) -> Any:
    """Returns the longest common ending of two strings or two lists."""
    n = 0
    while n < min(len(one), len(other)) and one[-1 - n] == other[-1 - n]:
        n += 1
    tail = one[len(one) - n :]
    return tail if isinstance(tail, str) else tuple(tail)
