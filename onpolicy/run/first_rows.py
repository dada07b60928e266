"""What the first rows of the data say of a run, before anything is loaded: a column that is missing is missing there too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

from onpolicy.config.problems import Problems
from onpolicy.config.registry import Plugin
from onpolicy.config.resolved import ResolvedConfig, Section
from onpolicy.data.rows import ReadPrompts
from onpolicy.rewards.base import missing_columns
from onpolicy.run.loading import (
    BASELINE_COLUMNS,
    chosen_prompts,
    grading,
    refusal,
    stops,
    unanswered,
    unfilled_parameters,
)
from onpolicy.run.unsampled import NotYet, unsampled_group, with_baseline_columns
from onpolicy.types import Prompt
from onpolicy.utils.errors import UserError

ROWS = 64
"""How many are read."""
OURS = "onpolicy."
"""The module of contexts that may be called to see whether they work: what a user's own does besides is not known."""


@dataclass(frozen=True)
class FirstRows:
    """The first problems of a source."""

    key: str
    section: Section
    more: bool
    """Whether others follow."""
    chosen: Sequence[Prompt]
    """Those that the run would use."""
    some_may_lack: bool
    """Whether a problem that lacks what is needed may be left out of the run; only if all lack it, it is missing."""

    @property
    def counted(self) -> str:
        """``the first 64 problems``, or ``12 problems`` where there are no more."""
        return f"the first {len(self.chosen)} problems" if self.more else f"{len(self.chosen)} problems"


def first_rows(section: Section) -> ReadPrompts | None:
    """The first problems of a source; None where it cannot give them without the others.

    Raises:
        DataError: they cannot be read.
    """
    first: Callable[..., ReadPrompts] | None = getattr(section.plugin.function, "first", None)
    return None if first is None else first(ROWS, **section.plugin.options)


def lacking_columns(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """Why a run would stop at one of the first rows: unreadable, or without a column that rewards, graders or contexts need."""
    found: list[FirstRows] = []
    for key, section in {"data": resolved.data, **{f"eval.sets.{k}": s for k, s in resolved.eval_sets.items()}}.items():
        if not problems.sound(section.plugin.key):
            continue
        try:
            if prompts := first_rows(section):
                found.append(_chosen(key, section, prompts))
        except UserError as error:
            yield f"{key}: {error}"
    for rows in found:
        training = rows.key == "data"
        graders = [reward.plugin for reward in resolved.rewards] if training else grading(resolved)
        if problems.sound("rewards", "eval.graders"):
            yield from _ungraded(rows, graders)
        if training and problems.sound("contexts", "privileged_rollouts", "generator"):
            yield from _unshown(rows, resolved)


def _chosen(key: str, section: Section, prompts: ReadPrompts) -> FirstRows:
    more, subset = prompts.reading.more, section.settings.coverage.problems is not None
    chosen = prompts if more else chosen_prompts(section, prompts, key)
    if key != "data":
        chosen = chosen[: section.settings.problems]
    skips = section.plugin.options.get("on_bad_row") == "skip"
    return FirstRows(key, section, more, chosen, more and (skips or subset))


def _ungraded(rows: FirstRows, graders: Sequence[Plugin]) -> Iterator[str]:
    lacking = unanswered(rows.chosen, graders)
    if stops(lacking, rows.chosen, rows.section) and not (rows.some_may_lack and len(lacking) < len(rows.chosen)):
        yield refusal(rows.chosen, lacking, rows.key, rows.counted)
    yield from unfilled_parameters(rows.chosen, graders, rows.counted if rows.more else "")
    for plugin in graders:
        missing = {
            p.id: names
            for p in rows.chosen
            if (names := missing_columns(plugin.bind(), {*p.fields, *BASELINE_COLUMNS}))
        }
        if 0 < len(missing) < len(rows.chosen) and not rows.some_may_lack:
            first = next(p for p in rows.chosen if p.id in missing)
            yield (
                f"{plugin.key}: {plugin.name!r} takes {', '.join(map(repr, missing[first.id]))}, which {len(missing)} of {rows.counted} of "
                f"{rows.key} do not have, e.g. {first.id!r}; it has: {', '.join(sorted(first.fields))}."
            )


def _unshown(rows: FirstRows, resolved: ResolvedConfig) -> Iterator[str]:
    shown = {f"contexts.{name}": plugin for name, plugin in resolved.contexts.items()}
    if resolved.privileged_rollouts is not None:
        shown["privileged_rollouts"] = resolved.privileged_rollouts.plugin
    size = resolved.generator.settings.group_size
    for key, plugin in shown.items():
        if not plugin.function.__module__.startswith(OURS):
            continue
        context = plugin.bind()
        prompts = [with_baseline_columns(prompt, resolved) for prompt in rows.chosen]
        errors = [error for prompt in prompts if (error := _problem(context, prompt, size)) is not None]
        if errors and not (rows.some_may_lack and len(errors) < len(rows.chosen)):
            several = f" The same holds for {len(errors)} of {rows.counted}." if len(rows.chosen) > 1 else ""
            yield f"{key}: {errors[0]}{several}"


def _problem(context: Callable[..., Any], prompt: Prompt, size: int) -> UserError | None:
    """Why a context cannot show a problem, whether its rollouts are correct or not; None where it can, or where that is not known yet."""
    for score in (0.0, 1.0):
        try:
            result = context(unsampled_group(prompt), 0, (score,) * size)
            if isinstance(result, GeneratorType):
                next(result, None)
                result.close()
        except NotYet:
            continue
        except UserError as error:
            return error
    return None
