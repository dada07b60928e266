"""Parquet, JSONL and JSON files."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from onpolicy.data.errors import BadRow, DataError
from onpolicy.data.rows import to_prompt, unique_ids
from onpolicy.types import Prompt

OnBadRow = Literal["error", "skip"]
SHOWN = 5
"""Bad rows named in an error."""


def load_prompts(
    path: str | Path, *, on_bad_row: OnBadRow = "error", prompt_template: str | None = None
) -> list[Prompt]:
    """Problems from a ``.parquet``, ``.jsonl`` or ``.json`` file, or from a folder of such files, in order.

    Args:
        path: file or folder
        on_bad_row: `error` raises on any row that cannot be read, `skip` leaves it out and says so
        prompt_template: text around a problem given as plain text; `{problem}` stands for it, without white space around it

    Raises:
        DataError: no such file, nothing in it, or rows that cannot be read; names the file and the rows.
    """
    prompts, bad = read_prompts(path, prompt_template=prompt_template)
    return accept(prompts, bad, on_bad_row, str(path))


def read_prompts(path: str | Path, *, prompt_template: str | None = None) -> tuple[list[Prompt], list[BadRow]]:
    """What can be read and what cannot."""
    prompts: list[Prompt] = []
    bad: list[BadRow] = []
    for file in _files(Path(path)):
        good, worse = prompts_of(_rows(file), str(file), file.stem, prompt_template)
        prompts += good
        bad += worse
    return unique_ids(prompts), bad


def prompts_of(
    rows: Iterable[Any], source: str, stem: str, prompt_template: str | None
) -> tuple[list[Prompt], list[BadRow]]:
    """Prompts of rows that are mappings, or the error that stood in a row's place."""
    prompts, bad = [], []
    for number, row in enumerate(rows, start=1):
        try:
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, Mapping):
                raise ValueError(f"holds a {type(row).__name__}, expected an object with named columns")
            prompts.append(to_prompt(row, default_id=f"{stem}/{number}", prompt_template=prompt_template))
        except ValueError as error:
            bad.append(BadRow(file=source, row=number, problem=str(error)))
        except RecursionError:
            bad.append(BadRow(file=source, row=number, problem="is nested too deeply"))
    return prompts, bad


def accept(prompts: list[Prompt], bad: list[BadRow], on_bad_row: OnBadRow, source: str) -> list[Prompt]:
    """The prompts, if the bad rows are to be tolerated and anything is left."""
    listed = "\n  ".join(map(str, bad[:SHOWN])) + (f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")
    if bad and on_bad_row == "error":
        raise DataError(
            f"{len(bad)} of {len(bad) + len(prompts)} rows cannot be read:\n  {listed}\nSet data.on_bad_row=skip to leave them out."
        )
    if bad:
        import warnings

        warnings.warn(f"{source}: left out {len(bad)} of {len(bad) + len(prompts)} rows:\n  {listed}", stacklevel=3)
    if not prompts:
        raise DataError(f"{source!r} holds no problems")
    return prompts


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(f"data file {str(path)!r} does not exist")
    if path.is_file():
        if path.suffix not in READERS:
            raise DataError(f"data file {str(path)!r} ends with {path.suffix!r}, expected one of {', '.join(READERS)}")
        return [path]
    files = sorted(p for p in path.iterdir() if p.suffix in READERS)
    if not files:
        raise DataError(f"folder {str(path)!r} holds no {', '.join(READERS)} files")
    return files


def _rows(path: Path) -> Iterator[Any]:
    return READERS[path.suffix](path)


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{str(path)!r} is not a readable parquet file: {error}") from error
    yield from rows


def _jsonl(path: Path) -> Iterator[Any]:
    """Lines end with a newline and with nothing else: the other separators of Unicode may stand inside of JSON's texts."""
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    for line in lines if lines[-1] else lines[:-1]:
        try:
            yield json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield ValueError(f"is not UTF-8 ({error})")
        except ValueError as error:
            yield ValueError(f"is not JSON ({error})")
        except RecursionError:
            yield ValueError("is nested too deeply")


def _json(path: Path) -> Iterator[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"{str(path)!r} holds a {type(rows).__name__}, expected a list of rows")
    yield from rows


READERS = {".parquet": _parquet, ".jsonl": _jsonl, ".json": _json}
