"""A run folder that may be written while it is read: what changed since the last look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onpolicy.experiments.report.condition import condition_of, config_in, guard_of
from onpolicy.experiments.report.curves import Columns, numbers, to_digits
from onpolicy.experiments.report.growing_file import GrowingFile, object_of
from onpolicy.experiments.report.run_data import read_text, settings_shown
from onpolicy.experiments.report.samples import SampleIndex

MOST_BYTES = 4 << 20
"""Of metrics sent as rows; a page that has missed more gets whole curves, thinned."""


LONGEST_NUMBER = 15
"""Digits; Python refuses to read numbers of thousands of them."""


class FollowedRun:
    """A run; ``update`` takes in what was written since."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.columns = Columns()
        self.samples = SampleIndex(folder)
        self.unreadable = 0
        """Lines of metrics.jsonl that hold no step."""
        self._metrics, self._tokens = GrowingFile(folder / "metrics.jsonl"), GrowingFile(folder / "tokens.jsonl")
        self._log = GrowingFile(folder / "log.txt")
        self._guards: list[tuple[int, str]] = []
        self._rollouts: list[dict[str, Any]] = []
        self._config, self._config_written = "", 0

    def update(self) -> None:
        """Reads metrics, config and log on; samples and tokens are read when they are asked for."""
        if self._metrics.begin_again():
            self.columns, self.unreadable = Columns(), 0
        for _, line in self._metrics.new_lines():
            if (row := object_of(line)) is None:
                self.unreadable += 1
            else:
                self.columns.add(row)
        if self._log.begin_again():
            self._guards = []
        self._guards += [found for _, line in self._log.new_lines() if (found := guard_of(line))]
        written = _mark(self.folder / "config.yaml")
        if written != self._config_written:
            self._config, self._config_written = read_text(self.folder / "config.yaml"), written

    @property
    def cursor(self) -> str:
        """What a page has that knows all of this."""
        return f"{self._metrics.generation}.{self._metrics.end}"

    def rows_since(self, cursor: str) -> list[list[Any]] | None:
        """Step and numbers of what was logged after a cursor; None where that is not what was last sent, or too much."""
        generation, _, place = cursor.partition(".")
        start, end = number_of(place), self._metrics.end
        if generation != str(self._metrics.generation) or start is None or not 0 <= end - start <= MOST_BYTES:
            return None
        if start == end:
            return []
        try:
            with self._metrics.path.open("rb") as file:
                file.seek(start)
                lines = file.read(end - start).splitlines()
        except OSError:
            return None
        rows = [row for line in lines if (row := object_of(line)) is not None]
        return [[int(row["step"]), {k: to_digits(v) for k, v in numbers(row).items()}] for row in rows]

    def state(self) -> dict[str, Any]:
        """What a page is told at each look."""
        found = condition_of(self.folder, self.columns.last_step, config_in(self._config), self._guards)
        marks = [_mark(self.folder / name) for name in ("samples.jsonl", "tokens.jsonl", "eval", "config.yaml")]
        return {
            "condition": {**found, "unreadable": self.unreadable},
            "cursor": self.cursor,
            "mark": ".".join(map(str, marks)),
        }

    def whole(self) -> dict[str, Any]:
        """What a page is told first, besides the curves."""
        return {"name": self.name, **settings_shown(self._config), **self.state()}

    def rollouts(self) -> list[dict[str, Any]]:
        """What the rollouts are chosen by whose tokens were kept."""
        if self._tokens.begin_again():
            self._rollouts = []
        for start, line in self._tokens.new_lines():
            if (row := object_of(line)) is not None and isinstance(row.get("tokens"), list):
                shown = {name: row.get(name) for name in ("step", "prompt_id", "reward")}
                self._rollouts.append({**shown, "length": len(row["tokens"]), "start": start})
        return self._rollouts

    def rollout(self, place: int) -> dict[str, Any] | None:
        """One of them, token by token; None where there is none."""
        known = self.rollouts()
        if not 0 <= place < len(known):
            return None
        try:
            with self._tokens.path.open("rb") as file:
                file.seek(known[place]["start"])
                found: dict[str, Any] = json.loads(file.readline())
        except (OSError, ValueError):  # written anew at this moment
            return None
        return found


def number_of(text: str) -> int | None:
    """The number that a page gives; None where it is none, or a longer one than there is use for."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= LONGEST_NUMBER else None


def _mark(path: Path) -> int:
    """Changes with the file, or with what is in the folder."""
    try:
        stat = path.stat()
    except OSError:
        return 0
    return stat.st_mtime_ns ^ stat.st_size
