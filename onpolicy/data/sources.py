"""Sources of problems: plug-ins of the kind ``data``; each returns prompts."""

from __future__ import annotations

from dataclasses import replace

from onpolicy.data.errors import DataError
from onpolicy.data.files import OnBadRow, accept, load_prompts, prompts_of
from onpolicy.data.rows import unique_ids
from onpolicy.types import Message, Prompt


def file(
    *,
    path: str,
    on_bad_row: OnBadRow = "error",
    prompt_template: str | None = None,
    system_prompt: str | None = None,
) -> list[Prompt]:
    """A .parquet (verl's schema too), .jsonl or .json file, or a folder of them.

    Args:
        path: file or folder
        on_bad_row: `error` stops at rows that cannot be read, `skip` leaves them out and says so
        prompt_template: text around a problem given as plain text; `{problem}` stands for it, without white space around it
        system_prompt: text of a system message before each conversation that has none
    """
    return with_system(load_prompts(path, on_bad_row=on_bad_row, prompt_template=prompt_template), system_prompt)


def hub(
    *,
    path: str,
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
    on_bad_row: OnBadRow = "error",
    prompt_template: str | None = None,
    system_prompt: str | None = None,
) -> list[Prompt]:
    """A dataset of the Hugging Face hub, or a local folder in its layout; needs `pip install datasets`.

    Args:
        path: hub id or local folder
        split: which split
        subset: configuration of the dataset, where it has several
        revision: branch, tag or commit
        on_bad_row: `error` stops at rows that cannot be read, `skip` leaves them out and says so
        prompt_template: text around a problem given as plain text; `{problem}` stands for it, without white space around it
        system_prompt: text of a system message before each conversation that has none
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError("data: the source 'hub' needs the package datasets: pip install 'onpolicy[hub]'") from error
    try:
        rows = load_dataset(path, subset, split=split, revision=revision)
    except Exception as error:  # datasets raises a dozen types for what a user would call "not found"
        raise DataError(f"data.path: cannot load {path!r}, split {split!r}: {type(error).__name__}: {error}") from error
    prompts, bad = prompts_of(rows, path, path.rpartition("/")[2], prompt_template)
    return with_system(accept(unique_ids(prompts), bad, on_bad_row, path), system_prompt)


def with_system(prompts: list[Prompt], text: str | None) -> list[Prompt]:
    """The prompts, with a system message of this text before each conversation that has none; as they are without a text."""
    if text is None:
        return prompts
    message: Message = {"role": "system", "content": text}
    return [
        prompt if prompt.messages[0]["role"] == "system" else replace(prompt, messages=(message, *prompt.messages))
        for prompt in prompts
    ]
