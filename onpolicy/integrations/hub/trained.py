"""What a run folder says of the model that it holds, for its card."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from onpolicy.config.canonical import canonicalize
from onpolicy.config.compare import fingerprint
from onpolicy.config.resolve import load_resolved
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.run.checkpoint import Checkpoints
from onpolicy.run.closing import EvaluationChange, change_of_evaluation
from onpolicy.run.guards import build_guards, gap_tolerance
from onpolicy.run.inputs import INPUTS
from onpolicy.run.run_dir import logged
from onpolicy.types import Metrics
from onpolicy.utils.errors import ConfigError

ELSEWHERE = ("run_dir", "logging", "checkpoint", "preflight", "distributed")
"""Keys that decide where a run is and what it keeps, not what it computes."""


@dataclass(frozen=True)
class TrainedRun:
    """A run that has saved a model."""

    folder: Path
    resolved: ResolvedConfig
    model: Path
    """The last checkpoint, a Hugging Face folder."""
    step: int
    first: Metrics
    """Every metric at the first step that had it."""
    last: Metrics
    """Every metric at the latest step that had it, up to ``step``."""
    change: EvaluationChange | None
    alarms: tuple[tuple[int, str], ...]
    """Step and reason of each guard that fired."""
    problems: int | None
    """Of the training data; None where the run does not say."""
    digest: str
    """Of the settings that decide what was computed."""

    @property
    def name(self) -> str:
        """As the run is called beside others."""
        return self.resolved.config.logging.name or self.folder.resolve().name


def read_trained(folder: Path) -> TrainedRun:
    """Raises ConfigError where the folder holds no run, or one without a model."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise ConfigError(
            f"{str(folder)!r} holds no run: it has no config.yaml. Expected the folder of a run, as `run_dir` names it"
        )
    saved = Checkpoints(folder / "checkpoints", keep_last=1, best=None).latest()
    if saved is None or not (saved.path / "config.json").is_file():
        raise ConfigError(
            f"{str(folder)!r} holds no model: expected a whole checkpoint in {str(folder / 'checkpoints')!r}"
        )
    resolved = load_resolved(file)
    rows = [row for row in logged(folder) if row["step"] <= saved.step]
    first: Metrics = {}
    last: Metrics = {}
    for row in rows:
        first = row | first
        last = last | row
    guards = build_guards(resolved.guards, gap_tolerance(resolved))
    alarms = [(int(row["step"]), reason) for row in rows for reason, _ in guards.check(int(row["step"]), row)]
    lexicon = resolved.config.epistemic.lexicon
    return TrainedRun(
        folder=folder,
        resolved=resolved,
        model=saved.path,
        step=saved.step,
        first=first,
        last=last,
        change=change_of_evaluation(folder, resolved.eval_sets, saved.step, lexicon, first, last),
        alarms=tuple(alarms),
        problems=_problems(folder),
        digest=hashlib.sha256(fingerprint(canonicalize(resolved), ELSEWHERE).encode()).hexdigest()[:12],
    )


def _problems(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / INPUTS).read_text())["problems"]["data"]["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
