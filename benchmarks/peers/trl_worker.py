"""One training step of TRL's SDPOTrainer or SDFTTrainer at a time, on command (see channel.py).

Run by the peers' python (see environment.py): imports nothing from onpolicy. The first command sets up:

    {"do": "setup", "trainer": "sdpo" | "sdft", "what": "step" | "update", "model": folder, "problems": [{"question", "solution"}],
     "group": rollouts a prompt, "prompts_per_step": n, "max_tokens": n, "micro_batch": rollouts, "threads": n, "lr": x}

and may hold `device` ("cuda": bfloat16 and gradient checkpointing there), `completions` (token ids, by problem and rollout: what an
"update" learns from instead of sampling), `support` ("top20", the student's with the rest in one bucket, or "full"), `context` (for
sdpo: "solution", the problem's own text, or "sibling", another rollout of the group), `teacher_template` (with {question} and
{solution}; otherwise TRL's own words) and `seed`. Then each `step` is one optimizer step over prompts_per_step x group rollouts, sampled
in one batch, and is answered with

    seconds, phases (their seconds, none counted twice), loss (nats per token), tokens (of completions), widths (to which the student's
    and the teacher's prompts were padded), rss_mib (resident before the step), peak_mib (how much more the step needed at its peak),
    peak_gib (on a GPU: its peak)

Ordinary options of TRL alone: on a CPU float32 and no gradient checkpointing, Jensen-Shannon divergence at temperature 1, the teacher is
the live model. Every rollout is `max_tokens` long and has a teacher; nothing is truncated.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from channel import Channel, PeakMemory, serve

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model hub is neither asked nor told anything

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

Spec = dict[str, Any]
Ids = list[list[int]]


class Phases:
    """Seconds by phase; what runs inside another phase is counted once, in its own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        outer, self._inner, start = self._inner, 0.0, time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inner
            self._inner = outer + took


