"""Prints the tables of docs/paper.md from docs/results/paper/: python scripts/paper_tables.py"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lab_tables import SETS, interval, table

RESULTS = Path("docs/results/paper")
LENGTH, RATE = "eval/other_map/completion_length", "eval/other_map/epistemic/seed10/rate_per_1k"


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
    measures = ("score", "tokens", "paper_count", "paper_per_1k", "rate/seed10")

    def cells(rows: Sequence[Any]) -> Iterable[str]:
        yield from (spread([r["mean"][m]["mean"] for r in rows]) for m in measures)
        for side in ("guided", "unguided"):
            yield spread([r["gain"][side]["mean"] for r in rows]) if rows[0]["gain"] else "–"

    print("section 3\n")
    table(
        (
            "context",
            "score",
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
        cells = [share(by_arm[arm, s], arm == found["reference"]) for s in SETS]
        rows.append([arm, f"{trained_on[arm]:,.0f}", *cells, f"{mean_of(runs, arm, LENGTH):.0f}"])
    print("section 4\n")
    table(("fine-tuned on", "tokens trained", *SETS, "tokens of an answer"), rows)


def trained(name: str) -> None:
    """Accuracy at the end, against the start and against the first arm; length, doubt and cost."""
    found, runs = comparison(name), last(name)
    against = {(d["cross"], d["arm"], d["set"]): d for d in found["differences"]}
    start = {(d["cross"], d["arm"], d["set"]): d for d in found["from_start"]}
    dear = {(b["cross"], b["arm"]): b["mean"] for b in found["budgets"] if b["kind"] == "generated"}
    rows = [
        [
            *([cross] if cross else []), arm,
            f"{start[cross, arm, 'unseen']['mean']:.2f}",
            f"{d['mean']:.2f} ± {d['spread']:.2f}",
            interval(d),
            "–" if arm == found["reference"] else interval(against[cross, arm, of]),
            f"{mean_of(runs, arm, LENGTH, cross):.0f}", f"{mean_of(runs, arm, RATE, cross):.0f}",
            f"{dear[cross, arm] / 1000:.0f}k",
        ]
        for (cross, arm, of), d in start.items() if of == "out_of_domain"
    ]  # fmt: skip
    head = [
        "arm",
        "in domain",
        "out of domain",
        "less start",
        f"less {found['reference']}",
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
            "answers",
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


def mean_of(runs: Sequence[dict[str, str]], arm: str, metric: str, cross: str = "") -> float:
    return fmean(float(r[metric]) for r in runs if (r["arm"], r["cross"]) == (arm, cross))


def spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3g} ± {stdev(values):.2g}"


def share(d: Any, reference: bool) -> str:
    return f"{d['mean']:.2f}" if reference else f"{d['mean']:.2f}, {interval(d)}"


if __name__ == "__main__":
    main()
