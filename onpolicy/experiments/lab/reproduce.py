"""``onpolicy lab reproduce``: the findings of arXiv 2603.24472 as questions to the reasoner, each answered with an interval.

A claim holds where its whole interval lies on the side that the paper's finding names, fails where it lies on the other, and is open
where it spans zero. Nothing here is tuned to make one hold.
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
from onpolicy.experiments.analysis.answers import measure_contexts
from onpolicy.experiments.analysis.collect import EVERYTHING
from onpolicy.experiments.lab.readout import rounded, versions
from onpolicy.experiments.lab.sets import families
from onpolicy.experiments.sft.collect import UNGUIDED, Wanted
from onpolicy.experiments.sft.sft import Training, prepare
from onpolicy.experiments.sweep.compare import Comparison, Difference, against_reference, compare, differences, interval
from onpolicy.experiments.sweep.sweep import Cell, cells, read_grid, sweep
from onpolicy.run.run_dir import logged

CONTEXTS, COVERAGE = Path("configs/lab/contexts.yaml"), Path("configs/lab/coverage.yaml")
PROBLEMS = 100
"""Problems answered under each context."""
EXAMPLES = 400
"""Problems whose answers are fine-tuned on."""
IN_DOMAIN, OUT_OF_DOMAIN = "unseen", "out_of_domain"
RATE = "epistemic/seed10/rate_per_1k"


@dataclass(frozen=True)
class Claim:
    """One finding of the paper and what came of it here."""

    letter: str
    text: str
    value: float
    low: float
    high: float
    positive: bool
    """Whether the paper's finding means a value above zero."""

    @property
    def verdict(self) -> str:
        above, below = self.low > 0, self.high < 0
        if not (above or below):
            return "open"
        return "holds" if above == self.positive else "fails"


def reproduce(output: Path, jobs: int) -> int:
    """All of it; what is finished is not run again. Writes ``reproduce.json``."""
    output.mkdir(parents=True, exist_ok=True)
    console = Console()
    grid = read_grid(COVERAGE)
    contexts = [_kept(output / f"contexts-{s}.json", lambda s=s: _contexts(s)) for s in grid.seeds]
    code = sweep(COVERAGE, output / "coverage", (), jobs)
    off_policy = _off_policy(grid.seeds, output / "off_policy", jobs, console)
    finished = [cell for cell in cells(COVERAGE, output / "coverage") if cell.finished()]
    found = compare([cell.run for cell in finished], grid.pools, reference=next(iter(grid.arms)))
    claims = [
        *ordered_contexts(contexts),
        *shortened(finished),
        *out_of_domain(found),
        *narrowest(finished, found, grid.pools),
        *other_arms(finished, found),
        *fine_tuned(off_policy),
    ]
    report = {
        "versions": versions(),
        "seeds": grid.seeds,
        "claims": [asdict(c) | {"verdict": c.verdict} for c in claims],
        "contexts": contexts,
        "from_start": [asdict(d) for d in found.from_start],
        "curves": curves(finished),
        "off_policy": [asdict(d) for d in off_policy],
    }
    (output / "reproduce.json").write_text(json.dumps(rounded(report)) + "\n")
    console.print(claims_table(claims))
    console.print(f"all numbers: {output / 'reproduce.json'}", soft_wrap=True)
    return code


def _kept(path: Path, make: Any) -> Any:
    """What was measured before, or is measured now and kept."""
    if not path.is_file():
        path.write_text(json.dumps(make(), indent=1) + "\n")
    return json.loads(path.read_text())


def _contexts(seed: int) -> list[dict[str, Any]]:
    own = (f"seed={seed}", f"data.coverage={{problems: {PROBLEMS}, seed: {seed}}}")  # other problems with each seed
    rows: list[dict[str, Any]] = measure_contexts(load_resolved(CONTEXTS, own), PROBLEMS, EVERYTHING).as_json()["rows"]
    return [{k: v for k, v in row.items() if k != "by_problem"} for row in rows]


def _off_policy(seeds: Sequence[int], output: Path, jobs: int, console: Console) -> list[Difference]:
    """Each arm of ``onpolicy sft`` less the unguided one."""
    grid = read_grid(COVERAGE)
    overrides = (f'data.coverage={{problems: {EXAMPLES}, seed: "${{seed}}"}}', "trainer.lr=3e-4")
    wanted, training = Wanted(EXAMPLES, EVERYTHING, "teacher"), Training(3, 32, seeds)
    made = prepare(COVERAGE.parent / grid.config, overrides, wanted, training, output, console)
    sweep(made, output, (), jobs)
    return differences([c.run for c in cells(made, output) if c.finished()], grid.pools, UNGUIDED)


