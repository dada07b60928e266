"""What can be wrong with a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onpolicy.utils.errors import UserError

SHOWN = 5
"""Problems of rows named in an error, and rows named for each."""


class DataError(UserError, ValueError):
    """A dataset that cannot be used; the message names the file, the row and what is expected."""


@dataclass(frozen=True)
class BadRow:
    """One row that cannot be read."""

    file: str
    row: int
    """From 1, as an editor counts lines."""
    problem: str

    def __str__(self) -> str:
        return f"{self.place}, row {self.row}: {self.problem}"

    @property
    def place(self) -> str:
        """The file, as messages name it."""
        return self.file if self.file.isprintable() else repr(self.file)


def listed_rows(bad: Sequence[BadRow]) -> list[str]:
    """A line for each problem, with the rows that have it: a column that is missing is missing in all of them."""
    alike: dict[tuple[str, str], list[int]] = {}
    for row in bad:
        alike.setdefault((row.place, row.problem), []).append(row.row)
    lines = [f"{place}, {_numbers(rows)}: {problem}" for (place, problem), rows in list(alike.items())[:SHOWN]]
    more = sum(map(len, list(alike.values())[SHOWN:]))
    return [*lines, f"and {more} more"] if more else lines


def _numbers(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]}"
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"rows {', '.join(map(str, rows[:SHOWN]))}{more}"
