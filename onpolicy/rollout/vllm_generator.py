"""Rollouts from vLLM, in this process, on CPU or GPU."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor

from onpolicy.data.rendering import Renderer
from onpolicy.protocols import AdapterShape, OnGroup, ignore_group
from onpolicy.rollout.arrival import Arrivals
from onpolicy.rollout.request import continued_prompt, max_tokens
from onpolicy.rollout.vllm_args import EngineArgs, blamed_on, combined
from onpolicy.rollout.vllm_engine import Request, SharedEngine, undisturbed_threads
from onpolicy.rollout.vllm_lora import LoadedAdapters, adapter_arguments, why_no_adapter
from onpolicy.rollout.vllm_sleep import sleeps
from onpolicy.rollout.vllm_transfer import Backend, why_no_transfer
from onpolicy.rollout.weight_version import require_newer
from onpolicy.types import FinishReason, Prompt, Rollout, RolloutGroup, Sampling
from onpolicy.utils.ready import installed, ready_if
from onpolicy.utils.seeds import rollout_seed

if TYPE_CHECKING:
    from vllm import SamplingParams

ALWAYS: Mapping[str, Any] = {
    "enable_prefix_caching": True,
    "logprobs_mode": "raw_logprobs",  # before temperature and top-p: what the trainer's own are compared with
    "disable_log_stats": True,
    "use_tqdm_on_load": False,
    "seed": 0,  # each request has its own
}
"""Arguments of every engine."""
FINISHED: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}


@ready_if(
    installed(
        "vllm", "`onpolicy doctor` says how to install it; `generator.name=auto` takes transformers where it is missing"
    )
)
class VLLMGenerator:
    """One engine in this process; new weights go in through memory, also while rollouts are being sampled: all of them, or where it is
    made with an ``adapter`` the adapters alone, which it adds to the weights of ``model``.

    On a GPU that it shares with the trainer the two take turns: the engine sleeps while the trainer works (``vllm_sleep``).
    """

    why_no_adapter = staticmethod(why_no_adapter)
    why_no_transfer = staticmethod(why_no_transfer)
    parallel_calls = 32
    """Calls of ``generate`` whose requests share its batches; a generator without this has one call after the other."""

    def __init__(
        self,
        *,
        renderer: Renderer,
        model: str,
        sampling: Sampling,
        max_model_len: int,
        source: Mapping[str, Any] | None = None,
        beside_trainer: bool = False,
        adapter: AdapterShape | None = None,
        transfer_backend: Backend | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        enforce_eager: bool | None = None,
        gpu_memory_utilization: float = 0.4,
        kv_cache_gib: int = 1,
        tensor_parallel_size: int = 1,
        max_num_seqs: int = 256,
        engine_args: Annotated[dict[str, Any] | None, EngineArgs()] = None,
    ) -> None:
        """
        Args:
            dtype: what the engine computes in; `auto`: float32 on the CPU, else the model's own
            enforce_eager: no CUDA graphs and no compilation; null: only on the CPU
            gpu_memory_utilization: share of the GPU's memory for the engine, the rest is the trainer's
            kv_cache_gib: memory for the KV cache on the CPU, GiB
            tensor_parallel_size: GPUs per engine
            max_num_seqs: rollouts sampled at the same time
            engine_args: further arguments of `vllm.LLM`, as vLLM names them, e.g. `{kv_cache_dtype: fp8}`
        """
        cpu, given = not torch.cuda.is_available(), engine_args or {}
        can_sleep = sleeps(sampling, beside_trainer=beside_trainer)
        _set_environment(cpu, kv_cache_gib)
        with undisturbed_threads(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # vLLM's own, about torch
            from vllm import LLM

            ours: dict[str, Any] = {
                "model": model,
                "dtype": ("float32" if cpu else "auto") if dtype == "auto" else dtype,
                "enforce_eager": cpu if enforce_eager is None else enforce_eager,
                "max_model_len": max_model_len,
                "max_num_seqs": max_num_seqs,
                "gpu_memory_utilization": gpu_memory_utilization,
                "tensor_parallel_size": tensor_parallel_size,
                **ALWAYS,
                **(_whole_prompts(max_model_len) if cpu else _one_batch_at_a_time(sampling)),
                **({"enable_sleep_mode": True} if can_sleep else {}),
                **(adapter_arguments(adapter, sampling) if adapter else {}),
                **({"weight_transfer_config": {"backend": transfer_backend}} if transfer_backend else {}),
                **_one_of_several(),
                **(source or {}),
            }
            arguments = combined(ours, given)
            with blamed_on(given):
                llm = LLM(**arguments)
        adapters = LoadedAdapters(arguments["max_cpu_loras"]) if adapter else None
        self._engine = SharedEngine(llm, sleeps=can_sleep, adapters=adapters)
        self.renderer, self.sampling, self.policy_version = renderer, sampling, 0
        self.max_model_len = max_model_len
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
        asked = [
            (
                continued_prompt(self.renderer, prompt, self.max_model_len - max_tokens(prompt, sampling)),
                self._params(prompt, sampling, rollout_seed(seed, prompt.id, j, prompt.occurrence)),
            )
            for prompt in prompts
            for j in range(sampling.group_size)
        ]
        found = Arrivals(prompts, sampling.group_size, on_group)
        self._engine.run(asked, self.on_progress, lambda number, request: found.add(number, self._rollout(request)))
        return found.groups()

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Nothing that the old ones cached is used after it; rollouts that are under way go on with the new ones, and where these are
        adapters with the old."""
        self._engine.update(weights, version=require_newer(version, self.policy_version))
        self.policy_version = version

    def open_transfer(self, init_info: dict[str, Any]) -> None:
        """Joins a trainer that will send weights by itself (``vllm_transfer``); for a generator made with a ``transfer_backend``."""
        self._engine.open_transfer(init_info)

    def receive_weights(self, updates: Iterable[Mapping[str, Any]], *, version: int) -> None:
        """``update_weights`` with what that trainer sends; ``updates`` are what it says of each part, when it is there."""
        self._engine.receive(updates, version=require_newer(version, self.policy_version))
        self.policy_version = version

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability of each token but the first, given those before it, under the weights now in the engine."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        (request,) = self._engine.run([(tuple(token_ids), params)])
        output = request.output
        assert output is not None and output.prompt_logprobs is not None
        pairs = zip(token_ids[1:], output.prompt_logprobs[1:], strict=True)
        return [float(entry[token].logprob) for token, entry in pairs if entry is not None]

    def rest(self) -> None:
        """Lets the engine sleep where it shares its GPU with the trainer; the next call wakes it."""
        self._engine.rest()

    def reset_version(self) -> None:
        """The next weights may be of any version."""
        self.policy_version = -1

    def close(self) -> None:
        """Frees the engine and its memory; whoever is sampling gets an error."""
        self._engine.close()

    def _params(self, prompt: Prompt, sampling: Sampling, seed: int) -> SamplingParams:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=max_tokens(prompt, sampling),
            stop_token_ids=list(self.renderer.eos_ids),
            seed=seed,
            logit_bias=dict.fromkeys(prompt.banned_token_ids, -math.inf) or None,
            logprobs=0,  # the sampled token alone
            detokenize=False,
        )

    def _rollout(self, request: Request) -> Rollout:
        output = request.output
        assert output is not None and output.prompt_token_ids is not None
        completion = output.outputs[0]
        ids = tuple(completion.token_ids)
        assert completion.logprobs is not None
        return Rollout(
            prompt_ids=tuple(output.prompt_token_ids),
            completion_ids=ids,
            rollout_logprobs=tuple(float(e[i].logprob) for i, e in zip(ids, completion.logprobs, strict=True)),
            text=self.renderer.completion_text(ids),
            finish_reason=FINISHED.get(completion.finish_reason, "abort"),
            policy_version=min(request.versions, default=self.policy_version),
            token_versions=tuple(request.versions) if len(set(request.versions)) > 1 else (),
        )


def _one_of_several() -> dict[str, Any]:
    """In a launcher's process group every rank has an engine of its own."""
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    return {"distributed_executor_backend": "external_launcher"} if several else {}


def _whole_prompts(max_model_len: int) -> dict[str, Any]:
    """A prompt that is prefilled in parts makes vLLM wind a seeded request's generator back, which a CPU's cannot do."""
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_model_len, 8192)}


def _one_batch_at_a_time(sampling: Sampling) -> dict[str, Any]:
    """With asynchronous scheduling a batch is under way while weights are replaced, and writes keys and values of the old ones after it."""
    return {"async_scheduling": False} if sampling.max_staleness else {}


def _set_environment(cpu: bool, kv_cache_gib: int) -> None:
    """What vLLM reads when it is imported; a user's own settings win."""
    defaults = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if cpu:
        # compiling its small kernels takes half a minute on a CPU and gains nothing that could be measured
        defaults |= {"VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib), "TORCHDYNAMO_DISABLE": "1"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
