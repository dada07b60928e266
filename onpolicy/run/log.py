"""What a run writes while it goes on: metrics, samples, token traces, and lines on the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schema import LoggingSettings
from onpolicy.data.rendering import Renderer
from onpolicy.protocols import Trainer
from onpolicy.run.checkpoint import Checkpoints
from onpolicy.run.display import Display
from onpolicy.run.guards import GAP, gap_tolerance
from onpolicy.run.token_trace import token_record
from onpolicy.run.trackers.base import SampleTracker, Tracker
from onpolicy.run.trackers.jsonl import Jsonl
from onpolicy.run.trackers.logs import Logs, open_logs
from onpolicy.types import Example, Metrics, Rollout
from onpolicy.utils.faults import Faults
from onpolicy.utils.timer import PhaseTimer

DROPPED = re.compile(r"context/.+/dropped")


@dataclass
class RunLog:
    """Writes one line a step to every tracker, and knows the first and the latest value of every metric."""

    settings: LoggingSettings
    renderer: Renderer
    display: Display
    timer: PhaseTimer
    faults: Faults
    open_logs: Callable[[int], Logs]
    """Opens the files and trackers of the run, with what was logged after a step taken out."""
    trace: Callable[[Example], dict[str, Any]]
    """A rollout token by token, scored with the weights now in the trainer."""
    logs: Logs
    logprob_tolerance: float | None
    """Nats by which generator and trainer may disagree; None where that is no sign of a failed weight sync."""
    history: dict[str, Metrics] = field(default_factory=dict)
    """``first`` and ``last``: metrics of the first and of the latest step that had them."""
    _broken: set[int] = field(default_factory=set)
    """Indices of the trackers that fail."""
    _dropping: set[str] = field(default_factory=set)
    """Metrics of contexts that have left rollouts without a teacher."""

    def note(self, text: str) -> None:
        """One line for the user."""
        self.display.note(text)

    def record(self, step: int, metrics: Metrics, examples: Sequence[Example], extra: Metrics) -> Metrics:
        """Logs a step: metrics to every tracker, some rollouts to samples.jsonl, one of them to tokens.jsonl.

        Args:
            step: that has ended
            metrics: of this step; they enter the history
            examples: what it was trained on
            extra: numbers that are logged but enter no history

        Returns:
            Everything that was logged, with what the step cost.

        Raises:
            DiskFull: a file could not be written.
        """
        for name, value in metrics.items():
            self.history.setdefault("first", {}).setdefault(name, value)
            self.history.setdefault("last", {})[name] = value
        everything = metrics | extra | self.faults.metrics() | self._costs(metrics)
        self._warn_of_gap(step, metrics)
        self._warn_of_dropped(step, metrics)
        if metrics.get("train/grad_norm") == 0.0:
            self.note(f"step {step}: no signal, nothing was learned; {signal_of(metrics)}")
        rows = [sample_row(example, self.renderer) for example in spread_out(examples, self.settings.samples)]
        for index, tracker in enumerate(self.logs.trackers):
            self._track(index, tracker, step, everything, rows if self._records_tokens(step) else [])
        for row in rows:
            self.logs.samples.write({"step": step, **row})
        self._trace_tokens(step, examples)
        return everything

    def reopen(self, step: int) -> None:
        """Takes out what was logged after a step."""
        self.close()
        self.logs = self.open_logs(step)

    def close(self) -> None:
        for index, tracker in enumerate(self.logs.trackers):
            try:
                tracker.close()
            except Exception as error:
                self._note_broken(index, "at the end: ", error)
        self.logs.samples.close()
        self.logs.tokens.close()

    def _track(
        self, index: int, tracker: Tracker, step: int, metrics: Metrics, samples: Sequence[Mapping[str, Any]]
    ) -> None:
        """Errors of the run's own files are raised; those of any other tracker only cost its numbers."""
        if isinstance(tracker, Jsonl):
            return tracker.log(step, metrics)
        try:
            tracker.log(step, metrics)
            if samples and isinstance(tracker, SampleTracker):
                tracker.log_samples(step, samples)
            self._broken.discard(index)
        except Exception as error:
            if index not in self._broken:
                self._broken.add(index)
                self._note_broken(index, f"step {step}: ", error)

    def _note_broken(self, index: int, when: str, error: Exception) -> None:
        self.note(
            f"{when}logging.trackers[{index}] failed ({type(error).__name__}: {error}); the run goes on without its numbers"
        )

    def _trace_tokens(self, step: int, examples: Sequence[Example]) -> None:
        """Traces one rollout, if possible one that a teacher scores."""
        if examples and self._records_tokens(step):
            chosen = next((e for e in examples if e.teacher_prompt_ids), examples[0])
            self.logs.tokens.write({"step": step, **self.trace(chosen)})

    def _records_tokens(self, step: int) -> bool:
        every = self.settings.tokens_every
        return bool(every) and (step == 1 or step % every == 0)

    def _costs(self, metrics: Metrics) -> Metrics:
        """Seconds per phase, tokens per second, peak memory."""
        seconds = self.timer.pop()
        total = sum(seconds.values())
        costs = seconds | {"time/step": total, "memory/peak_gib": peak_memory_gib()}
        if "rollout/tokens" in metrics:
            sampled = metrics["rollout/sampled_tokens"]  # more than are trained where groups are left out
            costs["rollout/tokens_per_second"] = sampled / max(
                metrics.get("pipeline/generate", seconds.get("time/generate", 0.0)), 1e-9
            )
            costs["train/tokens_per_second"] = metrics["rollout/tokens"] / max(total, 1e-9)
        return costs

    def _warn_of_gap(self, step: int, metrics: Metrics) -> None:
        """Weights that reach the generator only in part show as a growing difference between its log-probs and the trainer's."""
        gap, first = metrics.get(GAP), self.history["first"].get(GAP)
        if self.logprob_tolerance is None or gap is None or first is None:
            return
        if not gap <= self.logprob_tolerance:
            self.note(
                f"step {step}: generator and trainer disagree by {gap:.4f} nats per token, {first:.1e} at the first step; "
                f"preflight.logprob_tolerance is {self.logprob_tolerance}"
            )
        elif gap > 10 * first + 1e-4:
            self.note(f"generator and trainer drift apart: {gap:.1e} nats per token, {first:.1e} at the first step")

    def _warn_of_dropped(self, step: int, metrics: Metrics) -> None:
        """Says once, for each context, that a rollout has no teacher because its privileged prompt is too long."""
        for name, count in metrics.items():
            if count and DROPPED.fullmatch(name) and name not in self._dropping:
                self._dropping.add(name)
                self.note(
                    f"step {step}: {count:.0f} rollouts have no teacher, their privileged prompts are over the limit "
                    f"(rendering.max_teacher_prompt_tokens, model window); {name} counts them from now on"
                )


