"""Rollouts that the model samples while it reads what the student does not, for groups in which all others failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from onpolicy.annotation.contexts.siblings import Shown
from onpolicy.annotation.queries import ContextQueries
from onpolicy.annotation.sampled import reads_sampled
from onpolicy.types import Example, Metrics, RolloutGroup, ScoredGroup

Logprobs = Callable[[Sequence[Example]], list[list[float]]]
"""Examples -> ``[T]`` log-probabilities of their tokens under the student's own prompts, by the trainer."""


@dataclass(frozen=True)
class PrivilegedRollouts:
    """Samples with a context, keeps what is correct, and passes it off as answers to the student's prompt (HDPO, arXiv 2603.23871)."""

    context: Shown
    samples: int
    queries: ContextQueries
    """Its generator samples, its scorer decides."""
    logprobs: Logprobs

    def sample(self, groups: Sequence[ScoredGroup], *, version: int) -> tuple[dict[int, ScoredGroup], Metrics]:
        """By index of the group, the correct privileged rollouts of groups whose own all failed; groups without any are absent.

        They have the student's prompt, and still the generator's log-probabilities under the privileged one
        (``under_students_prompt`` replaces them).
        """
        asked = {}
        for i, scored in enumerate(groups):
            if scored.pass_rate != 0.0:
                continue
            prompt, messages = scored.group.prompt, self.context(scored.group, 0, scored.scores)
            what, drop = f"privileged_rollouts, prompt {prompt.id!r}", partial(reads_sampled, self.context, scored, 0)
            if messages is not None and self.queries.fits(messages, what, drop):
                asked[i] = replace(prompt, id=f"{prompt.id}#privileged", messages=messages)
        metrics = {"privileged/groups": len(asked) / len(groups)}
        if not asked:
            return {}, metrics
        generator = self.queries.generator
        sampled = generator.generate(
            list(asked.values()),
            seed=self.queries.seed_of(version) + 15_485_863,
            sampling=replace(generator.sampling, group_size=self.samples),
        )
        found = {}
        for i, scored in zip(asked, self.queries.scorer.score(sampled), strict=True):
            kept = _correct(groups[i].group, scored)
            if kept is not None:
                found[i] = kept
        self.queries.sampled.extend(r.num_sampled for group in sampled for r in group.rollouts)
        kept_rollouts = sum(len(scored.scores) for scored in found.values())
        return found, metrics | {"privileged/correct": kept_rollouts / (self.samples * len(asked))}

    def under_students_prompt(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with the trainer's log-probabilities in the place of the generator's, which are those of another prompt.

        So their importance weights are 1, and they count as 0 in `rollout/logprob_gap`.
        """
        if not examples:
            return []
        return [
            replace(example, rollout=replace(example.rollout, rollout_logprobs=tuple(row)))
            for example, row in zip(examples, self.logprobs(examples), strict=True)
        ]


def _correct(group: RolloutGroup, scored: ScoredGroup) -> ScoredGroup | None:
    """The correct rollouts, behind the student's prompt; None without any."""
    kept = [i for i, correct in enumerate(scored.correct) if correct]
    if not kept:
        return None
    prompt_ids = group.rollouts[0].prompt_ids
    rollouts = tuple(replace(scored.group.rollouts[i], prompt_ids=prompt_ids) for i in kept)
    return ScoredGroup(
        RolloutGroup(prompt=group.prompt, rollouts=rollouts),
        tuple(scored.rewards[i] for i in kept),
        tuple(scored.scores[i] for i in kept),
    )
