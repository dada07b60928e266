"""A weight sync, tried before the first step: the trainer changes its weights, the generator gets them and has to sample with them.

An engine that keeps some tensors as they were, or that breaks when weights are loaded again, shows here and not after hours; with
``generator.max_staleness`` nothing else would tell it from a policy that has moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from onpolicy.run.assemble import own_logprobs
from onpolicy.run.run import Run
from onpolicy.trainer.reversible import ReversibleChange, make_change, reversible_change, undo_change
from onpolicy.types import Example, Prompt, Rollout
from onpolicy.utils.errors import UserError
from onpolicy.utils.faults import RoleLost

PROMPTS, TOKENS = 4, 8
"""How many rollouts are compared, and how long they may be."""
ROUNDING = 1 / 32
"""How much of the distance by which a change moves the log-probs may be the generator's rounding, beside the tolerance: the changed
model is less sure of its tokens than the real one, and the less sure, the more a generator in bfloat16 is off."""
NAMED = 4
"""Kinds of tensors that an error names."""


class SyncError(UserError, RuntimeError):
    """The generator does not sample with the weights that it was given."""


@dataclass(frozen=True)
class SyncTrial:
    """Syncs of one run, and how far generator and trainer are apart after each."""

    run: Run
    examples: Sequence[Example]
    """The first step's; their prompts are sampled again."""
    tolerance: float
    """Nats."""

    def check(self) -> tuple[float, float]:
        """Gaps after a sync of changed weights and after one of the weights as they were, in nats per token.

        Afterwards trainer and generator are as they were, to the last bit.

        Raises:
            SyncError: one is larger than the tolerance; names the tensors that cause it.
        """
        change = self.run.trainer.apply(reversible_change)
        changed, allowed = self._gap_with(change)
        if not changed <= allowed:
            raise SyncError(self._reason(change, changed, allowed))
        back = self._gap()
        if not back <= self.tolerance:
            raise SyncError(self._reason(change, back, self.tolerance))
        return changed, back

    def _gap_with(self, change: ReversibleChange) -> tuple[float, float]:
        """The gap after a sync of changed weights, and what it may be."""
        self.run.trainer.apply(make_change, change)
        try:
            examples = self._sampled()
            ours = self._ours(examples)
        finally:
            self.run.trainer.apply(undo_change, change)
        return _mean_gap(ours, _theirs(examples)), self.tolerance + ROUNDING * _mean_gap(ours, self._ours(examples))

    def _gap(self) -> float:
        """The mean distance of the two log-probabilities of sampled tokens after a sync."""
        examples = self._sampled()
        return _mean_gap(self._ours(examples), _theirs(examples))

    def _sampled(self) -> list[Example]:
        """Syncs, and samples."""
        generator, trainer = self.run.generator, self.run.trainer
        try:
            generator.reset_version()
            generator.update_weights(trainer.weights(), version=self.run.step)
        except (RoleLost, UserError):
            raise
        except Exception as error:
            raise SyncError(
                f"generator.name: the generator cannot load this model's weights again ({type(error).__name__}: {error}); "
                "expected one that can, e.g. transformers"
            ) from error
        sampling = generator.sampling
        short = replace(sampling, group_size=1, max_tokens=min(TOKENS, sampling.max_tokens))
        prompts = list({example.prompt.id: example.prompt for example in self.examples}.values())
        asked = [replace(prompt, interactive=False) for prompt in prompts[:PROMPTS]]
        groups = generator.generate(asked, seed=self.run.config.seed, sampling=short)
        return [self._example(group.prompt, rollout) for group in groups for rollout in group.rollouts]

    def _ours(self, examples: Sequence[Example]) -> list[float]:
        return [p for row in self.run.trainer.apply(own_logprobs, examples) for p in row]

    def _example(self, prompt: Prompt, rollout: Rollout) -> Example:
        """One that no term learns from."""
        unmarked = (False,) * len(rollout.completion_ids)
        spans = dict.fromkeys(self.examples[0].spans, unmarked)
        return replace(self.examples[0], rollout=rollout, prompt=prompt, teacher_prompt_ids={}, routes={}, spans=spans)

    def _reason(self, change: ReversibleChange, gap: float, allowed: float) -> str:
        if not self._gap() <= self.tolerance:
            cause = "a sync of unchanged weights does so too"
        else:
            gaps = {kind: self._gap_with(own) for kind, own in change.by_kind().items()}
            kinds = [kind for kind, (own, may_be) in gaps.items() if not own <= may_be]
            more = f" and {len(kinds) - NAMED} more" if len(kinds) > NAMED else ""
            cause = f"it keeps the old {', '.join(kinds[:NAMED])}{more}" if kinds else "no tensor alone does so"
        return (
            f"generator.name: after a sync of changed weights the generator's log-probs differ from the trainer's by {gap:.3g} nats on "
            f"average, and preflight.logprob_tolerance={self.tolerance:g} allows {allowed:.3g} here; {cause}. This generator cannot sample "
            "from this model while it is trained; expected another one, e.g. transformers"
        )


def _theirs(examples: Sequence[Example]) -> list[float]:
    return [p for e in examples for p in e.rollout.select_sampled(e.rollout.rollout_logprobs)]


def _mean_gap(one: Sequence[float], other: Sequence[float]) -> float:
    return float((torch.tensor(one) - torch.tensor(other)).abs().mean())
