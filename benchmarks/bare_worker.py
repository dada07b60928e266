"""The limit: what a step cannot do without, each part by itself on the same tokens, on command; spec as in ``step_worker.py``.

    generate   vLLM's own ``LLM.generate`` over the step's prompts
    teacher    one forward pass of the plain transformers model, without gradient, over privileged prompt + completion
    student    one forward and backward pass over prompt + completion: mean log-probability of the completion tokens

The passes run padded, ``micro_batch`` rollouts at a time, and keep the logits of completion tokens, as plain transformers code would.
"""

from __future__ import annotations

import os
import time
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}

import torch
from torch import Tensor

from benchmarks.peers.channel import Channel, PeakMemory, serve
from onpolicy.annotation.contexts.template import SOLUTION, fill
from onpolicy.data.rendering import Renderer
from onpolicy.models import load_causal_lm, load_tokenizer


class Bare:
    def __init__(self, spec: dict[str, Any]) -> None:
        from vllm import LLM

        self.spec, self.step = spec, 0
        self.renderer = Renderer(load_tokenizer(spec["model"]))
        self.llm = LLM(
            model=spec["model"], dtype="float32", enforce_eager=True, max_model_len=8192, enable_chunked_prefill=False,
            max_num_batched_tokens=8192, disable_log_stats=True, use_tqdm_on_load=False,
        )  # fmt: skip
        torch.set_num_threads(spec["threads"])
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        self.model = load_causal_lm(spec["model"]).eval()

    def run(self) -> dict[str, Any]:
        spec, count = self.spec, self.spec["prompts_per_step"]
        chosen = [spec["problems"][(self.step * count + i) % len(spec["problems"])] for i in range(count)]
        self.step += 1
        prompts = [list(self.renderer.prompt_ids(({"role": "user", "content": p["question"]},))) for p in chosen]
        asked = [fill(SOLUTION, p, "benchmark") for p in chosen]
        privileged = [list(self.renderer.prompt_ids(({"role": "user", "content": text},))) for text in asked]
        memory, phases, start = PeakMemory(), {}, time.perf_counter()
        completions = self.generate(prompts)
        phases["generate"] = time.perf_counter() - start
        group = spec["group"]
        rows = [(i // group, completion) for i, completion in enumerate(completions)]
        begun = time.perf_counter()
        for part in self.parts(rows):
            with torch.no_grad():
                self.logprobs([(privileged[i], c) for i, c in part])
        phases["teacher"] = time.perf_counter() - begun
        begun = time.perf_counter()
        for part in self.parts(rows):
            self.logprobs([(prompts[i], c) for i, c in part]).mean().backward()  # type: ignore[no-untyped-call]
        phases["student"] = time.perf_counter() - begun
        self.model.zero_grad(set_to_none=False)
        tokens = sum(len(c) for c in completions)
        return {"seconds": time.perf_counter() - start, "phases": phases, "loss": 0.0, "tokens": tokens,
                "rss_mib": memory.start, "peak_mib": memory.above()}  # fmt: skip

    def generate(self, prompts: list[list[int]]) -> list[list[int]]:
        from vllm import SamplingParams

        params = SamplingParams(
            n=self.spec["group"],
            max_tokens=self.spec["max_tokens"],
            temperature=1.0,
            ignore_eos=True,
            detokenize=False,
            logprobs=0,
        )
        self.llm.reset_prefix_cache()
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [list(o.token_ids) for output in outputs for o in output.outputs]

    def parts(self, rows: list[Any]) -> list[list[Any]]:
        size = self.spec["micro_batch"]
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def logprobs(self, rows: list[tuple[list[int], list[int]]]) -> Tensor:
        """[B, T] of completions of one length."""
        left, right = max(len(p) for p, _ in rows), len(rows[0][1])
        ids = torch.tensor([[0] * (left - len(p)) + p + c for p, c in rows])
        mask = torch.tensor([[0] * (left - len(p)) + [1] * (len(p) + right) for p, _ in rows])
        logits = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=right + 1, use_cache=False).logits[
            :, :-1
        ]
        return logits.log_softmax(-1).gather(-1, ids[:, left:, None])[..., 0]


def work(channel: Channel) -> None:
    bare = Bare(channel.read())
    channel.answer(ready=True, rss_mib=PeakMemory().start)
    while True:
        channel.wait_for_step()
        channel.answer(**bare.run())


if __name__ == "__main__":
    serve(work)
