"""One run: its parts, its folder, and what happens around the steps of the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from onpolicy.annotation.annotate import Annotator, StaleRollouts
from onpolicy.annotation.scoring import Scorer
from onpolicy.config.schedules import Coefficients
from onpolicy.config.schema import Config
from onpolicy.data.cursor import PromptCursor
from onpolicy.data.rendering import Renderer
from onpolicy.protocols import Generator, Trainer
from onpolicy.rollout.prefetch import RolloutPrefetcher
from onpolicy.run.checkpoint import CheckpointError, Checkpoints, read_state, read_weights
from onpolicy.run.display import Display
from onpolicy.run.evaluate import Evaluator
from onpolicy.run.guards import Guards
from onpolicy.run.trackers import Jsonl, Logs, Tracker
from onpolicy.types import Example, Metrics
from onpolicy.utils.disk import Room
from onpolicy.utils.faults import Faults, GaveUp, RoleLost
from onpolicy.utils.rng import random_state, set_random_state
from onpolicy.utils.signals import on_interrupt
from onpolicy.utils.timer import PhaseTimer

RESUMED = ("step", "trainer", "prompts", "random", "history", "coefficients", "guards")
"""What a checkpoint holds beside the weights."""


class Interrupted(Exception):
    """The step was finished and saved, and then the run was to stop: on Ctrl-C, SIGTERM, or for the reason that it holds."""


@dataclass
class Run:
    """The parts of one run, put together by ``onpolicy.run.assemble``."""

    config: Config
    folder: Path
    renderer: Renderer
    prompts: PromptCursor
    generator: Generator
    sample: RolloutPrefetcher
    annotate: Annotator
    trainer: Trainer
    evaluator: Evaluator | None
    checkpoints: Checkpoints
    model_writer: Callable[[], Callable[[Path], None]]
    """Copies the student as it is now; what comes back writes that copy as a Hugging Face folder."""
    open_logs: Callable[[int], Logs]
    """Opens what the run writes, with what was logged after a step taken out."""
    trace: Callable[[Example], dict[str, Any]]
    """A rollout token by token."""
    clock: PhaseTimer
    display: Display
    coefficients: Coefficients
    guards: Guards
    judge: Scorer
    faults: Faults
    room: Room
    ref_metrics: Metrics = field(default_factory=dict)
    """What is known of the reference model before the first step."""
    step: int = 0
    """Optimizer steps done."""
    history: dict[str, Metrics] = field(default_factory=dict)
    """Metrics of the first and of the latest step that had them, for the closing summary."""
    saved_at: int | None = None
    """Step of the checkpoint written last by this process."""
    logs: Logs = field(init=False)
    _resumed: bool = False
    _went_back: tuple[int, int] = (-1, 0)
    """The step of the checkpoint that the run went back to last, and how often in a row it was this one."""
    _asked: bool = False
    """Whether the user wants the run to stop."""
    _stop: str | None = None
    """Why the run stops after this step; empty where the user knows."""
    _unsaved: int = 0
    """Checkpoints that could not be written."""
    _retry: bool = False
    """Whether the last one could not."""
    _silent: set[int] = field(default_factory=set)
    """Trackers that do not work, by their place."""

    def __post_init__(self) -> None:
        latest = self.checkpoints.latest()
        self.logs = self.open_logs(latest.step if latest else -1)  # without a checkpoint nothing that was logged counts
        self.room.interrupted = lambda: self._asked

    def remaining_steps(self) -> Iterator[int]:
        """Steps still to do; ends early, after a save, when the user asks."""
        with on_interrupt(self._ask_to_stop):
            if not self._resumed:
                self.log(0, self.ref_metrics | self.evaluate_if_due(0), [])
                if self.config.roles.trainers:  # where the run goes back to if a rank is lost early
                    self.save(0, {})
            for step in range(self.step + 1, self.config.steps + 1):
                self.display.start_step(step)
                self.coefficients.set(step, self.history.get("last", {}))
                yield step
                if self._stop is not None and step < self.config.steps:
                    if self.saved_at != step:
                        self.save(step, {})
                    self._finish_saving()
                    raise Interrupted(self._stop)
            self._finish_saving()

    def evaluate_if_due(self, step: int) -> Metrics:
        every = self.config.eval.every
        if self.evaluator is None or not (due(step, every) or (every and step == self.config.steps)):
            return {}
        with self.clock("evaluate"):
            return self.evaluator(self.folder / "eval" / f"step-{step:06d}")

    def log(self, step: int, metrics: Metrics, examples: Sequence[Example]) -> None:
        """One line everywhere; some rollouts of the step to samples.jsonl with both prompts."""
        self.step = step
        if not metrics:
            return
        for name, value in metrics.items():
            self.history.setdefault("first", {}).setdefault(name, value)
            self.history.setdefault("last", {})[name] = value
        self._look_after_checkpoint(wait=False)
        everything = metrics | self.coefficients.metrics() | self.faults.metrics() | self._costs(metrics)
        everything["checkpoint/failed"] = float(self._unsaved)
        self._watch_sync(metrics)
        if metrics.get("train/grad_norm") == 0.0:
            self.display.note(f"step {step}: no signal, nothing was learned; {signal_of(metrics)}")
        for place, tracker in enumerate(self.logs.trackers):
            self._track(place, tracker, step, everything)
        for example in spread_out(examples, self.config.logging.samples):
            self._write(self.logs.samples, {"step": step, **sample_row(example, self.renderer)})
        self._keep_tokens(step, examples)
        self._guard(step, metrics)
        self.display.finish_step(step, everything)

    def _write(self, file: Jsonl, row: dict[str, Any]) -> None:
        self.room(file.path, partial(file.write, row))

    def _track(self, place: int, tracker: Tracker, step: int, metrics: Metrics) -> None:
        """The run's own lines wait for room; what somebody else's tracker cannot take is said, and is lost there alone."""
        if isinstance(tracker, Jsonl):
            return self._write(tracker, {"step": step, **metrics})
        try:
            tracker.log(step, metrics)
            self._silent.discard(place)
        except Exception as error:
            if place not in self._silent:
                self._silent.add(place)
                self._say_broken(place, f"step {step}: ", error)

    def _say_broken(self, place: int, when: str, error: Exception) -> None:
        self.display.note(
            f"{when}logging.trackers[{place}] failed ({type(error).__name__}: {error}); the run goes on without its numbers"
        )

    def _guard(self, step: int, metrics: Metrics) -> None:
        for reason, settings in self.guards(step, metrics):
            what = f"{settings.action} {settings.lowers}" if settings.action == "lower" else settings.action
            self.display.note(f"step {step}: {reason}" + ("" if settings.action == "warn" else f" [{what}]"))
            if settings.action == "stop":
                self._stop = reason
            elif settings.action == "freeze_teacher":
                self.trainer.freeze_teacher()
            elif settings.action == "lower":
                self.coefficients.lower(settings.lowers, settings.factor)

    def _keep_tokens(self, step: int, examples: Sequence[Example]) -> None:
        """Of one rollout that a teacher sees, if there is one; scored with the weights that the step left behind."""
        every = self.config.logging.tokens_every
        if examples and every and (step == 1 or step % every == 0):
            chosen = next((e for e in examples if e.teacher_prompt_ids), examples[0])
            self._write(self.logs.tokens, {"step": step, **self.trace(chosen)})

    def save_if_due(self, step: int, metrics: Metrics) -> None:
        """Also where the last one could not be written."""
        if self._retry or step == self.config.steps or due(step, self.config.checkpoint.every):
            self.save(step, metrics)

    def save(self, step: int, metrics: Metrics) -> None:
        with self.clock("save"):
            self._look_after_checkpoint(wait=True)
            self.checkpoints.begin(step, self.state(), self.model_writer(), metrics)
        self.saved_at, self._retry = step, False

    def _look_after_checkpoint(self, *, wait: bool) -> None:
        """One that could not be written is said and counted; the run goes on."""
        error = self.checkpoints.failure(wait=wait)
        if error is not None:
            self.display.note(f"{error}; tried again at the next step")
            self._unsaved, self._retry = self._unsaved + 1, True

    def _finish_saving(self) -> None:
        """The last checkpoint of a run is worth waiting for."""
        self.room(self.checkpoints.folder, self.checkpoints.finish)

    def state(self) -> dict[str, Any]:
        """Everything beside the student's weights that decides what comes next."""
        return {
            "step": self.step,
            "trainer": self.trainer.state(),
            "prompts": self.prompts.state() | {"position": self.sample.position},
            "random": random_state(),
            "history": self.history,
            "coefficients": self.coefficients.state(),
            "guards": self.guards.state(),
        }

    def resume(self) -> bool:
        """Continues from the last whole checkpoint, if there is one."""
        checkpoint = self.checkpoints.latest()
        if checkpoint is None:
            return False
        self.sample.cancel()
        state = read_state(checkpoint.path)
        missing = [name for name in RESUMED if name not in state]
        if missing:
            raise CheckpointError(f"{str(checkpoint.path)!r} is not the state of a run: it lacks {', '.join(missing)}")
        self.trainer.load_state(read_weights(checkpoint.path), state["trainer"])
        self.prompts.load_state(state["prompts"])
        set_random_state(state["random"])
        self.history, self.step = state["history"], state["step"]
        self.coefficients.load_state(state["coefficients"])
        self.guards.load_state(state["guards"])
        self.generator.update_weights(self.trainer.weights(), version=self.step)
        self._resumed = True
        return True

    def recover(self, lost: RoleLost) -> None:
        """Starts the trainer's ranks again and goes back to the last checkpoint.

        Raises:
            RoleLost: a rank was lost again meanwhile.
            GaveUp: that happened more than ``roles.restarts`` times without a new checkpoint, or none could be written.
        """
        self._look_after_checkpoint(wait=True)
        latest, (before, times) = self.checkpoints.latest(), self._went_back
        step = latest.step if latest else -1
        self._went_back = step, times = step, times + 1 if step == before else 1
        where = f"step {step}" if latest else "the beginning"
        if latest is None and self.step:
            raise GaveUp(f"trainer: {lost}; there is no checkpoint to go back to") from lost
        if times > self.config.roles.restarts:
            raise GaveUp(f"trainer: {lost}; the run went back to {where} {times - 1} times (roles.restarts)") from lost
        self.faults("trainer", f"{lost}; going back to {where}")
        self.generator.reset_version()
        self.sample.cancel()
        self.trainer.restart()
        self._close_logs()
        self.logs = self.open_logs(step)
        self.resume()
        self.clock.read()

    def _close_logs(self) -> None:
        for place, tracker in enumerate(self.logs.trackers):
            try:
                tracker.close()
            except Exception as error:
                self._say_broken(place, "at the end: ", error)
        self.logs.samples.close()
        self.logs.tokens.close()

    def close(self) -> None:
        self._close_logs()
        self.trainer.close()  # before an engine in this process, which takes its process group along
        self.generator.close()
        self.judge.close()
        self.sample.close()

    def _costs(self, metrics: Metrics) -> Metrics:
        """Seconds per phase, tokens per second, peak memory."""
        seconds = self.clock.read()
        total = sum(seconds.values())
        costs = seconds | {"time/step": total, "memory/peak_gib": peak_memory_gib()}
        if "rollout/tokens" in metrics:
            sampled = metrics["rollout/sampled_tokens"]  # more than are trained where groups are left out
            costs["rollout/tokens_per_second"] = sampled / max(
                metrics.get("pipeline/generate", seconds.get("time/generate", 0.0)), 1e-9
            )
            costs["train/tokens_per_second"] = metrics["rollout/tokens"] / max(total, 1e-9)
        return costs

    def _watch_sync(self, metrics: Metrics) -> None:
        """Weights that reach the generator only in part show as a growing difference between its log-probs and ours."""
        if self.config.generator.get("staleness") or self.config.data.get("completions"):
            return  # there the policy's own change is part of the difference
        gap, first = metrics.get("rollout/logprob_gap"), self.history["first"].get("rollout/logprob_gap")
        if gap is None or first is None:
            return
        if gap > self.config.preflight.logprob_tolerance:
            raise StaleRollouts(
                f"generator and trainer disagree by {gap:.4f} nats per token, more than preflight.logprob_tolerance = "
                f"{self.config.preflight.logprob_tolerance}; {first:.1e} at the first step. Did a weight sync fail?"
            )
        if gap > 10 * first + 1e-4:
            self.display.note(
                f"generator and trainer drift apart: {gap:.1e} nats per token, {first:.1e} at the first step"
            )

    def _ask_to_stop(self) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked, self._stop = True, self._stop or ""
        self.display.note("stopping after this step, with a checkpoint; again to stop at once")


