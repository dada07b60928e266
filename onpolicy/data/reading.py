"""Rows of a source -> its prompts, with what was dropped and why."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from onpolicy.data.errors import BadRow, DataError, listed_rows
from onpolicy.data.rows import Reading, ReadPrompts, RowFormat, read_row, summary, unique_ids
from onpolicy.types import Prompt
from onpolicy.utils.errors import UserNotice

OnBadRow = Literal["error", "skip"]


class RowReader:
    """Reads the rows of a source, file by file."""

    def __init__(self, form: RowFormat) -> None:
        self.form = form
        self.bad: list[BadRow] = []
        """Rows that could not be read."""
        self.left_out: list[str] = []
        """Files without rows, with the reason."""
        self._prompts: list[Prompt] = []
        self._taken: list[dict[str, str]] = []

    def read(self, rows: Iterable[tuple[int, Any]], file: str, stem: str) -> None:
        """Reads numbered rows; an error in a row's place is why it could not be parsed.

        Args:
            file: named where a row is bad
            stem: what ids begin with, where rows have none
        """
        for number, row in rows:
            try:
                if isinstance(row, ValueError):
                    raise row
                if not isinstance(row, Mapping):
                    raise ValueError(f"holds a {type(row).__name__}, expected an object with named columns")
                prompt, taken = read_row(row, f"{stem}/{number}", self.form)
            except ValueError as error:
                self.bad.append(BadRow(file=file, row=number, problem=str(error)))
            except RecursionError:
                self.bad.append(BadRow(file=file, row=number, problem="is nested too deeply"))
            else:
                self._prompts.append(prompt)
                self._taken.append(taken)

    @property
    def total(self) -> int:
        """Rows, whether they could be read or not."""
        return len(self.bad) + len(self._prompts)

    def prompts(self) -> ReadPrompts:
        """What could be read."""
        dropped = (*self.left_out, *map(str, self.bad))
        return ReadPrompts(unique_ids(self._prompts), Reading(summary(self._taken), dropped))

    def accepted(self, on_bad_row: OnBadRow, source: str) -> ReadPrompts:
        """The prompts, if the bad rows are to be tolerated and anything is left.

        Raises:
            DataError: rows that cannot be read, no row at all, or a template that is put around none of them.
        """
        if on_bad_row == "error" or not self._prompts:
            self.refuse_bad_rows(f"{self.total} rows")
        prompts, bad = self.prompts(), self.bad
        if bad:
            left_out = f"{source}: left out {len(bad)} of {self.total} rows:\n  {self._listed()}"
            warnings.warn(left_out, UserNotice, stacklevel=4)
        if not prompts:
            raise DataError(f"{source!r} holds no problems")
        template = self.form.prompt_template
        if template is not None and not any(
            isinstance(p.fields["prompt"], str) or _is_worded(p, template) for p in prompts
        ):
            raise DataError(
                f"data.prompt_template: has no effect, every row of {source!r} has its problem as messages, and in another wording. Set it "
                "to null, or name a column of plain text, e.g. data.columns={prompt: question}."
            )
        return prompts

    def refuse_bad_rows(self, of: str) -> None:
        """Raises DataError where there are any; ``of``: the rows that were read, in words."""
        if self.bad:
            remedy = "\nSet data.on_bad_row=skip to leave them out." if self._prompts else ""
            raise DataError(f"{len(self.bad)} of {of} cannot be read:\n  {self._listed()}{remedy}")

    def _listed(self) -> str:
        return "\n  ".join(listed_rows(self.bad))


def _is_worded(prompt: Prompt, template: str) -> bool:
    """Whether the last message has the template's wording already, as where a dataset was written for this very experiment."""
    before, _, after = template.partition("{problem}")
    content = prompt.messages[-1]["content"].strip()
    return content.startswith(before.strip()) and content.endswith(after.strip())