def build_log(
    resolved: ResolvedConfig,
    folder: Path,
    checkpoints: Checkpoints,
    trainer: Trainer,
    renderer: Renderer,
    display: Display,
    timer: PhaseTimer,
    faults: Faults,
) -> RunLog:
    """The log of a run in ``folder``, opened at its last checkpoint."""
    config, latest = resolved.config, checkpoints.latest()
    opener = partial(open_logs, resolved, folder)
    return RunLog(
        settings=config.logging,
        renderer=renderer,
        display=display,
        timer=timer,
        faults=faults,
        open_logs=opener,
        trace=partial(trainer.apply, token_record, renderer),
        # without a checkpoint nothing that was logged counts
        logs=opener(latest.step if latest else -1, begins=latest is None),
        logprob_tolerance=gap_tolerance(resolved),
    )


def signal_of(metrics: Mapping[str, float]) -> str:
    """The metrics that say why a step had nothing to learn from."""
    names = [n for n in metrics if n == "credit/nonzero" or n.startswith("route/") or n.endswith("/share")]
    return ", ".join(f"{name} {metrics[name]:.2g}" for name in names)


def spread_out(examples: Sequence[Example], n: int) -> Sequence[Example]:
    """At most n of them, taken from the whole step rather than from its first group."""
    return examples[:: max(1, len(examples) // max(1, n))][:n]


def sample_row(example: Example, renderer: Renderer) -> dict[str, Any]:
    """A rollout as one line of samples.jsonl, with both prompts as text."""
    return {
        "prompt_id": example.prompt.id,
        "student_prompt": renderer.decode(example.rollout.prompt_ids),
        "teacher_prompts": {context: renderer.decode(ids) for context, ids in example.teacher_prompt_ids.items()},
        "completion": example.rollout.text,
        **({"turns": turns} if (turns := turns_of(example.rollout, renderer)) else {}),
        "answer": example.prompt.fields.get("answer"),
        "reward": example.reward,
        "reward_breakdown": dict(example.reward_breakdown),
        "advantage": example.advantage,
        "finish_reason": example.rollout.finish_reason,
        "tokens": example.rollout.num_sampled,
    }


def turns_of(rollout: Rollout, renderer: Renderer) -> list[dict[str, str]]:
    """What was sampled and what was observed, in order; empty where all was sampled."""
    parts = groupby(zip(rollout.sampled_mask, rollout.completion_ids, strict=False), key=itemgetter(0))
    return [
        {"observed" if not sampled else "sampled": renderer.decode([token for _, token in part])}
        for sampled, part in parts
    ]


def peak_memory_gib() -> float:
    """The GPU's peak where there is one, else the process's."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