def due(step: int, every: int) -> bool:
    """Whether what is done each so many steps, 0 meaning never, is done after this one."""
    return bool(every) and step % every == 0


def signal_of(metrics: Metrics) -> str:
    """The shares that say why a step had nothing to learn from."""
    names = [n for n in metrics if n == "credit/nonzero" or n.startswith("route/") or n.endswith("/share")]
    return ", ".join(f"{name} {metrics[name]:.2g}" for name in names)


def spread_out(examples: Sequence[Example], n: int) -> Sequence[Example]:
    """At most n of them, from all over the step rather than from its first group."""
    return examples[:: max(1, len(examples) // max(1, n))][:n]


def sample_row(example: Example, renderer: Renderer) -> dict[str, Any]:
    """A rollout as one would want to read it."""
    return {
        "prompt_id": example.prompt.id,
        "student_prompt": renderer.decode(example.rollout.prompt_ids),
        "teacher_prompts": {context: renderer.decode(ids) for context, ids in example.teacher_prompt_ids.items()},
        "completion": example.rollout.text,
        "answer": example.prompt.fields.get("answer"),
        "reward": example.reward,
        "reward_breakdown": dict(example.reward_breakdown),
        "advantage": example.advantage,
        "finish_reason": example.rollout.finish_reason,
        "tokens": example.rollout.num_sampled,
    }


def peak_memory_gib() -> float:
    """The GPU's peak where there is one, else the process's."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
