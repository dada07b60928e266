"""What a chat template puts between a reply and the next: the tokens that a model observes in a conversation that goes on.

The reply itself is never rendered: its tokens are those that were sampled. In its place stand words that no text holds, which show what
the template makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onpolicy.types import Message

if TYPE_CHECKING:
    from onpolicy.data.rendering import Renderer

THOUGHT, SAID = "Thought{}Qx7vKz", "Said{}Qx7vKz"


def observed_ids(
    renderer: Renderer, opening: Sequence[Message], turns: Sequence[tuple[Message, Sequence[Message]]]
) -> tuple[int, ...] | None:
    """The ids that follow the last reply, from behind the end of its turn to where the next reply begins.

    Args:
        renderer: of the conversation
        opening: the messages before the first reply
        turns: each reply with the messages that answered it, at least one

    Returns:
        None where the template writes what was before in another way than the model has it: it may leave out the thinking of earlier
        turns once a user has spoken again.

    Raises:
        RenderingError: the template fails on these messages, or leaves out what one of the last ones says.
    """
    hidden: list[str] = []
    before = renderer.hide(opening, hidden)
    shown: list[Message] = [*before]
    for number, (reply, observed) in enumerate(turns):
        shown += [_in_place_of(renderer, reply, number), *renderer.hide(observed, hidden)]
    alone = shown[: len(shown) - len(turns[-1][1])]
    # with the opening of the reply's turn: what a prompt has of the thinking, if only that there is none, is kept or is not
    read = alone[:-1]
    template = renderer.template
    whole, closed, start = (
        template.text(shown),
        template.text(alone, opened=False),
        template.text(read),
    )
    said = SAID.format(len(turns) - 1)
    thoughts = [THOUGHT.format(i) for i, (reply, _) in enumerate(turns) if _thinks(renderer, reply)]
    behind, behind_alone = whole.rpartition(said)[2], closed.rpartition(said)[2]
    same = whole.startswith(start) and behind.startswith(behind_alone) and all(thought in whole for thought in thoughts)
    if not same or said not in whole:
        return None
    rest = behind[len(behind_alone) :]
    template.refuse_lost(shown[len(alone) :], rest)
    end = "" if renderer.turn_end_id is None else renderer.decode([renderer.turn_end_id])
    _, found, tail = behind_alone.rpartition(end) if end else ("", "", behind_alone)
    return tuple(renderer.encode_hidden((tail if found or not end else "") + rest, hidden))


def _thinks(renderer: Renderer, reply: Message) -> bool:
    return bool(reply.get("reasoning_content")) or renderer.thinking_tags.close in reply["content"]


def _in_place_of(renderer: Renderer, reply: Message, number: int) -> Message:
    """The reply with other words: its thinking, its text and its calls where they were."""
    thought, said, tags = THOUGHT.format(number), SAID.format(number), renderer.thinking_tags
    message: Message = {**reply, "content": said}
    if reply.get("reasoning_content"):
        message["reasoning_content"] = thought
    elif _thinks(renderer, reply):
        message["content"] = f"{tags.open}\n{thought}\n{tags.close}\n\n{said}"
    return message
