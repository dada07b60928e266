"""Going back to the last checkpoint when a rank of the trainer is lost."""

from __future__ import annotations

from onpolicy.run.run import Run
from onpolicy.utils.faults import GaveUp, RoleLost


class Recovery:
    """Brings a run back to its last checkpoint, at most ``distributed.max_restarts`` times in a row to the same one."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._step, self._times = -1, 0
        """The step that the run went back to last, and how often in a row it was this one."""

    def go_back(self, lost: RoleLost) -> None:
        """Starts the trainer's ranks again and goes back to the last checkpoint, or to the beginning where there is none.

        Raises:
            RoleLost: a rank was lost again meanwhile.
            GaveUp: that happened more than ``distributed.max_restarts`` times without a new checkpoint, or none could be written.
        """
        run = self._run
        run.report_failed_save(wait=True)
        latest = run.checkpoints.latest()
        step = latest.step if latest else -1
        self._times = self._times + 1 if step == self._step else 1
        self._step = step
        where = f"step {step}" if latest else "the beginning"
        if latest is None and run.step:
            raise GaveUp(f"trainer: {lost}; there is no checkpoint to go back to") from lost
        if self._times > run.config.distributed.max_restarts:
            raise GaveUp(
                f"trainer: {lost}; the run went back to {where} {self._times - 1} times (distributed.max_restarts)"
            ) from lost
        run.log.faults.record("trainer", f"{lost}; going back to {where}")
        run.generator.reset_version()
        run.sampler.cancel()
        run.trainer.restart()
        run.log.reopen(step)
        if not run.resume():  # lost before the first step, maybe while preflight had changed its weights
            run.generator.update_weights(run.trainer.weights(), version=0)
        run.timer.pop()
