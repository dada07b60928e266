"""``onpolicy eval``: a model on every set, without training."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from onpolicy.config.resolve import load_resolved
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.models import open_model
from onpolicy.rollout.build import with_environment
from onpolicy.run.check_run import training_command
from onpolicy.run.display import Display, evaluation_table
from onpolicy.run.evaluate import build_evaluator
from onpolicy.run.exports import export
from onpolicy.run.loading import evaluation_prompts
from onpolicy.run.placement import build_generator
from onpolicy.run.run_dir import begin_evaluation, default_folder
from onpolicy.types import Metrics
from onpolicy.utils.disk import waiting_for_disk_space
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.faults import Faults
from onpolicy.utils.terminal import plain, print_json, print_next


def launch_evaluation(config_path: Path, overrides: Sequence[str], as_json: bool) -> int:
    """Evaluates ``model.path`` on every set and prints a table, or JSON; one that was cut off goes on in its ``run_dir``."""
    if as_json:
        with contextlib.redirect_stdout(sys.stderr):
            folder, metrics = run_evaluation(load_resolved(config_path, overrides), config_path)
        print_json({"folder": str(folder), "metrics": metrics})
        return 0
    folder, metrics = run_evaluation(load_resolved(config_path, overrides), config_path)
    console = Console()
    console.print(evaluation_table(metrics))
    console.print(
        f"{plain(folder)}: results.json (as lm-evaluation-harness), samples.csv, and every answer",
        highlight=False,
        soft_wrap=True,
    )
    overrides = [o for o in overrides if not o.startswith("run_dir=")]
    print_next(training_command(config_path, overrides))
    return 0


def run_evaluation(resolved: ResolvedConfig, source: Path) -> tuple[Path, Metrics]:
    """Evaluates ``model.path`` on the sets under ``eval.sets``; returns the folder of the evaluation and its metrics.

    Args:
        resolved: the config
        source: file or name that the config comes from; it is printed, and names the folder of a new evaluation

    Raises:
        UserError: the data, the model or the machine does not allow it; the text names the remedy.
    """
    config = resolved.config
    if not resolved.eval_sets:
        raise ConfigError("eval.sets: empty; name at least one set to measure on")
    folder = Path(config.run_dir) if config.run_dir else default_folder(source.with_name(f"eval-{source.name}"))
    console = Console()
    begin_evaluation(folder, resolved)
    console.print(
        f"[bold]onpolicy eval[/bold] {plain(source)}  [dim]to go on if cut off:[/dim] {plain(shlex.quote(f'run_dir={folder}'))}",
        highlight=False,
        soft_wrap=True,
    )
    display = Display(0, console, most_tokens=config.eval.max_tokens or resolved.generator.settings.max_tokens)
    with display.never_silent():
        model = open_model(resolved)
        generator = with_environment(
            resolved, model, build_generator(resolved, model, Faults(display.note)), display.note
        )
        generator.on_progress = display.progress
        try:
            evaluator = build_evaluator(resolved, model, generator, evaluation_prompts(resolved, model.renderer))
            assert evaluator is not None
            display.phase("evaluate")
            with display, waiting_for_disk_space(display.note):
                metrics = evaluator.evaluate(folder, resume=True)
        finally:
            generator.close()
    export(folder, config, metrics)
    return folder, metrics
