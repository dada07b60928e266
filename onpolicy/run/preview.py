"""What student and teachers will read, from tokenizer and data alone: before any weights are loaded or anything is sampled.

Prompts are made by the functions that a run uses. A context is called with a group that has no rollouts yet: one that looks at them, or
asks the model, cannot be shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import GeneratorType
from typing import Any, cast

from onpolicy.annotation.annotate import TeacherPrompts
from onpolicy.annotation.build import build_queries
from onpolicy.config.registry import Plugin
from onpolicy.config.resolved import ResolvedConfig, Section
from onpolicy.data.rendering import Renderer
from onpolicy.data.rows import Reading, ReadPrompts
from onpolicy.models import ModelHandle, open_model
from onpolicy.run.loading import (
    chosen_prompts,
    drop_overlong,
    grading,
    reads_references,
    references,
    refusal,
    section_prompts,
    stops,
    unanswered,
    unfilled_parameters,
)
from onpolicy.run.unsampled import ASKS_THE_MODEL, NoModel, NotYet, unsampled_group, with_baseline_columns
from onpolicy.types import Message, Prompt
from onpolicy.utils.errors import UserError

UNLIMITED = 2**31
MEASURED = 1000
"""Problems whose teacher prompts are rendered; every problem is shown to every context all the same."""
ROLES = ("prompt", "problem", "problem_id", "answer", "solution", "completion", "messages", "question", "id", "tools")
"""Columns that every row has or may have, by the names under which they are used."""
NOTHING = "has nothing to show: no teacher"
DROPPED = "longer than the limit: dropped"


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts, and how many they may be."""

    tokens: Sequence[int]
    limit: int
    unknown: int = 0
    """How many of the prompts hold the token that stands for text which the tokenizer does not know."""


@dataclass(frozen=True)
class SourcePreview:
    """How one source was read."""

    name: str
    """The key of its section: ``data``, ``eval.sets.<name>``."""
    columns: Mapping[str, str]
    """``prompt``, ``answer``, ``solution`` -> where it stood; empty for a source that has no columns."""
    others: Sequence[str]
    """Columns that are for none of these; contexts and rewards can name them."""
    read: int
    """Problems that it gave."""
    prompts: Sequence[Prompt]
    """Those that are used."""
    dropped: Sequence[str]
    """What was left out, each with the reason."""
    lengths: Lengths
    """Of the students' prompts."""
    with_answer: int
    """How many of them have a reference answer."""
    unreadable: Sequence[Prompt] | None
    """Those whose reference answer no grader can read; None where no grader of the config compares with them."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as a model reads it."""

    ids: Sequence[int]
    renderer: Renderer

    @property
    def text(self) -> str:
        """With special tokens."""
        return self.renderer.decode(self.ids)

    @property
    def pieces(self) -> list[tuple[str, bool]]:
        """The text in pieces, and whether a piece is made of special and added tokens: data may hold the same characters."""
        special = set(self.renderer.tokenizer.added_tokens_decoder)
        runs = groupby(self.ids, key=special.__contains__)
        return [(self.renderer.decode(list(run)), is_special) for is_special, run in runs]


@dataclass(frozen=True)
class TeacherPreview:
    """What a teacher reads about one problem."""

    prompt: RenderedPrompt | None
    """None where that is not known before the rollouts, or where there is no teacher."""
    note: str = ""
    """Why there is no text, or for which answers it is."""


@dataclass(frozen=True)
class RowPreview:
    """What is read about one problem."""

    id: str
    student: RenderedPrompt
    teachers: Mapping[str, TeacherPreview]
    """By context."""
    answer: Any

    def plain(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "id": self.id,
            "student_prompt": self.student.text,
            "teacher_prompts": {name: t.prompt and t.prompt.text for name, t in self.teachers.items()},
            "answer": self.answer,
            "student_tokens": len(self.student.ids),
            "teacher_tokens": {name: t.prompt and len(t.prompt.ids) for name, t in self.teachers.items()},
            "notes": {name: t.note for name, t in self.teachers.items() if t.note},
        }


