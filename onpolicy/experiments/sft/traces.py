"""The model's own correct answers as a dataset to fine-tune on: written without a context ("unguided", the paper's term) and with one
("guided")."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onpolicy.annotation.build import build_queries
from onpolicy.config.load import to_yaml
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.digest import dataset_digest
from onpolicy.data.text import as_text
from onpolicy.experiments.analysis.context_answers import answer_with_contexts
from onpolicy.experiments.analysis.pass_rates import PassRates
from onpolicy.experiments.analysis.session import Session, session
from onpolicy.run.evaluate import AT_ONCE
from onpolicy.run.inputs import input_files
from onpolicy.run.loading import chosen_prompts, section_prompts
from onpolicy.types import CORRECT_THRESHOLD, Prompt, Rollout, ScoredGroup
from onpolicy.utils.disk import atomic_write
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.json_lines import read_json_lines

COLUMN = "completion_ids"
UNGUIDED, GUIDED = "unguided", "guided"
STATE = "collected.json"
OTHER = {"config": "settings", "request": "options", "data": "problems", "model": "weights or another template"}


@dataclass(frozen=True)
class TraceRequest:
    """Which traces to collect."""

    examples: int
    """Problems with a correct answer of both kinds."""
    pass_rates: PassRates
    """Only problems whose pass rate without a context lies within."""
    context: str
    """The context in the prompt of the guided answers."""


def collect(
    resolved: ResolvedConfig, request: TraceRequest, folder: Path, note: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    """``unguided`` and ``guided`` rows, in files of these names too; continues where an earlier attempt was interrupted.

    Of each problem the first correct answer of either kind is taken; problems that lack one are left out of both, so the two sets
    differ in nothing but how their answers were written (arXiv 2603.24472, section 4, where only the guided set lacks them).

    Raises:
        ConfigError: no context or reward of that kind, no problem with both, or the folder holds traces made with other settings.
    """
    if not resolved.rewards or request.context not in resolved.contexts:
        raise ConfigError(
            f"onpolicy sft: expected a reward and a context {request.context!r} that guided answers see; the config "
            f"has the contexts {', '.join(resolved.contexts) or 'none'}"
        )
    made = _made(resolved, request)
    rows, tried = _read(folder, made)
    if len(rows[GUIDED]) < request.examples and tried >= 0:
        with session(resolved, with_contexts=True) as s:
            while len(rows[GUIDED]) < request.examples and tried < len(s.prompts):
                part = s.prompts[tried : tried + max(1, AT_ONCE // s.generator.sampling.group_size)]
                for name, more in _of(s, part, request).items():
                    rows[name] = [*rows[name], *more][: request.examples]
                tried += len(part)
                _write(folder, rows, tried if tried < len(s.prompts) else -1, made)
                note(
                    f"{len(rows[GUIDED])} of {request.examples} problems with correct answers of both kinds, after {tried}"
                )
    if not rows[GUIDED]:
        raise ConfigError(
            f"onpolicy sft: no problem was solved both with {request.context!r} and without it; other problems, or a wider --pass-rate"
        )
    return rows


def tokens(rows: Sequence[Mapping[str, Any]]) -> int:
    """Tokens of all answers together."""
    return sum(len(row[COLUMN]) for row in rows)


def _of(s: Session, prompts: Sequence[Prompt], request: TraceRequest) -> dict[str, list[dict[str, Any]]]:
    """The rows that these problems yield."""
    low, high = request.pass_rates
    seed = s.resolved.config.seed
    scored = s.scorer.score(s.generator.generate(prompts, seed=seed))
    plain = {g.group.prompt.id: g for g in scored if _first_correct(g) and low <= g.pass_rate <= high}
    queries = build_queries(s.resolved, s.model, s.prompts, s.generator, s.scorer)
    contexts = {request.context: s.resolved.contexts[request.context].bind()}
    guided = answer_with_contexts(
        list(plain.values()), contexts, generator=s.generator, scorer=s.scorer, queries=queries, seed=seed
    )
    both = [(plain[g.group.prompt.id], g) for g in guided[request.context].scored if _first_correct(g)]
    return {
        UNGUIDED: [_row(one.group.prompt, _first_correct(one)) for one, _ in both],
        GUIDED: [_row(one.group.prompt, _first_correct(other)) for one, other in both],
    }


def _first_correct(scored: ScoredGroup) -> Rollout | None:
    found = zip(scored.group.rollouts, scored.scores, strict=True)
    return next((rollout for rollout, score in found if score >= CORRECT_THRESHOLD), None)


def _row(prompt: Prompt, rollout: Rollout | None) -> dict[str, Any]:
    """As `data: {name: file}` reads it: the plain problem, its columns, and the answer as text and as the tokens that were sampled."""
    assert rollout is not None
    answer = {"completion": rollout.text, COLUMN: list(rollout.completion_ids)}
    return {**prompt.fields, "id": prompt.id, "messages": [dict(m) for m in prompt.messages], **answer}


def _read(folder: Path, made: Mapping[str, Any]) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """The rows collected so far, and how many problems have been tried; -1: all."""
    state = folder / STATE
    if not state.is_file():
        return {UNGUIDED: [], GUIDED: []}, 0
    known = json.loads(state.read_text())
    differing = [kind for kind in made if known["made"].get(kind) != made[kind]]
    if differing:
        kinds = " and ".join(OTHER[kind] for kind in differing)
        raise ConfigError(
            f"onpolicy sft: {str(folder)!r} holds traces that were made with other {kinds}; give another --output"
        )
    rows = {name: read_json_lines(folder / f"{name}.jsonl") for name in (UNGUIDED, GUIDED)}
    return {name: found[: known["examples"]] for name, found in rows.items()}, known["tried"]


def _write(
    folder: Path,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    tried: int,
    made: Mapping[str, Any],
) -> None:
    """Writes the state last: rows in the files beyond it are collected again."""
    for name, found in rows.items():
        write_rows(folder / f"{name}.jsonl", found)
    state = {
        "examples": len(rows[GUIDED]),
        "tried": tried,
        "tokens": {n: tokens(r) for n, r in rows.items()},
        "made": made,
    }
    atomic_write(folder / STATE, json.dumps(state, indent=1) + "\n")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes one row per line; what JSON has no value for, e.g. Parquet's decimals and dates, as text."""
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False, default=as_text) + "\n" for row in rows))


def _made(resolved: ResolvedConfig, request: TraceRequest) -> dict[str, Any]:
    """Everything that determines the traces: settings, and the content of data and model."""
    config = resolved.config
    named = ("model", "rendering", "data", "generator", "rewards", "correctness", "contexts", "seed")
    problems = chosen_prompts(resolved.data, section_prompts(resolved.data, "data"), "data")
    return {
        "config": to_yaml(config, named),
        "request": json.loads(json.dumps(asdict(request))),
        "data": dataset_digest(problems)["digest"],
        "model": input_files(resolved, None),
    }
