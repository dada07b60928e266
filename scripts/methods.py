"""Writes docs/methods.md: every config as a point on the axes, then every name with its formula and file.

python scripts/methods.py > docs/methods.md
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onpolicy.config.builtins import TABLES
from onpolicy.config.registry import find_function
from onpolicy.experiments.parity.table import described
from onpolicy.run.axes import axes, read

ROOT = Path(__file__).parent.parent
PARITY = ROOT / "docs/results/parity.json"
"""Written by ``onpolicy parity --output docs/results/parity.json``."""
COLUMNS = (
    "context",
    "teacher",
    "objective",
    "target",
    "support",
    "divergence",
    "token_weights",
    "select",
    "route",
    "advantage",
)
KINDS = ("term", "advantage", "divergence", "support", "target", "token_weights", "route", "credit", "teacher", "context", "span",
         "schedule")  # fmt: skip
HEAD = """# Methods

<!-- written by `make docs` from configs/ and the docstrings; a test keeps it in step -->

Every published method is a point on the same axes, and a config names the point. An empty cell is the default: the teacher's
own distribution, the whole vocabulary, all tokens alike, every rollout, the group's advantage. `|` stands between the terms of one
objective. `onpolicy diff A B` says what two configs change. *Source* is what the config was written from and how sure that is; its
first lines say what differs from the original. *Published code* is what the config's loss and its gradient on the student's logits
were compared with, and the power of ten below which their largest relative difference stays (`onpolicy parity`;
docs/results/parity.json). Confidence is high where this comparison holds.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_table(), "", "## Formulas", "", *_formulas()]) + "\n"


def _table() -> Iterator[str]:
    heads = ("method", "published code", *(c.replace("_", " ") for c in COLUMNS), "credit, rewards, rest", "source")
    compared = {row["method"]: row for row in json.loads(PARITY.read_text())}
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        point, comment = axes(read(path)), header(path)
        rest = "; ".join(
            f"{axis}: {point[axis]}"
            for axis in (
                "credit",
                "rewards",
                "normalize",
                "schedule",
                "dynamic sampling",
                "privileged rollouts",
                "spans",
            )
            if point[axis]
        )
        cells = [point[column] for column in COLUMNS]
        cells = [
            f"[{path.stem}](../configs/{path.name})",
            _published(compared.get(path.stem), comment["source"]),
            *(f"`{c}`" if c else "" for c in cells),
            f"`{rest}`" if rest else "",
            comment["source"],
        ]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _published(found: Mapping[str, Any] | None, source: str) -> str:
    if found is not None:
        return described(found)
    return "none found" if "no public code found" in source else ""


def header(path: Path) -> dict[str, str]:
    """The opening comment: what the config is, its source, what differs."""
    text = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    what, _, rest = text.partition("Source: ")
    source, _, differs = rest.partition("Differs: ")
    return {"what": what.strip(), "source": source.strip(" ."), "differs": differs.strip()}


def _formulas() -> Iterator[str]:
    for kind in KINDS:
        yield from (f"### {kind}", "", "| name | formula | file |", "| --- | --- | --- |")
        for name, target in TABLES[kind].items():
            formula = (
                (inspect.getdoc(find_function(kind, name, kind)) or "")
                .partition("\n\n")[0]
                .replace("\n", " ")
                .replace("|", "\\|")
            )
            file = target.partition(":")[0].replace(".", "/") + ".py"
            yield f"| `{name}` | {formula} | [{file}](../{file}) |"
        yield ""


if __name__ == "__main__":
    print(page(), end="")
