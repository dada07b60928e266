"""One run: its parts, the steps that it still has to do, what it saves and how it resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onpolicy.annotation.annotate import Annotator
from onpolicy.annotation.scoring import Scorer
from onpolicy.config.schema import Config
from onpolicy.protocols import Generator, Trainer
from onpolicy.rollout.prefetch import RolloutPrefetcher
from onpolicy.run.checkpoint import Checkpoints, read_state, write_state
from onpolicy.run.control import RunControl
from onpolicy.run.evaluate import Evaluator
from onpolicy.run.evaluation_files import evaluation_folder
from onpolicy.run.log import RunLog
from onpolicy.run.rng_state import random_state, set_random_state
from onpolicy.types import Example, Metrics
from onpolicy.utils.disk import waiting_for_disk_space
from onpolicy.utils.errors import CheckpointError, suggest
from onpolicy.utils.signals import on_interrupt
from onpolicy.utils.timer import PhaseTimer

SAVED = ("step", "trainer", "prompts", "random", "history", "coefficients", "guards")
"""What a checkpoint holds in addition to the trainer's tensors."""


class Interrupted(Exception):
    """The run stopped after a step that was saved: on Ctrl-C, SIGTERM, or for the reason that this error holds."""


@dataclass
class Run:
    """The parts of one run, put together by ``onpolicy.run.assemble``, and where it stands."""

    config: Config
    folder: Path
    sampler: RolloutPrefetcher
    scorer: Scorer
    annotator: Annotator
    trainer: Trainer
    generator: Generator
    evaluator: Evaluator | None
    checkpoints: Checkpoints
    control: RunControl
    log: RunLog
    timer: PhaseTimer
    ref_metrics: Metrics = field(default_factory=dict)
    """Metrics of the reference model, logged at step 0."""
    step: int = 0
    """Optimizer steps done."""
    resumed: bool = False
    """Whether the state comes from a checkpoint."""

    def remaining_steps(self) -> Iterator[int]:
        """The steps still to do.

        Raises:
            Interrupted: the user or a guard stopped the run; its last step is saved.
            DiskFull: the disk stayed full.
            CheckpointError: the last checkpoint could not be written.
        """
        waiting = waiting_for_disk_space(
            self.log.note, kept=self.checkpoints.kept, interrupted=lambda: self.control.asked_to_stop
        )
        with on_interrupt(self.control.ask_to_stop), waiting:
            if not self.resumed:
                self._begin()
            for step in range(self.step + 1, self.config.steps + 1):
                self.log.display.start_step(step)
                self.control.start_step(step, self.log.history.get("last", {}))
                yield step
                if self.control.stop_reason is not None and step < self.config.steps:
                    if self.checkpoints.last_begun != step:
                        self.save(step, {})
                    self.checkpoints.finish()
                    raise Interrupted(self.control.stop_reason)
            self.checkpoints.finish()

    def _begin(self) -> None:
        self.finish_step(0, self.ref_metrics | self.evaluate_if_due(0), [])
        if self.config.distributed.num_trainers:  # where the run goes back to if a rank is lost early
            self.save(0, {})

    def evaluate_if_due(self, step: int) -> Metrics:
        every = self.config.eval.every
        if self.evaluator is None or not (due(step, every) or (every and step == self.config.steps)):
            return {}
        with self.timer.phase("evaluate"):
            return self.evaluator.evaluate(evaluation_folder(self.folder, step))

    def finish_step(self, step: int, metrics: Metrics, examples: Sequence[Example]) -> None:
        """Logs a step, and does what guards ask for."""
        self.step = step
        if not metrics:
            return
        self.report_failed_save(wait=False)
        extra = self.control.coefficients.metrics() | {"checkpoint/failed": float(self.checkpoints.failures)}
        logged = self.log.record(step, metrics, examples, extra)
        self.control.apply_guards(step, metrics)
        self.log.display.finish_step(step, logged)

    def save_if_due(self, step: int, metrics: Metrics) -> None:
        """Saves where a checkpoint is due, or the last one could not be written."""
        if self.checkpoints.retry_due or step == self.config.steps or due(step, self.config.checkpoint.every):
            best, known = self.checkpoints.best, self.log.history.get("last", {})
            if best and best not in known:
                self.log.note(
                    f"checkpoint.best_metric: no step has logged {best!r}, so no checkpoint is the best.{suggest(best, known)}"
                )
            self.save(step, metrics)

    def save(self, step: int, metrics: Metrics) -> None:
        """Begins a checkpoint, once the last one is written."""
        with self.timer.phase("save"):
            self.report_failed_save(wait=True)
            self.checkpoints.begin(step, self._write, metrics)

    def report_failed_save(self, *, wait: bool) -> None:
        """Tells the user of a checkpoint that could not be written; the run goes on."""
        error = self.checkpoints.failure(wait=wait)
        if error is not None:
            self.log.note(f"{error}; tried again at the next step")

    def _write(self, folder: Path) -> Callable[[], None]:
        """Everything that decides what comes next; returns what writes the rest of it."""
        write_state(
            folder,
            {
                "step": self.step,
                "trainer": self.trainer.state(),
                "prompts": self.sampler.state(),
                "random": random_state(),
                "history": self.log.history,
                **self.control.state(),
            },
        )
        return self.trainer.save(folder)

    def resume(self) -> bool:
        """Continues from the last whole checkpoint; returns whether there is one."""
        checkpoint = self.checkpoints.latest()
        if checkpoint is None:
            return False
        self.sampler.cancel()
        state = read_state(checkpoint.path)
        missing = [name for name in SAVED if name not in state]
        if missing:
            raise CheckpointError(f"{str(checkpoint.path)!r} is not the state of a run: it lacks {', '.join(missing)}")
        self.trainer.load_state(checkpoint.path, state["trainer"])
        self.sampler.load_state(state["prompts"])
        set_random_state(state["random"])
        self.log.history, self.step = state["history"], state["step"]
        self.control.load_state(state)
        self.generator.reset_version()  # a checkpoint of step 0 is as new as the weights that a generator starts with
        self.generator.update_weights(self.trainer.weights(), version=self.step)
        self.resumed = True
        return True

    def close(self) -> None:
        self.log.close()
        self.trainer.close()  # before an engine in this process, which takes its process group along
        self.generator.close()
        self.scorer.close()
        self.sampler.close()


def due(step: int, every: int) -> bool:
    """Whether what happens every so many steps (0: never) happens after this one."""
    return bool(every) and step % every == 0
