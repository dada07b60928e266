"""Competition problems with graded help: concepts, hints, worked solutions (CHAMP, arXiv 2406.06576)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from onpolicy.data.errors import DataError
from onpolicy.data.gym import STEP_BY_STEP
from onpolicy.types import Prompt
from onpolicy.utils.ready import extra


def champ(
    *, whole_numbers: bool = True, category: str | None = None, prompt_template: str = STEP_BY_STEP
) -> list[Prompt]:
    """CHAMP's 270 problems with the columns `concepts`, `hints` and `solution`, from little help to all; no network.

    Needs `pip install champ-dataset` (MIT). Contexts show a column by its name: `{name: reference_solution, field: hints}`.

    Args:
        whole_numbers: only the problems whose answer is a whole number, which can be graded reliably
        category: only this area: Combinatorics, Inequality, Number-Theory, Polynomial or Sequence; null: all
        prompt_template: text around a problem; `{problem}` stands for it
    """
    package = importlib.util.find_spec("champ_dataset")  # its data are read without importing it
    if package is None or package.origin is None:
        raise DataError(f"data: the source 'champ' needs the package champ-dataset: {extra('champ')}")
    data = json.loads((Path(package.origin).parent / "dataset_files" / "v0.json").read_text())
    helps = {key: entry["_text"] for kind in ("concepts", "hints") for key, entry in data[kind].items()}
    rows = [row for row in data["problems"].values() if category in (None, row["category"])]
    if not rows:
        known = ", ".join(sorted({row["category"] for row in data["problems"].values()}))
        raise DataError(f"data.category: {category!r} is not an area of CHAMP; expected one of {known}")
    chosen = [row for row in rows if not whole_numbers or row["_answer"].strip().lstrip("-").isdigit()]
    return [_prompt(row, helps, prompt_template) for row in chosen]


def _prompt(row: dict[str, Any], helps: dict[str, str], prompt_template: str) -> Prompt:
    given = {kind: [helps[key] for key in row["ch_list"] if key[0] == kind] for kind in "CH"}
    columns = {
        "answer": row["_answer"],
        "solution": "\n".join(step["_text"] for step in row["solution"]["steps"]),
        "concepts": "\n".join(given["C"]) or None,
        "hints": "\n".join(given["H"]) or None,
        "category": row["category"],
    }
    question = prompt_template.replace("{problem}", row["_text"])
    return Prompt(id=row["identifier"], messages=({"role": "user", "content": question},), fields=columns)
