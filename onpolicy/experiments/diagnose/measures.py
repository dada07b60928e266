"""What the answers of two models say, measure by measure, and how sure that is.

Nearly every measure is a ratio of sums over problems, so that one bootstrap over problems and one test serve all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from onpolicy.data.rendering import Renderer
from onpolicy.epistemic.calibration import agreement, auroc
from onpolicy.epistemic.marked import MarkedRollout, locate_markers
from onpolicy.rewards.answer import math_answer
from onpolicy.rewards.equality import by_equality
from onpolicy.rewards.extract import stated_answers
from onpolicy.rewards.words import folded_words
from onpolicy.run.evaluate import as_scored_group, maj_at_k, pass_at_k
from onpolicy.run.evaluation_files import ProblemResult
from onpolicy.types import Prompt
from onpolicy.utils.stats import Estimate, bootstrap_statistic_ci, holm, swap_test

LEVEL = 0.05
"""A primary measure differs where its adjusted p-value is below."""
ACCURACY, LENGTH, UNCERTAIN, CORRECTION, CALIBRATION, OTHER = (
    "accuracy", "length", "expressed uncertainty", "self-correction", "calibration", "rewards that only measure",
)  # fmt: skip
"""Groups of measures."""
SHARES = (ACCURACY, CORRECTION, CALIBRATION, OTHER)
"""Groups whose measures lie between 0 and 1."""
TRUNCATED = "answers cut off"
CORRECTED = "wrong starts corrected"
WORDS = "words"

Sums = Mapping[tuple[str, str], tuple[float, float]]
"""Group and measure -> what one problem adds to its numerator and to its denominator."""


@dataclass(frozen=True)
class ReadProblem:
    """One problem and what one model's answers to it say."""

    prompt: Prompt
    result: ProblemResult
    marked: Sequence[MarkedRollout]
    agreed: Sequence[float | None]
    """By answer, the share of the others that end alike."""


@dataclass(frozen=True)
class Measured:
    """One measure of both models; None where nothing can be said."""

    group: str
    name: str
    base: float | None
    trained: float | None
    difference: Estimate | None
    """Trained minus base, with the 95 % bootstrap interval over problems."""
    counted: tuple[int, int]
    """What its denominators count, for base and trained: problems, tokens, wrong starts ..."""
    relative: Estimate | None = None
    """The difference as a share of the base's value, where the measure itself is no share."""
    p: float | None = None
    """Of the primary measures: by the test that swaps the models, adjusted by Holm's method."""

    @property
    def share(self) -> bool:
        """Whether it lies between 0 and 1."""
        return self.group in SHARES or self.name == TRUNCATED

    @property
    def differs(self) -> bool:
        """Whether it is a primary measure that differs."""
        return self.p is not None and self.p < LEVEL

    @property
    def nothing(self) -> bool:
        """Whether neither model has any of it."""
        return not self.base and not self.trained


def read_problems(
    results: Sequence[ProblemResult], prompts: Sequence[Prompt], renderer: Renderer, lexicons: Sequence[str]
) -> list[ReadProblem]:
    """The answers of one model to some problems, with what their texts say."""
    found = []
    for result, prompt in zip(results, prompts, strict=True):
        group = as_scored_group(result, prompt, renderer.final_answer_text)
        marked = locate_markers([group], lexicons, renderer.split_thinking)
        found.append(ReadProblem(prompt, result, marked, agreement(marked)))
    return found


def compare_answers(
    base: Sequence[ReadProblem],
    trained: Sequence[ReadProblem],
    lexicons: Sequence[str],
    primary: Sequence[str],
    *,
    per_words: bool = False,
) -> list[Measured]:
    """Every measure that can be taken of one of two models.

    Args:
        base: one model's answers
        trained: the other's, to the same problems in the same order
        lexicons: whose markers are counted
        primary: names of the measures that are tested
        per_words: give rates per 1,000 words, because the tokenizers differ
    """
    models = [[_sums(problem, lexicons, per_words) for problem in problems] for problems in (base, trained)]
    keys = dict.fromkeys(key for sums in (*models[0], *models[1]) for key in sums)
    nothing = (0.0, 0.0)
    found = [
        _measured(
            group,
            name,
            [(b.get((group, name), nothing), t.get((group, name), nothing)) for b, t in zip(*models, strict=True)],
            tested=name in primary and group != OTHER,
        )
        for group, name in keys
    ]
    return [*found, *(m for name in READINGS if (m := _auroc(name, base, trained)) is not None)]


