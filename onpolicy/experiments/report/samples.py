"""The rollouts that a run kept as text: those of its training steps, and the answers of its evaluations; found without holding them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from onpolicy.experiments.report.growing_file import GrowingFile, object_of

TRAINING = "training"
"""The set of the rollouts in samples.jsonl."""
SHOWN = ("step", "student_prompt", "completion", "answer", "reward", "finish_reason", "tokens", "turns", "advantage")
ORDERS = ("newest", "oldest", "longest", "shortest", "highest reward", "lowest reward")
EVALUATED = re.compile(r"step-(\d+)")
"""Folders of evaluations (``run/evaluation_files.py``)."""
REPEAT = re.compile(r"#\d+$")
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """Where a sample stands, and what it can be filtered by."""

    path: Path
    start: int
    place: int
    """Among the answers to its problem, in an evaluation's line."""
    set: str
    step: int
    problem: str
    reward: float | None
    tokens: int
    finish: str


@dataclass(frozen=True)
class Query:
    """Which samples are asked for; what is left out does not restrict."""

    text: str = ""
    set: str = ""
    finish: str = ""
    problem: str = ""
    reward_from: float | None = None
    reward_to: float | None = None
    tokens_from: float | None = None
    tokens_to: float | None = None
    step_from: float | None = None
    step_to: float | None = None

    def takes(self, entry: Entry) -> bool:
        return (
            self.set in ("", entry.set)
            and self.finish in ("", entry.finish)
            and self.problem in ("", entry.problem)
            and _between(entry.reward, self.reward_from, self.reward_to)
            and _between(entry.tokens, self.tokens_from, self.tokens_to)
            and _between(entry.step, self.step_from, self.step_to)
        )


def _between(value: float | None, low: float | None, high: float | None) -> bool:
    if value is None:
        return low is None and high is None
    return (low is None or value >= low) and (high is None or value <= high)


class SampleIndex:
    """All kept samples of a run; ``update`` takes in what was written since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._training = GrowingFile(folder / "samples.jsonl")
        self._trained: list[Entry] = []
        self._evaluated: dict[Path, tuple[tuple[int, int], list[Entry]]] = {}

    def entries(self) -> Iterator[Entry]:
        yield from self._trained
        for _, found in self._evaluated.values():
            yield from found

    def update(self) -> None:
        if self._training.begin_again():
            self._trained = []
        for start, line in self._training.new_lines():
            if (row := object_of(line)) is not None:
                self._trained.append(_trained_entry(self._training.path, start, row))
        files = [
            (int(found[1]), path)
            for folder in sorted((self.folder / "eval").glob("step-*"))
            if (found := EVALUATED.fullmatch(folder.name))
            for path in sorted(folder.glob("*.jsonl"))
        ]
        there = {path for _, path in files}
        for gone in [path for path in self._evaluated if path not in there]:
            del self._evaluated[gone]
        for step, path in files:
            try:
                stat = path.stat()
            except OSError:  # it is written anew at this moment
                continue
            if self._evaluated.get(path, (None,))[0] != (mark := (stat.st_mtime_ns, stat.st_size)):
                self._evaluated[path] = (mark, list(_evaluated_entries(path, step)))

    def find(self, query: Query) -> list[Entry]:
        """The samples that a query takes; those with its text are read for it."""
        found = [entry for entry in self.entries() if query.takes(entry)]
        return [e for e in found if contains(read_sample(e), query.text)] if query.text else found


def _trained_entry(path: Path, start: int, row: Mapping[str, Any]) -> Entry:
    return Entry(
        path, start, 0, TRAINING, int(row["step"]), REPEAT.sub("", str(row.get("prompt_id", ""))), _number(row.get("reward")),
        int(_number(row.get("tokens")) or 0), str(row.get("finish_reason")),
    )  # fmt: skip


def _evaluated_entries(path: Path, step: int) -> Iterator[Entry]:
    for start, line in GrowingFile(path).new_lines():
        try:
            row = json.loads(line)
            for place in range(len(row["completions"])):
                finish = "length" if row["truncated"][place] else "stop"
                reward, length = _number(row["rewards"][place]), int(row["lengths"][place])
                yield Entry(path, start, place, path.stem, step, str(row["id"]), reward, length, finish)
        except (ValueError, KeyError, TypeError, IndexError):
            continue


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def read_sample(entry: Entry) -> dict[str, Any]:
    """The sample itself; without its text where the file was written anew in the meantime."""
    try:
        with entry.path.open("rb") as file:
            file.seek(entry.start)
            row = json.loads(file.readline())
        if entry.set != TRAINING:
            place = entry.place
            row = {"completion": row["completions"][place], "answer": row["answers"][place]}
        shown = {name: row[name] for name in SHOWN if name in row}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        shown = {}
    told = {"set": entry.set, "step": entry.step, "problem": entry.problem, "place": entry.place}
    measured = {"reward": entry.reward, "tokens": entry.tokens, "finish_reason": entry.finish}
    return {"completion": "", "answer": None, **shown, **told, **measured}


def contains(sample: Mapping[str, Any], text: str) -> bool:
    """Whether a sample's problem, prompt, answer or completion holds a text, in whatever case."""
    searched = text.casefold()
    inside = (sample.get(name) for name in ("problem", "student_prompt", "answer", "completion"))
    return any(searched in str(value).casefold() for value in inside if value is not None)


