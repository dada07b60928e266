"""Parquet, Arrow, JSON lines, JSON, CSV and TSV files."""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

from onpolicy.data.csv_files import read_table
from onpolicy.data.errors import BadRow, DataError
from onpolicy.data.reading import OnBadRow, RowReader
from onpolicy.data.references import AnswerFrom
from onpolicy.data.rows import ReadPrompts, RowFormat
from onpolicy.utils.errors import UserNotice, suggest

BATCH = 1024
"""Rows of a table that are read at a time."""


class NoRows(DataError):
    """A file that holds something else than rows; beside files with rows it is left out."""


def load_prompts(
    path: str | Path,
    *,
    on_bad_row: OnBadRow = "error",
    prompt_template: str | None = None,
    columns: Mapping[str, str] | None = None,
    answer_from: AnswerFrom | None = None,
) -> ReadPrompts:
    """Problems from a ``.parquet``, ``.arrow``, ``.jsonl``, ``.json``, ``.csv`` or ``.tsv`` file (the last four also as ``.gz``), or
    from a folder of such files, in order.

    Args:
        path: file or folder
        on_bad_row: `error` raises on any row that cannot be read, `skip` leaves it out and says so
        prompt_template: text around a problem given as plain text; `{problem}` stands for it, without white space around it
        columns: `prompt`, `answer`, `solution` -> the column that holds it, with dots for what is nested (docs/data.md)
        answer_from: `boxed` or `hash`: where the answer stands in a worked solution

    Raises:
        DataError: no such file, nothing in it, or rows that cannot be read; names the file and the rows.
    """
    form = RowFormat(columns=columns or {}, answer_from=answer_from, prompt_template=prompt_template)
    return _read(Path(path), form).accepted(on_bad_row, str(path))


def load_first_prompts(
    path: str | Path,
    rows: int,
    *,
    on_bad_row: OnBadRow = "error",
    prompt_template: str | None = None,
    columns: Mapping[str, str] | None = None,
    answer_from: AnswerFrom | None = None,
) -> ReadPrompts:
    """As ``load_prompts``, of so many rows at the beginning; no more is read, but of a ``.json`` file. Empty where they are all left out
    and more follow.

    Raises:
        DataError: as ``load_prompts``, by these rows.
    """
    form = RowFormat(columns=columns or {}, answer_from=answer_from, prompt_template=prompt_template)
    reader = _read(Path(path), form, rows)
    if reader.total < rows or _read(Path(path), form, rows + 1).total == rows:  # the whole of it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserNotice)  # the run itself will say it
            return reader.accepted(on_bad_row, str(path))
    if on_bad_row == "error":
        reader.refuse_bad_rows(f"the first {reader.total} rows")
    found = reader.prompts()
    return ReadPrompts(found, replace(found.reading, more=True))


def is_data_file(name: str | Path) -> bool:
    """Whether a file of this name could be read, by its ending."""
    return _kind(Path(name)) in READERS


def read_prompts(path: str | Path, *, prompt_template: str | None = None) -> tuple[ReadPrompts, list[BadRow]]:
    """What can be read and what cannot."""
    reader = _read(Path(path), RowFormat(prompt_template=prompt_template))
    return reader.prompts(), reader.bad


def _read(path: Path, form: RowFormat, limit: int | None = None) -> RowReader:
    """Reads all rows, or as many as ``limit``."""
    reader, files = RowReader(form), data_files(path)
    for file in files:
        rest = None if limit is None else limit - reader.total
        if rest == 0:
            break
        try:
            rows = itertools.islice(READERS[_kind(file)](file), rest)
            reader.read(rows, str(file), file.name[: -len(_kind(file))])
        except NoRows as error:
            if len(files) == 1:
                raise
            reader.left_out.append(str(error))
    return reader


