"""Answers that a dataset holds, in place of sampled ones: training off-policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onpolicy.data.errors import DataError
from onpolicy.data.rendering import Renderer
from onpolicy.protocols import Generator
from onpolicy.types import Prompt, Rollout, RolloutGroup, Sampling


@dataclass(frozen=True)
class DatasetCompletions:
    """Stands where a step samples; evaluations and contexts that ask still go to the generator."""

    generator: Generator
    renderer: Renderer
    column: str
    """Column of the dataset with the answer: text, which is tokenized and ended as the model ends a turn, or a list of token ids."""
    max_tokens: int

    def generate(self, prompts: Sequence[Prompt], *, seed: int, sampling: Sampling | None = None) -> list[RolloutGroup]:
        """The one answer of each prompt; longer ones are cut at ``max_tokens``.

        It counts as sampled by the weights of now, which it was not: its log-probabilities are unknown and given as 0.

        Raises:
            DataError: a row without an answer.
        """
        return [RolloutGroup(prompt=prompt, rollouts=(self._rollout(prompt),)) for prompt in prompts]

    def _rollout(self, prompt: Prompt) -> Rollout:
        whole = self._ids(prompt)
        ids = whole[: self.max_tokens]
        return Rollout(
            prompt_ids=self.renderer.prompt_ids(prompt.messages),
            completion_ids=ids,
            rollout_logprobs=(0.0,) * len(ids),
            text=self.renderer.completion_text(ids),
            finish_reason="stop" if ids == whole else "length",
            policy_version=self.generator.policy_version,
        )

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        answer: Any = prompt.fields.get(self.column)
        if isinstance(answer, str) and answer:
            return (*self.renderer.tokenizer.encode(answer, add_special_tokens=False), *self.renderer.eos_ids[-1:])
        if isinstance(answer, Sequence) and len(answer) and all(isinstance(i, int) for i in answer):
            return tuple(answer)
        raise DataError(
            f"data.completions_column: {self.column!r} of prompt {prompt.id!r} holds {answer!r}, expected an answer as text or as token ids"
        )
