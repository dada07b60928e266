"""The update of ``live teacher`` (``parts.update``) by TRL's trainer, where TRL is installed beside onpolicy."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.shapes import Workload, device, model_folder, random_model
from benchmarks.workers import Worker
from onpolicy.annotation.contexts.template import SOLUTION
from onpolicy.models import REASONER, load_tokenizer, resolve_model

STEPS = 2
"""The first one makes the moments."""


def trl_update(workload: Workload, python: str | None = None) -> dict[str, Any]:
    """Seconds, tokens a second and GiB of one update of TRL's SDPOTrainer on as many groups, of as long prompts and answers.

    It computes in bfloat16 and with gradient checkpointing on a GPU; answers are given, not sampled; its teacher is the live model, which
    reads a solution as long as an answer.

    Args:
        python: of another environment that has TRL; None: this one
    """
    if python is None and importlib.util.find_spec("trl") is None:
        return {"not_run": "trl is not installed"}
    with tempfile.TemporaryDirectory() as folder:
        path = model_folder(workload, Path(folder))
        random_model(workload, torch.bfloat16 if device().type == "cuda" else torch.float32).save_pretrained(path)
        worker = Worker("peers/trl_worker.py", _spec(workload, path), python=python or sys.executable)
        try:
            answers = [worker.ask(do="step") for _ in range(STEPS)]
        finally:
            worker.close()
    last = answers[-1]
    return {
        "seconds": last["seconds"],
        "sampled_tokens_per_second": last["tokens"] / last["seconds"],
        "loss": last["loss"],
        "prompt_tokens": last["widths"],
        **({"peak_gib": last["peak_gib"]} if "peak_gib" in last else {}),
    }


def _spec(workload: Workload, path: str) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    answer = lambda: torch.randint(5, workload.model["vocab_size"], (workload.completion,), generator=draw).tolist()  # noqa: E731
    problems = [
        {"question": _text(workload.prompt, f"{i} + "), "solution": _text(workload.completion, f"{i} + ")}
        for i in range(workload.groups * STEPS)
    ]
    return {
        "trainer": "sdpo",
        "what": "update",
        "model": path,
        "problems": problems,
        "completions": [[answer() for _ in range(workload.group_size)] for _ in problems],
        "group": workload.group_size,
        "prompts_per_step": workload.groups,
        "max_tokens": workload.completion,
        "micro_batch": 1 if device().type == "cuda" else workload.group_size,
        "threads": torch.get_num_threads(),
        "lr": 1e-6,
        "teacher_template": SOLUTION,
        "device": device().type,
    }


def _text(tokens: int, words: str) -> str:
    """About so many tokens."""
    tokenizer = load_tokenizer(resolve_model(REASONER))
    each = len(tokenizer(words, add_special_tokens=False)["input_ids"])
    return words * max(1, tokens // each)
