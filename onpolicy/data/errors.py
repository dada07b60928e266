"""What can be wrong with a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from onpolicy.utils.errors import UserError


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
        return f"{self.file if self.file.isprintable() else repr(self.file)}, row {self.row}: {self.problem}"
