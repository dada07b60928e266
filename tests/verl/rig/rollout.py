"""A rollout server of transformers behind verl's registries: samples, scores prompts, takes weights; one Ray actor a replica."""

from __future__ import annotations

import hashlib
import os
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
    """One model in float32."""

    def __init__(self, path: str, longest: int) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()
        self._longest, self._version = longest, 0
        ends = self._model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])

    @torch.no_grad()
    def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: Mapping[str, Any], **named: Any
    ) -> TokenOutput:
        extra: dict[str, Any] = {"global_steps": self._version}
        if sampling_params.get("prompt_logprobs") is not None:
            extra |= self._scores(prompt_ids, int(sampling_params["prompt_logprobs"]))
        limit = int(sampling_params.get("max_tokens") or self._longest)
        ids, logprobs = self._sample(
            list(prompt_ids), limit, float(sampling_params.get("temperature", 1.0)), request_id
        )
        return TokenOutput(
            token_ids=ids, log_probs=logprobs, stop_reason="completed", num_preempted=0, extra_fields=extra
        )

    def _sample(self, ids: list[int], limit: int, temperature: float, seed: str) -> tuple[list[int], list[float]]:
        random = torch.Generator().manual_seed(int(hashlib.sha256(seed.encode()).hexdigest()[:12], 16))
        found: list[int] = []
        logprobs: list[float] = []
        while len(found) < limit and not (found and found[-1] in self._ends):
            logits = self._model(input_ids=torch.tensor([ids + found])).logits[0, -1]
            chances = (logits / (temperature or 1.0)).softmax(-1)
            token = int(torch.multinomial(chances, 1, generator=random)) if temperature else int(logits.argmax())
            found.append(token)
            logprobs.append(float(logits.log_softmax(-1)[token]))  # raw, as rollout.logprobs_mode=raw_logprobs has it
        return found, logprobs

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

    def nothing(self) -> None:
        """A server that sleeps holds on to its weights here."""

    wake_up = sleep = abort_all_requests = resume_generation = clear_kv_cache = release_kv_cache = resume_kv_cache = (
        nothing
    )


class Replica(RolloutReplica):  # type: ignore[misc]
    async def launch_servers(self) -> None:
        role = "teacher" if self.is_teacher_model else "student"
        path = self.model_config.path if hasattr(self.model_config, "path") else self.config.model_path
        server = ray.remote(Server).options(name=server_name(self.replica_rank, role), num_cpus=0.1)
        self._server_handle = server.remote(str(path), int(self.config.response_length))
        self.servers, self._server_address = [self._server_handle], f"rig:{self.replica_rank}"

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Nothing is under way when verl asks for it here."""


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
