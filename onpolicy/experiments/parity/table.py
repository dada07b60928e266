"""``onpolicy parity [METHOD ...]``: every config beside the published code whose name it carries, for the installed version."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from onpolicy.experiments.parity.compare import Finding, compare_case
from onpolicy.experiments.parity.fixtures import Accepted, Case, accepted_differences, golden_folder, loss_cases
from onpolicy.experiments.parity.texts import KINDS, TextFinding, compare_texts
from onpolicy.experiments.parity.threads import one_thread
from onpolicy.utils.errors import UserError
from onpolicy.utils.terminal import plain, print_next

PAPER = "beanie00/self-distillation-analysis@5c51051"
"""The code that made the texts (golden/README.md)."""


class UnknownMethod(UserError, ValueError):
    """A method without golden cases; names those that have some."""


@dataclass(frozen=True)
class MethodParity:
    """One method's cases together."""

    method: str
    config: str
    published: list[str]
    """``repository@commit`` of the code that made the cases; ``formula of arXiv ...`` where none could be had."""
    cases: int
    equal: int
    loss: float | None
    """Largest relative difference of the loss over the cases that are equal; None where none is compared."""
    gradient: float | None
    """That of the gradient on the student's logits."""
    accepted: dict[str, str] = field(default_factory=dict)
    """Case -> cause."""
    differing: list[str] = field(default_factory=list)
    not_expressible: list[str] = field(default_factory=list)


def print_parity(methods: Sequence[str], output: Path | None) -> int:
    """Compares, prints the table, and returns 1 if anything differs without a committed cause, else 0.

    Raises:
        UnknownMethod: a method has no cases.
    """
    cases, kinds = _chosen(list(loss_cases()), methods)
    console, accepted = Console(), accepted_differences()
    with one_thread(), Progress(console=console, transient=True) as progress:
        track = partial(progress.track, description="comparing with published code")
        findings = [compare_case(case, accepted.get(case.name)) for case in track(cases)]
        texts = [by_kind(kind, compare_texts(kind), accepted) for kind in track(kinds)]
    found = [*by_method(cases, findings), *texts]
    console.print(_table(found))
    for line in _remarks(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if output is not None:
        output.write_text(json.dumps([asdict(_rounded(row)) for row in found], indent=1) + "\n", encoding="utf-8")
    print_next(["list", "configs"])
    return int(any(row.differing for row in found))


def by_method(cases: Iterable[Case], findings: Iterable[Finding]) -> Iterator[MethodParity]:
    """The findings of each method, in the order of the cases."""
    groups: dict[str, list[tuple[Case, Finding]]] = {}
    for case, finding in zip(cases, findings, strict=True):
        groups.setdefault(case.method, []).append((case, finding))
    for method, group in groups.items():
        equal = [f for _, f in group if f.verdict == "equal"]
        yield MethodParity(
            method=method,
            config=group[0][0].config,
            published=list(dict.fromkeys(published_by(case) for case, _ in group)),
            cases=len(group),
            equal=len(equal),
            loss=max((f.loss for f in equal if f.loss is not None), default=None),
            gradient=max((max(f.gradient or 0.0, f.advantages or 0.0) for f in equal), default=None),
            accepted={f.case: f.notes[-1] for _, f in group if f.verdict == "accepted"},
            differing=[f.case for _, f in group if f.verdict == "differs"],
            not_expressible=[f.case for _, f in group if f.verdict == "not expressible"],
        )


def by_kind(kind: str, findings: Sequence[TextFinding], accepted: Mapping[str, Accepted]) -> MethodParity:
    """The findings of one kind of texts: verdicts, prompts or factors, which are equal or not."""
    different = [f.case for f in findings if not f.equal]
    return MethodParity(
        method=kind,
        config="sdpo",
        published=[PAPER],
        cases=len(findings),
        equal=len(findings) - len(different),
        loss=None,
        gradient=None,
        accepted={name: accepted[name].cause for name in different if name in accepted},
        differing=[name for name in different if name not in accepted],
    )


def published_by(case: Case) -> str:
    """Where a case's numbers come from."""
    peer = case.meta["peer"]
    return f"{peer['repository']}@{peer['commit'][:7]}" if peer["kind"] == "code" else "the paper's formula"


def magnitude(difference: float | None) -> str:
    """The power of ten that a difference stays below; 0 is 0."""
    if difference is None:
        return "–"
    return "0" if difference == 0 else f"1e{math.ceil(math.log10(difference)):+03d}"


def described(row: Mapping[str, Any]) -> str:
    """A row of the written JSON in one line."""
    numbers = f"loss {magnitude(row['loss'])}, gradient {magnitude(row['gradient'])}"
    compared = row["cases"] - len(row["not_expressible"])
    found = f"{', '.join(row['published'])}: {numbers}, {row['equal']} of {compared} cases equal"
    return found + (f", {len(row['accepted'])} differ with a cause" if row["accepted"] else "")


def _chosen(cases: list[Case], methods: Sequence[str]) -> tuple[list[Case], list[str]]:
    """The cases of losses, and the kinds of texts, that belong to the methods; all of them without methods."""
    kinds = [kind for kind in KINDS if (golden_folder() / "texts" / f"{kind}.json").exists()]
    known = [*dict.fromkeys(case.method for case in cases), *kinds]
    for method in methods:
        if method not in known:
            near = difflib.get_close_matches(method, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UnknownMethod(
                f"METHOD: got {method!r}, expected one with cases in {golden_folder()}: {', '.join(known)}.{hint}"
            )
    chosen = methods or known
    return [case for case in cases if case.method in chosen], [kind for kind in kinds if kind in chosen]


def _table(found: Sequence[MethodParity]) -> Table:
    table = Table(title="Loss and gradient beside published code", title_justify="left")
    for head in ("method", "published code", "equal", "loss", "gradient", "verdict"):
        table.add_column(head, overflow="fold")
    for row in found:
        compared = row.cases - len(row.not_expressible)
        verdict = (
            "[red]differs[/red]"
            if row.differing
            else "[yellow]but for[/yellow]"
            if row.accepted
            else "[green]equal[/green]"
        )
        table.add_row(
            plain(row.method),
            plain(", ".join(row.published)),
            f"{row.equal} of {compared}",
            magnitude(row.loss),
            magnitude(row.gradient),
            verdict,
        )
    return table


def _remarks(found: Sequence[MethodParity]) -> Iterator[str]:
    yield "loss, gradient: the power of ten below which the largest relative difference of the equal cases stays"
    for row in found:
        for name in row.differing:
            yield f"differs: {name}"
        for name, cause in row.accepted.items():
            yield f"but for {name}: {cause}"
        for name in row.not_expressible:
            yield f"not compared: {name}: micro-batches of several rows, which change the published gradient"


def _rounded(row: MethodParity) -> MethodParity:
    """Differences as powers of ten, so that a file written on another processor is the same."""

    def power(difference: float | None) -> float | None:
        return None if difference is None else float(magnitude(difference))

    return replace(row, loss=power(row.loss), gradient=power(row.gradient))
