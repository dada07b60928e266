"""``processes.Runs`` as jobs of Slurm, through submitit: one array for what is started together.

A job that is preempted, or whose time is over, tells its run to finish the step and save, and is queued again; the run goes on there.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy.experiments.sweep.grid import Cell
from onpolicy.experiments.sweep.processes import STOPPED
from onpolicy.experiments.sweep.shared_folder import require_finished
from onpolicy.experiments.sweep.slurm_job import SlurmJob, last_step, require_progress
from onpolicy.experiments.sweep.slurm_settings import SlurmSettings
from onpolicy.utils.errors import ConfigError, UserError
from onpolicy.utils.ready import NotInstalled, extra, is_installed
from onpolicy.utils.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = ".slurm"
"""Below a sweep's output: what submitit keeps of its jobs, and the request to stop."""
LOOK = 1.0
"""Seconds between two looks at the jobs."""
GRACE = 60.0
"""Seconds that jobs have to stop when a sweep ends by an error."""
MOST_TOGETHER = 1000
"""At a time, where no setting says less."""


class SlurmRuns:
    def __init__(self, output: Path, settings: SlurmSettings, *, cluster: str = "slurm") -> None:
        """
        Args:
            output: of the sweep, on a file system that all nodes see
            settings: what each run asks for
            cluster: submitit's name of where jobs run

        Raises:
            UserError: submitit, or Slurm, is not here.
        """
        if not is_installed("submitit"):
            raise NotInstalled(
                f"--slurm: needs the package submitit, which is not installed: {extra('slurm')}, or run with --jobs"
            )
        if cluster == "slurm" and not shutil.which("sbatch"):
            raise ConfigError(
                "--slurm: the command sbatch was not found. Start the sweep where jobs can be submitted, e.g. on a login node; "
                "or run it with --jobs or --ray."
            )
        import submitit

        self.at_once = settings.at_once or MOST_TOGETHER
        self._settings, self._folder = settings, output / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._executor = submitit.AutoExecutor(
            self._folder / "%j", cluster=cluster, **{f"{cluster}_max_num_timeout": settings.requeues}
        )
        self._executor.update_parameters(**settings.parameters(cluster))
        self._asked = 0
        """How often the runs were asked to stop."""
        self._stop = self._folder / f"stop-{os.getpid()}-{time.time_ns()}"
        """Exists once they were: jobs look for it."""
        self._waiting: list[tuple[Cell, Future[int]]] = []
        self._jobs: dict[Future[int], tuple[Cell, Any]] = {}
        self._again: dict[Future[int], list[int]] = {}
        """The last step that a run had logged, each time it was submitted again."""
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="slurm", daemon=True)
        self._watcher.start()

    def start(self, cell: Cell) -> Future[int]:
        cell.folder.mkdir(parents=True, exist_ok=True)
        future: Future[int] = Future()
        with self._lock:
            self._waiting.append((cell, future))
        return future

    def failure(self, cell: Cell, done: Future[int]) -> str | None:
        if error := done.exception():
            if isinstance(error, ConfigError):  # the other runs would end alike
                raise error
            return plain(f"{cell.log} ({type(error).__name__}: {error})")
        if done.result():
            return plain(cell.log)
        require_finished(cell, "--slurm")
        return None

    def stop(self) -> None:
        """Takes what is queued out of the queue; asked again, cancels every job."""
        with self._lock:
            self._asked += 1
            self._stop.touch()
            jobs = [job for _, job in self._jobs.values()]
        if jobs:  # what submitit knows may be ten minutes old; one question is for all of them
            jobs[0].get_info(mode="force")
        for job in jobs:
            if self._asked > 1 or job.state == "PENDING":
                job.cancel(check=False)

    def close(self) -> None:
        if not self._asked:
            self.stop()
        deadline = time.monotonic() + GRACE
        while self._jobs and time.monotonic() < deadline:
            time.sleep(LOOK)
        self._ended.set()
        self._watcher.join()
        self._stop.unlink(missing_ok=True)

    def _watch(self) -> None:
        """Submits what was started, together, and hands on what has ended."""
        while not self._ended.wait(LOOK):
            with self._lock:
                together, self._waiting = self._waiting, []
            self._submit(together)
            for future, (cell, job) in list(self._jobs.items()):
                if job.done():
                    with self._lock:
                        del self._jobs[future]
                    self._hand_on(cell, future, job)

    def _submit(self, together: list[tuple[Cell, Future[int]]]) -> None:
        jobs: list[Any] = []
        try:
            if together and not self._asked:
                most = self._settings.at_once or len(together)  # submitit has a limit of its own
                self._executor.update_parameters(slurm_array_parallelism=most)
                with self._executor.batch():
                    jobs += [self._executor.submit(job) for job in self._jobs_of(together)]
        except Exception as error:  # nothing was submitted: a partition that does not exist, say
            refused = ConfigError(f"--slurm: {str(error).strip() or type(error).__name__}")
            for _, future in together:
                future.set_exception(refused)
            return
        with self._lock:
            for (cell, future), job in zip(together, jobs, strict=False):
                self._jobs[future] = cell, job
        for _, future in together[len(jobs) :]:
            future.set_result(STOPPED)

    def _jobs_of(self, together: list[tuple[Cell, Future[int]]]) -> Iterator[SlurmJob]:
        here = Path.cwd()
        return (SlurmJob(cell, here, here / self._stop, self._settings.cpus) for cell, _ in together)

    def _hand_on(self, cell: Cell, future: Future[int], job: Any) -> None:
        """A run that was told to stop, and not by the sweep, is submitted again: its node goes down, or Slurm wants it for others."""
        try:
            status = job.result()
        except Exception as error:
            if self._asked:
                future.set_result(STOPPED)
            else:
                future.set_exception(error)
            return
        if status != STOPPED or self._asked:
            future.set_result(status)
            return
        again = self._again.setdefault(future, [])
        try:
            again.append(last_step(cell))
            require_progress(cell, again[-2] if again[1:] else None, again[-1])
            if len(again) > self._settings.requeues:
                most = f"requeues={self._settings.requeues}"
                raise UserError(f"--slurm: {cell.name}: stopped by the cluster more often than {most} allows")
        except UserError as error:
            future.set_exception(error)
            return
        with self._lock:
            self._waiting.append((cell, future))
