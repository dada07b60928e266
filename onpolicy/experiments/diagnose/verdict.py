"""What the measures come to, by rules that the page states."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onpolicy.experiments.diagnose.measures import ACCURACY, CORRECTED, LEVEL, TRUNCATED, WORDS, Measured, rate_name
from onpolicy.experiments.diagnose.questions import UNCERTAINTY

RULES = (
    "Tested are accuracy, on all problems and on each of several sets, pass@k, wrong starts corrected, answers cut off, words per answer, "
    "and the rate of expressed uncertainty. "
    "The test swaps the two models' answers problem by problem, 9,999 times, and asks how often the difference is as large; its "
    "p-values are corrected for there being several by Holm's method. A measure differs where its corrected p is below "
    f"{LEVEL}.",
    "Harm is found where accuracy, pass@k or the share of wrong starts that are corrected falls, or more answers are cut off.",
    "Where only length or expressed uncertainty differs, the answers changed and no harm is found.",
    "Everything else is shown with its interval and decides nothing: of twenty such intervals one leaves out zero by chance.",
    "Nothing found is no proof of no harm: the verdict says which difference in accuracy could have been seen, and harm on other "
    "problems than these cannot be.",
)


@dataclass(frozen=True)
class Diagnosis:
    """The verdict in plain words."""

    found: str
    """``harm``, ``change`` or ``nothing``."""
    headline: str
    details: Sequence[str]


def primary_measures(samples: int, per_words: bool) -> dict[str, int]:
    """Measure -> the direction that is harm: -1 a fall, 1 a rise, 0 neither."""
    several = {f"pass@{samples}": -1} if samples > 1 else {}
    expressed = {WORDS: 0, rate_name(UNCERTAINTY, per_words): 0}
    return {ACCURACY: -1, **several, CORRECTED: -1, TRUNCATED: 1, **expressed}


def diagnose_measures(
    measures: Sequence[Measured], by_set: Sequence[Measured], primary: Mapping[str, int], problems: int, alike: bool
) -> Diagnosis:
    """The verdict on two models.

    Args:
        measures: of both
        by_set: the accuracy on each set
        primary: as ``primary_measures``
        problems: number of problems
        alike: whether all their answers are the same, word for word
    """
    sets = [replace(m, name=f"accuracy on {m.name}") for m in by_set if m.p is not None]
    directions = {**primary, **{m.name: -1 for m in sets}}
    tested = [m for m in (*measures, *sets) if m.p is not None]
    differing = [m for m in tested if m.differs]
    harmful = [m for m in differing if directions[m.name] * _mean(m) > 0]
    others = [m for m in differing if m not in harmful]
    fallen = [m for m in harmful if m in sets] if any(m.name == ACCURACY for m in harmful) else []
    if harmful:
        found, headline = "harm", f"Harm found: {', '.join(_said(m) for m in harmful if m not in fallen)}"
    elif any(directions[m.name] == 0 for m in others):
        found, headline = "change", f"No harm found, but the answers changed: {', '.join(map(_said, others))}"
    else:
        found, headline = "nothing", f"No harm found: none of {len(tested)} primary measures is worse"
        headline = headline if others else headline.replace("worse", "different")
    by_name = [_said(m).removeprefix("accuracy on ") for m in fallen]
    details = [f"It fell on {', '.join(by_name)}."] if fallen else []
    details += [f"Also: {', '.join(map(_said, others))}."] if others and found != "change" else []
    if alike:
        details.append("Both models gave the same answers, word for word.")
    elif found != "harm":
        details += _sensitivity(measures, problems)
    if problems < (least := _least_problems(len(tested))):
        details.append(f"{problems} problems are too few for the test to find anything: expected {least} or more.")
    if untested := [name for name in primary if name not in {m.name for m in tested}]:
        details.append(f"Not tested, because one of the models has no answer to measure it on: {', '.join(untested)}.")
    return Diagnosis(found, headline, details)


def _least_problems(tests: int) -> int:
    """With fewer, even a difference that is the same on all of them has a p-value above the level: one draw in 2^(n-1) is as large."""
    return next(n for n in itertools.count(1) if max(tests, 1) * 2.0 ** (1 - n) < LEVEL)


def _mean(measured: Measured) -> float:
    return measured.difference.mean if measured.difference else 0.0


def _said(m: Measured) -> str:
    """``accuracy -0.21 (95 % -0.28 to -0.14)``; where a measure is no share, the relative change."""
    if m.relative is not None:
        name = "length" if m.name == WORDS else m.name.partition(" / ")[0]
        mean, low, high = (f"{100 * value:+.0f}" for value in (m.relative.mean, m.relative.low, m.relative.high))
        return f"{name} {mean} % (95 % {low} to {high} %)"
    assert m.difference is not None
    mean, low, high = (f"{value:+.2f}" for value in (m.difference.mean, m.difference.low, m.difference.high))
    return f"{m.name} {mean} (95 % {low} to {high})"


def _sensitivity(measures: Sequence[Measured], problems: int) -> list[str]:
    """Which difference in accuracy could not have been seen; nothing where all answers of both models are correct."""
    accuracy = next((m for m in measures if (m.group, m.name) == (ACCURACY, ACCURACY) and m.difference), None)
    if accuracy is None or accuracy.difference is None:
        return []
    if accuracy.base == 0.0:
        return ["The base has no correct answer, so that no fall in accuracy could be seen."]
    half = (accuracy.difference.high - accuracy.difference.low) / 2
    return [f"With {problems} problems, differences in accuracy below {half:.2f} cannot be seen."] if half else []
