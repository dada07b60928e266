"""Rollouts from plain transformers: slower than vLLM, and everywhere torch runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onpolicy.data.rendering import Renderer
from onpolicy.models import load_causal_lm
from onpolicy.protocols import OnGroup, ignore_group
from onpolicy.rollout.arrival import Arrivals
from onpolicy.rollout.fair_lock import Closed, FairLock
from onpolicy.rollout.request import continued_prompt, max_tokens
from onpolicy.rollout.weight_version import require_newer
from onpolicy.types import Prompt, Rollout, RolloutGroup, Sampling
from onpolicy.utils.device import torch_device
from onpolicy.utils.seeds import rollout_seed


@dataclass
class _Draft:
    """A rollout that is being sampled."""

    prompt_ids: tuple[int, ...]
    banned: tuple[int, ...]
    max_tokens: int
    random: torch.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False
    version: int = 0
    """Version of the weights that sample it."""

    @property
    def ended(self) -> bool:
        """Whether it has all of its tokens."""
        return self.stopped or len(self.ids) == self.max_tokens


class HFGenerator:
    """A copy of the model that samples in batches, longest prompts together, with a KV cache.

    Threads take turns, batch by batch; new weights wait for the batch that is being sampled, so no rollout has two versions.
    """

    def __init__(
        self,
        *,
        renderer: Renderer,
        model: str,
        sampling: Sampling,
        max_model_len: int,
        source: Mapping[str, Any] | None = None,
        batch_size: int = 64,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: str | None = None,
    ) -> None:
        """
        Args:
            batch_size: rollouts sampled at the same time
            dtype: what the model computes in
            device: torch device; null: the GPU where there is one, else the CPU
        """
        self.device = torch_device(device, "generator.device")
        self._model = load_causal_lm(model, dtype=dtype, **(source or {})).to(self.device).eval()  # type: ignore[arg-type]
        self.renderer, self.sampling, self.max_model_len = renderer, sampling, max_model_len
        self.batch_size, self.policy_version = batch_size, 0
        self._turns = FairLock()
        self.on_progress: Callable[[int, int, int], None] = lambda done, total, tokens: None

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        sampling: Sampling | None = None,
        on_group: OnGroup = ignore_group,
    ) -> list[RolloutGroup]:
        """``group_size`` rollouts of each prompt, in the order given."""
        sampling = sampling or self.sampling
        drafts = [
            _Draft(
                continued_prompt(self.renderer, p, self.max_model_len - max_tokens(p, sampling)),
                p.banned_token_ids,
                max_tokens(p, sampling),
                torch.Generator().manual_seed(rollout_seed(seed, p.id, j, p.occurrence)),
            )
            for p in prompts
            for j in range(sampling.group_size)
        ]
        ordered = sorted(drafts, key=lambda d: len(d.prompt_ids))
        found, running = Arrivals(prompts, sampling.group_size, on_group), dict(enumerate(drafts))

        def report() -> None:
            for number in [number for number, d in running.items() if d.ended]:
                found.add(number, self._rollout(running.pop(number)))
            self.on_progress(len(drafts) - len(running), len(drafts), sum(len(d.ids) for d in drafts))

        for start in range(0, len(ordered), self.batch_size):
            with self._turns.hold():
                self._complete(ordered[start : start + self.batch_size], sampling, report)
            report()
        return found.groups()

    @torch.no_grad()
    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Copies every tensor; a name the model does not have, or one it misses, is an error."""
        resolved = require_newer(version, self.policy_version)
        with self._turns.hold():
            own = self._model.state_dict()
            given = set()
            for name, tensor in weights:
                own[name].copy_(tensor)
                given.add(name)
            if missing := own.keys() - given:
                raise ValueError(f"update_weights: {len(missing)} tensors are missing, e.g. {min(missing)!r}")
            self.policy_version = resolved

    @torch.no_grad()
    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability of each token but the first, given those before it."""
        ids = torch.tensor([list(token_ids)], device=self.device)
        logp = self._model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        return logp.gather(-1, ids[0, 1:, None])[:, 0].tolist()

    def rest(self) -> None:
        """Keeps what it holds: the model's weights; keys and values are free after every batch."""

    def reset_version(self) -> None:
        """The next weights may be of any version."""
        self.policy_version = -1

    def close(self) -> None:
        """Frees the model; whoever is sampling gets an error."""
        self._turns.close()
        del self._model

    @torch.no_grad()
    def _complete(self, drafts: Sequence[_Draft], sampling: Sampling, alive: Callable[[], None]) -> None:
        """Extends every draft to its end. Once half of the rows have stopped they are left out, with their part of the cache."""
        width = max(len(d.prompt_ids) for d in drafts)
        ids = torch.tensor([[0] * (width - len(d.prompt_ids)) + list(d.prompt_ids) for d in drafts], device=self.device)
        mask = torch.tensor(
            [[0] * (width - len(d.prompt_ids)) + [1] * len(d.prompt_ids) for d in drafts], device=self.device
        )
        drawn = [torch.rand(d.max_tokens, generator=d.random, dtype=torch.float64) for d in drafts]
        chances = pad_sequence(drawn, batch_first=True)
        banned = _banned(drafts, self._model.config.get_text_config().vocab_size)
        cache = None
        for draft in drafts:
            draft.version = self.policy_version
        for position in range(chances.shape[-1]):
            alive()
            if self._turns.closed:
                raise Closed("the generator was closed")
            places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            logits = output.logits[:, -1].float().cpu()
            allowed = logits if banned is None else logits.masked_fill(banned, -torch.inf)
            chosen = sample(allowed, sampling, chances[:, position])
            logprobs = logits.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
            for draft, token, logprob in zip(drafts, chosen.tolist(), logprobs.tolist(), strict=True):
                self._extend(draft, token, logprob)
            running = [i for i, d in enumerate(drafts) if not d.ended]
            if not running:
                return
            if len(running) <= len(drafts) // 2:
                drafts, rows = [drafts[i] for i in running], torch.tensor(running)
                chosen, chances, banned = chosen[rows], chances[rows], None if banned is None else banned[rows]
                cache.batch_select_indices(rows.to(self.device))
                mask = mask[rows.to(self.device)]
            ids = chosen.to(self.device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(drafts), 1)], -1)

    def _extend(self, draft: _Draft, token: int, logprob: float) -> None:
        if not draft.ended:
            draft.ids.append(token)
            draft.logprobs.append(logprob)
            draft.stopped = token in self.renderer.eos_ids

    def _rollout(self, draft: _Draft) -> Rollout:
        return Rollout(
            prompt_ids=draft.prompt_ids,
            completion_ids=tuple(draft.ids),
            rollout_logprobs=tuple(draft.logprobs),
            text=self.renderer.completion_text(draft.ids),
            finish_reason="stop" if draft.stopped else "length",
            policy_version=draft.version,
        )


def _banned(drafts: Sequence[_Draft], size: int) -> Tensor | None:
    """[B, V] bool; None where nothing is banned."""
    if not any(d.banned for d in drafts):
        return None
    banned = torch.zeros(len(drafts), size, dtype=torch.bool)
    for row, draft in zip(banned, drafts, strict=True):
        row[list(draft.banned)] = True
    return banned


def sample(logits: Tensor, sampling: Sampling, chance: Tensor) -> Tensor:
    """One token ``[B]`` from each row of ``[B, V]`` logits: temperature, then top-k, then top-p, as vLLM orders them.

    Args:
        logits: of the next token
        sampling: how to draw
        chance: [B] uniform in [0, 1); the token is the one at this point of the cumulative distribution
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.double() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[:, -1:], -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.softmax(-1).sort(descending=True)
        outside = ordered.cumsum(-1) - ordered > sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    reached = logits.softmax(-1).cumsum(-1)
    return torch.searchsorted(reached, (chance * reached[:, -1])[:, None], right=True)[:, 0].clamp(
        max=logits.shape[-1] - 1
    )
