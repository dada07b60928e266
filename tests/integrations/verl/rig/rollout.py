"""A rollout server of transformers behind verl's registries: samples, scores prompts, takes weights; one Ray actor a replica."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import ray
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput


def server_name(rank: int, role: str = "student") -> str:
    return f"rig_server_{role}_{rank}"


class Server:
    """One model in float32; the same seed and prompts give the same tokens, in whatever order they arrive."""

    def __init__(self, path: str, longest: int, seed: int = 0, raw: bool = True) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()
        self._longest, self._seed, self._raw, self._version = longest, seed, raw, 0
        ends = self._model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._asked: Counter[tuple[int, ...]] = Counter()
        self._aborts, self._open = 0, asyncio.Event()
        self._open.set()

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: Mapping[str, Any], **named: Any
    ) -> TokenOutput:
        await self._open.wait()
        extra: dict[str, Any] = {"global_steps": self._version}
        if sampling_params.get("prompt_logprobs") is not None:
            extra |= self._scores(prompt_ids, int(sampling_params["prompt_logprobs"]))
        limit = int(sampling_params.get("max_tokens") or self._longest)
        random = torch.Generator().manual_seed(self._seed_of(prompt_ids, sampling_params.get("seed")))
        ids: list[int] = []
        logprobs: list[float] = []
        aborts = self._aborts
        while len(ids) < limit and not (ids and ids[-1] in self._ends):
            await asyncio.sleep(0)  # others' turn, and the moment to hear of an abort
            if self._aborts > aborts:
                break
            token, logprob = self._sample([*prompt_ids, *ids], sampling_params, random)
            ids.append(token)
            logprobs.append(logprob)
        return TokenOutput(
            token_ids=ids,
            log_probs=logprobs,
            stop_reason="aborted" if self._aborts > aborts else "completed",
            num_preempted=0,
            extra_fields=extra,
        )

    def _seed_of(self, prompt_ids: list[int], seed: int | None) -> int:
        """The request's own, or one from what is asked and how often it was."""
        if seed is not None:
            return int(seed)
        prompt = tuple(prompt_ids)
        self._asked[prompt] += 1
        return seed_of(self._seed, self._version, self._asked[prompt], *prompt)

    @torch.no_grad()
    def _sample(self, ids: list[int], params: Mapping[str, Any], random: torch.Generator) -> tuple[int, float]:
        logits = self._model(input_ids=torch.tensor([ids])).logits[0, -1]
        temperature = float(params.get("temperature", 1.0))
        left = kept(logits / (temperature or 1.0), int(params.get("top_k", -1)), float(params.get("top_p", 1.0)))
        token = int(torch.multinomial(left.softmax(-1), 1, generator=random) if temperature else logits.argmax())
        return token, float((logits if self._raw else left).log_softmax(-1)[token])

    @torch.no_grad()
    def _scores(self, ids: list[int], k: int) -> dict[str, Any]:
        """Row t is about token t + 1, and the last is a dummy: as verl reads them off vLLM."""
        logp = self._model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        best = logp.topk(k) if k else None
        tokens = torch.tensor(ids)[1:, None] if best is None else best.indices
        values = logp.gather(-1, tokens)
        dummy = [0] * tokens.shape[-1]
        return {"prompt_ids": [*tokens.tolist(), dummy], "prompt_logprobs": [*values.tolist(), list(map(float, dummy))]}

    @torch.no_grad()
    def update_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        own = self._model.state_dict()
        for name, tensor in weights.items():
            own[name].copy_(tensor)
        self._version = version
        self._asked.clear()

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """What is under way ends with the tokens it has; what comes later waits."""
        self._aborts += 1
        self._open.clear()

    async def resume_generation(self) -> None:
        self._open.set()

    def nothing(self) -> None:
        """A server that sleeps holds on to its weights here, and has no cache."""

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = nothing


def kept(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """The logits, and minus infinity for tokens that may not be sampled."""
    if top_k > 0:
        least = logits.topk(min(top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        values, order = logits.sort(descending=True)
        chances = values.softmax(-1)
        logits = logits.index_fill(0, order[chances.cumsum(-1) - chances >= top_p], -torch.inf)
    return logits


def seed_of(*parts: int) -> int:
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:12], 16)


class Replica(RolloutReplica):  # type: ignore[misc]
    async def launch_servers(self) -> None:
        role = f"teacher{self.name_suffix}" if self.is_teacher_model else "student"
        path = self.model_config.path if hasattr(self.model_config, "path") else self.config.model_path
        server = ray.remote(Server).options(name=server_name(self.replica_rank, role), num_cpus=0.1)
        raw = self.config.logprobs_mode == "raw_logprobs"
        seed = self.config.seed + self.replica_rank
        self._server_handle = server.remote(str(path), int(self.config.response_length), seed, raw)
        self.servers, self._server_address = [self._server_handle], f"rig:{self.replica_rank}"


class Adapter(BaseRollout):  # type: ignore[misc]
    """In the trainer's process: hands its weights to the server beside it."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, **named: Any) -> None:
        super().__init__(config, model_config, device_mesh)
        self._rank = int(os.environ["RANK"])

    async def resume(self, tags: list[str]) -> None: ...

    async def release(self) -> None: ...

    async def update_weights(
        self, weights: Iterator[tuple[str, Tensor]], global_steps: int | None = None, **named: Any
    ) -> None:
        whole = {name: tensor.detach().cpu().clone() for name, tensor in weights}
        await ray.get_actor(server_name(self._rank)).update_weights.remote(whole, global_steps or 0)
