"""What can be done with runs once their report has been read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from onpolicy.config.load import load
from onpolicy.run.checkpoint import Checkpoints


def evaluations(runs: Sequence[Path]) -> Iterator[list[str]]:
    """The arguments of ``onpolicy eval`` for each run that has saved a model and names sets to evaluate it on; of ``diff`` for several."""
    if len(runs) > 1:
        yield ["diff", *(str(folder / "config.yaml") for folder in runs[:2])]
    for folder in runs:
        config = load(folder / "config.yaml")
        saved = Checkpoints(folder / "checkpoints", keep_last=config.checkpoint.keep_last, best=None).latest()
        if saved and config.eval.sets:
            yield ["eval", str(folder / "config.yaml"), f"model.path={saved.path}"]
