"""``onpolicy lab reproduce``: the findings of arXiv 2603.24472 as claims about the reasoner, each tested with a 95 % t interval.

A claim holds where its whole interval lies on the side that the paper's finding names, fails where it lies on the other, and is open
where it includes zero. Nothing here is tuned to make a claim hold.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from onpolicy.config.resolve import load_resolved, resolve
from onpolicy.config.shipped import SHIPPED
from onpolicy.experiments.analysis.contexts import measure_contexts
from onpolicy.experiments.analysis.pass_rates import ANY_PASS_RATE
from onpolicy.experiments.lab.readout import rounded, versions
from onpolicy.experiments.lab.sets import families
from onpolicy.experiments.sft.sft import Training, prepare_sweep
from onpolicy.experiments.sft.traces import UNGUIDED, TraceRequest
from onpolicy.experiments.sweep.compare import (
    Difference,
    SweepComparison,
    against_reference,
    compare,
    differences,
)
from onpolicy.experiments.sweep.grid import Cell, cells, read_grid
from onpolicy.experiments.sweep.sweep import sweep
from onpolicy.run.run_dir import logged
from onpolicy.utils.signals import resumable
from onpolicy.utils.stats import two_way_t_ci
from onpolicy.utils.tables import coloured, left, table

CONTEXTS, COVERAGE = SHIPPED / "lab/contexts.yaml", SHIPPED / "lab/coverage.yaml"
PROBLEMS = 100
"""Problems answered under each context."""
EXAMPLES = 400
"""Problems whose answers are fine-tuned on."""
IN_DOMAIN, OUT_OF_DOMAIN = "unseen", "out_of_domain"
RATE = "epistemic/paper10/rate_per_1k"


@dataclass(frozen=True)
class Claim:
    """One finding of the paper and its measurement here."""

    letter: str
    text: str
    value: float
    low: float
    high: float
    positive: bool
    """Whether the paper's finding is a value above zero."""

    @property
    def verdict(self) -> str:
        above, below = self.low > 0, self.high < 0
        if not (above or below):
            return "open"
        return "holds" if above == self.positive else "fails"


@resumable()
def reproduce(output: Path, jobs: int) -> int:
    """Runs everything that is not finished and writes ``reproduce.json``."""
    output.mkdir(parents=True, exist_ok=True)
    console = Console()
    grid = read_grid(COVERAGE)
    contexts = [_kept(output / f"contexts-{s}.json", lambda s=s: _contexts(s)) for s in grid.seeds]
    code = sweep(COVERAGE, output / "coverage", (), jobs)
    off_policy = _off_policy(grid.seeds, output / "off_policy", jobs, console)
    finished = [cell for cell in cells(COVERAGE, output / "coverage") if cell.finished()]
    found = compare([cell.run for cell in finished], grid.eval_groups, reference=next(iter(grid.arms)))
    claims = [
        *ordered_contexts(contexts),
        *shortened(finished),
        *out_of_domain(found),
        *narrowest(finished, found, grid.eval_groups),
        *other_arms(finished, found),
        *fine_tuned(off_policy),
    ]
    report = {
        "versions": versions(),
        "seeds": grid.seeds,
        "claims": [asdict(c) | {"verdict": c.verdict} for c in claims],
        "contexts": contexts,
        "from_start": [asdict(d) for d in found.from_start],
        "curves": curves_by_step(finished),
        "off_policy": [asdict(d) for d in off_policy],
    }
    (output / "reproduce.json").write_text(json.dumps(rounded(report)) + "\n")
    console.print(claims_table(claims))
    console.print(f"all numbers: {output / 'reproduce.json'}", soft_wrap=True)
    return code


def _kept(path: Path, make: Any) -> Any:
    """The measurement in the file, made now if the file does not exist."""
    if not path.is_file():
        path.write_text(json.dumps(make(), indent=1) + "\n")
    return json.loads(path.read_text())


