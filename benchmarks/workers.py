"""Workers: processes that each do the same work in their own way, one step at a time, in alternation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.channel import PREFIX
from benchmarks.peers.environment import ROOT, peers_python


class WorkerError(RuntimeError):
    """A worker that could not do its work; ends with what it printed last."""


class Worker:
    """A process that waits for commands; see ``peers/channel.py``."""

    def __init__(self, script: str, spec: Mapping[str, Any], python: str | None = None) -> None:
        """
        Args:
            script: a file below benchmarks/; those below benchmarks/peers run in the peers' environment
            spec: its work
            python: of another environment than that of the peers
        """
        peer = script.startswith("peers/")
        self.name = script
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the process)
        environment = os.environ | {"OMP_NUM_THREADS": str(spec["threads"]), "TOKENIZERS_PARALLELISM": "false"}
        command = [python or str(peers_python()), str(ROOT / "benchmarks" / script)] if peer else [
            sys.executable, "-m", "benchmarks." + script.removesuffix(".py").replace("/", ".")
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self.rss_mib: float | None = self.ask(do="setup", **spec).get("rss_mib")

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(PREFIX):
                answer: dict[str, Any] = json.loads(line.removeprefix(PREFIX))
                if "error" in answer:
                    raise WorkerError(f"{self.name}: {answer['error']}\n{self._tail()}")
                return answer
        raise WorkerError(f"{self.name} ended with {self._process.wait()}\n{self._tail()}")

    def close(self) -> None:
        if self._process.poll() is None and self._process.stdin is not None:
            self._process.stdin.close()  # which a worker reads as `quit`
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()

    def _tail(self) -> str:
        self._log.seek(0)
        return "\n".join(self._log.read().splitlines()[-25:])


@dataclass
class Measured:
    """The answers of one worker, the warm-up left out of the times."""

    seconds: list[float] = field(default_factory=list)
    phases: list[Mapping[str, float]] = field(default_factory=list)
    memory_mib: float = 0.0
    """The most that was resident during any step, above what was resident when the worker was ready; of workers that do not say,
    above what was resident before the first step."""
    losses: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def median(self) -> float:
        return median(self.seconds)

    def phase(self, name: str) -> float:
        return median(p.get(name, 0.0) for p in self.phases)

    def as_dict(self) -> dict[str, Any]:
        names = dict.fromkeys(n for p in self.phases for n in p)
        return {
            "seconds": [round(s, 4) for s in self.seconds],
            "memory_mib": round(self.memory_mib, 1),
            "phases": {n: round(self.phase(n), 4) for n in names},
            "losses": self.losses,
            "tokens": self.tokens,
        }


def alternate(
    workers: Mapping[str, tuple[str, Mapping[str, Any]]], *, repeats: int, warmup: int = 1
) -> dict[str, Measured]:
    """Each worker takes a step, then the next one, over and over: what disturbs one disturbs all.

    Args:
        workers: name -> script and spec
        repeats: steps of each that count
        warmup: steps of each before those; they count for memory alone
    """
    running: dict[str, Worker] = {}
    found = {name: Measured() for name in workers}
    try:
        for name, (script, spec) in workers.items():
            running[name] = Worker(script, spec)
        for step in range(warmup + repeats):
            for name, worker in running.items():
                answer, one = worker.ask(do="step"), found[name]
                worker.rss_mib = answer["rss_mib"] if worker.rss_mib is None else worker.rss_mib
                one.memory_mib = max(one.memory_mib, answer["rss_mib"] + answer["peak_mib"] - worker.rss_mib)
                one.losses.append(answer["loss"])
                one.tokens = answer.get("tokens", 0)
                if step >= warmup:
                    one.seconds.append(answer["seconds"])
                    one.phases.append(answer.get("phases", {}))
    finally:
        for worker in running.values():
            worker.close()
    return found


def ratios(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """one / other, pair by pair: median, least, most."""
    pairs = [a / b for a, b in zip(one, other, strict=True)]
    return median(pairs), min(pairs), max(pairs)


def model_folder(name: str, folder: Path) -> str:
    """A model that every worker loads: ``smollm2-135m``, or ``10m``, a random Qwen3 with SmolLM2's tokenizer."""
    from onpolicy.models import load_tokenizer, resolve_model
    from onpolicy.utils.bundled_model import BUNDLED

    if name == BUNDLED:
        return resolve_model(name)
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = SHAPES[name]
    tokenizer = load_tokenizer(resolve_model(BUNDLED))
    config = Qwen3Config(
        vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=16384, eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.05, **shape,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


SHAPES = {
    "10m": {"hidden_size": 160, "intermediate_size": 448, "num_hidden_layers": 6, "num_attention_heads": 5, "num_key_value_heads": 5,
            "head_dim": 32},
    "3m": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2,
           "head_dim": 32},
    "25m": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 64},
    "60m": {"hidden_size": 448, "intermediate_size": 1280, "num_hidden_layers": 16, "num_attention_heads": 7, "num_key_value_heads": 7,
            "head_dim": 64},
}  # fmt: skip
