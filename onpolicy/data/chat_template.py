"""A tokenizer's chat template: messages -> text, and what a template must do to be used.

What is given must come out: a template that leaves out what a message says, that does not open the assistant's turn, or that does not read
the switch that is set, is refused.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from onpolicy.data import tools
from onpolicy.types import Message
from onpolicy.utils.errors import ModelError, UserError

QUESTION: Message = {"role": "user", "content": "What is 3 times 17?"}
ANSWER: Message = {"role": "assistant", "content": "It is 51, of course."}

SWITCHES = re.compile(r"/(?:no_?)?think\b")
"""What some templates take out of a message, because it switches thinking."""


class RenderingError(UserError, ValueError):
    """A tokenizer or template that cannot be used; names the model and the key that helps."""


class ChatTemplate:
    """The template of one tokenizer in one thinking mode, on one day."""

    def __init__(self, tokenizer: Any, *, thinking: bool | None, date: str | None) -> None:
        """
        Args:
            tokenizer: with its template
            thinking: ``enable_thinking`` of the template; None: not passed
            date: the day, as YYYY-MM-DD, that the template takes for today; None: the clock's

        Raises:
            RenderingError: there is no template, it fails on a question, leaves it out, does not open the assistant's turn, or has no
                switch for ``thinking``.
        """
        self._tokenizer, self.name = tokenizer, repr(tokenizer.name_or_path)
        if not tokenizer.chat_template:
            raise RenderingError(
                f"the tokenizer of {self.name} has no chat template; give one as a Jinja file: rendering.chat_template=FILE"
            )
        self._options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        if date is not None:
            self._options["strftime_now"] = datetime.fromisoformat(date).strftime
        self.refuse_lost([QUESTION], self.text([QUESTION]))
        self._refuse_closed_turn()
        if thinking is not None:
            self._refuse_no_switch(thinking)

    @property
    def source(self) -> str:
        """The Jinja text that is rendered."""
        return str(self._tokenizer.get_chat_template())

    def text(self, messages: Sequence[Message], *, opened: bool = True, **options: Any) -> str:
        """The conversation as the model reads it, with the opening of the assistant's turn if ``opened``.

        Raises:
            RenderingError: the template fails on these messages.
        """
        try:
            plain, offered = tools.apart(messages)
            options = {**self._options, **options, "tools": offered, "add_generation_prompt": opened}
            return str(self._tokenizer.apply_chat_template(plain, tokenize=False, **options))
        except Exception as error:  # templates raise whatever Jinja or their authors chose
            raise RenderingError(
                f"the chat template of {self.name} fails on roles {[m['role'] for m in messages]}: {type(error).__name__}: {error}"
            ) from error

    def refuse_lost(self, messages: Sequence[Message], text: str) -> None:
        """Raises RenderingError where a message, or tools, are not in the text that was made of them; white space and case may differ."""
        if lost := tools.left_out(messages, self.text):
            raise RenderingError(
                f"the chat template of {self.name} leaves out the {lost!r} of a conversation; give one that shows them "
                "(rendering.chat_template=FILE), or leave them out of the data"
            )
        shown = _bare(text)
        for message in messages:
            content = message["content"]
            parts = [_bare(part) for part in SWITCHES.split(content)]
            if (
                not all(part in shown for part in parts)
                and _bare(json.dumps(content, ensure_ascii=False)[1:-1]) not in shown
            ):
                raise RenderingError(
                    f"the chat template of {self.name} leaves out what the {message['role']!r} message says ({content[:60]!r}); "
                    f"give one that shows it: rendering.chat_template=FILE"
                )

    def behind_answer(self) -> str:
        """What follows an assistant's message: the rest of the last turn, then what stands between such a turn and the next."""
        found = []
        for messages in ([QUESTION, ANSWER], [QUESTION, ANSWER, QUESTION]):
            with contextlib.suppress(RenderingError):  # a template that knows no such conversation
                found.append(self.text(messages, opened=False).partition(ANSWER["content"])[2])
        return "".join(found)

    def _refuse_closed_turn(self) -> None:
        """Templates without role headers (``[/INST]``) need no generation prompt: there the answer follows the question at once."""
        closed, opened = self.text([QUESTION], opened=False), self.text([QUESTION])
        if closed != opened:
            return
        try:
            answered = self.text([QUESTION, ANSWER], opened=False)
        except RenderingError:
            return
        header = answered.removeprefix(opened).partition(ANSWER["content"])[0].strip()
        if answered.startswith(opened) and ANSWER["content"] in answered and header:
            raise RenderingError(
                f"the chat template of {self.name} does not open the assistant's turn: with add_generation_prompt the prompt still ends "
                f"with {opened[-30:]!r}, expected {header!r} behind it; give one that writes it: rendering.chat_template=FILE"
            )

    def _refuse_no_switch(self, thinking: bool) -> None:
        def switched(name: str) -> bool:
            on, off = (self.text([QUESTION], **{name: value}) for value in (True, False))
            return on != off

        if not switched("enable_thinking"):
            other = " It has a switch of another name, `thinking`." if switched("thinking") else ""
            raise RenderingError(
                f"rendering.thinking (or teacher_thinking): got {thinking}, but the chat template of {self.name} reads no "
                f"`enable_thinking`, so nothing would change.{other} Expected no such setting (rendering.thinking=null "
                "rendering.teacher_thinking=null), or a template that reads it: rendering.chat_template=FILE"
            )


def read_chat_template(file: str) -> str:
    """Jinja text, as it stands or under ``chat_template`` of a JSON file, as processors and tokenizers keep it.

    Raises:
        ModelError: there is no such file, or it holds no template.
    """
    if not Path(file).is_file():
        raise ModelError(f"rendering.chat_template: file {file!r} does not exist")
    text = Path(file).read_text()
    try:
        held = json.loads(text)
    except ValueError:
        return text
    template = held.get("chat_template") if isinstance(held, dict) else held
    if not isinstance(template, str):
        raise ModelError(
            f"rendering.chat_template: {file!r} is JSON, expected a Jinja file or JSON with a template as text under 'chat_template'"
        )
    return template


def _bare(text: str) -> str:
    """A text as it is compared: templates strip and indent."""
    return "".join(text.split()).casefold()
