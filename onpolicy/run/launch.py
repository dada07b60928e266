"""``onpolicy train``: everything around the loop."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.contracts import check_config
from onpolicy.distributed.env import follower
from onpolicy.distributed.torchrun_group import serve_rank
from onpolicy.run.assemble import assemble
from onpolicy.run.display import Display, closing_table
from onpolicy.run.preflight import run_preflight
from onpolicy.run.recovery import Recovery
from onpolicy.run.run import Interrupted, Run
from onpolicy.run.run_dir import default_folder
from onpolicy.train import train
from onpolicy.types import Metrics
from onpolicy.utils.faults import RoleLost
from onpolicy.utils.terminal import plain


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind."""

    folder: Path
    """The run folder; given as ``run_dir`` it resumes the run, or trains it for more ``steps``."""
    step: int
    """Optimizer steps done."""
    first: Metrics
    """Every metric at the first step that had it."""
    metrics: Metrics
    """Every metric at the latest step that had it."""
    model_path: Path | None
    """The last checkpoint, a Hugging Face folder; None where none was written."""
    stopped: str | None = None
    """None where every step is done. Else why not: what a guard said, or an empty text after Ctrl-C or SIGTERM."""


def launch_training(config_path: Path, overrides: Sequence[str]) -> int:
    """Trains to the last step; returns the exit status, 130 where the run was interrupted and saved."""
    resolved = check_config(config_path, overrides)
    if follower():
        return serve_rank(resolved)
    result = run_training(resolved, config_path)
    console = Console()
    if result.stopped is None:
        _summarise(result, console)
        return 0
    why = f": {plain(result.stopped)}" if result.stopped else ""
    console.print(f"[yellow]stopped after step {result.step}{why}[/yellow]; resume with:", highlight=False)
    again = shlex.join([*_without_run_dir(overrides), f"run_dir={result.folder}"])
    console.print(f"  onpolicy train {config_path} {again}", highlight=False, markup=False)
    return 130


def run_training(resolved: ResolvedConfig, source: Path) -> TrainResult:
    """Trains to the last step, from where the run in ``run_dir`` stands if there is one.

    Args:
        resolved: the config, checked
        source: file or name that the config comes from; it is printed, and names the folder of a new run

    Raises:
        UserError: the data, the model or the machine does not allow the run; the text names the remedy.
    """
    config = resolved.config
    folder = Path(config.run_dir) if config.run_dir else default_folder(source)
    display = Display(config.steps, lexicon=config.epistemic.lexicon)
    display.console.print(
        f"[bold]onpolicy train[/bold] {plain(source)}  [dim]run folder[/dim] {plain(folder)}", highlight=False
    )
    run, stopped = assemble(resolved, folder, display), None
    try:
        keep_training(run, resolved)
    except Interrupted as interrupted:
        stopped = str(interrupted)
    finally:
        run.close()
    first, last, latest = run.log.history.get("first", {}), run.log.history.get("last", {}), run.checkpoints.latest()
    return TrainResult(folder, run.step, first, last, latest.path if latest else None, stopped)


def keep_training(run: Run, resolved: ResolvedConfig) -> None:
    """Trains to the last step; where a rank of the trainer is lost, training goes on from the last checkpoint."""
    recovery, display = Recovery(run), run.log.display
    lost: RoleLost | None = None
    while True:
        try:
            if lost is not None:
                recovery.go_back(lost)
            elif run.resume():
                display.console.print(f"resumed at step {run.step} of {run.config.steps}", highlight=False)
            elif run.config.preflight.enabled:
                run_preflight(run, resolved)
            with display:
                train(run)
            return
        except RoleLost as error:
            lost = error.with_traceback(None)  # its frames would keep the loop that it ended open


def _summarise(result: TrainResult, console: Console) -> None:
    console.print(closing_table(result.first, result.metrics))
    console.print(f"run folder  {plain(result.folder)}", highlight=False)
    console.print("  metrics.jsonl  one line a step      samples.jsonl  rollouts with both prompts", highlight=False)
    if result.model_path:
        console.print(
            f"  model          {plain(result.model_path)}  (loads with from_pretrained and vLLM)", highlight=False
        )


def _without_run_dir(overrides: Sequence[str]) -> list[str]:
    return [o for o in overrides if not o.startswith("run_dir=")]
