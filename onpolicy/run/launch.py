"""``onpolicy train``: everything around the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.shipped import config_argument
from onpolicy.contracts import check_config
from onpolicy.distributed.env import follower
from onpolicy.distributed.torchrun_group import serve_rank
from onpolicy.run.assemble import assemble
from onpolicy.run.check_run import check_run
from onpolicy.run.closing import change_of_evaluation, evaluation_change_table, training_change_table
from onpolicy.run.display import Display
from onpolicy.run.preflight import run_preflight
from onpolicy.run.recovery import Recovery
from onpolicy.run.run import Interrupted, Run
from onpolicy.run.run_dir import default_folder, with_precision_of
from onpolicy.run.run_lock import exclusive
from onpolicy.train import train
from onpolicy.trainer.learning_rate import same_rates
from onpolicy.types import Metrics
from onpolicy.utils.errors import UserError
from onpolicy.utils.faults import RoleLost
from onpolicy.utils.terminal import command_line, plain, print_next


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


def launch_training(
    config_path: Path, overrides: Sequence[str], write_report: Callable[[Path], Path] | None = None
) -> int:
    """Trains to the last step, and says what came of it.

    Args:
        config_path: the config
        overrides: ``key=value``
        write_report: writes the page about the run in a folder, and returns its path

    Returns:
        The exit status, 130 where the run was interrupted and saved.
    """
    if follower():  # which reads no data and writes no metrics, so may be where the files are not
        return serve_rank(check_config(config_path, overrides))
    resolved = check_run(config_path, overrides)
    result = run_training(resolved, config_path)
    again = [
        "train",
        config_argument(config_path),
        *_without(("run_dir", "steps"), overrides),
        f"run_dir={result.folder}",
    ]
    console = Console()
    if result.stopped is None:
        _summarise(result, resolved, console)
        _say_files(result, console, write_report)
        print_next(*_next(result, resolved, config_path, overrides, again))
        return 0
    why = f": {plain(result.stopped)}" if result.stopped else ""
    console.print(
        f"[yellow]stopped after step {result.step}{why}[/yellow]; resume with:", highlight=False, soft_wrap=True
    )
    print(
        f"  {command_line([*again, *_only('steps', overrides)])}"
    )  # rich would fold it, and paint what it takes for markup
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
    resolved = with_precision_of(folder, resolved)
    rare = {"save": config.checkpoint.every} | ({"evaluate": config.eval.every} if config.eval.every else {})
    most = resolved.generator.settings.max_tokens
    display = Display(config.steps, lexicon=config.epistemic.lexicon, most_tokens=most, every=rare)
    display.console.print(
        f"[bold]onpolicy train[/bold] {plain(config_argument(source))}  [dim]run folder[/dim] {plain(folder)}  "
        f"[dim]generator[/dim] {plain(resolved.generator.plugin.with_reason)}",
        highlight=False,
        soft_wrap=True,
    )
    stopped = None
    with display.never_silent(), exclusive(folder, display.note):
        run = assemble(resolved, folder, display)
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
                display.phase("check")
                run_preflight(run, resolved)
            with display:
                train(run)
            return
        except RoleLost as error:
            lost = error.with_traceback(None)  # its frames would keep the loop that it ended open


def _summarise(result: TrainResult, resolved: ResolvedConfig, console: Console) -> None:
    """What changed in training, then what it did to the problems of the evaluation."""
    lexicon = resolved.config.epistemic.lexicon
    console.print(training_change_table(result.first, result.metrics, lexicon=lexicon))
    change = change_of_evaluation(result.folder, resolved.eval_sets, result.step, lexicon, result.first, result.metrics)
    if change is not None:
        console.print(evaluation_change_table(change))
        for line in change.in_words():
            console.print(plain(line), highlight=False, soft_wrap=True)


def _say_files(result: TrainResult, console: Console, write_report: Callable[[Path], Path] | None) -> None:
    def say(what: str, text: str, meaning: str = "") -> None:
        note = f"  [dim]{meaning}[/dim]" if meaning else ""
        console.print(f"{what:<11} {plain(text)}{note}", highlight=False, soft_wrap=True)

    say("run folder", str(result.folder))
    say("  metrics", "metrics.jsonl", "one line a step; samples.jsonl has rollouts with both prompts")
    if result.model_path:
        say("  model", str(result.model_path), "loads with from_pretrained and vLLM")
    if write_report is None:
        return
    try:
        say("  report", str(write_report(result.folder)), "open it in a browser: curves, and rollouts token by token")
    except (OSError, UserError) as error:  # the run is over and saved: this alone has failed
        say("  report", f"could not be written: {error}")


def _next(
    result: TrainResult, resolved: ResolvedConfig, config_path: Path, overrides: Sequence[str], again: Sequence[str]
) -> Iterator[list[str]]:
    """What can be run after a run: an evaluation of its model, and more steps."""
    if resolved.eval_sets and result.model_path:
        own = _without(("run_dir", "model.path"), overrides)
        yield ["eval", config_argument(config_path), *own, f"model.path={result.model_path}"]
    steps = resolved.config.steps
    if same_rates(resolved.trainer.settings, steps, 2 * steps):
        yield [*again, f"steps={2 * steps}"]


def _only(key: str, overrides: Sequence[str]) -> list[str]:
    return [o for o in overrides if o.startswith(f"{key}=")]


def _without(keys: Sequence[str], overrides: Sequence[str]) -> list[str]:
    return [o for o in overrides if not o.startswith(tuple(f"{key}=" for key in keys))]
