"""Prints the tables of docs/paper.md from docs/results/paper/: python scripts/paper_tables.py"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lab_tables import SETS, difference_ci, table

RESULTS = Path("docs/results/paper")
LENGTH, RATE = "eval/other_map/completion_length", "eval/other_map/epistemic/paper10/rate_per_1k"


def main() -> None:
    section_3()
    section_4()
    for name in ("section_5", "section_6", "controls"):
        trained(name)
    forecasts()


def section_3() -> None:
    """Means over seeds and their standard deviation."""
    seeds = [json.loads(path.read_text())["rows"] for path in sorted(RESULTS.glob("section_3_seed_*.json"))]
    by_name = {
        row["context"]: [next(r for r in rows if r["context"] == row["context"]) for rows in seeds] for row in seeds[0]
    }
    measures = ("score", "tokens", "paper_count", "paper_per_1k", "rate/paper10")

    def cells(rows: Sequence[Any]) -> Iterable[str]:
        yield from (spread([r["mean"][m]["mean"] for r in rows]) for m in measures)
        for side in ("with_context", "without_context"):
            yield spread([r["gain"][side]["mean"] for r in rows]) if rows[0]["gain"] else "–"

    print("section 3\n")
    table(
        (
            "context",
            "accuracy",
            "tokens",
            "markers, paper's count",
            "per 1k",
            "whole words per 1k",
            "tells, nats",
            "disowns, nats",
        ),
        ([name, *cells(rows)] for name, rows in by_name.items()),
    )


def section_4() -> None:
    found, runs = comparison("section_4"), last("section_4")
    trained_on = {(b["arm"]): b["mean"] for b in found["budgets"] if b["kind"] == "trained"}
    by_arm = {(d["arm"], d["set"]): d for d in found["differences"]}
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in by_arm):
        cells = [accuracy(by_arm[arm, s], arm == found["reference"]) for s in SETS]
        rows.append([arm, f"{trained_on[arm]:,.0f}", *cells, f"{mean_of(runs, arm, LENGTH):.0f}"])
    print("section 4\n")
    table(("fine-tuned on", "tokens trained", *SETS, "tokens of an answer"), rows)


def trained(name: str) -> None:
    """Accuracy after training, minus the reference model and minus the first arm; length, markers and cost."""
    found, runs = comparison(name), last(name)
    against = {(d["factor"], d["arm"], d["set"]): d for d in found["differences"]}
    start = {(d["factor"], d["arm"], d["set"]): d for d in found["from_start"]}
    dear = {(b["factor"], b["arm"]): b["mean"] for b in found["budgets"] if b["kind"] == "generated"}
    rows = [
        [
            *([factor] if factor else []), arm,
            f"{start[factor, arm, 'unseen']['mean']:.2f}",
            f"{d['mean']:.2f} ± {d['spread']:.2f}",
            difference_ci(d),
            "–" if arm == found["reference"] else difference_ci(against[factor, arm, of]),
            f"{mean_of(runs, arm, LENGTH, factor):.0f}", f"{mean_of(runs, arm, RATE, factor):.0f}",
            f"{dear[factor, arm] / 1000:.0f}k",
        ]
        for (factor, arm, of), d in start.items() if of == "out_of_domain"
    ]  # fmt: skip
    head = [
        "arm",
        "in domain",
        "out of domain",
        "minus reference model",
        f"minus {found['reference']}",
        "tokens",
        "markers per 1k",
        "sampled",
    ]
    print(f"{name}\n")
    table(
        [*(["\\|D\\|" if name == "section_6" else "cap"] if rows[0][0] != found["reference"] else []), *head],
        rows,
    )


def forecasts() -> None:
    found = json.loads((RESULTS / "forecast.json").read_text())
    by_case = {(f["case"], f["arm"], f["assumed"]["gpu"]): f for f in found}
    rows = []
    for case in dict.fromkeys(f["case"] for f in found):
        sdpo, grpo = ([by_case[case, arm, gpu]["hours"] for gpu in ("h100", "b200")] for arm in ("sdpo", "grpo"))
        one = by_case[case, "sdpo", "h100"]
        trainer, generator = (sum(parts.values()) for parts in one["memory"].values())
        cells = (f"{one['assumed']['completion_tokens']:,}", f"{trainer:.0f}", f"{generator:.0f}")
        rows.append([case, *cells, *(f"{s:.3g} / {g:.3g}" for s, g in zip(sdpo, grpo, strict=True))])
    print("forecast\n")
    table(
        (
            "run of 100 steps",
            "answer tokens",
            "GiB of a trainer",
            "of a generator",
            "hours on 8 H100: SDPO / GRPO",
            "on 8 B200",
        ),
        rows,
    )


def comparison(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def last(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def mean_of(runs: Sequence[dict[str, str]], arm: str, metric: str, factor: str = "") -> float:
    return fmean(float(r[metric]) for r in runs if (r["arm"], r["factor"]) == (arm, factor))


def spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3g} ± {stdev(values):.2g}"


def accuracy(d: Any, reference: bool) -> str:
    return f"{d['mean']:.2f}" if reference else f"{d['mean']:.2f}, {difference_ci(d)}"


if __name__ == "__main__":
    main()
