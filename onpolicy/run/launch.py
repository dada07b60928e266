"""``onpolicy train``: everything around the loop."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
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
from onpolicy.utils.faults import RoleLost
from onpolicy.utils.terminal import plain


def launch_training(config_path: Path, overrides: Sequence[str]) -> int:
    """Trains to the last step; 130 when interrupted after a save."""
    resolved = check_config(config_path, overrides)
    config = resolved.config
    if follower():
        return serve_rank(resolved)
    folder = Path(config.run_dir) if config.run_dir else default_folder(config_path)
    display = Display(config.steps, lexicon=config.epistemic.lexicon)
    console = display.console
    console.print(
        f"[bold]onpolicy train[/bold] {plain(config_path)}  [dim]run folder[/dim] {plain(folder)}", highlight=False
    )
    run = assemble(resolved, folder, display)
    try:
        keep_training(run, resolved)
    except Interrupted as stopped:
        why = f": {plain(stopped)}" if str(stopped) else ""
        console.print(f"[yellow]stopped after step {run.step}{why}[/yellow]; resume with:", highlight=False)
        console.print(
            f"  onpolicy train {config_path} {shlex.join([*_without_run_dir(overrides), f'run_dir={folder}'])}",
            highlight=False,
            markup=False,
        )
        return 130
    finally:
        run.close()
    _summarise(run, console)
    return 0


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


def _summarise(run: Run, console: Console) -> None:
    first, last = (run.log.history.get(name, {}) for name in ("first", "last"))
    console.print(closing_table(first, last, lexicon=run.config.epistemic.lexicon))
    latest = run.checkpoints.latest()
    console.print(f"run folder  {plain(run.folder)}", highlight=False)
    console.print("  metrics.jsonl  one line a step      samples.jsonl  rollouts with both prompts", highlight=False)
    if latest:
        console.print(f"  model          {plain(latest.path)}  (loads with from_pretrained and vLLM)", highlight=False)


def _without_run_dir(overrides: Sequence[str]) -> list[str]:
    return [o for o in overrides if not o.startswith("run_dir=")]