class OnCommand(TrainerCallback):
    """Holds the training loop before each step until the driver wants one, and tells it what the step cost."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.phases, self.tokens = channel, Phases(), 0
        self.trainer: Any = None

    def watch(self, trainer: Any, given: Iterator[Ids] | None) -> None:
        """Times the trainer's methods, and has it learn from the given completions instead of its own."""
        self.trainer = trainer
        generate = trainer._generate if given is None else (lambda prompt_ids: (prompt_ids, next(given)))

        def counted(prompt_ids: Ids) -> tuple[Ids, Ids]:
            prompt_ids, completion_ids = generate(prompt_ids)
            self.tokens = sum(map(len, completion_ids))
            return prompt_ids, completion_ids

        trainer._generate = self._timed(counted, lambda: "generate")
        trainer._prepare_training_batch = self._timed(trainer._prepare_training_batch, lambda: "prepare")
        trainer._forward_logits = self._timed(
            trainer._forward_logits, lambda: "student" if torch.is_grad_enabled() else "teacher"
        )
        trainer.compute_loss = self._timed(trainer.compute_loss, lambda: "loss")
        trainer.training_step = self._timed(trainer.training_step, lambda: "backward")
        trainer._clip_grad_norm = self._timed(trainer._clip_grad_norm, lambda: "clip")

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.channel.wait_for_step()
        self.memory = PeakMemory()
        self.phases.seconds = {}
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.optimizing = time.perf_counter()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.phases.seconds["optimizer"] = time.perf_counter() - self.optimizing

    def on_step_end(self, *_: Any, **__: Any) -> None:
        on_gpu = {}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            on_gpu["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        seconds = time.perf_counter() - self.start
        metrics, batch = self.trainer._metrics["train"], self.trainer._buffered_inputs[0]
        losses = metrics["self_distillation/distillation_loss"]
        completion = batch["completion_ids"].size(1)
        self.channel.answer(
            seconds=seconds, peak_mib=self.memory.above(), rss_mib=self.memory.start, phases=self.phases.seconds,
            loss=sum(losses) / len(losses), tokens=self.tokens,
            widths={"student": batch["prompt_ids"].size(1), "teacher": batch["teacher_input_ids"].size(1) - completion},
            **on_gpu,
        )  # fmt: skip
        metrics.clear()  # as TRL does when it logs

    def _timed(self, method: Callable[..., Any], phase: Callable[[], str]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phases(phase()):
                return method(*args, **kwargs)

        return timed


def build(spec: Spec, folder: str, on_command: OnCommand) -> SDPOTrainer | SDFTTrainer:
    """A trainer that is ready for its first step."""
    torch.set_num_threads(spec["threads"])
    prompts, group = spec["prompts_per_step"], spec["group"]
    problems = spec["problems"][: len(spec["problems"]) // prompts * prompts]  # TRL drops an incomplete last step too
    if not problems or prompts * group % spec["micro_batch"]:
        raise ValueError("a step needs `prompts_per_step` problems, and its rollouts must fill every micro-batch")
    common: dict[str, Any] = {
        "model": spec["model"],
        "train_dataset": Dataset.from_list(
            [
                {"prompt": [{"role": "user", "content": p["question"]}], "privileged_context": p["solution"]}
                for p in problems
            ]
        ),
        "callbacks": [on_command],
    }
    options = _options(spec) | {"output_dir": folder}
    if spec["trainer"] == "sdft":
        trainer = SDFTTrainer(args=SDFTConfig(**options, **_sdft(spec)), **common)
    else:
        trainer = SDPOTrainer(args=SDPOConfig(**options, **_sdpo(spec)), reward_funcs=_right, **common)
    given = None
    if spec["what"] == "update":
        rows = [ids for rollouts in spec["completions"][: len(problems)] for ids in rollouts]
        given = cycle([rows[i : i + prompts * group] for i in range(0, len(rows), prompts * group)])
    on_command.watch(trainer, given)
    return trainer


def _options(spec: Spec) -> dict[str, Any]:
    full, on_gpu = spec.get("support", "top20") == "full", spec.get("device", "cpu") != "cpu"
    return {
        "per_device_train_batch_size": spec["micro_batch"],
        # `steps_per_generation` follows it: one batch of rollouts for each optimizer step, so TRL scores no old log-probs
        "gradient_accumulation_steps": spec["prompts_per_step"] * spec["group"] // spec["micro_batch"],
        "num_generations": spec["group"],
        "max_prompt_length": None,
        "max_completion_length": spec["max_tokens"],
        "generation_kwargs": {"min_new_tokens": spec["max_tokens"]},
        "shuffle_dataset": False,
        "learning_rate": spec["lr"],
        "lr_scheduler_type": "constant",
        "max_steps": 1_000_000,
        "seed": spec.get("seed", 0),
        "teacher_model_kind": "live",
        "distillation_mode": "full_logits" if full else "topk_logits",
        "distillation_topk": None if full else 20,
        "distillation_add_tail": not full,
        "distillation_alpha": 0.5,
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _sdft(spec: Spec) -> dict[str, Any]:
    if "teacher_template" not in spec:
        return {}
    words = {"question": "{prompt}", "solution": "{privileged_context}"}
    return {"teacher_prompt_template": spec["teacher_template"].format(**words)}


def _sdpo(spec: Spec) -> dict[str, Any]:
    """The problem's solution is what the environment has to say; or the teacher sees another rollout, all being right."""
    sibling = spec.get("context", "solution") == "sibling"
    options: dict[str, Any] = {
        "use_successful_as_teacher": sibling,
        "include_environment_feedback": not sibling,
        "max_reprompt_len": 1_000_000,
        "diagnostics_warning_interval": 0,
    }
    if "teacher_template" in spec:
        words = {"question": "{prompt}", "solution": "{solution}{feedback}"}  # one of the two is empty
        options["reprompt_template"] = spec["teacher_template"].format(**words)
        options |= {"solution_template": "{successful_previous_attempt}", "feedback_template": "{feedback_raw}"}
    return options


def _right(completions: list[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def work(channel: Channel) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(channel.read(), folder, OnCommand(channel))
        channel.answer(ready=True, rss_mib=PeakMemory().start)
        trainer.train()


if __name__ == "__main__":
    serve(work)
