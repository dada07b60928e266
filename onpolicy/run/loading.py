"""The prompts of a run: read from their source, chosen as configured, and checked against ``rendering.max_prompt_tokens``."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature

from onpolicy.config.registry import Plugin, options_of
from onpolicy.config.resolved import ResolvedConfig, Section
from onpolicy.data import DataError
from onpolicy.data.chat_template import RenderingError
from onpolicy.data.rendering import PromptTooLong, Renderer
from onpolicy.data.subset import coverage
from onpolicy.rewards.answer import readable
from onpolicy.rewards.base import given_besides, missing_columns, needed_references
from onpolicy.types import Prompt
from onpolicy.utils.errors import UserNotice, suggest

BASELINE_COLUMNS = ("ref_rate", "ref_std")
"""Columns that ``epistemic.baseline`` adds when it has been measured."""
GRADERS = "onpolicy.rewards"
"""The module of graders whose reading of references is known."""


def section_prompts(section: Section, key: str) -> list[Prompt]:
    """Reads the prompts of a data section.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    try:
        prompts: list[Prompt] = section.plugin.bind()()
    except DataError as error:  # a source knows its options as those of `data`
        named = rf"(?<![\w./])data\.(?=(?:name|{'|'.join(options_of(section.plugin.function))})\b)"
        raise DataError(re.sub(named, f"{key}.", str(error))) from error
    if not prompts:
        raise DataError(f"{key}: {section.plugin.name!r} gave no problems")
    return prompts


def training_prompts(resolved: ResolvedConfig, renderer: Renderer) -> list[Prompt]:
    """The prompts to train on: the configured subset; those that are too long raise an error or are dropped, those that the rewards fail
    on raise one."""
    prompts = chosen_prompts(resolved.data, section_prompts(resolved.data, "data"), "data")
    prompts = gradable(prompts, [reward.plugin for reward in resolved.rewards], resolved.data, "data")
    warn_of_unreadable(prompts, resolved, "data")
    return drop_overlong(prompts, renderer, drop=resolved.config.rendering.overlong == "drop")


def chosen_prompts(section: Section, prompts: Sequence[Prompt], key: str) -> list[Prompt]:
    """Those of a dataset's prompts that the section's ``coverage`` chooses."""
    chosen = section.settings.coverage
    return coverage(prompts, problems=chosen.problems, repeats=chosen.repeats, seed=chosen.seed, key=f"{key}.coverage")


def evaluation_prompts(resolved: ResolvedConfig, renderer: Renderer) -> dict[str, list[Prompt]]:
    """The prompts of each evaluation set; those that are too long, or cannot be graded, raise an error."""
    sets = {}
    for name, section in resolved.eval_sets.items():
        prompts = section_prompts(section, key := f"eval.sets.{name}")
        prompts = chosen_prompts(section, prompts, key)[: section.settings.problems]
        prompts = gradable(prompts, grading(resolved), section, key)
        warn_of_unreadable(prompts, resolved, key)
        sets[name] = drop_overlong(prompts, renderer, drop=False)
    return sets


def grading(resolved: ResolvedConfig) -> list[Plugin]:
    """What grades evaluations: the graders, or where there are none the reward that decides which answers are correct."""
    deciding = (r.plugin for r in resolved.rewards if r.plugin.name == resolved.correctness_name)
    return list(resolved.graders) or list(deciding)[:1]


def gradable(prompts: Sequence[Prompt], graders: Sequence[Plugin], section: Section, key: str) -> list[Prompt]:
    """The prompts on which no reward or grader fails for want of a reference answer; with ``on_bad_row: skip`` the others are left out.

    Raises:
        DataError: there are others, and they are not to be left out; or there is nothing else; or a reward has a parameter that nothing
            fills.
    """
    if unfilled := list(unfilled_parameters(prompts, graders)):
        raise DataError("\n".join(unfilled))
    lacking = unanswered(prompts, graders)
    kept = [prompt for prompt in prompts if prompt.id not in lacking]
    if stops(lacking, prompts, section):
        raise DataError(refusal(prompts, lacking, key))
    if lacking:
        first, grader = next(iter(lacking.items()))
        warnings.warn(
            f"{key}: left out {len(prompts) - len(kept)} of {len(prompts)} problems without the reference answer that {grader!r} needs, "
            f"e.g. {first!r}",
            UserNotice,
            stacklevel=3,
        )
    return kept


