"""What a run says at its end: what changed between its first and its last evaluation, and in its training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.table import Table

from onpolicy.run.evaluation_files import ProblemResult, evaluated_steps, evaluation_folder, read_results
from onpolicy.types import Metrics
from onpolicy.utils.stats import Estimate, change_of_accuracy
from onpolicy.utils.tables import Markup, coloured, table

SUMMARY = (
    "reward/mean",
    "rollout/completion_length/mean",
    "rollout/truncated",
    "epistemic/{lexicon}/rate_per_1k",
    "policy/entropy",
    "rollout/logprob_gap",
)


@dataclass(frozen=True)
class SetChange:
    """One set at two evaluations of a run, on the same problems."""

    name: str
    samples: tuple[int, int]
    """Graded at the first and at the last evaluation; so the two numbers of the other fields."""
    correct: tuple[int, int]
    accuracy: Estimate
    """Last minus first, mean over problems."""
    length: tuple[float, float]
    """Tokens of a completion, mean over problems."""
    rate: tuple[float, float] | None
    """Markers per 1,000 tokens; None where they are not counted."""


@dataclass(frozen=True)
class EvaluationChange:
    """What changed between a run's first evaluation and one of its last step."""

    steps: tuple[int, int]
    sets: tuple[SetChange, ...]
    lexicon: str
    """Whose markers are counted."""

    def in_words(self) -> list[str]:
        """A line for each direction in which accuracy went; where an interval holds 0, the interval is all that can be said."""
        fell = [f"{s.name} ({s.accuracy.mean:+.2f})" for s in self.sets if s.accuracy.high < 0]
        rose = [f"{s.name} ({s.accuracy.mean:+.2f})" for s in self.sets if s.accuracy.low > 0]
        same = [f"{s.name} ({_interval(s.accuracy)})" for s in self.sets if s.accuracy.low <= 0 <= s.accuracy.high]
        said = (
            ("no change in accuracy that could be measured on", same),
            ("accuracy rose on", rose),
            ("accuracy fell on", fell),
        )
        return [f"{begin} {', '.join(sets)}" for begin, sets in said if sets]


def change_of_evaluation(
    folder: Path, sets: Iterable[str], step: int, lexicon: str, first: Metrics, last: Metrics
) -> EvaluationChange | None:
    """Compares the first evaluation of a run with that of its last step; None where there are no two.

    Args:
        folder: of the run
        sets: their names
        step: the run's last
        lexicon: whose markers are counted
        first: every metric at the first step that had it
        last: every metric at the latest step that had it
    """
    steps = [s for s in evaluated_steps(folder) if s <= step]
    if len(steps) < 2 or steps[-1] != step:
        return None
    ends, found = (steps[0], step), []
    for name in sets:
        before, after = (read_results(evaluation_folder(folder, s) / f"{name}.jsonl") for s in ends)
        rate = f"eval/{name}/epistemic/{lexicon}/rate_per_1k"
        rates = (first[rate], last[rate]) if rate in first and rate in last else None
        found.append(change_of_set(name, before, after, rates))
    changes = tuple(change for change in found if change is not None)
    return EvaluationChange(ends, changes, lexicon) if changes else None


def change_of_set(
    name: str, before: Mapping[str, ProblemResult], after: Mapping[str, ProblemResult], rate: tuple[float, float] | None
) -> SetChange | None:
    """What changed on the problems that were graded both times; None without any.

    Args:
        name: of the set
        before: problem's id -> its results in the first evaluation
        after: the same of the last
        rate: markers per 1,000 tokens, first and last
    """
    pairs = [(result, after[id_]) for id_, result in before.items() if id_ in after]
    pairs = [pair for pair in pairs if all(map(graded_verdicts, pair))]
    if not pairs:
        return None
    first, last = ([graded_verdicts(pair[which]) for pair in pairs] for which in (0, 1))
    return SetChange(
        name=name,
        samples=(sum(map(len, first)), sum(map(len, last))),
        correct=(sum(map(sum, first)), sum(map(sum, last))),
        accuracy=change_of_accuracy(first, last),
        length=(fmean(fmean(b.lengths) for b, _ in pairs), fmean(fmean(a.lengths) for _, a in pairs)),
        rate=rate,
    )


def graded_verdicts(result: ProblemResult) -> list[bool]:
    """The verdicts on the samples that were graded."""
    return [verdict for verdict in result.right if verdict is not None]


def evaluation_change_table(change: EvaluationChange) -> Table:
    """A row for each set: correct samples, the change in accuracy with its interval, length, markers."""
    first, last = change.steps
    when = f"step {first} → step {last}" if first else f"before training → after step {last}"
    heads = ("set", "correct", "change (95 %)", "tokens", "markers")
    rows = ((s.name, _counts(s), _change(s.accuracy), _arrow(s.length), _arrow(s.rate)) for s in change.sets)
    return table(f"evaluation, {when}; markers: {change.lexicon}, per 1,000 tokens", heads, rows)


def _counts(change: SetChange) -> str:
    (correct, now), (samples, later) = change.correct, change.samples
    return f"{correct} → {now} of {samples}" if samples == later else f"{correct} of {samples} → {now} of {later}"


def _change(change: Estimate) -> Markup | str:
    """The change with its interval, coloured where the whole interval is on one side."""
    text = f"{change.mean:+.2f} ({_interval(change)})"
    return coloured(text, "red") if change.high < 0 else coloured(text, "green") if change.low > 0 else text


def _interval(change: Estimate) -> str:
    return f"{change.low:+.2f} to {change.high:+.2f}"


def _arrow(values: tuple[float, float] | None) -> str:
    return "–" if values is None else " → ".join(f"{v:.0f}" if v >= 3 else f"{v:.1f}" for v in values)


def training_change_table(first: Metrics, last: Metrics, *, lexicon: str = "self_doubt") -> Table:
    """What changed between the first and the last step of training."""
    terms = [n for n in first if n == "train/loss" or n.endswith(("/divergence", "/teacher_gap", "/kl"))]
    named = (name.replace("{lexicon}", lexicon) for name in SUMMARY)
    names = [n for n in dict.fromkeys((*named, *terms)) if n in first and n in last]
    rows = [(n, f"{first[n]:.4g}", f"{last[n]:.4g}", f"{last[n] - first[n]:+.3g}") for n in names]
    return table("training", ("metric", "first step", "last step", "change"), rows)
