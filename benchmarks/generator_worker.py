"""One step's rollouts of a config at a time, by one of its generators, on command; the protocol is that of ``peers/trl_worker.py``.

Spec: ``config`` (name or path), ``generator`` (name), ``threads``. Every rollout is as long as it may be.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from benchmarks.peers.channel import Channel, PeakMemory, serve
from onpolicy.config.resolve import load_resolved
from onpolicy.models import open_model
from onpolicy.rollout.build import local_generator, prompt_cursor
from onpolicy.run.loading import training_prompts


def work(channel: Channel) -> None:
    spec = channel.read()
    torch.set_num_threads(spec["threads"])
    resolved = load_resolved(spec["config"], [f"generator.name={spec['generator']}"])
    model = open_model(resolved)
    prompts = prompt_cursor(resolved, training_prompts(resolved, model.renderer)).next()
    eos = tuple(model.renderer.eos_ids)
    prompts = [replace(prompt, banned_token_ids=eos) for prompt in prompts]
    generator = local_generator(resolved, model)
    channel.answer(ready=True, rss_mib=PeakMemory().start)
    seed = 0
    while True:
        channel.wait_for_step()
        memory, start, seed = PeakMemory(), time.perf_counter(), seed + 1
        groups = generator.generate(prompts, seed=seed)
        seconds = time.perf_counter() - start
        tokens = sum(rollout.num_sampled for group in groups for rollout in group.rollouts)
        channel.answer(seconds=seconds, peak_mib=memory.above(), rss_mib=memory.start, loss=0.0, tokens=tokens)


if __name__ == "__main__":
    serve(work)
