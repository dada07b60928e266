"""The terminal output of a run: a live bar with the phase of the step, and one line for each finished step.

Where the output is not a terminal there is no bar: besides the lines, one says now and then how far the run is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from onpolicy.run.progress import Heartbeat, RunProgress
from onpolicy.types import Metrics
from onpolicy.utils.tables import table
from onpolicy.utils.terminal import plain

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "reward": ("reward/mean",),
    "length": ("rollout/completion_length/mean",),
    "loss": ("train/loss",),
    "teacher gap": ("distill/teacher_gap", "teacher_advantage/teacher_gap"),
    "markers": ("epistemic/{lexicon}/rate_per_1k",),
    "entropy": ("policy/entropy",),
    "seconds": ("time/step",),
}
"""Heading -> the first of these metrics that a step has; ``{lexicon}`` stands for ``epistemic.lexicon``."""


class Display:
    """A context manager that shows the bar, or says how far the run is; every method may also be called outside of it."""

    def __init__(
        self,
        steps: int,
        console: Console | None = None,
        *,
        lexicon: str = "self_doubt",
        most_tokens: int = 0,
        every: Mapping[str, int] | None = None,
    ) -> None:
        """
        Args:
            steps: of the run
            console: where it is shown; None: standard output
            lexicon: whose rate per 1,000 tokens is shown under ``markers``
            most_tokens: that a rollout can have, by which the time left is estimated; 0: not known
            every: phase that few steps have -> it comes every so many steps, and after the last
        """
        self.console = console or Console()
        self._columns = {head: _named(names, lexicon) for head, names in COLUMNS.items()}
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("[cyan]{task.fields[phase]}"),
            TextColumn("[dim]{task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("steps", total=steps, phase="starting", left="")
        self._progress = RunProgress(steps, most_tokens, every or {})
        self._heartbeat = Heartbeat(self._say)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @contextmanager
    def never_silent(self) -> Iterator[None]:
        """Inside, it says how far the run is whenever nothing was said for a while; on a terminal the bar does."""
        if self.console.is_terminal:
            yield
        else:
            with self._heartbeat.running():
                yield

    def start_step(self, step: int) -> None:
        self._progress.start_step(step)
        self._bar.update(self._task, completed=step - 1)

    def phase(self, name: str) -> None:
        self._progress.phase(name)
        self._show_phase()

    def progress(self, done: int, total: int, tokens: int) -> None:
        """Shows how many rollouts of a phase are finished, and how fast tokens come."""
        self._progress.count(done, total, tokens)
        self._show_phase()

    def note(self, text: str) -> None:
        """Prints one line for the user."""
        self._heartbeat.hear()
        self.console.print(f"[yellow]{plain(text)}[/yellow]", soft_wrap=True)

    def finish_step(self, step: int, metrics: Metrics) -> None:
        self._bar.update(self._task, completed=step)
        self._heartbeat.hear()
        if "train/loss" in metrics:
            found = {
                head: next((metrics[n] for n in names if n in metrics), None) for head, names in self._columns.items()
            }
            cells = "  ".join(f"[dim]{head}[/dim] {value:.3g}" for head, value in found.items() if value is not None)
            self.console.print(f"[bold]step {step:>4}[/bold]  {cells}", highlight=False, soft_wrap=True)
        for name, value in metrics.items():
            if name.startswith("eval/") and "/avg@" in name and name.count("/") == 2:
                low, high = metrics[f"{name}/low"], metrics[f"{name}/high"]
                self.console.print(
                    f"[bold]step {step:>4}[/bold]  [green]{plain(name)}[/green] {value:.3f}  [dim]95 % {low:.3f} to {high:.3f}[/dim]",
                    highlight=False,
                    soft_wrap=True,
                )

    def _show_phase(self) -> None:
        if self.console.is_terminal:
            self._bar.update(self._task, phase=self._progress.doing(), left=self._progress.left())

    def _say(self) -> None:
        self.console.print(f"[dim]{plain(self._progress.line())}[/dim]", highlight=False, soft_wrap=True)


def evaluation_table(metrics: Metrics) -> Table:
    """A table of an evaluation, with a column for each set."""
    sets = list(dict.fromkeys(name.split("/")[1] for name in metrics))
    rows = dict.fromkeys(name.split("/", 2)[2] for name in metrics if not name.endswith(("/low", "/high")))
    measured = [(row, *(_measured(metrics, f"eval/{name}/{row}") for name in sets)) for row in rows]
    return table("evaluation", ("measure", *sets), measured)


def _named(names: Sequence[str], lexicon: str) -> tuple[str, ...]:
    return tuple(name.replace("{lexicon}", lexicon) for name in names)


def _measured(metrics: Metrics, name: str) -> str:
    if name not in metrics:
        return "–"
    bounds = f" ({metrics[f'{name}/low']:.3f} to {metrics[f'{name}/high']:.3f})" if f"{name}/low" in metrics else ""
    return f"{metrics[name]:.4g}{bounds}"