@dataclass(frozen=True)
class Preview:
    """What a run would read."""

    model: str
    window: int | None
    """Tokens of the model's context window, where its config says."""
    sources: Sequence[SourcePreview]
    """The training data, then the evaluation sets."""
    rows: Sequence[RowPreview]
    """The first problems."""
    teacher_lengths: Mapping[str, Lengths]
    """By context, of the first ``MEASURED`` problems."""
    problems: Sequence[str]
    """Why the run would stop at some problem."""


def preview(resolved: ResolvedConfig, rows: int) -> Preview:
    """Reads the data of a config, and renders the prompts of its first ``rows`` problems.

    Raises:
        UserError: as a run would, for data that are refused, for prompts that are too long, for a model without a tokenizer.
    """
    model = open_model(resolved)
    sources = _Sources(model, reads_references(resolved))
    found = section_prompts(resolved.data, "data")
    drop = resolved.config.rendering.overlong == "drop"
    chosen, rewards = chosen_prompts(resolved.data, found, "data"), [reward.plugin for reward in resolved.rewards]
    training = sources.show("data", resolved.data, found, chosen, rewards, drop=drop)
    sets = []
    for key, section in ((f"eval.sets.{name}", s) for name, s in resolved.eval_sets.items()):
        found = section_prompts(section, key)
        chosen = chosen_prompts(section, found, key)[: section.settings.problems]
        sets.append(sources.show(key, section, found, chosen, grading(resolved), drop=False))
    teachers = _Teachers(resolved, model, training.prompts)
    shown = [_row(prompt, model, teachers) for prompt in training.prompts[:rows]]
    lengths, problems = teachers.survey()
    problems = [*sources.refusals, *problems]
    return Preview(resolved.config.model.path, model.window, [training, *sets], shown, lengths, problems)


@dataclass(frozen=True)
class _Sources:
    model: ModelHandle
    references_are_read: bool
    """Whether a grader of the config compares with reference answers."""
    refusals: list[str] = field(default_factory=list)
    """Of problems without an answer that the config needs."""

    def show(
        self,
        name: str,
        section: Section,
        found: Sequence[Prompt],
        chosen: Sequence[Prompt],
        graders: Sequence[Plugin],
        *,
        drop: bool,
    ) -> SourcePreview:
        """How a source was read: all that was found in it, and what was chosen of it."""
        self.refusals.extend(unfilled_parameters(chosen, graders))
        lacking = unanswered(chosen, graders)
        graded = [prompt for prompt in chosen if prompt.id not in lacking]
        if stops(lacking, chosen, section):
            self.refusals.append(refusal(chosen, lacking, name))
            graded, lacking = list(chosen), {}
        chosen = graded
        renderer = self.model.renderer
        limit = renderer.max_prompt_tokens or UNLIMITED
        ids = {prompt.id: renderer.prompt_ids(prompt.messages, limit=UNLIMITED) for prompt in chosen}
        tokens = {name: len(found) for name, found in ids.items()}
        fits = bool(tokens) and max(tokens.values()) <= limit
        kept = chosen if fits else drop_overlong(chosen, renderer, drop=drop)
        used = {prompt.id for prompt in kept}
        overlong = [i for i in tokens if i not in used]
        reading = found.reading if isinstance(found, ReadPrompts) else Reading({})
        with_answer, unreadable = references(kept)
        read_as_roles = {*ROLES, *reading.columns.values()}
        return SourcePreview(
            name=name,
            columns=reading.columns,
            others=[name for name in dict.fromkeys(n for p in kept for n in p.fields) if name not in read_as_roles],
            read=len(found),
            prompts=kept,
            dropped=[
                *reading.dropped,
                *(f"{i}: no reference answer, which {grader!r} needs" for i, grader in lacking.items()),
                *(f"{i}: {tokens[i]} tokens, more than rendering.max_prompt_tokens" for i in overlong),
            ],
            lengths=_lengths([ids[prompt.id] for prompt in kept], limit, renderer),
            with_answer=len(with_answer),
            unreadable=unreadable if self.references_are_read else None,
        )


