"""One rollout of several turns: what an environment says, as tokens behind what the policy has sampled.

The tokens of every turn are carried to the next as they were sampled; nothing is tokenised a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from onpolicy.data.next_turn import observed_ids
from onpolicy.data.rendering import PromptTooLong, Renderer
from onpolicy.protocols import SampledReply
from onpolicy.types import EnvironmentOutcome, Message, Prompt, Rollout


class EpisodeError(RuntimeError):
    """The environment asked for a reply that cannot be given; its rollout is of no use."""


class NoRoomLeft(RuntimeError):
    """The next reply has no room: the completion has ``generator.max_tokens`` tokens, or the model's window is full."""


@dataclass
class _Segment:
    """What is being sampled after one prompt."""

    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    turns: list[tuple[Message, Sequence[Message]]] = field(default_factory=list)
    """Each reply with what the environment answered it."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)

    def extend(self, ids: Sequence[int], logprobs: Sequence[float], versions: Sequence[int], *, sampled: bool) -> None:
        self.ids += ids
        self.logprobs += logprobs
        self.versions += versions
        self.sampled += [sampled] * len(ids)


class Episode:
    """The tokens of one rollout, while an environment and the policy take turns."""

    def __init__(self, prompt: Prompt, index: int, renderer: Renderer, *, max_tokens: int, window: int) -> None:
        """
        Args:
            prompt: the problem
            index: of the rollout in its group
            renderer: of its prompts
            max_tokens: longest completion of a segment, observed tokens included
            window: longest prompt and completion together
        """
        self._prompt, self._index, self._renderer = prompt, index, renderer
        self._max_tokens, self._window = max_tokens, window
        self._segments: list[_Segment] = []
        self._messages: tuple[Message, ...] = ()
        """What the environment knows of the conversation: what it last asked with, and the reply."""
        self._last: Rollout | None = None
        self._full = False

    @property
    def turns(self) -> int:
        return sum(len(segment.turns) for segment in self._segments)

    def ask(self, messages: Sequence[Message]) -> Prompt:
        """What a generator continues with the next reply to ``messages``, the whole conversation so far.

        Raises:
            EpisodeError: they do not begin with the problem's messages, or say nothing that the policy has not heard.
            NoRoomLeft: there is no room for a reply.
        """
        messages, problem = tuple(messages), self._prompt.messages
        if messages[: len(problem)] != problem:
            raise EpisodeError("the environment's conversation does not begin with the problem's messages")
        if not self._segments:
            return self._begin(messages)
        observed = messages[len(self._messages) :]
        if messages[: len(self._messages)] != self._messages:
            return self._begin(messages)
        if not any(message["content"].strip() for message in observed):
            raise EpisodeError("the environment answered with no text")
        segment = self._segments[-1]
        turns = [*segment.turns[:-1], (segment.turns[-1][0], observed)]
        ids = observed_ids(self._renderer, segment.messages, turns)
        if ids is None:
            return self._begin(messages)
        prompt = self._asked(segment, len(segment.ids) + len(ids), (*segment.ids, *ids))
        segment.extend(
            ids, [0.0] * len(ids), [self._last.policy_version if self._last else 0] * len(ids), sampled=False
        )
        segment.turns, self._messages = turns, messages
        return prompt

    def add_reply(self, rollout: Rollout, read: Callable[[SampledReply], Message]) -> Message:
        """Takes what the generator made of the prompt.

        Args:
            rollout: it
            read: the reply as the environment writes it in the conversation's next messages
        """
        segment, self._last = self._segments[-1], rollout
        versions = rollout.token_versions or (rollout.policy_version,) * len(rollout.completion_ids)
        segment.extend(rollout.completion_ids, rollout.rollout_logprobs, versions, sampled=True)
        opened = self._renderer.opened_text if self._renderer.opens_thinking else ""
        reply = read(SampledReply(opened + rollout.text, rollout.completion_ids, rollout.finish_reason))
        segment.turns.append((reply, ()))
        self._messages = (*self._messages, reply)
        return reply

    def rollout(self, outcome: EnvironmentOutcome) -> Rollout:
        """The conversation as it stands, at its end."""
        outcome = replace(outcome, turns=self.turns)
        if not self._segments:  # it failed before the policy was asked
            return Rollout(
                prompt_ids=self._renderer.prompt_ids(self._prompt.messages), completion_ids=(), rollout_logprobs=(),
                text="", finish_reason="abort", policy_version=0, outcome=outcome,
            )  # fmt: skip
        *earlier, last = [self._segment_rollout(segment) for segment in self._segments]
        last_text = "" if self._last is None else self._last.text
        return replace(
            last,
            earlier=tuple(earlier),
            outcome=outcome,
            finish_reason="abort" if outcome.failure else "length" if self._full else last.finish_reason,
            final=self._renderer.final_answer_text(last_text),
        )

    def _begin(self, messages: tuple[Message, ...]) -> Prompt:
        try:
            ids = self._renderer.prompt_ids(messages, limit=self._window - 1)
        except PromptTooLong as error:
            raise self._no_room() from error
        segment = _Segment(messages, ids)
        prompt = self._asked(segment, 0, ())
        self._segments.append(segment)
        self._messages = messages
        return prompt

    def _asked(self, segment: _Segment, length: int, prefix: tuple[int, ...]) -> Prompt:
        room = min(self._max_tokens, self._window - len(segment.prompt_ids)) - length
        if room < 1:
            raise self._no_room()
        return replace(
            self._prompt,
            id=f"{self._prompt.id}#{self._index}.{self.turns}",
            messages=segment.messages,
            completion_prefix_ids=prefix,
            max_tokens=room,
            interactive=False,
            fields={},
            raw_columns={},
        )

    def _no_room(self) -> NoRoomLeft:
        self._full = True
        return NoRoomLeft(f"no room is left for a reply after {self.turns} turns")

    def _segment_rollout(self, segment: _Segment) -> Rollout:
        finish = "stop" if segment is not self._segments[-1] or self._last is None else self._last.finish_reason
        sampled_versions = [v for v, sampled in zip(segment.versions, segment.sampled, strict=True) if sampled]
        made = Rollout(
            prompt_ids=segment.prompt_ids,
            completion_ids=tuple(segment.ids),
            rollout_logprobs=tuple(segment.logprobs),
            text="",
            finish_reason=finish,
            policy_version=min(sampled_versions, default=0),
            token_versions=tuple(segment.versions) if len(set(sampled_versions)) > 1 else (),
            sampled_mask=() if all(segment.sampled) else tuple(segment.sampled),
            history=segment.messages[len(self._prompt.messages) :],
        )
        return replace(made, text=self._renderer.completion_text(made.sampled_ids))