def _contexts(seed: int) -> list[dict[str, Any]]:
    own = (f"seed={seed}", f"data.coverage={{problems: {PROBLEMS}, seed: {seed}}}")  # other problems with each seed
    rows: list[dict[str, Any]] = measure_contexts(load_resolved(CONTEXTS, own), PROBLEMS, ANY_PASS_RATE).as_json()[
        "rows"
    ]
    return [{k: v for k, v in row.items() if k != "by_problem"} for row in rows]


def _off_policy(seeds: Sequence[int], output: Path, jobs: int, console: Console) -> list[Difference]:
    """Each arm of ``onpolicy sft`` minus the unguided one."""
    grid = read_grid(COVERAGE)
    overrides = (f'data.coverage={{problems: {EXAMPLES}, seed: "${{seed}}"}}', "trainer.lr=3e-4")
    request, training = TraceRequest(EXAMPLES, ANY_PASS_RATE, "teacher"), Training(3, 32, seeds)
    made = prepare_sweep(COVERAGE.parent / grid.config, overrides, request, training, output, console)
    sweep(made, output, (), jobs)
    return differences([c.run for c in cells(made, output) if c.finished()], grid.eval_groups, UNGUIDED)


def ordered_contexts(measured: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[Claim]:
    """a. Each richer context minus the one before, over seeds."""
    by_name = [{row["context"]: row for row in rows} for rows in measured]
    names = ["unguided", "partial", "regenerated", "full"]
    for poorer, richer in itertools.pairwise(names):
        for what, read in (
            ("tokens", lambda r: r["mean"]["tokens"]["mean"]),
            ("markers per 1k", lambda r: r["mean"]["rate/paper10"]["mean"]),
        ):
            gaps = [read(rows[richer]) - read(rows[poorer]) for rows in by_name]
            yield over_seeds("a", f"{what}: {richer} minus {poorer}", gaps, positive=False)


def shortened(finished: Sequence[Cell]) -> Iterator[Claim]:
    """b. Length, markers, and reward on the problems trained on, last step minus reference model."""
    for factor in dict.fromkeys(c.factor for c in finished):
        chosen = [c for c in finished if (c.arm, c.factor) == ("distilled", factor)]
        if not chosen:
            continue
        for what, metric, positive in (
            ("tokens of the rollouts", "rollout/completion_length/mean", False),
            ("markers per 1k in the rollouts", RATE, False),
            ("accuracy on the problems trained on", "group/pass_rate", True),
        ):
            gaps = [_gap(c.folder, metric) for c in chosen]
            yield over_seeds("b", f"|D| = {factor}: {what}, last minus first step", gaps, positive=positive)


def out_of_domain(found: SweepComparison) -> Iterator[Claim]:
    """b. Accuracy on new problems of the family and out of domain."""
    for d in found.from_start:
        if d.arm == "distilled" and d.set in (IN_DOMAIN, OUT_OF_DOMAIN):
            where = "new problems of the family" if d.set == IN_DOMAIN else "out of domain"
            yield _claim(
                "b", f"|D| = {d.factor}: accuracy, {where}, minus reference model", d, positive=d.set == IN_DOMAIN
            )


def narrowest(
    finished: Sequence[Cell], found: SweepComparison, eval_groups: Mapping[str, Sequence[str]]
) -> Iterator[Claim]:
    """b. The coverage curve: what ten times as many problems bring out of domain, by a line through each seed's runs."""
    slopes = []
    for seed in dict.fromkeys(c.seed for c in finished):
        chosen = [c for c in finished if (c.arm, c.seed) == ("distilled", seed)]
        if len(chosen) > 1:
            changes = against_reference([c.run for c in chosen], eval_groups)
            own = {d.factor: d.difference for d in changes if d.set == OUT_OF_DOMAIN}
            slopes.append(
                linear_regression([math.log10(seen(c)) for c in chosen], [own[c.factor] for c in chosen]).slope
            )
    if slopes:
        worst = min(
            (d for d in found.from_start if (d.arm, d.set) == ("distilled", OUT_OF_DOMAIN)), key=lambda d: d.difference
        )
        text = f"accuracy out of domain minus reference model, per factor of ten in |D| (worst at {worst.factor})"
        yield over_seeds("b", text, slopes, positive=True)


def seen(cell: Cell) -> int:
    """The number of different problems that a run trains on, limited by its steps."""
    resolved = resolve(cell.settings)
    visited = cell.settings.steps * resolved.data.settings.prompts_per_step
    return min(visited, resolved.data.settings.coverage.problems or len(families()["route-a-2"].train))


def other_arms(finished: Sequence[Cell], found: SweepComparison) -> Iterator[Claim]:
    """c. A moving teacher against a still one; d. GRPO against the reference model."""
    for d in found.differences:
        if (d.arm, d.set) == ("moving_teacher", OUT_OF_DOMAIN):
            yield _claim(
                "c", f"|D| = {d.factor}: accuracy out of domain, moving (EMA) teacher minus frozen", d, positive=False
            )
    for d in found.from_start:
        if (d.arm, d.set) == ("grpo", OUT_OF_DOMAIN):
            yield _claim("d", f"|D| = {d.factor}: accuracy out of domain, GRPO minus reference model", d, positive=True)
            chosen = [c for c in finished if (c.arm, c.factor) == ("grpo", d.factor)]
            gaps = [_gap(c.folder, RATE) for c in chosen]
            yield over_seeds("d", f"|D| = {d.factor}: markers per 1k, GRPO, last minus first step", gaps, positive=True)


def fine_tuned(measured: Sequence[Difference]) -> Iterator[Claim]:
    """e. Fine-tuning on guided answers against fine-tuning on unguided ones."""
    for d in measured:
        if d.set == OUT_OF_DOMAIN and d.arm != UNGUIDED:
            yield _claim("e", f"accuracy out of domain, fine-tuned on {d.arm} minus on unguided", d, positive=False)


def over_seeds(letter: str, text: str, gaps: Sequence[float], *, positive: bool) -> Claim:
    """The mean over seeds with a t interval; with one seed, an interval without bounds."""
    mean = fmean(gaps)
    low, high = two_way_t_ci(np.array(gaps)[:, None]) if len(gaps) > 1 else (mean - 1e9, mean + 1e9)
    return Claim(letter, text, mean, low, high, positive)


def curves_by_step(finished: Sequence[Cell]) -> list[dict[str, Any]]:
    """Accuracy, length and markers by step of every run: what the figures are drawn from."""
    kept = ("group/pass_rate", "rollout/completion_length/mean", RATE, "rollout/sampled_tokens")
    return [
        {"arm": c.arm, "factor": c.factor, "seed": c.seed}
        | {n: [[r["step"], round(r[n], 4)] for r in logged(c.folder) if n in r] for n in (*kept, *_scores(c.folder))}
        for c in finished
    ]


def claims_table(claims: Sequence[Claim]) -> Table:
    colours = {"holds": "green", "fails": "red", "open": "yellow"}
    return table(
        "findings of arXiv 2603.24472 in miniature",
        ["", left("claim"), "measured", "95 %", left("the paper"), left("here")],
        (
            (
                c.letter,
                c.text,
                f"{c.value:+.3g}",
                f"{c.low:+.2g} to {c.high:+.2g}",
                "> 0" if c.positive else "< 0",
                coloured(c.verdict, colours[c.verdict]),
            )
            for c in claims
        ),
    )


def _claim(letter: str, text: str, d: Difference, *, positive: bool) -> Claim:
    return Claim(letter, text, d.difference, d.low, d.high, positive)


def _scores(folder: Path) -> list[str]:
    return sorted({n for row in logged(folder) for n in row if n.startswith("eval/") and n.endswith("/avg@4")})


def _gap(folder: Path, metric: str) -> float:
    values = [row[metric] for row in logged(folder) if metric in row]
    return values[-1] - values[0]
