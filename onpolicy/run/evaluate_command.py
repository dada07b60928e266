"""``onpolicy eval``: a model on every set, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from onpolicy.config.resolve import load_resolved
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.models import open_model
from onpolicy.run.display import Display, evaluation_table
from onpolicy.run.evaluate import build_evaluator
from onpolicy.run.exports import export
from onpolicy.run.placement import build_generator
from onpolicy.run.run_dir import begin_evaluation, default_folder
from onpolicy.types import Metrics
from onpolicy.utils.disk import waiting_for_disk_space
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.faults import Faults
from onpolicy.utils.terminal import plain


def launch_evaluation(config_path: Path, overrides: Sequence[str]) -> int:
    """Evaluates ``model.path`` on every set and prints a table; one that was cut off goes on in its ``run_dir``."""
    folder, metrics = run_evaluation(load_resolved(config_path, overrides), config_path)
    console = Console()
    console.print(evaluation_table(metrics))
    console.print(
        f"{plain(folder)}: results.json (as lm-evaluation-harness), samples.csv, and every answer", highlight=False
    )
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
    begin_evaluation(folder, config)
    console.print(
        f"[bold]onpolicy eval[/bold] {plain(source)}  [dim]to go on if cut off:[/dim] run_dir={plain(folder)}",
        highlight=False,
        soft_wrap=True,
    )
    model = open_model(resolved)
    display = Display(0, console)
    generator = build_generator(resolved, model, Faults(display.note))
    generator.on_progress = display.progress
    try:
        evaluator = build_evaluator(resolved, model, generator)
        assert evaluator is not None
        with display, waiting_for_disk_space(display.note):
            metrics = evaluator.evaluate(folder, resume=True)
    finally:
        generator.close()
    export(folder, config, metrics)
    return folder, metrics