def data_files(path: Path) -> list[Path]:
    """The files that a path means, none of them opened.

    Raises:
        DataError: there is none, or none of a known kind.
    """
    if not path.exists():
        beside = [str(p) for p in path.parent.iterdir() if is_data_file(p)] if path.parent.is_dir() else []
        raise DataError(f"data file {str(path)!r} does not exist{_instead(path, beside)}")
    if path.is_file():
        if not is_data_file(path):
            raise DataError(f"data file {str(path)!r} ends with {path.suffix!r}, expected one of {', '.join(READERS)}")
        return [path]
    files = sorted(p for p in path.iterdir() if _holds_rows(p))
    if not files:
        inside = sorted(p.name for p in path.iterdir() if p.is_dir() and any(map(_holds_rows, p.iterdir())))
        hint = f"; name one of its folders: {', '.join(inside)}" if inside else ""
        raise DataError(f"folder {str(path)!r} holds no {', '.join(READERS)} files{hint}")
    return files


def _instead(path: Path, beside: list[str]) -> str:
    """A file with a name like the missing one's; else where it was looked for."""
    hint = suggest(str(path), beside)
    return f".{hint}" if hint else "" if path.is_absolute() else f" in {str(Path.cwd())!r}"


def _holds_rows(path: Path) -> bool:
    """Whether a file of a folder is read: hidden ones are the system's, and ``cache-*.arrow`` is what ``datasets`` computes from the
    others, which would be read twice."""
    if path.name.startswith(".") or (path.name.startswith("cache-") and _kind(path) == ".arrow"):
        return False
    return path.is_file() and is_data_file(path)


def _kind(path: Path) -> str:
    """The ending in small letters, with ``.gz`` where the file is compressed: a key of ``READERS``."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    return "".join(endings) if endings[-1:] == [".gz"] else "".join(endings[-1:])


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The content, unpacked."""
    if not _kind(path).endswith(".gz"):
        with path.open("rb") as file:
            yield file
        return
    try:
        with gzip.open(path) as unpacked:
            yield cast(IO[bytes], unpacked)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} is not a readable gzip file: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    yield from _table(path, "parquet", lambda: pyarrow.parquet.ParquetFile(path).iter_batches(BATCH))


def _arrow(path: Path) -> Iterator[tuple[int, Any]]:
    """What ``Dataset.save_to_disk`` writes."""
    import pyarrow.ipc

    yield from _table(path, "arrow", lambda: pyarrow.ipc.open_stream(path))


def _table(path: Path, kind: str, batches: Callable[[], Iterable[Any]]) -> Iterator[tuple[int, Any]]:
    import pyarrow

    try:
        yield from enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches()), start=1)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{str(path)!r} is not a readable {kind} file: {error}") from error


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with _opened(path) as content:
        yield from _lines(content)


def _lines(content: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Lines end with a newline and with nothing else: the other separators of Unicode may stand inside of JSON's texts."""
    for number, line in enumerate(content, start=1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if line.strip():
            yield number, _parsed(line)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return ValueError(f"is not UTF-8 ({error})")
    except ValueError as error:
        return ValueError(f"is not JSON ({error})")
    except RecursionError:
        return ValueError("is nested too deeply")


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    """A list of rows, or one row a line."""
    with _opened(path) as file:
        content = file.read()
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        first = next(_lines(io.BytesIO(content)), None)
        if first is None or not isinstance(first[1], Mapping):
            raise DataError(f"{str(path)!r} is not JSON: {error}") from error
        yield from _lines(io.BytesIO(content))
        return
    if isinstance(rows, Mapping):
        names = ", ".join(map(repr, itertools.islice(rows, 8))) or "nothing"
        raise NoRows(f"{str(path)!r} holds one object with {names}, expected a list of rows, or one row on each line")
    if not isinstance(rows, list):
        raise NoRows(f"{str(path)!r} holds a {type(rows).__name__}, expected a list of rows")
    yield from enumerate(rows, start=1)


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with _opened(path) as content:
        yield from read_table(content.read(), path)


def _tsv(path: Path) -> Iterator[tuple[int, Any]]:
    with _opened(path) as content:
        yield from read_table(content.read(), path, separators=("\t",))


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {".parquet": _parquet, ".arrow": _arrow}
READERS |= {
    ending + packed: read
    for ending, read in ((".jsonl", _jsonl), (".json", _json), (".csv", _csv), (".tsv", _tsv))
    for packed in ("", ".gz")
}
