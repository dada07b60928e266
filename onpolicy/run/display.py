"""The terminal output of a run: a live bar with the phase of the step, and one line for each finished step.

Where the output is not a terminal only the lines are printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from onpolicy.types import Metrics
from onpolicy.utils.terminal import plain

PHASES = {
    "baseline": "measuring the reference model",
    "generate": "sampling from the student",
    "wait": "waiting for rollouts",
    "reward": "scoring answers",
    "annotate": "choosing what the teacher sees",
    "score": "the teacher reads along",
    "update": "learning",
    "sync": "handing over the weights",
    "evaluate": "evaluating",
    "save": "saving",
}

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "reward": ("reward/mean",),
    "length": ("rollout/completion_length/mean",),
    "loss": ("train/loss",),
    "gap": ("distill/teacher_gap", "teacher_advantage/teacher_gap"),
    "markers": ("epistemic/{lexicon}/rate_per_1k",),
    "entropy": ("policy/entropy",),
    "seconds": ("time/step",),
}
"""Heading -> the first of these metrics that a step has; ``{lexicon}`` stands for ``epistemic.lexicon``."""


class Display:
    """A context manager that shows the bar; every method may also be called outside of it."""

    def __init__(self, steps: int, console: Console | None = None, *, lexicon: str = "self_doubt") -> None:
        """
        Args:
            steps: of the run
            console: where it is shown; None: standard output
            lexicon: whose rate per 1,000 tokens is shown under ``markers``
        """
        self.console = console or Console()
        self._columns = {head: _named(names, lexicon) for head, names in COLUMNS.items()}
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[cyan]{task.fields[phase]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("steps", total=steps, phase="starting")
        self._lines = 0

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start_step(self, step: int) -> None:
        self._bar.update(self._task, completed=step - 1)

    def phase(self, name: str) -> None:
        self._bar.update(self._task, phase=PHASES.get(name, name))

    def progress(self, done: int, total: int) -> None:
        """Shows how many rollouts of a phase are finished."""
        self._bar.update(self._task, phase=f"{PHASES['generate']} {done}/{total}")

    def note(self, text: str) -> None:
        """Prints one line for the user."""
        self.console.print(f"[yellow]{plain(text)}[/yellow]")

    def finish_step(self, step: int, metrics: Metrics) -> None:
        self._bar.update(self._task, completed=step)
        if "train/loss" in metrics:
            found = {
                head: next((metrics[n] for n in names if n in metrics), None) for head, names in self._columns.items()
            }
            cells = "  ".join(f"[dim]{head}[/dim] {value:.3g}" for head, value in found.items() if value is not None)
            self.console.print(f"[bold]step {step:>4}[/bold]  {cells}", highlight=False)
        for name, value in metrics.items():
            if name.startswith("eval/") and "/avg@" in name and name.count("/") == 2:
                low, high = metrics[f"{name}/low"], metrics[f"{name}/high"]
                self.console.print(
                    f"[bold]step {step:>4}[/bold]  [green]{plain(name)}[/green] {value:.3f}  [dim]95 % {low:.3f} to {high:.3f}[/dim]",
                    highlight=False,
                )


SUMMARY = (
    "reward/mean",
    "rollout/completion_length/mean",
    "rollout/truncated",
    "epistemic/{lexicon}/rate_per_1k",
    "epistemic/hedges/rate_per_1k",
    "policy/entropy",
    "rollout/logprob_gap",
)


def closing_table(first: Metrics, last: Metrics, *, lexicon: str = "self_doubt") -> Table:
    """A table of what changed between the first and the last step."""
    table = Table(title="what changed", title_justify="left")
    for heading in ("metric", "first", "last", "change"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    terms = [n for n in first if n == "train/loss" or n.endswith(("/divergence", "/teacher_gap", "/kl"))]
    evals = [n for n in first if n.startswith("eval/") and n.count("/") == 2 and not n.endswith("/problems")]
    for name in dict.fromkeys((*_named(SUMMARY, lexicon), *terms, *evals)):
        if name in first and name in last:
            table.add_row(plain(name), f"{first[name]:.4g}", f"{last[name]:.4g}", f"{last[name] - first[name]:+.3g}")
    return table


def evaluation_table(metrics: Metrics) -> Table:
    """A table of an evaluation, with a column for each set."""
    sets = list(dict.fromkeys(name.split("/")[1] for name in metrics))
    rows = dict.fromkeys(name.split("/", 2)[2] for name in metrics if not name.endswith(("/low", "/high")))
    table = Table(title="evaluation", title_justify="left")
    table.add_column("measure")
    for name in sets:
        table.add_column(plain(name), justify="right")
    for row in rows:
        table.add_row(plain(row), *(_measured(metrics, f"eval/{name}/{row}") for name in sets))
    return table


def _named(names: Sequence[str], lexicon: str) -> tuple[str, ...]:
    return tuple(name.replace("{lexicon}", lexicon) for name in names)


def _measured(metrics: Metrics, name: str) -> str:
    if name not in metrics:
        return "–"
    bounds = f" ({metrics[f'{name}/low']:.3f} to {metrics[f'{name}/high']:.3f})" if f"{name}/low" in metrics else ""
    return f"{metrics[name]:.4g}{bounds}"
