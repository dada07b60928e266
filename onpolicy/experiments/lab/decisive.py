"""``onpolicy lab decisive``: does protecting expressed uncertainty preserve accuracy on unseen problems, or are the markers only a symptom?

Every arm starts from the same reasoner and differs from the unprotected one in one place (configs/lab/decisive.yaml). Each protection is
compared with its controls: the same weights at other tokens, the same floor under neutral words, the same mixture without the bonus. A
protection works through uncertainty if it preserves more accuracy than its control, and if markers that it does not name are preserved
together with those that it names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from onpolicy.config.resolve import resolve
from onpolicy.config.shipped import SHIPPED
from onpolicy.experiments.analysis.pressure import measure_pressure
from onpolicy.experiments.lab.readout import readout, rounded, versions
from onpolicy.experiments.sweep.compare import (
    Difference,
    against_reference,
    differences,
    equal_budgets,
    last_metrics,
    pass_rates_at,
    pooled_metrics,
)
from onpolicy.experiments.sweep.grid import Cell, cells, read_grid
from onpolicy.experiments.sweep.sweep import sweep
from onpolicy.utils.signals import resumable
from onpolicy.utils.tables import left, table

GRID = SHIPPED / "lab/decisive.yaml"
CONTROLS = {
    "opportunity": ("opportunity_shuffled", "opportunity_like_entropy", "opportunity_neutral"),
    "floor_90": ("floor_neutral",),
    "floor_100_all_words": ("floor_100",),
    "reversal_markers": ("reversal_others", "grpo"),
    "target_rate": ("mixed",),
    "saturating_floor": ("mixed",),
    "recovery": ("mixed",),
    "unprotected": ("other_problem", "wrong_answer"),
}
"""Arm -> arms that differ from it in the one thing that is asked about."""
OUT = "out_of_domain"
METRICS = {
    "accuracy": "avg@4",
    "pass@4": "pass@4",
    "tokens": "completion_length",
    "truncated": "truncated",
    "rewarded_per_1k": "epistemic/rewarded/rate_per_1k",
    "held_out_per_1k": "epistemic/held_out/rate_per_1k",
}
"""Measure -> metric of the evaluation."""
READ = ("corrected", "harmed", "self_doubt_precision", "self_doubt_recall", "attempts")


@resumable()
def decisive(output: Path, jobs: int) -> int:
    """Runs what is missing and writes ``decisive.json``."""
    code = sweep(GRID, output, (), jobs)
    grid = read_grid(GRID)
    finished = [cell for cell in cells(GRID, output) if cell.finished()]
    runs, reference = [cell.run for cell in finished], next(iter(grid.arms))
    budgets, pressure = equal_budgets(runs), arm_pressures(output, finished)
    equal = differences(runs, grid.eval_groups, reference, lambda folder: pass_rates_at(folder, budgets[folder]))
    own, controls = [own_results(c, grid.eval_groups) for c in finished], against_controls(finished, grid.eval_groups)
    report = {
        "versions": versions(),
        "seeds": grid.seeds,
        "runs": own,
        "arms": arm_summaries(finished, pressure, grid.eval_groups),
        "from_start": [asdict(d) for d in against_reference(runs, grid.eval_groups)],
        "against_unprotected": [asdict(d) for d in differences(runs, grid.eval_groups, reference)],
        "against_unprotected_at_equal_tokens": [asdict(d) for d in equal],
        "equal_tokens": {c.factor: budgets[c.folder] for c in finished},
        "pressure_correlation": pressure_correlation(own, pressure),
        "against_controls": [asdict(d) | {"control": control} for control, d in controls],
    }
    (output / "decisive.json").write_text(json.dumps(rounded(report)) + "\n")
    console = Console()
    console.print(controls_table(controls))
    console.print(f"all numbers: {output / 'decisive.json'}", soft_wrap=True)
    return code


def against_controls(
    finished: Sequence[Cell], eval_groups: Mapping[str, Sequence[str]]
) -> list[tuple[str, Difference]]:
    """Each protection minus each of its controls, on every set."""
    found = []
    for arm, controls in CONTROLS.items():
        for control in controls:
            both = [c.run for c in finished if c.arm in (arm, control)]
            if {run[0] for run in both} == {arm, control}:
                found += [(control, d) for d in differences(both, eval_groups, control) if d.arm == arm]
    return found


def arm_pressures(output: Path, finished: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Arm -> lexicon -> relative pressure on the reference model before any training, from one run of each arm.

    Kept in ``pressure.json``.
    """
    path = output / "pressure.json"
    known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.is_file() else {}
    first = {c.arm: c for c in reversed(finished)}
    for arm in track(
        [a for a in first if a not in known], description="pressure", disable=all(a in known for a in first)
    ):
        found, _ = measure_pressure(resolve(first[arm].settings))
        known[arm] = {lexicon: p.relative for lexicon, p in found.items()}
        path.write_text(json.dumps(known, indent=1) + "\n")
    return known


