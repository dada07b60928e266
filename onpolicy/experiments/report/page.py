"""Run folders -> one self-contained HTML file: no server, no network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from onpolicy.experiments.report.curves import curves_of
from onpolicy.experiments.report.run_data import arms_of, names_of, read_run
from onpolicy.utils.json_lines import finite

SCRIPTS = (
    *("dom", "state", "arms", "metrics", "headline", "picture", "charts", "table", "comparison"),
    *("tokens", "diff", "samples", "problem", "keys"),
)
"""The page's own scripts, in the order in which they are put together; the one that gets the data and ``main`` follow."""
EMBEDDED, FETCHED = "embedded", "fetched"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src {scripts}; img-src data:; {more}base-uri 'none'; form-action 'none'"


def write_report(
    runs: Sequence[Path],
    output: Path,
    comparison: Mapping[str, Any] | None = None,
    arms: Sequence[str] | None = None,
    figures: str = "",
) -> dict[str, int]:
    """Writes the page; returns how many steps of each run it shows.

    Args:
        runs: folders
        output: the page
        comparison: what a sweep found (``SweepComparison.plain``), shown above the curves
        arms: the arm of each run, of which seeds are repetitions; None: as their configs say
        figures: drawings as SVG, shown with the comparison

    Raises:
        ConfigError: a folder holds no run.
    """
    read = [read_run(path, name, len(runs)) for path, name in zip(runs, names_of(runs), strict=True)]
    data = [run for run, _, _ in read]
    for run, curves in zip(data, curves_of([columns for _, columns, _ in read]), strict=True):
        run["curves"] = curves
    title = " · ".join(run["name"] for run in data)
    page, _ = report_page(
        {"runs": data, "arms": arms_of(data, arms), "comparison": comparison}, title, EMBEDDED, figures
    )
    # a lone surrogate in a hand-made log must not lose the page
    output.write_bytes(page.encode(errors="replace"))
    return {run["name"]: rows for run, _, rows in read}


def report_page(data: Mapping[str, Any], title: str, source: str, figures: str = "") -> tuple[str, str]:
    """The page, and the content policy that it keeps.

    Args:
        data: what its script reads
        title: of the window
        source: EMBEDDED: ``data`` is all there is; FETCHED: the script asks the server that gave it the page
        figures: drawings as SVG
    """
    here = files("onpolicy.experiments.report")
    names = (*SCRIPTS, source, "main")
    own = '"use strict";\n' + "".join((here / "js" / f"{name}.js").read_text() for name in names)
    library = (here / "vendor" / "uPlot.iife.min.js").read_text()
    scripts = " ".join(f"'sha256-{_digest(script)}'" for script in (library, own))
    policy = POLICY.format(scripts=scripts, more="connect-src 'self'; " if source == FETCHED else "")
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(title),
        "STYLE": (here / "vendor" / "uPlot.min.css").read_text()
        + (here / "page.css").read_text()
        + (here / "view.css").read_text(),
        "LIBRARY": library,
        "SCRIPT": own,
        "FIGURES": figures,
        "WHAT": "view" if source == FETCHED else "report",
        "DATA": embedded(data),
    }
    # in one pass, so that inserted text is not scanned again
    page = re.sub(r"@@([A-Z]+)@@", lambda match: parts[match.group(1)], (here / "page.html").read_text())
    return page, policy


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def embedded(value: Any) -> str:
    """JSON that cannot end the element it stands in, whatever a model wrote."""
    text = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