def adjusted(*together: Sequence[Measured]) -> list[list[Measured]]:
    """The measures with their p-values adjusted for there being all of them, by Holm's method."""
    p_values = iter(holm([m.p for measures in together for m in measures if m.p is not None]))
    return [[m if m.p is None else replace(m, p=next(p_values)) for m in measures] for measures in together]


def accuracy_of_sets(
    base: Mapping[str, Sequence[ReadProblem]], trained: Mapping[str, Sequence[ReadProblem]]
) -> list[Measured]:
    """The accuracy on each set, under the set's name; tested where there are several, as harm on one must not hide behind another."""
    found = []
    for name in base:
        models = [[_accuracy(p.result).get((ACCURACY, ACCURACY), (0.0, 0.0)) for p in m[name]] for m in (base, trained)]
        found.append(_measured(ACCURACY, name, list(zip(*models, strict=True)), tested=len(base) > 1))
    return found


def _measured(
    group: str, name: str, sums: Sequence[tuple[tuple[float, float], tuple[float, float]]], *, tested: bool
) -> Measured:
    """Of each problem's numerator and denominator, by model. Accuracy is paired: a problem that was graded in one model alone is left out.

    ``p`` is that of the test by itself.
    """
    pairs = np.array(sums)
    if group == ACCURACY:
        pairs = pairs[(pairs[:, :, 1] > 0).all(1)]

    def difference(chosen: np.ndarray) -> float | None:
        value = float(_differences(chosen[None])[0])
        return None if np.isnan(value) else value

    mean, totals = difference(pairs), pairs.sum(0)
    base, trained = (float(n / d) if d else None for n, d in totals)
    estimate = None if mean is None else Estimate(mean, *bootstrap_statistic_ci(pairs, difference))
    found = Measured(group, name, base, trained, estimate, (int(totals[0, 1]), int(totals[1, 1])))
    if tested and mean is not None:
        found = replace(found, p=swap_test(pairs, _differences))
    if found.share or mean is None or not base:
        return found
    return replace(found, relative=Estimate(mean / base, *bootstrap_statistic_ci(pairs, _relative)))


def _relative(pairs: np.ndarray) -> float | None:
    """How much larger the trained model's ratio is than the base's, as a share of it; None without either."""
    (n, d), (m, e) = pairs.sum(0)
    return None if not (n and d and e) else float(m / e / (n / d) - 1.0)


def _differences(draws: np.ndarray) -> np.ndarray:
    """``[draws, problems, model, numerator and denominator]`` -> trained minus base, nan where one has nothing."""
    totals = draws.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(totals[..., 1] > 0, totals[..., 0] / totals[..., 1], np.nan)
    return np.asarray(values[:, 1] - values[:, 0])


def _sums(problem: ReadProblem, lexicons: Sequence[str], per_words: bool) -> Sums:
    return (
        _accuracy(problem.result)
        | _length(problem)
        | _rates(problem, lexicons, per_words)
        | _corrections(problem)
        | _overconfidence(problem)
        | _graded(problem.result)
    )


def _accuracy(result: ProblemResult) -> dict[tuple[str, str], tuple[float, float]]:
    """Of the answers that were graded; a problem with fewer than k counts towards no pass@k."""
    kept = [(answer, right) for answer, right in zip(result.answers, result.right, strict=True) if right is not None]
    right, k = [r for _, r in kept], len(result.right)
    if not kept:
        return {}
    found = {(ACCURACY, ACCURACY): (fmean(right), 1.0)}
    found |= {(ACCURACY, f"pass@{n}"): (pass_at_k(len(right), sum(right), n), 1.0) for n in ks(k) if n <= len(right)}
    if len(right) == k > 2:
        found[ACCURACY, f"maj@{k}"] = (float(maj_at_k([a for a, _ in kept], right, k)), 1.0)
    return found


def ks(samples: int) -> list[int]:
    """The k for which pass@k is reported: powers of two, and the number of samples."""
    return [*(2**i for i in range(1, samples.bit_length()) if 2**i < samples), *([samples] if samples > 1 else [])]


def _length(problem: ReadProblem) -> dict[tuple[str, str], tuple[float, float]]:
    result = problem.result
    return {
        (LENGTH, WORDS): (fmean(len(folded_words(text)) for text in result.completions), 1.0),
        (LENGTH, "tokens"): (fmean(result.lengths), 1.0),
        (LENGTH, TRUNCATED): (fmean(result.truncated), 1.0),
    }


