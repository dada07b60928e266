"""Puts the data of a report whose runs are gone into today's page: python scripts/remake_report.py docs/results/paper/section_4.html"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from onpolicy.experiments.report.curves import Columns, curves_of
from onpolicy.experiments.report.page import EMBEDDED, report_page
from onpolicy.experiments.report.run_data import arms_of, settings_shown

SEED = re.compile(r"/seed-\d+$")


def remade(page: str) -> str:
    """The page with the same data; runs whose names differ in the seed alone are one arm."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None, "no report: it holds no data"
    data: dict[str, Any] = json.loads(found.group(1))
    runs = data["runs"]
    logs = [Columns(run.pop("metrics", ())) for run in runs]
    if any(log.last_step is not None for log in logs):  # reports once held whole logs
        for run, curves in zip(runs, curves_of(logs), strict=True):
            run["curves"] = curves
    for run in runs:
        run |= settings_shown(run["config"])
        for rollout in run["rollouts"]:
            rollout.setdefault("contexts", rollout.pop("views", {}))  # as they were once called
    names = [run["name"] for run in runs]
    arms = [SEED.sub("", name) for name in names]
    data["arms"] = arms_of(runs, arms if len(set(arms)) < len(arms) else None)
    return report_page(data, " · ".join(names), EMBEDDED)[0]


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(remade(path.read_text()))


if __name__ == "__main__":
    main()
