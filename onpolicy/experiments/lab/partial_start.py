"""What the reasoner of ``onpolicy lab learn_partial`` knows before anything is trained: by task, and by what its training data said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.table import Table

from onpolicy.experiments.lab import grading
from onpolicy.experiments.lab.asking import hinted, probability_of_last, sampler_of
from onpolicy.experiments.lab.data import lab
from onpolicy.experiments.lab.partial import knowledge, right
from onpolicy.experiments.lab.problem import TRY
from onpolicy.experiments.lab.readout import exact_measures
from onpolicy.experiments.lab.sets import partial_families
from onpolicy.rewards.answer import exact_answer
from onpolicy.rollout.hf_generator import HFGenerator
from onpolicy.types import Prompt, Sampling
from onpolicy.utils.tables import left, table

KNOWN_TASKS = ("route-a-2", "route-b-2", "route-a-3", "sums-4")
PROBLEMS, ANSWERS, MOST_TOKENS = 100, 16, 160
Answers = Sequence[tuple[Prompt, Sequence[str]]]


def measure_start(folder: str, problems: int = PROBLEMS) -> dict[str, Any]:
    """Accuracy, correct verdicts and true facts on problems that the reasoner has not seen, sixteen answers to each; where it knows part,
    also accuracy with the solution in the prompt, and accuracy and pass@16 by what the training data said of the fact that the answer
    rests on, and how likely the true fact is where the right attempt states it (``stated``).

    Args:
        folder: the reasoner
        problems: of each family
    """
    sampler = sampler_of(folder)
    found: dict[str, Any] = {}
    for family in (*KNOWN_TASKS, *partial_families()):
        prompts = lab(family=family, split="test")[:problems]
        answers = _answered(sampler, prompts)
        found[family] = _measures(answers)
        if family in partial_families():
            shown = [hinted(p, p.fields["solution"]) for p in prompts]
            found[family] |= {
                "with_solution": _measures(_answered(sampler, shown)),
                "by_knowledge": by_knowledge(answers),
                "stated": stated(sampler, prompts),
                "stated_with_solution": stated(sampler, shown),
            }
    return found


def stated(sampler: HFGenerator, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Known, faint or unknown -> probability of the first word of the true fact, where an answer that begins with the right attempt states
    the fact. A teacher that has read the solution can only teach in the middle of a search what it says there."""
    found: dict[str, list[float]] = defaultdict(list)
    for prompt in prompts:
        attempt = right(grading.problem_of(prompt.fields["problem_id"]))
        before, fact, *_ = attempt.working.split()
        asked, said = sampler.renderer.prompt_ids(prompt.messages), f"{TRY[0]} {attempt.idea} {before} {fact}"
        found[knowledge(attempt.idea).value].append(probability_of_last(sampler, asked, said))
    return {what: fmean(values) for what, values in found.items()}


def by_knowledge(answers: Answers) -> dict[str, dict[str, float]]:
    """Known, faint or unknown -> problems, accuracy, and the share of problems solved by one answer at least."""
    rates: dict[str, list[float]] = defaultdict(list)
    for prompt, texts in answers:
        what = knowledge(right(grading.problem_of(prompt.fields["problem_id"])).idea).value
        rates[what].append(_accuracy(prompt, texts))
    return {
        what: {
            "problems": float(len(values)),
            "accuracy": fmean(values),
            f"pass@{ANSWERS}": fmean(v > 0 for v in values),
        }
        for what, values in rates.items()
    }


def start_table(measured: Mapping[str, Mapping[str, Any]]) -> Table:
    return table(
        "before training, problems that the reasoner has not seen",
        [
            left("task"), "accuracy", "verdicts", "facts", "tokens", "with the solution", left("accuracy / pass@16 by knowledge"),
            left("true fact in a search, alone / with the solution"),
        ],
        (
            (
                family,
                f"{m['accuracy']:.3f}",
                f"{m['verdicts']:.3f}",
                f"{m['facts']:.3f}",
                f"{m['tokens']:.1f}",
                f"{m['with_solution']['accuracy']:.3f}" if "with_solution" in m else "",
                ", ".join(f"{k} {v['accuracy']:.2f} / {v[f'pass@{ANSWERS}']:.2f}" for k, v in m.get("by_knowledge", {}).items()),
                ", ".join(f"{k} {v:.2f} / {m['stated_with_solution'][k]:.2f}" for k, v in m.get("stated", {}).items()),
            )
            for family, m in measured.items()
        ),
    )  # fmt: skip


def _answered(sampler: HFGenerator, prompts: Sequence[Prompt]) -> Answers:
    groups = sampler.generate(prompts, seed=0, sampling=Sampling(group_size=ANSWERS, max_tokens=MOST_TOKENS))
    return [(prompt, [r.text for r in group.rollouts]) for prompt, group in zip(prompts, groups, strict=True)]


def _measures(answers: Answers) -> dict[str, Any]:
    texts = [(prompt.fields["problem_id"], text) for prompt, found in answers for text in found]
    exact = exact_measures(texts)
    return {
        "accuracy": fmean(_accuracy(prompt, found) for prompt, found in answers),
        "tokens": fmean(len(text.split()) for _, text in texts),
        **{name: exact.get(name) for name in ("verdicts", "facts")},
    }


def _accuracy(prompt: Prompt, texts: Sequence[str]) -> float:
    return fmean(exact_answer(text, prompt.fields["answer"]) for text in texts)