def _rates(
    problem: ReadProblem, lexicons: Sequence[str], per_words: bool
) -> dict[tuple[str, str], tuple[float, float]]:
    texts = problem.result.completions
    long = sum(len(folded_words(text)) for text in texts) if per_words else sum(problem.result.lengths)
    found = {}
    for name in lexicons:
        count = sum(len(m.spans[name]) for m in problem.marked)
        found[UNCERTAIN, rate_name(name, per_words)] = (1000.0 * count, float(long))
        found[UNCERTAIN, f"{name} / answer"] = (count / len(texts), 1.0)
    return found


def rate_name(lexicon: str, per_words: bool) -> str:
    """The measure of a lexicon's rate."""
    return f"{lexicon} / 1k {'words' if per_words else 'tokens'}"


def _corrections(problem: ReadProblem) -> dict[tuple[str, str], tuple[float, float]]:
    """By the first answer of a text that states another one later; nothing where there is no reference to grade it by."""
    reference, starts = problem.prompt.fields.get("answer"), list[tuple[bool, bool]]()
    if reference is None:
        return {}
    for text, right in zip(problem.result.completions, problem.result.right, strict=True):
        stated = stated_answers(text)
        if right is not None and len(set(by_equality([answer for _, answer in stated]))) > 1:
            starts.append((bool(math_answer(f"\\boxed{{{stated[0][1]}}}", str(reference))), right))
    wrong, n = [right for first, right in starts if not first], float(len(problem.result.completions))
    return {
        (CORRECTION, CORRECTED): (float(sum(wrong)), float(len(wrong))),
        (CORRECTION, "right starts spoiled"): (
            float(sum(first and not right for first, right in starts)),
            float(sum(first for first, _ in starts)),
        ),
        (CORRECTION, "answers with an earlier one"): (float(len(starts)), n),
        (CORRECTION, "start wrong and end right"): (float(sum(wrong)), n),
    }


def _overconfidence(problem: ReadProblem) -> dict[tuple[str, str], tuple[float, float]]:
    gaps = [c - r for c, r in _agreed(problem)]
    return {(CALIBRATION, "agreement minus accuracy"): (sum(gaps), float(len(gaps)))} if gaps else {}


def _graded(result: ProblemResult) -> dict[tuple[str, str], tuple[float, float]]:
    """Of each reward, the share of the answers to which it applies that earn at least one half."""
    given = {name: [v for v in verdicts if v is not None] for name, verdicts in result.graded.items()}
    return {(OTHER, name.rpartition(":")[2]): (float(sum(v)), float(len(v))) for name, v in given.items()}


def _agreed(problem: ReadProblem) -> list[tuple[float, bool]]:
    pairs = zip(problem.agreed, problem.marked, strict=True)
    return [(share, m.correct) for share, m in pairs if share is not None and m.correct is not None]


def _unhedged(problem: ReadProblem) -> list[tuple[float, bool]]:
    """By the lexicon that comes first."""
    return [(-m.rate(next(iter(m.spans))), m.correct) for m in problem.marked if m.correct is not None]


READINGS: Mapping[str, Callable[[ReadProblem], list[tuple[float, bool]]]] = {
    "AUROC of agreement": _agreed,
    "AUROC of few markers": _unhedged,
}
"""Measure -> a confidence of each answer, and whether it is right."""


def _auroc(name: str, base: Sequence[ReadProblem], trained: Sequence[ReadProblem]) -> Measured | None:
    """Does this confidence go with being right?"""
    models = [[READINGS[name](problem) for problem in problems] for problems in (base, trained)]

    def value(model: int, chosen: np.ndarray) -> float | None:
        pairs = [pair for i in chosen for pair in models[model][i]]
        return auroc([c for c, _ in pairs], [r for _, r in pairs])

    def difference(chosen: np.ndarray) -> float | None:
        one, other = value(1, chosen), value(0, chosen)
        return None if one is None or other is None else one - other

    every = np.arange(len(base))
    mean = difference(every)
    if (before := value(0, every)) is None and value(1, every) is None:
        return None
    estimate = None if mean is None else Estimate(mean, *bootstrap_statistic_ci(every, difference))
    counted = (sum(map(len, models[0])), sum(map(len, models[1])))
    return Measured(CALIBRATION, name, before, value(1, every), estimate, counted)
