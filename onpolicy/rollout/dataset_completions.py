"""Answers that a dataset holds, in place of sampled ones: training off-policy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onpolicy.data.errors import DataError
from onpolicy.data.rendering import Renderer
from onpolicy.protocols import Generator, OnGroup, ignore_group
from onpolicy.rollout.arrival import Arrivals
from onpolicy.types import Prompt, Rollout, RolloutGroup, Sampling


@dataclass(frozen=True)
class DatasetCompletions:
    """Stands where a step samples; evaluations and contexts that ask still go to the generator."""

    generator: Generator
    renderer: Renderer
    column: str
    """Column of the dataset with the answer: text, which is tokenized and ended as the model ends a turn, or a list of token ids. Where
    the text has an end of its own, or begins with what the prompt has already of the thinking, it is not written twice."""
    max_tokens: int
    vocabulary: range
    """Ids that a completion may have."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        sampling: Sampling | None = None,
        on_group: OnGroup = ignore_group,
    ) -> list[RolloutGroup]:
        """The one answer of each prompt; longer ones are cut at ``max_tokens``.

        It counts as sampled by the weights of now, which it was not: its log-probabilities are unknown and given as 0.

        Raises:
            DataError: a row without an answer, or with one that no model writes behind its prompt.
        """
        found = Arrivals(prompts, 1, on_group)
        for place, prompt in enumerate(prompts):
            found.add(place, self._rollout(prompt))
        return found.groups()

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
        where = f"data.completions_column: {self.column!r} of prompt {prompt.id!r}"
        if isinstance(answer, str) and answer:
            ids = self.renderer.tokenizer.encode(self._behind_prompt(answer, where), add_special_tokens=False)
            return self._ended((*ids, *self._end), where)
        if isinstance(answer, Sequence) and len(answer) and all(isinstance(i, int) for i in answer):
            if unknown := [i for i in answer if i not in self.vocabulary]:
                raise DataError(f"{where} holds the token id {unknown[0]}, expected ids below {self.vocabulary.stop}")
            if (text := self.renderer.decode(answer)) != self._behind_prompt(text, where):
                raise DataError(f"{where} begins with {self.renderer.opened_text!r}, which its prompt has already")
            return self._ended(tuple(answer), where)
        raise DataError(f"{where} holds {answer!r}, expected an answer as text or as token ids")

    @property
    def _end(self) -> tuple[int, ...]:
        return () if self.renderer.turn_end_id is None else (self.renderer.turn_end_id,)

    def _ended(self, ids: tuple[int, ...], where: str) -> tuple[int, ...]:
        """Up to the first id that ends a completion, as a model would have ended it; behind it stand white space and ends at most."""
        n = next((n for n, i in enumerate(ids, 1) if i in self.renderer.eos_ids), len(ids))
        rest = self.renderer.decode([i for i in ids[n:] if i not in self.renderer.eos_ids])
        if rest.strip():
            raise DataError(
                f"{where} goes on after its end {self.renderer.decode(ids[n - 1 : n])!r} with {rest.strip()[:40]!r}; "
                "expected one answer, which ends once"
            )
        return ids[:n]

    def _behind_prompt(self, text: str, where: str) -> str:
        """The text without what the prompt has already: the opening of the thinking, or thinking that is over."""
        begun, tags = self.renderer.opened_text, self.renderer.thinking_tags
        if not begun or not text.lstrip().startswith(tags.open):
            return text
        found = re.match(r"\s*" + r"\s*".join(map(re.escape, begun.split())), text)
        if found is None:
            raise DataError(
                f"{where} thinks, but its prompt ends with {begun!r}, where the thinking is over; "
                "leave the thinking out, or render prompts with rendering.thinking=true"
            )
        return text[found.end() :].removeprefix(begun[len(begun.rstrip()) :])
