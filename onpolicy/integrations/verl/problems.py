"""Problems of any of our data sources as a file that verl reads: the problem itself stands in a column, beside verl's own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.data.errors import DataError
from onpolicy.data.text import clipped
from onpolicy.run.check_run import not_ready
from onpolicy.run.loading import chosen_prompts, section_prompts
from onpolicy.types import Prompt
from onpolicy.utils.errors import ConfigError, suggest

PROBLEM = "onpolicy_problem"
"""Column with a ``Prompt`` as JSON, from which it is read again as it was; verl's own columns say the same to verl."""
AGENT = "agent_name"
"""Column by which verl chooses the agent loop of a row."""


def write_problems(config: Path, overrides: Sequence[str], output: Path, eval_set: str | None = None) -> None:
    """``onpolicy verl data``: the problems of a config of the embedded trainer, as a parquet file for ``data.train_files``.

    Args:
        config: its file
        overrides: of its keys
        output: file to write
        eval_set: one under ``eval.sets``, in place of ``data``

    Raises:
        ConfigError: no such set, or its source lacks a package.
        DataError: there are no problems, one cannot be read, or JSON cannot hold it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    resolved = resolve(load(config, overrides))
    if eval_set is not None and eval_set not in resolved.eval_sets:
        hint = suggest(eval_set, resolved.eval_sets)
        raise ConfigError(
            f"--set: {eval_set!r} is not under eval.sets, expected one of {', '.join(resolved.eval_sets) or 'none'}"
            + (f".{hint}" if hint else "")
        )
    key = "data" if eval_set is None else f"eval.sets.{eval_set}"
    section = resolved.data if eval_set is None else resolved.eval_sets[eval_set]
    if lacking := list(not_ready(section.plugin)):
        raise ConfigError(*lacking)
    prompts = chosen_prompts(section, section_prompts(section, key), key)
    if eval_set is not None:
        prompts = prompts[: section.settings.problems]
    output.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([_row(key, i, prompt) for i, prompt in enumerate(prompts)]), output)
    talks = sum(prompt.interactive for prompt in prompts)
    print(f"{output}: {len(prompts)} problems, {talks} of them conversations with the environment")


def problem_as_json(key: str, prompt: Prompt) -> str:
    """What the column holds.

    Args:
        key: of the section that the problem comes from
        prompt: the problem

    Raises:
        DataError: JSON cannot hold what it holds.
    """
    given = {field.name: _plain(getattr(prompt, field.name)) for field in dataclasses.fields(Prompt)}
    for what, value in _parts(given):
        try:
            same = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise DataError(
                f"{key}: problem {prompt.id!r} has under {what} what JSON cannot hold: {clipped(value)}; expected text, numbers, lists, "
                "and mappings with names"
            )
    return json.dumps({name: value for name, value in given.items() if value or name in ("id", "messages")})


def problem_from_json(text: str) -> Prompt:
    """The problem that the column holds."""
    given: dict[str, Any] = json.loads(text)
    for name in given.keys() & {"messages", "completion_prefix_ids", "banned_token_ids"}:
        given[name] = tuple(given[name])
    return Prompt(**given)


def file_problems(key: str, files: Sequence[str]) -> Iterator[str]:
    """Why files of verl's cannot be those of a run with an environment; remote ones, and such as do not exist, are not looked at.

    Args:
        key: that names them
        files: their paths
    """
    for name in files:
        path = Path(name).expanduser()
        if not path.is_file():
            continue
        columns, interactive = _columns(path)
        if PROBLEM not in columns:
            yield (
                f"{key}: {name!r} has no column {PROBLEM!r}, from which onpolicy.environment knows its problems; expected a file that "
                "`onpolicy verl data` has written"
            )
        elif AGENT in columns:
            yield (
                f"{key}: {name!r} has a column {AGENT!r}, by which verl would run agent loops of its own in place of onpolicy.environment; "
                "leave it out"
            )
        elif not interactive:
            yield (
                f"{key}: {name!r} has no problem that an environment takes part in (interactive: true in the column {PROBLEM!r}); "
                "expected some, or no onpolicy.environment"
            )


def _columns(path: Path) -> tuple[Sequence[str], bool]:
    """Their names, and whether any problem is a conversation."""
    import datasets

    kind = "parquet" if path.suffix == ".parquet" else "json"
    rows = datasets.load_dataset(kind, data_files=str(path))["train"]  # as verl reads it
    problems = rows[PROBLEM] if PROBLEM in rows.column_names else ()
    return rows.column_names, any(problem_from_json(text).interactive for text in problems)


def _row(key: str, index: int, prompt: Prompt) -> dict[str, Any]:
    """verl renders the messages once, to leave out prompts that are too long."""
    source, answer = prompt.fields.get("data_source"), prompt.fields.get("answer")
    return {
        "prompt": [{"role": message["role"], "content": message["content"]} for message in prompt.messages],
        "data_source": source if isinstance(source, str) and source else "problems",
        "reward_model": {"style": "rule", "ground_truth": answer if isinstance(answer, str) else ""},
        "extra_info": {"index": index},
        PROBLEM: problem_as_json(key, prompt),
    }


def _parts(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values by their names; those of a mapping one by one."""
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", own) for inner, own in value.items())
        else:
            yield name, value


def _plain(value: Any) -> Any:
    """With lists and dictionaries in the place of other sequences and mappings."""
    if isinstance(value, Mapping):
        return {name: _plain(own) for name, own in value.items()}
    return [_plain(own) for own in value] if isinstance(value, list | tuple) else value
