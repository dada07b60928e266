"""One row of a dataset -> one Prompt, under whatever names its columns have.

Read as they are: verl's parquet schema (nested columns as structs or as JSON strings), TRL's (``prompt`` and free
columns), SDFT's and OPSD's (``problem``, ``solution``), swift's (``messages``), ShareGPT's (``conversations``), coding problems
(``code_problems``), science questions (``multiple_choice``). docs/data.md has the line for each of a dozen public datasets.
"""

from __future__ import annotations

import ast
import contextlib
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onpolicy.data.code_problems import code_question
from onpolicy.data.conversations import Conversation, offer_tools, read_conversation
from onpolicy.data.multiple_choice import science_question
from onpolicy.data.references import AnswerFrom, Found, read_reference
from onpolicy.data.text import as_text, clipped
from onpolicy.types import Prompt
from onpolicy.utils.errors import suggest

QUESTION = ("messages", "prompt", "problem", "question", "conversations")
ANSWER = ("answer", "ground_truth", "reward_model.ground_truth", "label", "final_answer")
SOLUTION = ("solution", "privileged_context", "reference_solution", "extra_info.solution", "extra_info.answer_cot")
IDENTITY = ("id", "problem_id", "question_id", "task_id", "Record ID", "extra_info.index", "idx")
GROUND_TRUTH = ("ground_truth", "reward_model.ground_truth")
"""verl's columns: its rewards get what stands there, whichever column the answer is taken from."""
ROLES = {"prompt": QUESTION, "answer": ANSWER, "solution": SOLUTION}
"""What a column may be for, and the columns that are for it where nothing else is said, the first that a row has."""
NESTED = ("messages", "prompt", "reward_model", "extra_info", "conversations", "tools", "choices")
"""Columns that some files store as JSON text."""
MISSING = object()


@dataclass(frozen=True)
class RowFormat:
    """How the rows of a source become prompts; the options of the sources ``file`` and ``hub``."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Role -> column, with dots for what is nested: ``{"prompt": "Problem", "answer": "meta.answer"}``."""
    answer_from: AnswerFrom | None = None
    prompt_template: str | None = None

    @property
    def nested(self) -> set[str]:
        """The named columns that may hold JSON text: those with messages, and those of which a field is named."""
        return {path.partition(".")[0] for role, path in self.columns.items() if role == "prompt" or "." in path}


@dataclass(frozen=True)
class Reading:
    """How a source was read."""

    columns: Mapping[str, str]
    """``prompt``, ``answer``, ``solution``, ``tools`` -> where it stood, e.g. ``answer, after ####``; what no row has is missing."""
    dropped: tuple[str, ...] = ()
    """Rows and files that were left out, each with the reason."""
    more: bool = False
    """Whether only the first rows were read, and others follow."""


class ReadPrompts(list[Prompt]):
    """The prompts of a source of rows, with how they were read."""

    def __init__(self, prompts: Iterable[Prompt], reading: Reading) -> None:
        super().__init__(prompts)
        self.reading = reading


