"""One optimizer update of a shipped config on a golden case, decided the way a run decides it.

Rewards, scored groups, annotator (contexts, credit, routes), examples, collate, chunked head, loss inputs, objective. Nothing
here repairs a difference between a config and published code: only the scale of a case is laid over the config.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onpolicy.annotation.annotate import Annotator
from onpolicy.annotation.build import build_rewards
from onpolicy.annotation.queries import ContextQueries
from onpolicy.annotation.scoring import Scorer
from onpolicy.config.registry import find_function
from onpolicy.config.resolve import load_resolved
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schedules import Coefficients
from onpolicy.config.shipped import find_config
from onpolicy.config.yaml_io import read_yaml
from onpolicy.experiments.parity.fixtures import Case
from onpolicy.losses.objective import Objective
from onpolicy.trainer.build import build_objective
from onpolicy.trainer.chunked_head import token_stats
from onpolicy.trainer.collate import collate
from onpolicy.trainer.head import Head, HiddenStates
from onpolicy.trainer.loss_inputs import loss_inputs
from onpolicy.types import (
    REF,
    Example,
    LossInputs,
    Prompt,
    Rollout,
    RolloutGroup,
    RolloutReward,
    ScoredGroup,
    TrainBatch,
)

METRICS = {"teacher/teacher/entropy": 1.0}
"""Metrics of the steps before, for schedules that read one: constant, so that a gate on it stays open."""

SCALE = {"support.k": "top_k", "].temperature": "temperature", "advantage.coefficient": "strength"}
"""End of a key of the objective -> the setting of a case that takes its value's place: cases are small, and some vary a strength."""


@dataclass(frozen=True)
class Update:
    """What a config computes on a case."""

    rows: list[int]
    """The rows that became examples; the others are left out of the update."""
    advantages: Tensor
    """By row of ``rows``."""
    notes: list[str] = field(default_factory=list)
    """Decisions about rows in which the config differs from the published code."""
    loss: Tensor | None = None
    gradient: Tensor | None = None
    """[B, T, V] with respect to the student's logits."""