def ordered_contexts(measured: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[Claim]:
    """a. Each richer context less the one before, over seeds."""
    by_name = [{row["context"]: row for row in rows} for rows in measured]
    names = ["unguided", "partial", "regenerated", "full"]
    for poorer, richer in itertools.pairwise(names):
        for what, read in (
            ("tokens", lambda r: r["mean"]["tokens"]["mean"]),
            ("markers per 1k", lambda r: r["mean"]["rate/seed10"]["mean"]),
        ):
            gaps = [read(rows[richer]) - read(rows[poorer]) for rows in by_name]
            yield over_seeds("a", f"{what}: {richer} less {poorer}", gaps, positive=False)


def shortened(finished: Sequence[Cell]) -> Iterator[Claim]:
    """b. Length, markers, and reward on the problems trained on, last step less start."""
    for cross in dict.fromkeys(c.cross for c in finished):
        chosen = [c for c in finished if (c.arm, c.cross) == ("distilled", cross)]
        if not chosen:
            continue
        for what, metric, positive in (
            ("tokens of the rollouts", "rollout/completion_length/mean", False),
            ("markers per 1k in the rollouts", RATE, False),
            ("right on the problems trained on", "group/right", True),
        ):
            gaps = [_gap(c.folder, metric) for c in chosen]
            yield over_seeds("b", f"|D| = {cross}: {what}, last less first step", gaps, positive=positive)


def out_of_domain(found: Comparison) -> Iterator[Claim]:
    """b. Accuracy on other problems than those of the family."""
    for d in found.from_start:
        if d.arm == "distilled" and d.set in (IN_DOMAIN, OUT_OF_DOMAIN):
            where = "new problems of the family" if d.set == IN_DOMAIN else "out of domain"
            yield _claim("b", f"|D| = {d.cross}: right, {where}, less start", d, positive=d.set == IN_DOMAIN)


def narrowest(finished: Sequence[Cell], found: Comparison, pools: Mapping[str, Sequence[str]]) -> Iterator[Claim]:
    """b. The coverage curve: what ten times as many problems bring out of domain, by a line through each seed's runs."""
    slopes = []
    for seed in dict.fromkeys(c.seed for c in finished):
        chosen = [c for c in finished if (c.arm, c.seed) == ("distilled", seed)]
        if len(chosen) > 1:
            changes = against_reference([c.run for c in chosen], pools)
            own = {d.cross: d.difference for d in changes if d.set == OUT_OF_DOMAIN}
            slopes.append(
                linear_regression([math.log10(seen(c)) for c in chosen], [own[c.cross] for c in chosen]).slope
            )
    if slopes:
        worst = min(
            (d for d in found.from_start if (d.arm, d.set) == ("distilled", OUT_OF_DOMAIN)), key=lambda d: d.difference
        )
        text = f"right out of domain less start, per factor ten of |D| (worst at {worst.cross})"
        yield over_seeds("b", text, slopes, positive=True)


def seen(cell: Cell) -> int:
    """Different problems that a run trains on: not more than it has time for."""
    resolved = resolve(cell.settings)
    visited = cell.settings.steps * resolved.data.settings.prompts_per_step
    return min(visited, resolved.data.settings.coverage.problems or len(families()["route-a-2"].train))


def other_arms(finished: Sequence[Cell], found: Comparison) -> Iterator[Claim]:
    """c. A moving teacher against a still one; d. GRPO against the reference model."""
    for d in found.differences:
        if (d.arm, d.set) == ("moving_teacher", OUT_OF_DOMAIN):
            yield _claim(
                "c", f"|D| = {d.cross}: right out of domain, moving (EMA) teacher less frozen", d, positive=False
            )
    for d in found.from_start:
        if (d.arm, d.set) == ("grpo", OUT_OF_DOMAIN):
            yield _claim("d", f"|D| = {d.cross}: right out of domain, GRPO less start", d, positive=True)
            chosen = [c for c in finished if (c.arm, c.cross) == ("grpo", d.cross)]
            gaps = [_gap(c.folder, RATE) for c in chosen]
            yield over_seeds("d", f"|D| = {d.cross}: markers per 1k, GRPO, last less first step", gaps, positive=True)


def fine_tuned(measured: Sequence[Difference]) -> Iterator[Claim]:
    """e. Fine-tuning on guided answers against fine-tuning on unguided ones."""
    for d in measured:
        if d.set == OUT_OF_DOMAIN and d.arm != UNGUIDED:
            yield _claim("e", f"right out of domain, fine-tuned on {d.arm} less on unguided", d, positive=False)


def over_seeds(letter: str, text: str, gaps: Sequence[float], *, positive: bool) -> Claim:
    """The mean over seeds with a t-interval; with one seed everything is possible."""
    mean = fmean(gaps)
    low, high = interval(np.array(gaps)[:, None]) if len(gaps) > 1 else (mean - 1e9, mean + 1e9)
    return Claim(letter, text, mean, low, high, positive)


def curves(finished: Sequence[Cell]) -> list[dict[str, Any]]:
    """Accuracy, length and markers by step of every run: what the figures are drawn from."""
    kept = ("group/right", "rollout/completion_length/mean", RATE, "rollout/sampled_tokens")
    return [
        {"arm": c.arm, "cross": c.cross, "seed": c.seed}
        | {n: [[r["step"], round(r[n], 4)] for r in logged(c.folder) if n in r] for n in (*kept, *_scores(c.folder))}
        for c in finished
    ]


def claims_table(claims: Sequence[Claim]) -> Table:
    table = Table(title="findings of arXiv 2603.24472 in miniature", title_justify="left")
    for head in ("", "claim", "measured", "95 %", "paper says", ""):
        table.add_column(head, justify="right" if head in ("measured", "95 %") else "left", overflow="fold")
    colours = {"holds": "green", "fails": "red", "open": "yellow"}
    for c in claims:
        verdict = f"[{colours[c.verdict]}]{c.verdict}[/]"
        table.add_row(
            c.letter,
            c.text,
            f"{c.value:+.3g}",
            f"{c.low:+.2g} to {c.high:+.2g}",
            "> 0" if c.positive else "< 0",
            verdict,
        )
    return table


def _claim(letter: str, text: str, d: Difference, *, positive: bool) -> Claim:
    return Claim(letter, text, d.difference, d.low, d.high, positive)


def _scores(folder: Path) -> list[str]:
    return sorted({n for row in logged(folder) for n in row if n.startswith("eval/") and n.endswith("/avg@4")})


def _gap(folder: Path, metric: str) -> float:
    values = [row[metric] for row in logged(folder) if metric in row]
    return values[-1] - values[0]
