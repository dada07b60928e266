"""verl's agent loop that holds a conversation with the environment of a config, as the embedded trainer does."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.rendering import Renderer
from onpolicy.integrations.verl.conversation_rows import CONVERSATION, packed_segments
from onpolicy.integrations.verl.names import ENVIRONMENT, SECTION
from onpolicy.integrations.verl.rows import prompt_of
from onpolicy.integrations.verl.settings import unpack_config
from onpolicy.models import context_window, student_renderer
from onpolicy.rollout.async_episodes import AsyncEpisodes
from onpolicy.rollout.build import environment_maker
from onpolicy.rollout.environments import Rules
from onpolicy.rollout.request import continued_prompt, max_tokens
from onpolicy.types import FinishReason, Prompt, Rollout, Sampling


@dataclass(frozen=True)
class Conversations:
    """What the conversations of a process share: the environment, and how its turns are rendered."""

    episodes: AsyncEpisodes
    renderer: Renderer
    window: int
    """Longest prompt and completion together, in tokens."""
    sampling: Sampling


_shared: dict[int, tuple[Any, Conversations]] = {}
"""By identity of a process's config, which is held."""


def conversations(config: Any, tokenizer: Any) -> Conversations:
    """Those of this process, made at the first call.

    Args:
        config: of the whole run
        tokenizer: the student's

    Raises:
        onpolicy.utils.errors.UserError: the environment cannot be made.
    """
    if id(config) not in _shared:
        resolved = unpack_config(config.actor_rollout_ref[SECTION])
        renderer = student_renderer(resolved, tokenizer, resolved.config.model.path)
        _shared[id(config)] = config, make_conversations(resolved, renderer, longest_sequence(config, resolved))
    return _shared[id(config)][1]


def make_conversations(resolved: ResolvedConfig, renderer: Renderer, window: int) -> Conversations:
    """Of a config with an environment."""
    assert resolved.environment is not None
    rules = Rules(renderer, window, resolved.environment.settings.timeout)
    episodes = AsyncEpisodes(environment_maker(resolved.environment.plugin, renderer), rules)
    return Conversations(episodes, renderer, window, resolved.generator.settings)


def longest_sequence(config: Any, resolved: ResolvedConfig) -> int:
    """Tokens that verl's servers take, prompt and completion together."""
    given, model = config.actor_rollout_ref.rollout.get("max_model_len"), resolved.config.model
    window = context_window(model.path, trust_remote_code=model.trust_remote_code) or sys.maxsize
    return min(window, int(given or config.data.max_prompt_length + config.data.max_response_length))


@dataclass
class Turns:
    """The student in one conversation: what verl's servers sample, and with which weights."""

    servers: Any
    parameters: dict[str, Any]
    shared: Conversations
    session: str = field(default_factory=lambda: uuid4().hex)
    """All turns of a session go to one server, which has their beginning in its cache."""
    seconds: float = 0.0
    versions: list[int] = field(default_factory=list)
    """Oldest and newest weights of each turn, where the servers say."""

    async def sample(self, turn: Prompt) -> Rollout:
        """Raises RuntimeError where a server has ended the turn before it began, which is nobody's conversation's doing."""
        renderer, longest = self.shared.renderer, max_tokens(turn, self.shared.sampling)
        ids = continued_prompt(renderer, turn, self.shared.window - longest)
        began = time.monotonic()
        output = await self.servers.generate(
            request_id=self.session, prompt_ids=list(ids), sampling_params={**self.parameters, "max_tokens": longest}
        )
        self.seconds += time.monotonic() - began
        found = tuple(output.token_ids)
        if not found:
            raise RuntimeError(f"verl's server sampled nothing for {turn.id!r}: {output.stop_reason}")
        told = (output.extra_fields.get(f"{which}_global_steps") for which in ("min", "max"))
        self.versions += [int(version) for version in told if version is not None]
        return Rollout(
            prompt_ids=ids,
            completion_ids=found,
            rollout_logprobs=tuple(output.log_probs or (0.0,) * len(found)),
            text=renderer.completion_text(found),
            finish_reason=_finish(found, output.stop_reason, renderer, longest),
            policy_version=0,  # versions are verl's affair
        )


def _finish(ids: tuple[int, ...], reason: str | None, renderer: Renderer, longest: int) -> FinishReason:
    if ids[-1] in renderer.eos_ids:
        return "stop"
    if reason in ("abort", "aborted"):
        return "abort"
    return "length" if reason == "length" or len(ids) >= longest else "stop"


@register(ENVIRONMENT)
class EnvironmentAgentLoop(AgentLoopBase):  # type: ignore[misc]
    """One rollout of a row; a row for each segment of its conversation."""

    async def run(self, sampling_params: dict[str, Any], **columns: Any) -> list[AgentLoopOutput]:
        shared = conversations(self.config, self.tokenizer)
        turns, prompt = Turns(self.server_manager, sampling_params, shared), prompt_of(columns)
        began = time.monotonic()
        rollout = await shared.episodes.hold(
            prompt, int(columns.get("session_id", 0)), turns.sample, max_tokens=shared.sampling.max_tokens
        )
        return outputs(rollout, turns, columns, elsewhere=time.monotonic() - began - turns.seconds)


def outputs(
    rollout: Rollout, turns: Turns, columns: dict[str, Any], *, elsewhere: float = 0.0
) -> list[AgentLoopOutput]:
    """verl's trajectories of a rollout: its segments, or for a failed one a row in which nothing was sampled.

    Args:
        rollout: of the whole conversation
        turns: that sampled it
        columns: of its row
        elsewhere: seconds in which nothing was sampled
    """
    # one that was never asked is of the weights that were there when its step began
    versions = turns.versions or [max(0, int(columns.get("global_steps", 1)) - 1)]
    asked = 1 if rollout.outcome is None else rollout.outcome.turns
    end = turns.shared.renderer.tokenizer.eos_token_id
    found = []
    for segment, packed in packed_segments(rollout, turns.session):
        sampled = segment.sampled_mask or (True,) * len(segment.completion_ids)
        tokens: dict[str, Any] = (
            {"prompt_ids": [end], "response_ids": [end], "response_mask": [0]}
            if rollout.failed
            else {
                "prompt_ids": list(segment.prompt_ids),
                "response_ids": list(segment.completion_ids),
                "response_mask": list(map(int, sampled)),
            }
        )
        if turns.parameters.get("logprobs"):
            tokens["response_logprobs"] = [0.0] if rollout.failed else list(segment.rollout_logprobs)
        found.append(
            AgentLoopOutput(
                **tokens,
                num_turns=2 * asked,
                metrics=AgentLoopMetrics(generate_sequences=turns.seconds, tool_calls=elsewhere),
                extra_fields={
                    "min_global_steps": min(versions),
                    "max_global_steps": max(versions),
                    "turn_scores": [],
                    "tool_rewards": [],
                    **({} if rollout.outcome is None else {CONVERSATION: packed}),
                },
            )
        )
    return found