def unfilled_parameters(prompts: Sequence[Prompt], graders: Sequence[Plugin], counted: str = "") -> Iterator[str]:
    """What to say of each parameter of a reward that names nothing that a reward is given, and no column of any row."""
    none = f"none of {counted}" if counted else "no row"
    columns = list(dict.fromkeys(name for prompt in prompts for name in prompt.fields))
    for plugin in graders:
        given = given_besides(plugin.bind())
        for name in missing_columns(plugin.bind(), (*columns, *BASELINE_COLUMNS)):
            yield (
                f"{plugin.key}: {plugin.name!r} has a parameter {name!r}, but {none} has such a column; the rows have "
                f"{', '.join(map(repr, columns))}, and rewards are also given {', '.join(given)}.{suggest(name, (*columns, *given))}"
            )


def unanswered(prompts: Sequence[Prompt], graders: Sequence[Plugin]) -> dict[str, str]:
    """Ids of the problems without a reference answer -> the reward or grader that cannot do without it."""
    found: dict[str, str] = {}
    for plugin in graders:
        needed = needed_references(plugin.bind())
        for prompt in prompts:
            given = prompt.fields.get("answer") is not None
            if needed and not given and ("answer" in needed or prompt.ground_truth is None):
                found.setdefault(prompt.id, plugin.name)
    return found


def stops(lacking: Mapping[str, str], prompts: Sequence[Prompt], section: Section) -> bool:
    """Whether problems without a reference answer stop the run: they are not to be left out, or there are no others."""
    return bool(lacking) and (len(lacking) == len(prompts) or section.plugin.options.get("on_bad_row") != "skip")


def refusal(prompts: Sequence[Prompt], lacking: Mapping[str, str], key: str, counted: str = "") -> str:
    """What to say of problems without a reference answer; ``counted``: ``the first 64 problems``, where these are not all."""
    first, grader = next(iter(lacking.items()))
    named = [prompt for prompt in prompts if prompt.id in lacking]
    of = counted or f"{len(prompts)} problems"
    if len(named) < len(prompts):
        remedy = f"Set {key}.on_bad_row=skip to leave them out"
    else:
        remedy = f"Name the column that holds it, {key}.columns={{answer: {'solution' if named[0].fields.get('solution') else 'NAME'}}}"
    return f"{key}: {len(named)} of {of} have no reference answer, which {grader!r} needs, e.g. {first!r}. {remedy}."


def warn_of_unreadable(prompts: Sequence[Prompt], resolved: ResolvedConfig, key: str) -> None:
    """Says how many reference answers no grader of ours can read; silent where the config has none that compares with them."""
    given, bad = references(prompts)
    if bad and reads_references(resolved):
        warnings.warn(
            f"{key}: {len(bad)} of {len(given)} reference answers cannot be read by a grader, so no answer to them is ever correct, e.g. "
            f"{bad[0].fields['answer']!r} of {bad[0].id!r}",
            UserNotice,
            stacklevel=2,
        )


def reads_references(resolved: ResolvedConfig) -> bool:
    """Whether a grader of ours compares with reference answers."""
    plugins = (*(reward.plugin for reward in resolved.rewards), *resolved.graders)
    functions = [plugin.function for plugin in plugins]
    return any(f.__module__.startswith(GRADERS) and "answer" in signature(f).parameters for f in functions)


def references(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts with a reference answer, and those of them whose answer no grader of ours can read."""
    given = [prompt for prompt in prompts if prompt.fields.get("answer") is not None]
    return given, [prompt for prompt in given if not readable(_reference(prompt))]


def _reference(prompt: Prompt) -> object:
    """The text that graders compare with; of a mapping the mapping, because its text only looks like an answer."""
    text = prompt.fields["answer"]
    try:
        written = json.loads(text) if text.startswith("{") else None
    except ValueError:  # a set, e.g. {1, x}
        return text
    return written if isinstance(written, Mapping) else text


def drop_overlong(prompts: Sequence[Prompt], renderer: Renderer, *, drop: bool) -> list[Prompt]:
    """The prompts within ``rendering.max_prompt_tokens``; renders every prompt once, so that problems show before the first step.

    Raises:
        PromptTooLong: a prompt is too long and ``drop`` is false.
        RenderingError: the chat template cannot show a prompt.
        DataError: no prompt is left.
    """
    kept = []
    for prompt in prompts:
        try:
            renderer.prompt_ids(prompt.messages)
        except RenderingError as error:
            raise RenderingError(f"prompt {prompt.id!r}: {error}") from error
        except PromptTooLong as error:
            if not drop:
                raise PromptTooLong(
                    error.num_tokens, error.limit, f"prompt {prompt.id!r} (rendering.max_prompt_tokens)"
                ) from error
            continue
        kept.append(prompt)
    if not kept:
        raise DataError("data: every prompt is longer than rendering.max_prompt_tokens")
    return kept
