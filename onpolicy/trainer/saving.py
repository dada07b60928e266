"""Saves a trainer, and puts it back: trained weights, moments and a teacher that moves, and the student as a Hugging Face folder.

What resumes a run is kept as it is (float32 weights, moments in the optimizer's own format); the Hugging Face folder is the student in the
dtype in which generators compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from onpolicy.trainer.engine import Engine
from onpolicy.trainer.export import ModelExport
from onpolicy.trainer.saved_state import (
    SavedTensors,
    copied,
    failure_of,
    moments_by_parameter,
    own_share,
    total_bytes,
    write_share,
)
from onpolicy.trainer.teacher import TeacherScorer
from onpolicy.trainer.zero3 import full_tensors
from onpolicy.utils.disk import os_error
from onpolicy.utils.errors import CheckpointError
from onpolicy.utils.host_memory import available_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPARE = 1.2
"""A copy is made where so many times its size is free."""
POLL = 1.0
"""Seconds between two looks at a folder that is being written."""


class TrainerFiles:
    """The files of one trainer, written and read on every rank at the same time."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: TeacherScorer,
        engine: Engine,
        weights: Callable[[], Iterable[tuple[str, Tensor]]],
        export: ModelExport | None,
    ) -> None:
        """
        Args:
            student: the model that is trained
            teacher: what moves with it
            engine: holds the weights of both, and the optimizer
            weights: yields the student's full tensors under their Hugging Face names
            export: writes them; None: only what resumes a run is written
        """
        self._student, self._teacher, self._engine = student, teacher, engine
        self._weights, self._export = weights, export

    def save(self, folder: Path, *, at_once: bool = False) -> Callable[[], None]:
        """Writes the state, as it is now, to a folder that exists.

        One rank that has the memory for it copies the state and leaves the writing to whoever calls what is returned, on any thread,
        meanwhile training goes on. Otherwise everything is written before this returns.

        Args:
            folder: of the checkpoint
            at_once: whether nothing may be left for later

        Raises:
            OSError: a rank could not write; raised on every rank.
        """
        if self.copies() and not at_once:
            return self._copied(folder)
        problem = write_share(
            folder, own_share(self._tensors(), self._engine.collectives), self._engine.collectives.rank
        )
        self._agree(problem)
        self._agree(self._export_by_first_rank(folder))
        return _nothing_is_left

    def load(self, folder: Path) -> None:
        """Puts back what ``save`` wrote, one tensor at a time.

        Raises:
            CheckpointError: a tensor is missing or of another shape, or a file cannot be read.
        """
        with SavedTensors(folder) as saved:
            try:
                self._engine.load_weights(saved.under("weights"))
                self._teacher.load_weights(saved.under("teacher"))
                self._engine.load_optimizer_state(moments_by_parameter(saved.under("optimizer")))
            except RuntimeError as error:
                if isinstance(error, CheckpointError):
                    raise
                raise CheckpointError(f"{str(folder)!r} is not of this model: {str(error).splitlines()[0]}") from error

    def num_bytes(self) -> tuple[int, int]:
        """Bytes that resume a run, and of the Hugging Face folder; moments count before they are there."""
        trained = [p for p in self._student.parameters() if p.requires_grad]
        weights = total_bytes(trained)
        teacher = total_bytes(self._teacher.moving())
        exported = 0
        if self._export is not None:
            exported = (
                sum(int(getattr(p, "ds_numel", p.numel())) for p in self._student.parameters()) * self._export.itemsize
            )
        return weights + self._engine.moment_bytes() + teacher, exported

    def copies(self) -> bool:
        """Whether ``save`` leaves the writing for later: there is one rank, and the host has room for a copy of everything."""
        return self._engine.collectives.size == 1 and available_memory() > SPARE * sum(self.num_bytes())

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that resumes a run, whole, one tensor at a time."""
        trained = ((n, p) for n, p in self._student.named_parameters() if p.requires_grad)
        each, moments = self._engine.each, self._engine.optimizer_state()
        return chain(
            ((f"weights/{n}", t) for n, t in each(full_tensors(trained))),
            ((f"teacher/{n}", t) for n, t in each(self._teacher.weights())),
            ((f"optimizer/{n}/{key}", t) for n, state in each(moments) for key, t in state.items()),
        )

    def _copied(self, folder: Path) -> Callable[[], None]:
        tensors = copied(self._tensors())
        student = {} if self._export is None else self._copy_of_student(tensors)

        def write() -> None:
            problem = write_share(folder, tensors.items(), 0)
            if problem is None and self._export is not None:
                problem = failure_of(self._export.write, folder, student)
            if problem is not None:
                raise os_error(getattr(problem, "errno", None), str(problem)) from problem

        return write

    def _copy_of_student(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The student's tensors, those of ``tensors`` where they are among them, others in the export's dtype and a tied one once."""
        assert self._export is not None
        found: dict[str, Tensor] = {}
        for name, tensor in self._weights():
            if name not in self._export.tied:
                known = tensors.get(f"weights/{name}")
                found[name] = self._export.rounded(tensor) if known is None else known
        return found

    def _export_by_first_rank(self, folder: Path) -> BaseException | None:
        held: dict[str, Tensor] = {}
        export, first = self._export, self._engine.collectives.rank == 0
        for name, tensor in self._engine.each(self._weights()):
            if export is not None and first and name not in export.tied:
                held[name] = export.rounded(tensor)
        if export is None or not first:
            return None
        return failure_of(_with_signs_of_life, partial(export.write, folder, held), folder, self._engine.alive)

    def _agree(self, problem: BaseException | None) -> None:
        """Raises on every rank what any of them has met."""
        said = None if problem is None else (getattr(problem, "errno", None), str(problem))
        for rank, found in enumerate(self._engine.collectives.all_gather(said)):
            if found is not None:
                number, text = found
                raise os_error(number, f"rank {rank}: {text}" if self._engine.collectives.size > 1 else text)


def _with_signs_of_life(write: Callable[[], None], folder: Path, alive: Callable[[], None]) -> None:
    """Writes on a thread, and calls ``alive`` whenever the folder has grown meanwhile."""
    with ThreadPoolExecutor(1, "export") as thread:
        writing, before = thread.submit(write), -1
        while not wait([writing], timeout=POLL).done:
            size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
            if size > before:
                alive()
            before = size
        writing.result()


def _nothing_is_left() -> None:
    """Everything has been written."""