def _lengths(prompts: Sequence[Sequence[int]], limit: int, renderer: Renderer) -> Lengths:
    unknown = renderer.tokenizer.unk_token_id
    return Lengths([len(ids) for ids in prompts], limit, sum(unknown in ids for ids in prompts))


def _row(prompt: Prompt, model: ModelHandle, teachers: _Teachers) -> RowPreview:
    return RowPreview(
        id=prompt.id,
        student=RenderedPrompt(model.renderer.prompt_ids(prompt.messages), model.renderer),
        teachers={context: teachers.show(context, prompt) for context in teachers.contexts},
        answer=prompt.fields.get("answer"),
    )


@dataclass
class _Teachers:
    """The contexts of a run, called before there are rollouts."""

    resolved: ResolvedConfig
    model: ModelHandle
    prompts: Sequence[Prompt]
    contexts: Mapping[str, Callable[..., Any]] = field(init=False)

    def __post_init__(self) -> None:
        nobody: Any = NoModel()
        self.contexts = {name: plugin.bind() for name, plugin in self.resolved.contexts.items()}
        self._queries = build_queries(self.resolved, self.model, self.prompts, nobody, nobody)
        self._rendered = TeacherPrompts(
            self.model.teacher_renderer,
            self.model.max_teacher_prompt_tokens,
            self.resolved.config.rendering.overlong == "drop",
        )

    def show(self, context: str, prompt: Prompt) -> TeacherPreview:
        """What the teacher of a context reads about a problem; a problem that would stop the run is a note."""
        try:
            messages, note = self._messages(context, prompt, ask=True)
            ids = self._rendered.render(context, prompt, messages)
        except (NotYet, UserError) as error:
            return TeacherPreview(None, str(error))
        if messages is None or ids is None:
            return TeacherPreview(None, NOTHING if messages is None else DROPPED)
        return TeacherPreview(RenderedPrompt(ids, self.model.teacher_renderer), note)

    def survey(self) -> tuple[dict[str, Lengths], list[str]]:
        """By context the lengths of the first teacher prompts; and why a run would stop, one reason for each problem and context."""
        rendered: dict[str, list[Sequence[int]]] = {context: [] for context in self.contexts}
        problems = []
        for context in self.contexts:
            for i, prompt in enumerate(self.prompts):
                try:
                    messages, _ = self._messages(context, prompt, ask=i < MEASURED)
                    ids = self._rendered.render(context, prompt, messages) if i < MEASURED else None
                except NotYet:
                    continue
                except UserError as error:
                    problems.append(f"contexts.{context}: {error}")
                    continue
                if ids is not None:
                    rendered[context].append(ids)
        limit = self.model.max_teacher_prompt_tokens
        renderer = self.model.teacher_renderer
        return {context: _lengths(found, limit, renderer) for context, found in rendered.items() if found}, problems

    def _messages(self, context: str, prompt: Prompt, *, ask: bool) -> tuple[Sequence[Message] | None, str]:
        """What a context shows, and for which answers: after a wrong one, or, where it shows nothing then, after a correct one.

        Args:
            context: its name
            prompt: the problem
            ask: whether one that asks for other problems may do so, which takes longer the more there are

        Raises:
            NotYet: it needs rollouts or the model.
        """
        wrong, correct = (self._called(context, prompt, score, ask) for score in (0.0, 1.0))
        if wrong == correct:
            return wrong, ""
        return (correct, "after a correct answer") if wrong is None else (wrong, "after a wrong answer")

    def _called(self, context: str, prompt: Prompt, score: float, ask: bool) -> Sequence[Message] | None:
        rewards = (score,) * self.resolved.generator.settings.group_size
        result = self.contexts[context](unsampled_group(with_baseline_columns(prompt, self.resolved)), 0, rewards)
        if not isinstance(result, GeneratorType):
            return cast("Sequence[Message] | None", result)
        if not ask:
            result.close()
            raise NotYet(ASKS_THE_MODEL)
        return cast("Sequence[Message] | None", self._queries.run({context: (prompt, result)}, version=0)[context])