def to_prompt(
    row: Mapping[str, Any],
    *,
    default_id: str,
    prompt_template: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Prompt:
    """Raises ValueError saying which column is wrong and what is expected."""
    return read_row(row, default_id, RowFormat(columns=columns or {}, prompt_template=prompt_template))[0]


def read_row(row: Mapping[str, Any], default_id: str, form: RowFormat) -> tuple[Prompt, dict[str, str]]:
    """The prompt, and for each role where it stood.

    Raises:
        ValueError: with the column that is wrong and what is expected.
    """
    nested = (*NESTED, *form.nested)
    row = {name: _unpacked(name, value) if name in nested else value for name, value in row.items()}
    for name, value in row.items():
        if not _is_text(value) or not _is_text(name):
            raise ValueError(
                f"column {name!r} holds half a character (a lone surrogate), which is no text: {clipped(value)}"
            )
    science = None if "prompt" in form.columns or row.get("messages") is not None else science_question(row)
    question = science.question if science else _question(row, form)
    plain = question.value if isinstance(question.value, str) else None
    conversation = _conversation(question, row, form.prompt_template)
    answer, solution = _find(row, "answer", form), _find(row, "solution", form)
    if science is not None:
        answer = answer if "answer" in form.columns else science.answer or answer
        solution = solution or science.solution
    if _is_blank(solution) and conversation.answer is not None:
        solution = Found(conversation.answer, f"{question.where}, last assistant turn")
    reference = read_reference(
        None if _is_blank(answer) else answer, None if _is_blank(solution) else solution, form.answer_from
    )
    if answer is not None and reference.answer is None:
        raise ValueError(f"column {answer.where!r} is empty, expected an answer")
    texts = reference.texts
    fields = dict(row) | {role: None for role in ("answer", "solution") if role in row} | texts
    fields["prompt"] = plain if plain is not None else [dict(m) for m in conversation.messages]
    if plain is not None and fields.get("problem") is None:
        fields["problem"] = plain
    if science is not None and science.options:
        fields.setdefault("options", dict(science.options))
    if conversation.answer is not None:
        fields.setdefault("completion", conversation.answer)
    prompt = Prompt(
        id=_identity(row, default_id),
        messages=offer_tools(conversation.messages, row.get("tools")),
        fields=fields,
        ground_truth=next(_given(row, GROUND_TRUTH if "answer" in form.columns else ()), reference.ground_truth),
        raw_columns={
            role: found.value
            for role, found in (("answer", answer), ("solution", solution))
            if found and (role in form.columns or found.where == role) and not _equals(found.value, texts.get(role))
        },
    )
    asked = f"{question.where}, without the last assistant turn" if conversation.answered else question.where
    taken = {"prompt": asked, **reference.where, "tools": "tools" if row.get("tools") else ""}
    return prompt, {role: where for role, where in taken.items() if where}


def summary(taken: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Where each role stood in all rows; with numbers of rows where they differ."""
    found = {}
    for role in ("prompt", "answer", "solution", "tools"):
        places = Counter(row[role] for row in taken if role in row)
        alike = len(places) == 1 and places.total() == len(taken)
        counted = (f"{where} ({n} of {len(taken)} rows)" for where, n in places.most_common())
        if places:
            found[role] = next(iter(places)) if alike else "; ".join(counted)
    return found


def unique_ids(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The second row with an id gets ``<id>#2``, or the next number that no row has; ``fields["problem_id"]`` keeps saying which problem
    it is."""
    prompts = list(prompts)
    names, seen = FreeNames(prompt.id for prompt in prompts), set[str]()
    result = []
    for prompt in prompts:
        name = names.after(prompt.id) if prompt.id in seen else prompt.id
        seen.add(prompt.id)
        fields = {**prompt.fields, "problem_id": prompt.fields.get("problem_id", prompt.id)}
        result.append(replace(prompt, id=name, fields=fields))
    return result


class FreeNames:
    """Names ``<id>#2``, ``<id>#3`` ... that nothing else has."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._last: dict[str, int] = {}

    def after(self, name: str) -> str:
        """The next free name for another row with this id."""
        number = self._last.get(name, 1) + 1
        while f"{name}#{number}" in self._taken:
            number += 1
        self._last[name] = number
        self._taken.add(f"{name}#{number}")
        return f"{name}#{number}"


def _question(row: Mapping[str, Any], form: RowFormat) -> Found:
    """The column with the question. Around plain text goes the template: where there is one, columns of plain text come first."""
    if "prompt" in form.columns:
        found = _at(row, form.columns["prompt"], "prompt")
        if found.value is None:
            raise ValueError(f"column {found.where!r} is empty, expected a problem")
    elif (coding := code_question(row)) is not None:
        return coding
    else:
        names = [name for name in QUESTION if row.get(name) is not None]
        if not names:
            raise ValueError(
                f"no prompt: expected one of the columns {', '.join(QUESTION)}; it has {', '.join(map(repr, row)) or 'none'}. "
                f"Name the one that holds it, e.g. data.columns.prompt={shlex.quote(next(iter(row), 'NAME'))}"
            )
        if form.prompt_template is not None:
            names.sort(key=lambda name: not isinstance(row[name], str | bytes))
        found = Found(row[names[0]], names[0])
    return Found(as_text(found.value), found.where) if isinstance(found.value, bytes) else found


def _conversation(question: Found, row: Mapping[str, Any], template: str | None) -> Conversation:
    if not isinstance(question.value, str):
        conversation = read_conversation(question.value, question.where)
        system = row.get("system") if question.where == "conversations" else None  # where ShareGPT keeps it
        if not isinstance(system, str) or not system.strip() or conversation.messages[0]["role"] == "system":
            return conversation
        return replace(conversation, messages=({"role": "system", "content": system}, *conversation.messages))
    if not question.value.strip():
        raise ValueError(f"column {question.where!r} is empty, expected a problem")
    return Conversation(({"role": "user", "content": _filled(template, question.value)},))


def _find(row: Mapping[str, Any], role: str, form: RowFormat) -> Found | None:
    """The first column for this role that is not empty, or one that is empty, or None where there is none."""
    paths = [form.columns[role]] if role in form.columns else [p for p in ROLES[role] if _value(row, p) is not MISSING]
    given = [found for path in paths if (found := _at(row, path, role)).value is not None]
    return next((found for found in given if not _is_blank(found)), next(iter(given), None))


def _at(row: Mapping[str, Any], path: str, role: str) -> Found:
    value = _value(row, path)
    if value is MISSING:
        raise ValueError(
            f"data.columns.{role}: there is no column {path!r}; it has {', '.join(map(repr, row)) or 'none'}"
            + (f".{hint}" if (hint := suggest(path, row)) else "")
        )
    return Found(value, path)


def _given(row: Mapping[str, Any], paths: Iterable[str]) -> Iterator[Any]:
    """The values that a row has under these names."""
    return (value for path in paths if (value := _value(row, path)) is not MISSING and value is not None)


def _value(row: Mapping[str, Any], path: str) -> Any:
    """What stands in a column, or with dots in a field of a nested one."""
    value: Any = row
    for part in [path] if path in row else path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def _is_blank(found: Found | None) -> bool:
    return found is None or (isinstance(found.value, str | bytes) and not found.value.strip())


def _equals(value: Any, text: str | None) -> bool:
    return isinstance(value, str) and value == text


def _identity(row: Mapping[str, Any], default: str) -> str:
    for value in _given(row, IDENTITY):
        if value != "":
            with contextlib.suppress(ValueError):  # NaN, where a row lacks what others have
                return as_text(value)
    return default


def _is_text(value: Any) -> bool:
    """Whether every string in it can be encoded; JSON can write some that cannot."""
    if isinstance(value, Mapping):
        return all(_is_text(key) and _is_text(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_text, value))
    if not isinstance(value, str):
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _filled(template: str | None, problem: str) -> str:
    """The problem as it is, or without white space around it in place of ``{problem}``; other braces are left alone."""
    return problem if template is None else template.replace("{problem}", problem.strip())


def _unpacked(column: str, value: Any) -> Any:
    """JSON text that holds an object or a list of objects becomes one, and so does what Python writes for one, as pandas does into CSV
    files; other text, `[1, 2]` and `{a, b}` too, stays text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    python = value.lstrip().startswith(
        "[{'" if column == "prompt" else ("[{'", "{'")
    )  # a question may begin with a dictionary
    try:
        inner = ast.literal_eval(value.strip()) if python else json.loads(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        if python or value.lstrip().startswith(('[{"', '{"')):
            kind = "Python text" if python else "JSON"
            raise ValueError(f"column {column!r} holds broken {kind}: {clipped(value)} ({error})") from error
        return value
    is_nested = isinstance(inner, dict) or (isinstance(inner, list) and any(isinstance(item, dict) for item in inner))
    return inner if is_nested else value
