"""What ``onpolicy train`` and ``onpolicy eval`` do around the loop."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from onpolicy.config.registry import ConfigError
from onpolicy.config.resolve import ResolvedConfig, resolve
from onpolicy.config.schema import load
from onpolicy.contracts import keep_to_contracts
from onpolicy.distributed.env import follower
from onpolicy.distributed.torchrun_group import serve_rank
from onpolicy.run.assemble import assemble, build_evaluator, build_generator, preflight
from onpolicy.run.display import Display, closing_table, evaluation_table
from onpolicy.run.exports import export
from onpolicy.run.loading import open_model
from onpolicy.run.run import Interrupted, Run
from onpolicy.run.run_dir import begin_evaluation, default_folder
from onpolicy.train import train
from onpolicy.utils.disk import Room
from onpolicy.utils.faults import Faults, RoleLost
from onpolicy.utils.terminal import plain


def launch_training(config_path: Path, overrides: Sequence[str]) -> int:
    """Trains to the last step; 130 when interrupted after a save."""
    config = load(config_path, overrides)
    resolved = resolve(config)
    keep_to_contracts(resolved)
    if follower():
        return serve_rank(resolved)
    folder = Path(config.run_dir) if config.run_dir else default_folder(config_path)
    display = Display(config.steps)
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
    """Trains to the last step; where a rank of the trainer is lost it goes on from the last checkpoint."""
    lost: RoleLost | None = None
    while True:
        try:
            if lost is not None:
                run.recover(lost)
            elif run.resume():
                run.display.console.print(f"resumed at step {run.step} of {run.config.steps}", highlight=False)
            elif run.config.preflight.enabled:
                preflight(run, resolved)
            with run.display:
                train(run)
            return
        except RoleLost as error:
            lost = error


def launch_evaluation(config_path: Path, overrides: Sequence[str]) -> int:
    """Measures ``model.path`` on every set and prints a table; one that was cut off goes on in its ``run_dir``."""
    config = load(config_path, overrides)
    resolved = resolve(config)
    if not resolved.eval_sets:
        raise ConfigError("eval.sets: empty; name at least one set to measure on")
    folder = (
        Path(config.run_dir) if config.run_dir else default_folder(config_path.with_stem(f"eval-{config_path.stem}"))
    )
    console = Console()
    begin_evaluation(folder, config)
    console.print(
        f"[bold]onpolicy eval[/bold] {plain(config_path)}  [dim]to go on if cut off:[/dim] run_dir={plain(folder)}",
        highlight=False,
        soft_wrap=True,
    )
    model = open_model(resolved)
    display = Display(0, console)
    generator = build_generator(resolved, model, Faults(display.note))
    generator.on_progress = display.progress
    try:
        evaluator = build_evaluator(resolved, model, generator, Room(display.note))
        assert evaluator is not None
        with display:
            metrics = evaluator(folder, resume=True)
    finally:
        generator.close()
    export(folder, config, metrics)
    console.print(evaluation_table(metrics))
    console.print(
        f"{plain(folder)}: results.json (as lm-evaluation-harness), samples.csv, and every answer", highlight=False
    )
    return 0


def _summarise(run: Run, console: Console) -> None:
    console.print(closing_table(run.history.get("first", {}), run.history.get("last", {})))
    latest = run.checkpoints.latest()
    console.print(f"run folder  {plain(run.folder)}", highlight=False)
    console.print("  metrics.jsonl  one line a step      samples.jsonl  rollouts with both prompts", highlight=False)
    if latest:
        console.print(f"  model          {plain(latest.path)}  (loads with from_pretrained and vLLM)", highlight=False)


def _without_run_dir(overrides: Sequence[str]) -> list[str]:
    return [o for o in overrides if not o.startswith("run_dir=")]
