"""Off-policy self-distillation: fine-tuning on the model's own right answers, written with the solution in view or without it.

Section 4 of arXiv 2603.24472 in miniature. Guided answers are shorter, so at equal examples they are fewer tokens; a third arm, which
the paper lacks, sees the guided ones until it has learned from as many tokens as the unguided arm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from onpolicy.analyze.commands import Session, session
from onpolicy.assemble import build_evaluator
from onpolicy.loading import load_weights
from onpolicy.plan import Plan
from onpolicy.room import Room
from onpolicy.routing import RIGHT
from onpolicy.scoring import JudgedGroup
from onpolicy.types import Metrics, Prompt, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Trace = tuple[Sequence[int], Sequence[int]]
"""Ids of the plain prompt and of an answer to it."""


@dataclass(frozen=True)
class Training:
    """How an arm is fine-tuned."""

    epochs: int = 3
    batch: int = 32
    lr: float = 3e-4
    seed: int = 0


def arms(checked: Plan, folder: Path, training: Training, note: Callable[[str], None]) -> dict[str, Metrics]:
    """Arm -> its evaluation, with the number of its examples and of the tokens it learned from.

    Args:
        checked: a config with a view ``teacher``, whose prompt the guided answers see, and sets to evaluate on
        folder: for the evaluations' samples
        training: how each arm is trained
        note: told what is being done
    """
    with session(checked) as s:
        evaluator = build_evaluator(checked, s.model, s.generator, Room(note))
        assert evaluator is not None
        note("sampling answers")
        unguided, guided = own_answers(s)
        tokens = training.epochs * sum(len(answer) for _, answer in unguided)
        budgets = {
            "start": ([], 0),
            "unguided": (unguided, tokens),
            "guided": (guided, training.epochs * sum(len(answer) for _, answer in guided)),
            "guided_equal_tokens": (guided, tokens),
        }
        found: dict[str, Metrics] = {}
        for version, (name, (traces, budget)) in enumerate(budgets.items(), start=1):
            note(f"fine-tuning: {name}")
            model = load_weights(checked, s.model.path)
            fine_tune(model, traces, budget, training)
            s.generator.update_weights(model.state_dict().items(), version=version)
            facts = {"examples": float(len(traces)), "tokens": float(budget)}
            found[name] = facts | evaluator(folder / name)
    return found


def own_answers(s: Session) -> tuple[list[Trace], list[Trace]]:
    """The first right answer to each problem, unguided and guided, of the problems that have both."""
    seed = s.checked.config.seed
    context = s.checked.contexts["teacher"].bind()
    groups = s.judge(s.generator.generate(s.prompts, seed=seed))
    shown = [
        replace(g.group.prompt, id=f"{g.group.prompt.id}@guided", messages=context(g.group, 0, g.scores))
        for g in groups
    ]
    pairs = [
        (prompt, _first_right(plain), _first_right(seen))
        for prompt, plain, seen in zip(
            s.prompts, groups, s.judge(s.generator.generate(shown, seed=seed + 1)), strict=True
        )
    ]
    both = [(prompt, one, other) for prompt, one, other in pairs if one and other]
    ids: Callable[[Prompt], Sequence[int]] = lambda prompt: s.model.renderer.prompt_ids(prompt.messages)  # noqa: E731
    return (
        [(ids(prompt), one.completion_ids) for prompt, one, _ in both],
        [(ids(prompt), other.completion_ids) for prompt, _, other in both],
    )


def _first_right(judged: JudgedGroup) -> Rollout | None:
    return next((r for r, score in zip(judged.group.rollouts, judged.scores, strict=True) if score >= RIGHT), None)


def fine_tune(model: PreTrainedModel, traces: Sequence[Trace], tokens: int, training: Training) -> None:
    """-log p of every token of the answers, mean over a batch, until so many tokens have been learned from."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=0.0)
    seen = 0
    for batch in _batches(traces, training):
        if seen >= tokens:
            return
        width = max(len(prompt) + len(answer) for prompt, answer in batch)
        ids = torch.tensor([[*p, *a] + [0] * (width - len(p) - len(a)) for p, a in batch])
        wanted = torch.tensor([[-100] * len(p) + [*a] + [-100] * (width - len(p) - len(a)) for p, a in batch])
        logits = model(input_ids=ids[:, :-1]).logits
        cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=-100).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += sum(len(answer) for _, answer in batch)


def _batches(traces: Sequence[Trace], training: Training) -> Iterator[list[Trace]]:
    draw = Random(training.seed)
    while traces:
        order = draw.sample(list(traces), len(traces))
        for start in range(0, len(order), training.batch):
            yield order[start : start + training.batch]