def in_order(found: Sequence[tuple[int, Entry]], order: str) -> list[tuple[int, Entry]]:
    """Samples with the numbers of their runs, sorted; ties as they were written."""
    keys = {
        "newest": lambda e: -e.step,
        "oldest": lambda e: e.step,
        "longest": lambda e: -e.tokens,
        "shortest": lambda e: e.tokens,
        "highest reward": lambda e: -(e.reward if e.reward is not None else -1e300),
        "lowest reward": lambda e: e.reward if e.reward is not None else 1e300,
    }
    key = keys[order]
    return sorted(found, key=lambda pair: key(pair[1]))


def query_of(parameters: Mapping[str, str]) -> Query:
    """From a page's request; a number that is none does not restrict."""
    given: dict[str, Any] = {}
    for field in fields(Query):
        if value := parameters.get(field.name, ""):
            given[field.name] = value if field.default == "" else _float(value)
    return Query(**given)


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def some_samples(index: SampleIndex, most: int, most_bytes: int) -> list[dict[str, Any]]:
    """A page's share of a run's samples: first and last step first, then problems that come again, over all steps."""
    chosen: list[Entry] = []
    by_set: dict[str, list[Entry]] = {}
    for entry in index.entries():
        by_set.setdefault(entry.set, []).append(entry)
    for name, entries in by_set.items():
        share = most if name == TRAINING else max(8, most // max(1, len(by_set) - 1))
        chosen += _spread(entries, share) if name == TRAINING else _same_problems(entries, share)
    samples: list[dict[str, Any]] = []
    size = 0
    for entry in chosen:
        sample = read_sample(entry)
        size += len(sample["completion"]) + len(str(sample.get("student_prompt", "")))
        if samples and size > most_bytes:
            break
        samples.append(sample)
    return samples


def _spread(entries: Sequence[Entry], most: int) -> list[Entry]:
    ends = {entries[0].step, entries[-1].step}
    first = [e for e in entries if e.step in ends]
    rest = [e for e in entries if e.step not in ends]
    return [*first, *_evenly(rest, max(0, most - len(first)))]


def _same_problems(entries: Sequence[Entry], most: int) -> list[Entry]:
    """The first answer to the same problems at evenly spread steps."""
    steps = _evenly(sorted({e.step for e in entries}), 6)
    problems = list(dict.fromkeys(e.problem for e in entries))[: max(1, most // max(1, len(steps)))]
    return [e for e in entries if e.step in steps and e.problem in problems and e.place == 0]


def _evenly(items: Sequence[T], most: int) -> list[T]:
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, most - 1))] for i in range(most)]
