"""Answers the requests of contexts and span finders (``ContextCoroutine``) while a step is annotated."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import GeneratorType
from typing import Any

from onpolicy.annotation.scoring import Scorer
from onpolicy.data.rendering import PromptTooLong, Renderer
from onpolicy.protocols import Generator
from onpolicy.types import AskModel, Message, Prompt, Reply, SampleProblem
from onpolicy.utils.errors import UserError
from onpolicy.utils.hashes import short_hash
from onpolicy.utils.thinking import strip_thinking

MAX_TURNS = 32
"""Requests one context may make, one after the other, for one rollout."""


class QueryError(UserError, RuntimeError):
    """A context asked for something that cannot be given."""


@dataclass(frozen=True)
class ContextQueries:
    """Runs generator functions to their end, all of a step side by side."""

    generator: Generator
    scorer: Scorer
    prompts: Sequence[Prompt]
    """Where other problems come from."""
    seed_of: Callable[[int], int]
    renderer: Renderer
    limit: int
    """Longest question, in tokens: the generator's window minus the longest answer."""
    drop_too_long: bool
    sampled: list[int] = field(default_factory=list)
    """Tokens of each reply since this was last emptied."""

    def run(
        self,
        started: Mapping[Hashable, tuple[Prompt, Any]],
        *,
        version: int,
        is_sampled: Callable[[Any], bool] = lambda key: False,
    ) -> dict[Any, Any]:
        """Runs every call to its end and returns its result; a call that asks for nothing has returned at once.

        Args:
            started: by any key, the problem and what its plug-in returned
            version: decides the seeds
            is_sampled: whether what a key's plug-in first asks holds something sampled; asked about a question that is too long
        """
        done = {key: result for key, (_, result) in started.items() if not isinstance(result, GeneratorType)}
        running = {key: result for key, (_, result) in started.items() if isinstance(result, GeneratorType)}
        replies: dict[Hashable, Any] = dict.fromkeys(running)
        for turn in range(MAX_TURNS + 1):
            requests = {}
            for key, call in list(running.items()):
                try:
                    request = call.send(replies[key])
                    asked = f"what a context asks about prompt {started[key][0].id!r}"
                    drop = partial(lambda turn, key: turn > 0 or is_sampled(key), turn, key)
                    if not isinstance(request, AskModel) or self.fits(request.messages, asked, drop):
                        requests[key] = (started[key][0], request)
                        continue
                    call.close()
                    done[key] = None
                except StopIteration as stop:
                    done[key] = stop.value
                del running[key]
            if not running:
                return done
            if turn < MAX_TURNS:
                replies = self._answer(requests, version, turn)
        raise QueryError(f"a context asked more than {MAX_TURNS} times for one rollout; is its loop without an end?")

    def fits(self, messages: Sequence[Message], what: str, drop: Callable[[], bool] = lambda: False) -> bool:
        """Whether the student can be asked this; what is too long is refused, or left out where the config or ``drop`` says so.

        Raises:
            PromptTooLong: with ``what`` it is.
        """
        try:
            self.renderer.prompt_ids(messages, limit=self.limit)
        except PromptTooLong as error:
            if not self.drop_too_long and not drop():
                where = f"{what} (rendering.max_teacher_prompt_tokens, model window)"
                raise PromptTooLong(error.num_tokens, error.limit, where) from error
            return False
        return True

    def _answer(self, requests: Mapping[Hashable, tuple[Prompt, Any]], version: int, turn: int) -> dict[Hashable, Any]:
        asked: defaultdict[int, dict[tuple[str, str], Prompt]] = defaultdict(dict)  # equal requests are answered once
        for prompt, request in requests.values():
            if isinstance(request, AskModel):
                asked[request.samples][_identity(prompt, request)] = replace(
                    prompt,
                    id="#".join(_identity(prompt, request)),
                    messages=request.messages,
                    occurrence=0,
                    interactive=False,
                )
            elif not isinstance(request, SampleProblem):
                raise QueryError(f"a context asked for {request!r}; expected AskModel or SampleProblem")
        found = {
            samples: self._ask(prompts, samples, seed=self.seed_of(version) + 7919 * (turn + 1))
            for samples, prompts in asked.items()
        }
        return {
            key: found[request.samples][_identity(prompt, request)]
            if isinstance(request, AskModel)
            else self._other(prompt, version)
            for key, (prompt, request) in requests.items()
        }

    def _ask(
        self, prompts: Mapping[tuple[str, str], Prompt], samples: int, *, seed: int
    ) -> dict[tuple[str, str], tuple[Reply, ...]]:
        sampling = replace(self.generator.sampling, group_size=samples)
        scored = self.scorer.score(self.generator.generate(list(prompts.values()), seed=seed, sampling=sampling))
        self.sampled.extend(r.num_sampled for g in scored for r in g.group.rollouts)
        return {
            identity: tuple(
                Reply(rollout.text, score, strip_thinking(rollout.answer_text, opened=False))
                for rollout, score in zip(group.group.rollouts, group.scores, strict=True)
            )
            for identity, group in zip(prompts, scored, strict=True)
        }

    def _other(self, prompt: Prompt, version: int) -> Prompt:
        problem = prompt.fields.get("problem_id", prompt.id)
        others = [p for p in self.prompts if p.fields.get("problem_id", p.id) != problem]
        if not others:
            raise QueryError(f"prompt {prompt.id!r}: the dataset has no other problem that a context could show")
        return random.Random(f"{version}/{prompt.id}").choice(others)


def _identity(prompt: Prompt, request: AskModel) -> tuple[str, str]:
    text = repr([(m["role"], m["content"]) for m in request.messages])
    return prompt.id, short_hash(text.encode())
