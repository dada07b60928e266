"""Saves and finds checkpoints.

A checkpoint is a Hugging Face model folder (``from_pretrained`` and vLLM load it as it is) with what a resumed run needs in addition:
``state.json``, ``state/run.safetensors``, and the trainer's own ``state/rank-*.safetensors``. Nothing is pickled. The tensors are in a
folder of their own because vLLM takes every tensor file next to the model for a part of it.
A checkpoint is written under a temporary name, flushed, completed with a manifest of its files' sizes, and only then renamed.
So a checkpoint under its final name is whole; one whose files do not match its manifest is ignored.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onpolicy.types import Metrics
from onpolicy.utils.disk import free_space, retry_while_disk_full
from onpolicy.utils.errors import CheckpointError

MANIFEST = "manifest.json"
TENSORS = "state/run.safetensors"


Write = Callable[[Path], Callable[[], None]]
"""Writes the state as it is now to a folder, or copies it; what is returned writes the copy, on any thread."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    score: float | None
    """The value of the metric named by ``checkpoint.best_metric``; None where there is none."""


class Checkpoints:
    """The checkpoints of one run, in ``<run>/checkpoints/step-<n>``."""

    def __init__(self, folder: Path, *, keep_last: int, best: str | None) -> None:
        self.folder, self.keep_last, self.best = folder, keep_last, best
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Checkpoint] | None = None
        self._again: Callable[[], None] | None = None
        """Begins the last checkpoint once more, as long as it is not known to be written."""
        self.last_begun: int | None = None
        """Step of the checkpoint begun last by this process."""
        self.failures = 0
        """Checkpoints that could not be written."""
        self.retry_due = False
        """Whether the last one could not be written."""

    def all(self) -> list[Checkpoint]:
        """Whole checkpoints, oldest first."""
        found = [_read_manifest(path) for path in self.folder.glob("step-*")] if self.folder.is_dir() else []
        return sorted((c for c in found if c is not None), key=lambda c: c.step)

    def latest(self) -> Checkpoint | None:
        return next(reversed(self.all()), None)

    def kept(self) -> str:
        """Says what a run that ends now can be resumed from."""
        latest = self.latest()
        return f"the last whole checkpoint is {str(latest.path)!r}" if latest else "there is no earlier checkpoint"

    def begin(self, step: int, write: Write, metrics: Metrics) -> None:
        """Starts a checkpoint; ends it on a thread where the state was copied, so that training goes on. Waits for an earlier one first.

        Args:
            step: optimizer steps done
            write: writes a Hugging Face folder and everything that resumes the run
            metrics: of this step; where ``best`` is set, its value is read from here if it was measured

        Raises:
            CheckpointError: the earlier one could not be written; this one's failure is that of ``wait``.
            Exception: whatever else the trainer raises, as where a rank is lost: only what cannot be written is tried again.
        """
        self.wait()
        final, unfinished = self.folder / f"step-{step:06d}", self.folder / f".step-{step:06d}.partial"
        self._again = partial(self.begin, step, write, metrics)
        self.last_begun, self.retry_due = step, False
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            rest = write(unfinished)
        except OSError as error:
            self._writing = Future()
            self._writing.set_exception(self._failed(final, unfinished, error))
        else:
            self._writing = self._thread.submit(self._end, step, final, unfinished, rest, metrics)

    def wait(self) -> None:
        """Waits until nothing is being written.

        Raises:
            CheckpointError: what was being written could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
            self._again = None

    def failure(self, *, wait: bool) -> CheckpointError | None:
        """Why the checkpoint begun last could not be written, returned once; None while it is being written, unless ``wait``."""
        if self._writing is None or not (wait or self._writing.done()):
            return None
        try:
            self.wait()
        except CheckpointError as error:
            self.failures, self.retry_due = self.failures + 1, True
            return error
        return None

    @retry_while_disk_full(lambda self: self.folder)
    def finish(self) -> None:
        """Waits until the checkpoint begun last is written; one that could not be written is begun once more, if nothing was trained since.

        Raises:
            CheckpointError: it could not be written this time either.
        """
        if self._writing is None and self._again is not None:
            self._again()
        self.wait()

    def _end(self, step: int, final: Path, unfinished: Path, rest: Callable[[], None], metrics: Metrics) -> Checkpoint:
        score = metrics.get(self.best) if self.best else None
        try:
            rest()
            _seal(unfinished, step, score)
            if final.exists():
                shutil.rmtree(final)
            unfinished.rename(final)
            _flush(self.folder)
        except OSError as error:
            raise self._failed(final, unfinished, error) from error
        self._prune()
        return Checkpoint(path=final, step=step, score=score)

    def _failed(self, final: Path, unfinished: Path, error: OSError) -> CheckpointError:
        """Clears away what cannot be written, and names it: the disk is full, or the folder not writable. Earlier checkpoints stay."""
        shutil.rmtree(unfinished, ignore_errors=True)
        named = CheckpointError(f"could not save {str(final)!r}: {error} ({free_space(self.folder)}); {self.kept()}")
        named.__cause__ = error
        return named

    def _prune(self) -> None:
        checkpoints = self.all()
        keep = {c.path for c in checkpoints[-self.keep_last :]}
        scored = [c for c in checkpoints if c.score is not None]
        if scored:
            keep.add(max(scored, key=lambda c: (c.score, c.step)).path)
        for checkpoint in checkpoints:
            if checkpoint.path not in keep:
                shutil.rmtree(checkpoint.path, ignore_errors=True)  # failing to delete one is no reason to end a run
        for unfinished in self.folder.glob(
            ".step-*.partial"
        ):  # left by processes that died; nothing is being written now
            shutil.rmtree(unfinished, ignore_errors=True)


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes the tensors to ``state/run.safetensors`` and the tree around them to ``state.json``.

    Raises:
        OSError: the disk is full, or the folder not writable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    tree = _encode(state, tensors)
    (folder / TENSORS).parent.mkdir(exist_ok=True)
    try:
        save_file(tensors, folder / TENSORS)
    except SafetensorError as error:  # its own type for a full disk
        raise OSError(str(error)) from error
    (folder / "state.json").write_text(json.dumps(tree))


def read_state(folder: Path) -> dict[str, Any]:
    """Reads what ``write_state`` wrote, types included."""
    tensors = _tensors_of(folder / TENSORS)
    try:
        state = _decode(json.loads((folder / "state.json").read_text()), tensors)
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
        raise CheckpointError(f"{str(folder / 'state.json')!r} is not the state of a run: {_short(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{str(folder / 'state.json')!r} is not the state of a run: it holds a {type(state).__name__}"
        )
    return state


def _tensors_of(file: Path) -> dict[str, Any]:
    """Raises CheckpointError for a file that is not in the safetensors format; nothing in it is executed."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{str(file)!r} cannot be read: {_short(error)}") from error


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _encode(value: Any, tensors: dict[str, Any]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):  # as pairs: JSON would turn the optimizer's integer keys into strings
        return {"dict": [[key, _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_encode(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(value).__name__}")


def _decode(tree: Any, tensors: Mapping[str, Any]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    if kind not in ("list", "tuple"):
        raise ValueError(f"unknown tag {kind!r}")
    items = [_decode(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _seal(folder: Path, step: int, score: float | None) -> None:
    sizes = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        _flush(file)
        sizes[str(file.relative_to(folder))] = file.stat().st_size
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"step": step, "score": score, "files": sizes}, indent=1))
    _flush(manifest)


def _read_manifest(folder: Path) -> Checkpoint | None:
    """None for a folder that is not a whole checkpoint, or whose manifest names files outside of it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        step, score, files = manifest["step"], manifest["score"], manifest["files"]
        whole = isinstance(step, int) and isinstance(score, int | float | None) and not folder.is_symlink()
        if not whole or any(".." in Path(name).parts or Path(name).is_absolute() for name in files):
            return None
        if any((folder / name).stat().st_size != size for name, size in files.items()):
            return None
        return Checkpoint(path=folder, step=step, score=score)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
