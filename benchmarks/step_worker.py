"""One training step of onpolicy at a time, on command; the protocol and the spec are those of ``peers/trl_worker.py``.

The real loop, ``onpolicy.train``, with everything a run does by default: rewards, telemetry, logs, weight sync. It stops before
each step until the driver wants one.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.channel import Channel, PeakMemory, serve
from onpolicy.annotation.contexts.template import SOLUTION
from onpolicy.config.load import build
from onpolicy.config.resolve import resolve
from onpolicy.protocols import OnGroup, ignore_group
from onpolicy.rollout.prefetch import RolloutPrefetcher
from onpolicy.rollout.weight_version import require_newer
from onpolicy.run.assemble import assemble
from onpolicy.run.display import Display
from onpolicy.run.run import Run
from onpolicy.train import train
from onpolicy.types import Metrics, Prompt, Rollout, RolloutGroup, Sampling, ScoredGroup


class Given:
    """A generator that has the completions already: what is left of a step is its scoring and its update."""

    def __init__(self, *, renderer: Any, model: str, sampling: Sampling, max_model_len: int, path: str) -> None:
        self.renderer, self.sampling, self.policy_version = renderer, sampling, 0
        self.completions: dict[str, list[list[int]]] = json.loads(Path(path).read_text())
        self.on_progress = lambda done, total: None

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        sampling: Sampling | None = None,
        on_group: OnGroup = ignore_group,
    ) -> list[RolloutGroup]:
        groups = [
            RolloutGroup(prompt=p, rollouts=tuple(self._rollout(p, ids) for ids in self.completions[p.id]))
            for p in prompts
        ]
        for place, group in enumerate(groups):
            on_group(place, group)
        return groups

    def _rollout(self, prompt: Prompt, ids: list[int]) -> Rollout:
        return Rollout(
            prompt_ids=tuple(self.renderer.prompt_ids(prompt.messages)), completion_ids=tuple(ids), rollout_logprobs=(0.0,) * len(ids),
            text=self.renderer.completion_text(ids), finish_reason="length", policy_version=self.policy_version,
        )  # fmt: skip

    def update_weights(self, weights: Any, *, version: int) -> None:
        self.policy_version = require_newer(version, self.policy_version)

    def rest(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class OnCommand:
    """Before each step: tells what the last one cost and waits for the driver to want another."""

    channel: Channel
    pipeline: RolloutPrefetcher
    costs: Metrics = field(default_factory=dict)
    start: float = 0.0
    memory: PeakMemory | None = None

    def sample(self, step: int) -> tuple[list[ScoredGroup], Metrics]:
        if self.memory is not None:
            phases = {
                n.removeprefix("time/"): s for n, s in self.costs.items() if n.startswith("time/") and n != "time/step"
            }
            self.channel.answer(
                seconds=time.perf_counter() - self.start, peak_mib=self.memory.above(), rss_mib=self.memory.start, phases=phases,
                loss=self.costs["train/loss"], tokens=int(self.costs["rollout/tokens"]),
            )  # fmt: skip
        self.channel.wait_for_step()
        self.memory = PeakMemory()
        self.start = time.perf_counter()
        return self.pipeline.sample(step)

    def state(self) -> dict[str, Any]:
        return self.pipeline.state()

    def log(self, step: int, metrics: Metrics) -> None:
        self.costs = metrics

    def close(self) -> None:
        pass


def assembled(spec: dict[str, Any], folder: Path) -> Run:
    """The run that a spec describes, before its first step."""
    problems = folder / "problems.jsonl"
    rows = [{"id": str(i), "prompt": [{"role": "user", "content": p["question"]}], "answer": "0", "solution": p["solution"]}
            for i, p in enumerate(spec["problems"])]  # fmt: skip
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    generator = {"group_size": spec["group"], "max_tokens": spec["max_tokens"], "name": "vllm"}
    if spec["what"] == "update":
        (folder / "completions.json").write_text(json.dumps(dict(enumerate(spec["completions"]))))
        generator |= {"name": "benchmarks.step_worker:Given", "path": str(folder / "completions.json")}
    full = spec.get("support", "top20") == "full"
    term = {
        "name": "distill",
        "divergence": {"name": "jsd", "beta": 0.5},
        "support": "full" if full else {"name": "student_topk", "k": 20},
    }
    config = build(
        {
            "model": {"path": spec["model"]},
            "data": {
                "name": "file",
                "path": str(problems),
                "prompts_per_step": spec["prompts_per_step"],
                "shuffle": False,
            },
            "rendering": {"max_prompt_tokens": 100_000},
            "generator": generator,
            "rewards": [{"name": "math_answer"}],
            "contexts": {"teacher": {"name": "reference_solution", "template": spec.get("teacher_template", SOLUTION)}},
            "teacher": {"name": "live"},
            "objective": [term],
            "trainer": {"name": "local", "lr": spec["lr"]},
            "preflight": {"enabled": False, "logprob_tolerance": 1e6},
            "guards": [],
            "steps": 1_000_000,
            "seed": spec.get("seed", 0),
        }
    )
    run = assemble(resolve(config), folder / "run", Display(0))
    eos = tuple(run.log.renderer.eos_ids)  # every rollout is as long as it may be
    cursor = run.sampler.rollouts.prompts
    cursor.prompts = [replace(p, banned_token_ids=eos) for p in cursor.prompts]
    return run


def work(channel: Channel) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spec = channel.read()
        torch.set_num_threads(spec["threads"])
        run = assembled(spec, Path(folder))
        on_command = OnCommand(channel, run.sampler)
        run.sampler = on_command  # type: ignore[assignment]
        run.log.logs = replace(run.log.logs, trackers=[*run.log.logs.trackers, on_command])
        channel.answer(ready=True, rss_mib=PeakMemory().start)
        train(run)


if __name__ == "__main__":
    serve(work)
