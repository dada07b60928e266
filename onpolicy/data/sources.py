"""Sources of problems: plug-ins of the kind ``data``; each returns prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onpolicy.data.errors import DataError
from onpolicy.data.files import data_files, is_data_file, load_first_prompts, load_prompts
from onpolicy.data.reading import OnBadRow, RowReader
from onpolicy.data.references import AnswerFrom
from onpolicy.data.rows import ReadPrompts, RowFormat
from onpolicy.types import Message
from onpolicy.utils.ready import begins_with, extra, installed, ready_if


@begins_with(lambda rows, *, path, system_prompt=None, **form: load_first_prompts(path, rows, **form))
@ready_if(lambda path, **options: data_files(Path(path)))
def file(
    *,
    path: str,
    on_bad_row: OnBadRow = "error",
    prompt_template: str | None = None,
    system_prompt: str | None = None,
    columns: dict[str, str] | None = None,
    answer_from: AnswerFrom | None = None,
) -> ReadPrompts:
    """A .parquet (verl's schema too), .arrow, .jsonl, .json, .csv or .tsv file, or a folder of them.

    Args:
        path: file or folder
        on_bad_row: `error` stops at rows that cannot be read, `skip` leaves them out and says so
        prompt_template: text around a problem given as plain text; `{problem}` stands for it, without white space around it
        system_prompt: text of a system message before each conversation that has none
        columns: `prompt`, `answer`, `solution` -> the column that holds it, with dots for what is nested: `{prompt: Problem, answer:
            meta.answer}`; null, and for those not named: the usual names (docs/data.md)
        answer_from: where the answer stands in a worked solution: `boxed`, in the last box, or `hash`, after the `####` of its last line;
            null: in the answer's column, or where that is missing in the solution, in either way
    """
    prompts = load_prompts(
        path, on_bad_row=on_bad_row, prompt_template=prompt_template, columns=columns, answer_from=answer_from
    )
    return with_system(prompts, system_prompt)


@ready_if(installed("datasets", extra("hub")))
def hub(
    *,
    path: str,
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
    on_bad_row: OnBadRow = "error",
    prompt_template: str | None = None,
    system_prompt: str | None = None,
    columns: dict[str, str] | None = None,
    answer_from: AnswerFrom | None = None,
) -> ReadPrompts:
    """A dataset of the Hugging Face hub, or a local folder in its layout; needs `pip install datasets`.

    Args:
        path: hub id or local folder
        split: which split
        subset: configuration of the dataset, where it has several
        revision: branch, tag or commit
        on_bad_row: `error` stops at rows that cannot be read, `skip` leaves them out and says so
        prompt_template: text around a problem given as plain text; `{problem}` stands for it, without white space around it
        system_prompt: text of a system message before each conversation that has none
        columns: `prompt`, `answer`, `solution` -> the column that holds it, with dots for what is nested: `{prompt: Problem, answer:
            meta.answer}`; null, and for those not named: the usual names (docs/data.md)
        answer_from: where the answer stands in a worked solution: `boxed`, in the last box, or `hash`, after the `####` of its last line;
            null: in the answer's column, or where that is missing in the solution, in either way
    """
    if Path(path).is_file() or (is_data_file(path) and not Path(path).exists()):
        here = "is a file" if Path(path).is_file() else "is the name of a file, but there is none here"
        raise DataError(
            f"data.path: {path!r} {here}, expected a dataset of the hub or a folder; data.name=file reads files"
        )
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"data: the source 'hub' needs the package datasets: {extra('hub')}") from error
    try:
        rows = load_dataset(path, subset, split=split, revision=revision)
    except Exception as error:  # datasets raises a dozen types for what a user would call "not found"
        raise DataError(f"data.path: cannot load {path!r}, split {split!r}: {type(error).__name__}: {error}") from error
    reader = RowReader(RowFormat(columns=columns or {}, answer_from=answer_from, prompt_template=prompt_template))
    reader.read(enumerate(rows, start=1), path, path.rpartition("/")[2])
    return with_system(reader.accepted(on_bad_row, path), system_prompt)


def with_system(prompts: ReadPrompts, text: str | None) -> ReadPrompts:
    """The prompts, with a system message of this text before each conversation that has none; as they are without a text."""
    if text is None:
        return prompts
    message: Message = {"role": "system", "content": text}
    worded = (
        prompt if prompt.messages[0]["role"] == "system" else replace(prompt, messages=(message, *prompt.messages))
        for prompt in prompts
    )
    return ReadPrompts(worded, prompts.reading)