def config_of(name: str, settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> ResolvedConfig:
    """A shipped config at the scale of a case: vocabulary, lengths, temperature, and the strengths that a case is named after."""
    path = find_config(name)
    return load_resolved(path, [*scale_of(read_yaml(path), settings), *overrides])


def compute(case: Case, overrides: Sequence[str] = ()) -> Update:
    """Loss, gradient on the student's logits and advantages of the case's config.

    Args:
        case: the golden case
        overrides: laid over the config
    """
    resolved = config_of(case.config, case.settings, overrides)
    objective = objective_of(case, resolved)
    coefficients = Coefficients(resolved.coefficients)
    for step in range(1, case.settings.get("step", 1) + 1):  # controllers remember the steps before
        coefficients.set(step, METRICS)
    examples, notes = examples_of(case, resolved)
    if case.settings.get("advantages") == "given":
        given = case.arrays["out_advantages"]
        examples = {i: dataclasses.replace(e, advantage=float(given[i])) for i, e in examples.items()}
    rows = list(examples)
    advantages = torch.tensor([e.advantage for e in examples.values()], dtype=torch.float64)
    if case.meta["compare"] == ["advantages"]:
        return Update(rows, advantages, notes)
    batch = exact(
        collate(list(examples.values()), contexts=tuple(resolved.contexts), routes=objective.routes), case, rows
    )
    leaf = case.tensor("student_logits").requires_grad_()
    inputs = read_case(case, resolved, objective, batch, leaf[rows, : batch.sampled_mask.shape[1]], rows)
    loss = objective.loss(inputs, objective.survey([inputs]))
    (gradient,) = torch.autograd.grad(loss, leaf)
    return Update(rows, advantages, notes, loss.detach(), gradient)


def exact(batch: TrainBatch, case: Case, rows: Sequence[int]) -> TrainBatch:
    """The batch with the sampler's log-probabilities and the advantages in float64."""
    width, mask = batch.sampled_mask.shape[1], batch.sampled_mask
    advantages = torch.tensor([e.advantage for e in batch.examples], dtype=torch.float64)[:, None]
    return dataclasses.replace(
        batch, rollout_logprobs=case.tensor("rollout_logprobs", rows, width) * mask, advantages=advantages * mask
    )


def read_case(
    case: Case, resolved: ResolvedConfig, objective: Objective, batch: TrainBatch, student: Tensor, rows: Sequence[int]
) -> LossInputs:
    """What the loss sees, from the case's logits."""
    mask, width = batch.sampled_mask, batch.sampled_mask.shape[1]
    teachers = {}
    for context, own in batch.context_masks.items():
        name = f"{name_in_case(resolved, context)}_logits"
        if name not in case.arrays and bool(own.any()):
            raise ValueError(f"{case.name}: the config has a context {context!r}, of which the case has no logits")
        logits = case.tensor(name, rows, width) if name in case.arrays else torch.zeros_like(student.detach())
        teachers[context] = HiddenStates(torch.where(own[mask][:, None], logits[mask], 0.0), Head())
    if objective.needs_ref:
        teachers[REF] = HiddenStates(case.tensor("ref_logits", rows, width)[mask], Head())
    states, ids = HiddenStates(student[mask], Head()), batch.completion_ids[mask]
    stats = token_stats(states, teachers, ids, objective.comparisons, temperatures=objective.temperatures)
    old = None if case.settings["first_update"] else case.tensor("old_logprobs", rows, width) * mask
    return loss_inputs(batch, stats, old)


def examples_of(case: Case, resolved: ResolvedConfig) -> tuple[dict[int, Example], list[str]]:
    """The config's own decisions about every row, in the order of the arrays; rows that it leaves out are absent."""
    scored, order = scored_groups(case, resolved)
    nobody: Any = None
    queries = ContextQueries(
        generator=nobody, scorer=nobody, prompts=(), seed_of=int, renderer=nobody, limit=10**6, drop_too_long=False
    )
    renderer: Any = _OneTokenPrompts()
    annotator = Annotator(
        renderer=renderer,
        contexts={context: plugin.bind() for context, plugin in resolved.contexts.items()},
        credit=resolved.credit.bind(),
        queries=queries,
        max_teacher_prompt_tokens=10**6,
        drop_too_long=False,
        routes={name: t.settings.route for name, t in zip(resolved.term_names, resolved.objective, strict=True)},
    )
    examples, _ = annotator.annotate(scored, version=0)
    row_of = {id(r): row for row, r in zip(order, (r for s in scored for r in s.group.rollouts), strict=True)}
    placed = dict(sorted((row_of[id(e.rollout)], _within(case, resolved, e)) for e in examples))
    missing = sorted(set(order) - set(placed))
    notes = [f"rows left out: {missing}"] if missing else []
    for context in resolved.contexts:
        theirs = case.arrays.get(f"has_context_{name_in_case(resolved, context)}")
        own = [context in e.teacher_prompt_ids for e in placed.values()]
        if theirs is not None and own != [bool(theirs[i]) for i in placed]:
            shown = "".join(".x"[m] for m in own), "".join(".x"[int(theirs[i])] for i in placed)
            notes.append(f"rows with {context}: {shown[0]}, published {shown[1]}")
    return placed, notes


def _within(case: Case, resolved: ResolvedConfig, example: Example) -> Example:
    """The example with as many wrong hints as the case has; a config may have contexts for more."""
    hints = case.settings.get("wrong_hints")
    if not isinstance(hints, int):
        return example
    ranks = {context: int(plugin.options.get("rank", 0)) for context, plugin in resolved.contexts.items()}
    kept = {context: ids for context, ids in example.teacher_prompt_ids.items() if ranks[context] < hints}
    return dataclasses.replace(example, teacher_prompt_ids=kept)


def scored_groups(case: Case, resolved: ResolvedConfig) -> tuple[list[ScoredGroup], list[int]]:
    """Groups with their rewards, and the row of each rollout: by the config's rewards where the case has texts."""
    texts, rewards = case.meta.get("texts"), build_rewards(resolved)
    groups = [_group(case, number) for number in sorted(set(case.arrays["group_ids"].tolist()))]
    order = [row for rows, _ in groups for row in rows]
    if rewards and texts:
        scorer = Scorer(rewards, lambda text: text.split("</think>")[-1], resolved.correctness_name)
        return scorer.score([group for _, group in groups]), order
    of_length = [r for r in rewards if next(iter(inspect.signature(r.function).parameters)) == "num_tokens"]
    scored = []
    for rows, group in groups:
        correct = [float(case.arrays["correct"][i]) for i in rows]
        total = [float(case.arrays["rewards"][i]) for i in rows]
        if of_length:  # correct or not as the config weighs it, and the config's own penalty of length
            weight = float(next(r for r in rewards if r not in of_length).weight)
            total = [
                weight * right + sum(float(p.weight) * p.function(int(case.arrays["lengths"][i])) for p in of_length)
                for right, i in zip(correct, rows, strict=True)
            ]
        scored.append(ScoredGroup(group, tuple(RolloutReward(t, 0.0, {}) for t in total), tuple(correct)))
    return scored, order


def name_in_case(resolved: ResolvedConfig, context: str) -> str:
    """What the arrays of a case call a context: teacher, contrast, and contrast2 and so on for further wrong siblings."""
    if context in ("teacher", "contrast"):
        return context
    rank = int(resolved.contexts[context].options.get("rank", 0))
    return "contrast" if rank == 0 else f"contrast{rank + 1}"


class _OneTokenPrompts:
    """Stands in for a renderer: a prompt is one token, since the case has the logits."""

    def prompt_ids(self, messages: Any, *, limit: int | None = None) -> tuple[int, ...]:
        return (1,)


def _group(case: Case, number: int) -> tuple[list[int], RolloutGroup]:
    arrays, texts = case.arrays, case.meta.get("texts")
    rows = [i for i, group in enumerate(arrays["group_ids"].tolist()) if group == number]
    prompt = Prompt(
        id=f"p{number}",
        messages=({"role": "user", "content": f"Problem {number}."},),
        fields={"answer": texts["golds"][rows[0]] if texts else "1", "solution": "A solution."},
    )
    rollouts = tuple(
        Rollout(
            prompt_ids=(1,),
            completion_ids=tuple(arrays["sampled_ids"][i, : arrays["lengths"][i]].tolist()),
            rollout_logprobs=tuple(arrays["rollout_logprobs"][i, : arrays["lengths"][i]].tolist()),
            text=texts["completions"][i] if texts else f"Attempt {i}: \\boxed{{{i}}}",
            finish_reason="length" if arrays["truncated"][i] else "stop",
            policy_version=0,
        )
        for i in rows
    )
    return rows, RolloutGroup(prompt=prompt, rollouts=rollouts)


def objective_of(case: Case, resolved: ResolvedConfig) -> Objective:
    """The config's; of a loss with a part that is exact at each step and a long one, only the part that the case has."""
    objective, parts = build_objective(resolved), case.settings.get("parts")
    if parts not in (["one"], ["long"]):
        return objective
    kept = tuple(t for t in objective.terms if (t.comparison is not None) == (parts == ["one"]))
    return dataclasses.replace(objective, terms=kept)


def scale_of(spec: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """What a case says about its scale, for those keys of the config that are about it."""
    for path, value in _walk(spec, ""):
        if value == "???":
            yield f"{path}=x"
    for path, value in _walk(spec["objective"], "objective"):
        for ending, setting in SCALE.items():
            if path.endswith(ending) and setting in settings:
                yield f"{path}={settings[setting]}"
        if isinstance(settings.get("teacher_share"), float) and path.endswith(".advantage"):
            yield from _shared(path, value, settings)
    if "completion_limit" in settings:
        yield f"generator.max_tokens={settings['completion_limit']}"
    if "overlong_limit" in settings:
        for path, _ in _walk(spec["rewards"], "rewards"):
            if path.endswith(".buffer"):
                yield f"{path}={settings['overlong_buffer']}"
                yield f"{path.removesuffix('buffer')}max_tokens={settings['overlong_limit']}"


def _shared(path: str, value: Any, settings: Mapping[str, Any]) -> Iterator[str]:
    """The teacher's share, and its clip, of an advantage that has these options."""
    given = {"name": value} if isinstance(value, str) else dict(value)
    options = inspect.signature(find_function("advantage", given["name"], path)).parameters
    case = {"share": settings["teacher_share"], "clip": settings.get("weight_clip")}
    given |= {name: number for name, number in case.items() if name in options and number is not None}
    yield f"{path}={{{', '.join(f'{name}: {option}' for name, option in given.items())}}}"


def _walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every (key path, value) below a node of a config."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        inner = f"{path}[{key}]" if isinstance(node, list) else f"{path}.{key}".lstrip(".")
        yield inner, value
        yield from _walk(value, inner)
