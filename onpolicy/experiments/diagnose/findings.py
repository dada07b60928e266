"""Everything that a diagnosis found, as it is written to ``diagnosis.json``, printed and shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onpolicy.experiments.diagnose.answers import Asked, Probed
from onpolicy.experiments.diagnose.measures import (
    Measured,
    ReadProblem,
    accuracy_of_sets,
    adjusted,
    compare_answers,
    read_problems,
)
from onpolicy.experiments.diagnose.questions import UNCERTAINTY
from onpolicy.experiments.diagnose.verdict import RULES, Diagnosis, diagnose_measures, primary_measures
from onpolicy.rewards.uncertainty import prompt_text
from onpolicy.utils.stats import Estimate

SHOWN = 10
"""Lost problems that are shown, at most."""


@dataclass(frozen=True)
class LostProblem:
    """One that the base solved at least once and the trained model never."""

    set: str
    id: str
    question: str
    solved: int
    """Answers of the base that are right."""
    base: str
    """One of them."""
    trained: str
    """The trained model's first answer."""


@dataclass(frozen=True)
class Findings:
    """A diagnosis with all that it rests on."""

    base: str
    trained: str
    asked: Mapping[str, int]
    """Set -> number of problems."""
    samples: int
    settings: Mapping[str, Any]
    notes: Sequence[str]
    """In what the two models differ besides their weights."""
    verdict: Diagnosis
    measures: Sequence[Measured]
    by_set: Sequence[Measured]
    probes: Mapping[str, Probed]
    """Of ``base`` and ``trained``."""
    lost: Sequence[LostProblem]
    lost_in_all: int
    gained: int
    """Problems that the trained model solves at least once and the base never."""

    @property
    def problems(self) -> int:
        return sum(self.asked.values())

    @property
    def shown(self) -> list[Measured]:
        """The measures of which one of the models has anything."""
        return [m for m in self.measures if not m.nothing or m.p is not None]

    def plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"problems": self.problems} | asdict(self) | {"rules": list(RULES)}


def find(base: Asked, trained: Asked, probes: Mapping[str, Probed]) -> Findings:
    """Compares what two models answered."""
    config = base.resolved.config
    lexicons = list(dict.fromkeys((UNCERTAINTY, *config.epistemic.lexicons)))
    notes, per_words = differences_of(base, trained)
    before, after = _read(base, lexicons), _read(trained, lexicons)
    both = [[p for problems in read.values() for p in problems] for read in (before, after)]
    samples = config.eval.samples_per_problem
    primary = primary_measures(samples, per_words)
    measures, by_set = adjusted(
        compare_answers(both[0], both[1], lexicons, list(primary), per_words=per_words), accuracy_of_sets(before, after)
    )
    alike = all(b.result.completions == t.result.completions for b, t in zip(*both, strict=True))
    lost = _lost(before, after)
    return Findings(
        base=base.path,
        trained=trained.path,
        asked={name: len(prompts) for name, prompts in base.sets.items()},
        samples=samples,
        settings=_settings(base),
        notes=[*notes, *_not_graded(both[0], both[1])],
        verdict=diagnose_measures(measures, by_set, primary, len(both[0]), alike),
        measures=measures,
        by_set=by_set,
        probes=probes,
        lost=lost[:SHOWN],
        lost_in_all=len(lost),
        gained=len(_lost(after, before)),
    )


def differences_of(base: Asked, trained: Asked) -> tuple[list[str], bool]:
    """In what the models differ besides weights, and whether their tokens are different ones."""
    one, other = base.model.tokenizer, trained.model.tokenizer
    apart = one.get_vocab() != other.get_vocab()
    notes = ["The tokenizers differ: compare words, not tokens; markers are counted per 1,000 words."] if apart else []
    if one.chat_template != other.chat_template:
        notes.append("The chat templates differ: each model read the problems in its own.")
    return notes, apart


def _not_graded(base: Sequence[ReadProblem], trained: Sequence[ReadProblem]) -> list[str]:
    """How many answers have no verdict, and so count nowhere in the accuracy."""
    counts = [[right for problem in problems for right in problem.result.right] for problems in (base, trained)]
    missing = [sum(right is None for right in found) for found in counts]
    if not any(missing):
        return []
    said = ", ".join(
        f"{n} of {len(found)} of the {who}"
        for n, found, who in zip(missing, counts, ("base", "trained model"), strict=True)
    )
    return [
        f"Answers that were not graded: {said}. They count in no accuracy, nor do problems that were graded in one model alone."
    ]


def _settings(asked: Asked) -> dict[str, Any]:
    config, settings = asked.resolved.config, asked.resolved.generator.settings
    return {
        "seed": config.seed,
        "temperature": config.eval.temperature,
        "top_p": config.eval.top_p,
        "max_tokens": config.eval.max_tokens or settings.max_tokens,
        "generator": asked.resolved.generator.plugin.name,
        "graded by": next((g.name for g in asked.resolved.graders), asked.resolved.correctness_name),
    }


def _read(asked: Asked, lexicons: Sequence[str]) -> dict[str, list[ReadProblem]]:
    results = asked.results()
    return {
        name: read_problems(results[name], prompts, asked.model.renderer, lexicons)
        for name, prompts in asked.sets.items()
    }


def _lost(before: Mapping[str, Sequence[ReadProblem]], after: Mapping[str, Sequence[ReadProblem]]) -> list[LostProblem]:
    """Those solved most often first."""
    found = []
    for name, problems in before.items():
        for b, t in zip(problems, after[name], strict=True):
            right = [text for text, r in zip(b.result.completions, b.result.right, strict=True) if r]
            graded = any(r is not None for r in t.result.right)
            if right and graded and not any(t.result.right):
                question = prompt_text(b.prompt.messages)
                found.append(LostProblem(name, b.result.id, question, len(right), right[0], t.result.completions[0]))
    return sorted(found, key=lambda lost: -lost.solved)


def shown_value(measured: Measured, value: float | None) -> str:
    """A value of one model."""
    return "–" if value is None else f"{value:.2f}" if measured.share or abs(value) < 100 else f"{value:.0f}"


def shown_difference(measured: Measured) -> tuple[str, str]:
    """The difference, and its interval."""
    if measured.difference is None:
        return "–", ""
    return _signed(measured.difference, wide=not measured.share)


def _signed(d: Estimate, *, wide: bool) -> tuple[str, str]:
    digits = 0 if wide and max(abs(d.low), abs(d.high)) >= 100 else 2
    return f"{d.mean:+.{digits}f}", f"{d.low:+.{digits}f} to {d.high:+.{digits}f}"
