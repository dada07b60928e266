"""``onpolicy diagnose``: is training harming my model? Two checkpoints answer the same problems; what became of it fits one page."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from onpolicy.experiments.diagnose.answers import Asked, answer, opened
from onpolicy.experiments.diagnose.findings import Findings, find, shown_difference, shown_value
from onpolicy.experiments.diagnose.page import write_page
from onpolicy.experiments.diagnose.questions import BUILT_IN, asked_config, asked_problems, resolved_for
from onpolicy.run.loading import drop_overlong
from onpolicy.run.run_dir import default_folder
from onpolicy.types import Prompt
from onpolicy.utils.disk import atomic_write
from onpolicy.utils.errors import ModelError
from onpolicy.utils.tables import Markup, coloured, left, table, with_note
from onpolicy.utils.terminal import plain, print_json

COLOURS = {"harm": "bold red", "change": "bold yellow", "nothing": "bold green"}


def run_diagnosis(
    base: str,
    trained: str,
    data: str | None,
    overrides: Sequence[str],
    problems: int,
    samples: int,
    probes: bool,
    output: Path | None,
    as_json: bool,
) -> int:
    """Compares two checkpoints and prints the verdict; one that was cut off goes on in its ``--output``.

    Raises:
        UserError: a model, the data or the machine does not allow it; the text names the remedy.
    """
    if data is not None and "=" in data and not Path(data).exists():  # no data, but a setting
        overrides = [data, *overrides]
        data = None
    folder = output or default_folder(Path("diagnose"))
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        found = diagnose(
            base, trained, data, overrides, problems=problems, samples=samples, probes=probes, folder=folder
        )
    if as_json:
        print_json({"folder": str(folder)} | found.plain())
        return 0
    print_findings(found, Console())
    print(f"{folder}: diagnosis.html, one page; diagnosis.json; every answer under base and trained")
    return 0


def diagnose(
    base: str,
    trained: str,
    data: str | None,
    overrides: Sequence[str],
    *,
    problems: int,
    samples: int,
    probes: bool,
    folder: Path,
) -> Findings:
    """Has both models answer, one after the other, and writes ``diagnosis.json`` and ``diagnosis.html`` into the folder."""
    console = Console()
    config = asked_config(data, overrides, samples)
    models = {}
    for option, path in (("--base", base), ("--trained", trained)):
        resolved = resolved_for(config, path)
        try:
            models[option] = (resolved, opened(resolved))  # before anything is sampled
        except ModelError as error:
            raise ModelError(str(error).replace("model.path", option)) from error
    first, second = models["--base"], models["--trained"]
    sets = asked_problems(first[0], first[1].renderer, problems)
    for prompts in sets.values():
        drop_overlong(prompts, second[1].renderer, drop=False)
    console.print(
        f"[bold]onpolicy diagnose[/bold] {_asked_in_words(sets, data)}, {samples} answers each  "
        f"[dim]to go on if cut off:[/dim] {plain(shlex.join(['--output', str(folder)]))}",
        highlight=False,
        soft_wrap=True,
    )
    asked = {name: Asked(*model, sets, folder / name) for name, model in (("base", first), ("trained", second))}
    probed = {name: answer(each, name, console, probes=probes) for name, each in asked.items()}
    found = find(asked["base"], asked["trained"], probed)
    atomic_write(folder / "diagnosis.json", json.dumps(found.plain(), indent=1) + "\n")
    write_page(found, folder / "diagnosis.html")
    return found


def _asked_in_words(sets: Mapping[str, Sequence[Prompt]], data: str | None) -> str:
    known = " (grade-school word problems of reasoning-gym)" if data is None and BUILT_IN in sets else ""
    return ", ".join(f"{len(prompts)} problems of {plain(name)}" for name, prompts in sets.items()) + known


def print_findings(found: Findings, console: Console) -> None:
    """The verdict, the measures, and what probes found."""
    colour = COLOURS[found.verdict.found]
    console.print(f"[{colour}]{plain(found.verdict.headline)}[/{colour}]", highlight=False, soft_wrap=True)
    for line in (*found.verdict.details, *found.notes):
        console.print(plain(line), highlight=False, soft_wrap=True)
    console.print(measures_table(found))
    if any(probed.probes for probed in found.probes.values()):
        console.print(probed_table(found))
    for name, probed in found.probes.items():
        if probed.why_not:
            console.print(f"{name}: no probes: {plain(probed.why_not)}", highlight=False, soft_wrap=True)
    console.print(
        f"solved by the base at least once, by the trained model never: {found.lost_in_all}; the other way round: {found.gained}",
        highlight=False,
        soft_wrap=True,
    )


def measures_table(found: Findings) -> Table:
    """A row for each measure; of the primary ones those that differ are coloured."""
    rows: list[tuple[str, ...] | None] = []
    groups = list(dict.fromkeys(m.group for m in found.shown))
    sets = [(f"accuracy: {m.name}", m) for m in found.by_set] if len(found.by_set) > 1 else []
    for group in groups:
        named = [(m.name, m) for m in found.shown if m.group == group] + (sets if group == groups[0] else [])
        rows += [None] if rows else []
        for name, m in named:
            mean, interval = shown_difference(m)
            p = "" if m.p is None else f"{m.p:.3f}"
            rows.append((
                coloured(name, "bold red") if m.differs else name,
                shown_value(m, m.base), shown_value(m, m.trained), with_note(mean, interval, " ") if interval else mean, p,
            ))  # fmt: skip
    title = "trained minus base, 95 % bootstrap interval over problems; p of the primary measures by Holm"
    return table(title, ["measure", "base", "trained", "difference", "p"], rows)


def probed_table(found: Findings) -> Table:
    """Both models' probes."""
    rows: list[tuple[str | Markup, ...]] = [
        (
            name, f"{p.arm} – {p.against}", str(p.problems), f"{p.accuracy.mean:.2f}",
            with_note(f"{p.difference.mean:+.2f}", f"{p.difference.low:+.2f} to {p.difference.high:+.2f}", " "),
        )
        for name, probed in found.probes.items()
        for p in probed.probes
    ]  # fmt: skip
    title = "what leaving out and banning markers does to the accuracy of a model's own answers"
    return table(title, ["model", left("probe"), "problems", "accuracy", "difference"], rows)