def pressure_correlation(
    own: Sequence[dict[str, Any]], pressure: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Cross -> Spearman's correlation over arms of the pressure on all markers with the accuracy out of domain after training."""
    from scipy.stats import spearmanr

    found = {}
    for factor in dict.fromkeys(row["factor"] for row in own):
        scores: dict[str, list[float]] = {}
        for row in (row for row in own if row["factor"] == factor and row["arm"] in pressure):
            scores.setdefault(row["arm"], []).append(row["accuracy"][OUT])
        result = spearmanr([pressure[arm]["paper10"] for arm in scores], [fmean(values) for values in scores.values()])
        found[factor] = {"spearman": float(result.statistic), "p": float(result.pvalue), "arms": float(len(scores))}
    return found


def own_results(cell: Cell, eval_groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """One run: accuracy by set and on the problems trained on, and the tokens it sampled."""
    metrics = pooled_metrics(last_metrics(cell.folder), eval_groups)
    accuracy = {
        name.split("/")[1]: v for name, v in metrics.items() if name.startswith("eval/") and name.endswith("/avg@4")
    }
    own = {"arm": cell.arm, "factor": cell.factor, "seed": cell.seed}
    return own | {
        "accuracy": accuracy,
        "trained": metrics["group/pass_rate"],
        "sampled_tokens": metrics["tokens/generated"],
    }


def arm_summaries(
    finished: Sequence[Cell], pressure: Mapping[str, Mapping[str, float]], eval_groups: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """A row for each arm and factor: means over seeds of every measure."""
    rows = []
    for arm, factor in dict.fromkeys((c.arm, c.factor) for c in finished):
        chosen = [c for c in finished if (c.arm, c.factor) == (arm, factor)]
        metrics = [pooled_metrics(last_metrics(c.folder), eval_groups) for c in chosen]
        exact = [readout(c.folder, eval_groups) for c in chosen]
        measured = {
            name: {what: fmean(m[f"eval/{name}/{metric}"] for m in metrics) for what, metric in METRICS.items()}
            | {what: fmean(v) for what in READ if (v := [e[name][what] for e in exact if what in e[name]])}
            for name in exact[0]
        }
        rows.append(
            {
                "arm": arm,
                "factor": factor,
                "seeds": len(chosen),
                "sampled_tokens": round(fmean(float(m["tokens/generated"]) for m in metrics)),
                "accuracy_on_trained": round(fmean(float(m["group/pass_rate"]) for m in metrics), 4),
                "pressure": dict(pressure.get(arm, {})),
                "sets": {name: {what: round(v, 4) for what, v in found.items()} for name, found in measured.items()},
            }
        )
    return rows


def controls_table(found: Sequence[tuple[str, Difference]]) -> Table:
    return table(
        "accuracy out of domain: each protection minus its control, 95 % t interval over seeds and problems",
        ["arm", left("control"), left("problems trained on"), "difference", "95 %"],
        (
            (d.arm, control, d.factor, f"{d.difference:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}")
            for control, d in found
            if d.set == OUT
        ),
    )
