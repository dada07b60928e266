"""The wording around privileged text.

The question, the text under a heading, and a closing line asking for the answer; they replace the last user message, and the
completion follows as the assistant's turn. SOLUTION and FEEDBACK are to the byte those of arXiv 2603.24472's training code (one line
break before their headings); its sections 3 and 4 word it otherwise (configs/paper).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from onpolicy.types import Message, Prompt
from onpolicy.utils.errors import UserError

SOLUTION = "{question}\nCorrect solution:\n\n{solution}\n\nCorrectly solve the original question."
ANSWER = "{question}\n\nThe correct final answer is {answer}.\n\nCorrectly solve the original question."


FAILED = "{question}\n\nThe following attempt is wrong:\n\n{attempt}\n\nCorrectly solve the original question."
FEEDBACK = (
    "{question}\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback}"
    "\n\nCorrectly solve the original question."
)


class ContextError(UserError, ValueError):
    """A row that lacks what its context shows; names the row, the field, and the fields it has."""


def replace_question(prompt: Prompt, template: str, **values: Any) -> tuple[Message, ...]:
    """The prompt's messages with the last user message filled into ``{question}`` of the template.

    Other fields of the template come from ``values``, then from the dataset row. ``{problem}`` is the row's problem without the
    wording that the prompt puts around it, or the whole message where the row does not keep it apart.

    Raises:
        ContextError: the prompt has no user message, or the template names a field that the row lacks.
    """
    last = max((i for i, m in enumerate(prompt.messages) if m["role"] == "user"), default=None)
    if last is None:
        raise ContextError(f"prompt {prompt.id!r} has no user message that a context could extend")
    question = prompt.messages[last]["content"]
    known = {"problem": question, **prompt.fields, **values, "question": question}
    content = fill(template, known, prompt.id)
    asked: Message = {**prompt.messages[last], "content": content}
    return (*prompt.messages[:last], asked, *prompt.messages[last + 1 :])


def continue_turn(prompt: Prompt, text: str) -> tuple[Message, ...]:
    """The prompt's messages and an assistant's turn that begins with the text; the completion continues that turn."""
    *before, last = prompt.messages
    if last["role"] == "assistant":  # the turn has been begun already
        return (*before, {"role": "assistant", "content": last["content"] + text})
    return (*prompt.messages, {"role": "assistant", "content": text})


def fill(template: str, values: Mapping[str, Any], prompt_id: str) -> str:
    """Replaces ``{name}`` once, leaving every other brace alone: solutions are full of LaTeX."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if values.get(name) is None:
            fields = ", ".join(sorted(k for k, v in values.items() if v is not None))
            named = f"Name the column that holds it, data.columns.{name}=COLUMN"
            raise ContextError(
                f"prompt {prompt_id!r} has no {name!r}, which its context needs; it has: {fields}. "
                f"{named if name in ('answer', 'solution') else 'Give the rows such a column'}, or choose a context, or a template, that "
                "needs no more than they have (`onpolicy list context`)."
            )
        return str(values[name])

    return re.sub(r"\{(\w+)\}", value, template)
