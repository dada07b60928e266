"""``onpolicy lab headroom``: the findings of arXiv 2603.24472 where there is something to learn.

First what the reasoner knows before any training, then self-distillation, GRPO and fine-tuning on a task of which it knows part
(configs/lab/headroom_coverage.yaml). In-domain gain is measured on new problems that rest on facts which the training problems rest on too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from onpolicy.config.shipped import SHIPPED
from onpolicy.experiments.lab.claims import (
    DISTILLED,
    IN_DOMAIN,
    LENGTH,
    OUT_OF_DOMAIN,
    PASS_RATE,
    Claim,
    claim_about,
    claims_table,
    narrowest,
    other_arms,
    out_of_domain,
    over_seeds,
    shortened,
)
from onpolicy.experiments.lab.partial_start import measure_start, start_table
from onpolicy.experiments.lab.readout import kept, rounded, versions
from onpolicy.experiments.sweep.compare import Difference, compare, differences
from onpolicy.experiments.sweep.frontier import frontier_points
from onpolicy.experiments.sweep.grid import Cell, cells, read_grid
from onpolicy.experiments.sweep.kept_runs import KEPT, keep
from onpolicy.experiments.sweep.sweep import sweep
from onpolicy.models import PARTIAL_REASONER, resolve_model
from onpolicy.run.run_dir import logged
from onpolicy.types import Metrics
from onpolicy.utils.signals import resumable

GRID = SHIPPED / "lab/headroom_coverage.yaml"
TEACHERS = (DISTILLED, "opsd", "sdpo", "sdpo_without_think")
"""Arms whose teacher is the frozen reasoner. It sees a solution (twice), a successful sibling, the sibling's answer alone."""
FEW = ("1", "8", "64")
"""Numbers of problems on which the paper's self-distillation learns more than rewards alone (section 6.2: up to 128)."""


@resumable()
def headroom(output: Path, jobs: int) -> int:
    """Runs what is missing and writes ``headroom.json``."""
    output.mkdir(parents=True, exist_ok=True)
    start = kept(output / "start.json", lambda: rounded(measure_start(resolve_model(PARTIAL_REASONER))))
    Console().print(start_table(start))
    code = sweep(GRID, output, (), jobs)
    write_headroom(output)
    return code


def write_headroom(output: Path) -> None:
    """What the finished runs under ``output`` say, in ``headroom.json``. What it reads of them is kept in ``kept_runs.jsonl``."""
    console, grid = Console(), read_grid(GRID)
    finished = [cell for cell in cells(GRID, output) if cell.finished()]
    if not finished:
        return
    keep(finished, output / KEPT)
    runs = [cell.run for cell in finished]
    found = compare(runs, grid.eval_groups, reference=DISTILLED)
    claims = [
        *(claim for arm in TEACHERS for claim in (*shortened(finished, arm), *out_of_domain(found, arm))),
        *(claim for arm in TEACHERS for claim in narrowest(finished, found, grid.eval_groups, arm)),
        *other_arms(finished, found),
        *against_grpo(differences(runs, grid.eval_groups, "grpo")),
        *trained_against_grpo(finished),
        *harms_more(
            "f", differences(runs, grid.eval_groups, "sdpo_without_think"), "sdpo", "SDPO minus SDPO without think"
        ),
        *harms_more(
            "e", differences(runs, grid.eval_groups, "searched"), "answers", "fine-tuned on answers minus on searches"
        ),
    ]
    report = {
        "versions": versions(),
        "seeds": sorted({cell.seed for cell in finished}),
        "runs": found.hashes,
        "claims": [asdict(c) | {"verdict": c.verdict} for c in claims],
        "from_start": [asdict(d) for d in found.from_start],
        "trained_on": list(trained_on(finished)),
        "points": [asdict(p) for p in frontier_points(runs, grid.eval_groups, grid.frontier)],
    }
    (output / "headroom.json").write_text(json.dumps(rounded(report)) + "\n")
    console.print(claims_table(claims))
    console.print(f"all numbers: {output / 'headroom.json'}", soft_wrap=True)


def against_grpo(found: Sequence[Difference]) -> Iterator[Claim]:
    """d. Self-distillation learns more than rewards alone on few problems, less on many (the paper's crossing)."""
    chosen = [d for d in found if d.arm in TEACHERS and d.set == IN_DOMAIN]
    for d in chosen:
        text = f"{d.arm} minus GRPO, |D| = {d.factor}: accuracy, new problems of the family"
        yield claim_about("d", text, d, positive=d.factor in FEW)


def trained_against_grpo(finished: Sequence[Cell]) -> Iterator[Claim]:
    """d. The same on the problems that are trained on, which is the paper's own measure: at the first evaluation and at the last step."""
    measured = {c.run[:3]: {step: row[PASS_RATE] for step, row in _sampled(c).items()} for c in finished}
    for arm, factor in dict.fromkeys((c.arm, c.factor) for c in finished if c.arm in TEACHERS):
        for step in (finished[0].settings.eval.every, finished[0].settings.steps):
            gaps = [
                rates[step] - measured["grpo", factor, seed][step]
                for (name, size, seed), rates in measured.items()
                if (name, size) == (arm, factor) and ("grpo", factor, seed) in measured
            ]
            if gaps:
                text = f"{arm} minus GRPO, |D| = {factor}: accuracy on the problems trained on, step {step}"
                yield over_seeds("d", text, gaps, positive=factor in FEW)


def trained_on(finished: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Accuracy and tokens of the rollouts (of fine-tuning: of what it reads), mean over seeds, at step 1 and at every evaluation."""
    for arm, factor in dict.fromkeys((c.arm, c.factor) for c in finished):
        own = [rows for c in finished if (c.arm, c.factor) == (arm, factor) and (rows := _sampled(c))]
        every = finished[0].settings.eval.every
        for step in (1, *range(every, finished[0].settings.steps + 1, every)) if own else ():
            accuracy, tokens = (fmean(rows[step][name] for rows in own) for name in (PASS_RATE, LENGTH))
            yield {
                "arm": arm,
                "factor": factor,
                "step": step,
                "seeds": len(own),
                "accuracy": accuracy,
                "tokens": tokens,
            }


def _sampled(run: Cell) -> dict[int, Metrics]:
    """The rows of the steps that graded rollouts."""
    return {int(row["step"]): row for row in logged(run.folder) if PASS_RATE in row}


def harms_more(letter: str, found: Sequence[Difference], arm: str, said: str) -> Iterator[Claim]:
    """e, f. An arm keeps less out of domain than the one that it is compared with."""
    for d in found:
        if (d.arm, d.set) == (arm, OUT_OF_DOMAIN):
            yield claim_about(letter, f"|D| = {d.factor}: accuracy out of domain, {said}", d, positive=False)
