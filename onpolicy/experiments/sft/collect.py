"""The model's own right answers as a dataset to fine-tune on: written without help, and written with a context in view."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onpolicy.annotation.build import build_queries
from onpolicy.config.registry import ConfigError
from onpolicy.config.resolve import ResolvedConfig
from onpolicy.config.schema import to_yaml
from onpolicy.experiments.analysis.collect import Band, solved
from onpolicy.experiments.analysis.guided import guide
from onpolicy.experiments.analysis.session import Session, session
from onpolicy.run.evaluate import AT_ONCE
from onpolicy.types import CORRECT_THRESHOLD, Prompt, Rollout, ScoredGroup
from onpolicy.utils.disk import atomic_write

COLUMN = "completion_ids"
UNGUIDED, GUIDED = "unguided", "guided"
STATE = "collected.json"


@dataclass(frozen=True)
class Wanted:
    """Which traces are collected."""

    examples: int
    """Problems with a right answer of both kinds."""
    band: Band
    """Only problems whose unguided share of right answers lies within."""
    context: str
    """The context under which the guided answers are written."""


def collect(
    resolved: ResolvedConfig, wanted: Wanted, folder: Path, note: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    """``unguided`` and ``guided`` rows, in files of these names too; goes on where an earlier attempt was cut off.

    Of each problem the first right answer of either kind is taken; problems that lack one are left out of both, so the two sets
    differ in nothing but how their answers were written (arXiv 2603.24472, section 4, where only the guided set lacks them).

    Raises:
        ConfigError: no context or reward of that kind, no problem with both, or the folder holds traces made otherwise.
    """
    if not resolved.rewards or wanted.context not in resolved.contexts:
        raise ConfigError(
            f"onpolicy sft: wants a reward that says what is right, and a context {wanted.context!r} that guided answers see; the config "
            f"has the contexts {', '.join(resolved.contexts) or 'none'}"
        )
    rows, tried = _read(folder, resolved, wanted)
    if len(rows[GUIDED]) < wanted.examples and tried >= 0:
        with session(resolved, guided=True) as s:
            while len(rows[GUIDED]) < wanted.examples and tried < len(s.prompts):
                part = s.prompts[tried : tried + max(1, AT_ONCE // s.generator.sampling.group_size)]
                for name, more in _of(s, part, wanted).items():
                    rows[name] = [*rows[name], *more][: wanted.examples]
                tried += len(part)
                _write(folder, rows, tried if tried < len(s.prompts) else -1, resolved, wanted)
                note(
                    f"{len(rows[GUIDED])} of {wanted.examples} problems with right answers of both kinds, after {tried}"
                )
    if not rows[GUIDED]:
        raise ConfigError(
            f"onpolicy sft: no problem was solved both with {wanted.context!r} and without it; other problems, or a wider --band"
        )
    return rows


def tokens(rows: Sequence[Mapping[str, Any]]) -> int:
    """Of the answers together."""
    return sum(len(row[COLUMN]) for row in rows)


def _of(s: Session, prompts: Sequence[Prompt], wanted: Wanted) -> dict[str, list[dict[str, Any]]]:
    """The rows that these problems give."""
    low, high = wanted.band
    seed = s.resolved.config.seed
    judged = s.scorer.score(s.generator.generate(prompts, seed=seed))
    plain = {g.group.prompt.id: g for g in judged if _first_right(g) and low <= solved(g) <= high}
    queries = build_queries(s.resolved, s.model, s.prompts, s.generator, s.scorer)
    contexts = {wanted.context: s.resolved.contexts[wanted.context].bind()}
    guided = guide(list(plain.values()), contexts, generator=s.generator, scorer=s.scorer, queries=queries, seed=seed)
    both = [(plain[g.group.prompt.id], g) for g in guided[wanted.context].judged if _first_right(g)]
    return {
        UNGUIDED: [_row(one.group.prompt, _first_right(one)) for one, _ in both],
        GUIDED: [_row(one.group.prompt, _first_right(other)) for one, other in both],
    }


def _first_right(judged: ScoredGroup) -> Rollout | None:
    found = zip(judged.group.rollouts, judged.scores, strict=True)
    return next((rollout for rollout, score in found if score >= CORRECT_THRESHOLD), None)


def _row(prompt: Prompt, rollout: Rollout | None) -> dict[str, Any]:
    """As `data: {name: file}` reads it: the plain problem, its columns, and the answer as text and as the tokens that were sampled."""
    assert rollout is not None
    answer = {"completion": rollout.text, COLUMN: list(rollout.completion_ids)}
    return {**prompt.fields, "id": prompt.id, "messages": [dict(m) for m in prompt.messages], **answer}


def _read(folder: Path, resolved: ResolvedConfig, wanted: Wanted) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """What is there, and how many problems have been tried; -1: all."""
    state = folder / STATE
    if not state.is_file():
        return {UNGUIDED: [], GUIDED: []}, 0
    known = json.loads(state.read_text())
    if known["made"] != _made(resolved, wanted):
        raise ConfigError(f"onpolicy sft: {str(folder)!r} holds traces that were made otherwise; give another --output")
    rows = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().split("\n") if line]
        for name in (UNGUIDED, GUIDED)
    }
    return {name: found[: known["examples"]] for name, found in rows.items()}, known["tried"]


def _write(
    folder: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]], tried: int, resolved: ResolvedConfig, wanted: Wanted
) -> None:
    """The state last: what stands in the files beyond it is collected again."""
    for name, found in rows.items():
        write_rows(folder / f"{name}.jsonl", found)
    state = {
        "examples": len(rows[GUIDED]),
        "tried": tried,
        "tokens": {n: tokens(r) for n, r in rows.items()},
        "made": _made(resolved, wanted),
    }
    atomic_write(folder / STATE, json.dumps(state, indent=1) + "\n")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One a line."""
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _made(resolved: ResolvedConfig, wanted: Wanted) -> dict[str, Any]:
    """What decides the traces."""
    config = resolved.config
    named = ("model", "rendering", "data", "generator", "rewards", "correctness", "contexts", "seed")
    return {"config": to_yaml(config, named), "wanted": json.loads(json.dumps(asdict(wanted)))}
