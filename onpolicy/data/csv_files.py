"""Tables as text: comma-separated files, and those that spreadsheets write with semicolons or tabs."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onpolicy.data.errors import DataError

SEPARATORS = (",", ";", "\t")
LOOKED_AT = 20
"""Rows, the header included, by which the separator is told."""


@dataclass(frozen=True)
class Header:
    """The first line of a table."""

    names: Sequence[str]
    """Of the columns, without white space around them; one that is empty belongs to a column without a name, which is left out."""
    separator: str
    spaced: bool
    """Whether a space follows each separator, which is then no part of the values."""


def read_table(content: bytes, path: Path, separators: Sequence[str] = SEPARATORS) -> Iterator[tuple[int, Any]]:
    """Numbered rows; every value is text, an empty one is none.

    Args:
        content: the file's bytes
        path: the file, for messages
        separators: those that its columns may have between them; the one that divides the header and most of the first rows alike does

    Raises:
        DataError: not text, no names of columns, or a name that two columns have; names the file, and the row where there is one.
    """
    csv.field_size_limit(sys.maxsize)
    text = _decoded(content, path)
    header = _header(text, separators)
    if twice := sorted({name for name in header.names if name and header.names.count(name) > 1}):
        raise DataError(f"{str(path)!r}: two columns are called {twice[0]!r}; expected a name of its own for each")
    rows = _rows(text, header.separator, header.spaced)
    begins = 1
    try:
        next(filter(None, rows), None)
        begins = rows.line_num + 1
        for values in rows:
            if values:
                yield rows.line_num, _row(values, header)
            begins = rows.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{str(path)!r} is not a readable csv file: row {begins}: {error}. Quotes stand around a whole value, and one inside of it is "
            'written twice: "she said ""yes"""'
        ) from error


def _row(values: Sequence[str], header: Header) -> dict[str, str | None] | ValueError:
    names = header.names
    if len(values) > len(names):
        return ValueError(
            f"has more values than the header has columns: {list(values[len(names) :])!r}. A value that holds {header.separator!r} stands "
            "in quotes"
        )
    padded = [*values, *[""] * (len(names) - len(values))]
    return {name: value or None for name, value in zip(names, padded, strict=True) if name}


def _header(text: str, separators: Sequence[str]) -> Header:
    """The header by the separator that divides most of the first rows as it does; of several, by the one that gives most names."""
    return max(
        (_divided(text, separator) for separator in separators), key=lambda found: (found[1], len(found[0].names))
    )[0]


def _divided(text: str, separator: str) -> tuple[Header, int]:
    """The header by one separator, and how many of the first rows have as many values."""
    first, spaced = _first_rows(text, separator, False), False
    if first and len(first[0]) > 1 and all(name.startswith(" ") for name in first[0][1:]):
        first, spaced = _first_rows(text, separator, True), True
    names, rows = (first[0], first[1:]) if first else ([], [])
    alike = sum(len(row) == len(names) > 1 for row in rows)
    return Header([name.strip() for name in names], separator, spaced), alike


def _first_rows(text: str, separator: str, spaced: bool) -> list[list[str]]:
    first: list[list[str]] = []
    with contextlib.suppress(csv.Error):  # it is not the separator, or the reader of the rows says what is wrong
        first.extend(itertools.islice(filter(None, _rows(text, separator, spaced)), LOOKED_AT))
    return first


def _rows(text: str, separator: str, spaced: bool) -> Any:
    return csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator, skipinitialspace=spaced)


def _decoded(content: bytes, path: Path) -> str:
    """UTF-8, or UTF-16 where the file says so, as some spreadsheets write it."""
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{str(path)!r} is not a readable csv file: line {line} is not UTF-8 ({error.reason}, byte {content[error.start]:#04x}). "
            f"Save it as UTF-8 (in a spreadsheet: CSV UTF-8), or convert it: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
