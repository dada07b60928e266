"""One rollout of several turns: what an environment says, as tokens behind what the policy has sampled.

The tokens of every turn are carried to the next as they were sampled; nothing is tokenised a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from onpolicy.data.next_turn import observed_ids
from onpolicy.data.rendering import PromptTooLong, Renderer
from onpolicy.protocols import SampledReply
from onpolicy.types import EnvironmentOutcome, FinishReason, Message, Prompt, Rollout


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
    text: str = ""
    """Of its last reply, and why that ended."""
    finish: FinishReason = "stop"

    def extend(self, ids: Sequence[int], logprobs: Sequence[float], versions: Sequence[int], *, sampled: bool) -> None:
        self.ids += ids
        self.logprobs += logprobs
        self.versions += versions
        self.sampled += [sampled] * len(ids)


@dataclass(frozen=True)
class _Asked:
    """What the next reply answers; it counts once the reply is there."""

    segment: _Segment
    messages: tuple[Message, ...]
    observed: tuple[Message, ...] = ()
    ids: tuple[int, ...] = ()
    """Of what was observed since the last reply."""


class Episode:
    """The tokens of one rollout, while an environment and the student take turns."""

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
        self._asked: _Asked | None = None
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
        return self._begin(messages) if ids is None else self._ask(_Asked(segment, messages, observed, ids))

    def add_reply(self, rollout: Rollout, read: Callable[[SampledReply], Message]) -> Message:
        """Takes what the generator made of what was last asked.

        Args:
            rollout: it
            read: the reply as the environment writes it in the conversation's next messages
        """
        asked = self._asked
        assert asked is not None
        opened = self._renderer.opened_text if self._renderer.opens_thinking else ""
        reply = read(SampledReply(opened + rollout.text, rollout.completion_ids, rollout.finish_reason))
        segment, self._asked, self._full = asked.segment, None, False
        if not self._segments or self._segments[-1] is not segment:
            self._segments.append(segment)
        if segment.turns:
            segment.turns[-1] = segment.turns[-1][0], asked.observed
        segment.extend(asked.ids, [0.0] * len(asked.ids), [rollout.policy_version] * len(asked.ids), sampled=False)
        versions = rollout.token_versions or (rollout.policy_version,) * len(rollout.completion_ids)
        segment.extend(rollout.completion_ids, rollout.rollout_logprobs, versions, sampled=True)
        segment.turns.append((reply, ()))
        segment.text, segment.finish = rollout.text, rollout.finish_reason
        self._messages = (*asked.messages, reply)
        return reply

    def rollout(self, outcome: EnvironmentOutcome) -> Rollout:
        """The conversation as it stands, at its end."""
        outcome = replace(outcome, turns=self.turns)
        if not self._segments:  # it failed before the student had said anything
            return Rollout(
                prompt_ids=self._renderer.prompt_ids(self._prompt.messages), completion_ids=(), rollout_logprobs=(),
                text="", finish_reason="abort", policy_version=0, outcome=outcome,
            )  # fmt: skip
        *earlier, last = [self._segment_rollout(segment) for segment in self._segments]
        return replace(
            last,
            earlier=tuple(earlier),
            outcome=outcome,
            finish_reason="abort" if outcome.failure else "length" if self._full else last.finish_reason,
            final=self._renderer.final_answer_text(self._segments[-1].text),
        )

    def _begin(self, messages: tuple[Message, ...]) -> Prompt:
        try:
            ids = self._renderer.prompt_ids(messages, limit=self._window - 1)
        except PromptTooLong as error:
            raise self._no_room() from error
        return self._ask(_Asked(_Segment(messages, ids), messages))

    def _ask(self, asked: _Asked) -> Prompt:
        segment = asked.segment
        prefix = (*segment.ids, *asked.ids)
        room = min(self._max_tokens, self._window - len(segment.prompt_ids)) - len(prefix)
        if room < 1:
            raise self._no_room()
        self._asked = asked
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
        sampled_versions = [v for v, sampled in zip(segment.versions, segment.sampled, strict=True) if sampled]
        made = Rollout(
            prompt_ids=segment.prompt_ids,
            completion_ids=tuple(segment.ids),
            rollout_logprobs=tuple(segment.logprobs),
            text="",
            finish_reason=segment.finish,
            policy_version=min(sampled_versions, default=0),
            token_versions=tuple(segment.versions) if len(set(sampled_versions)) > 1 else (),
            sampled_mask=() if all(segment.sampled) else tuple(segment.sampled),
            history=segment.messages[len(self._prompt.messages) :],
        )
        return replace(made, text=self._renderer.completion_text(made.sampled_ids))
