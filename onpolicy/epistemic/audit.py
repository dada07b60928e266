"""Is the expressed uncertainty real? Signs of markers that are written for a reward, or out of habit; logged from the start.

Each is a number to be compared with the reference model's own (``epistemic.baseline``) or with the first steps', not with a threshold:
genuine reasoning repeats itself too. The default ``guards`` speak up when one of them drifts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import isnan
from statistics import fmean, pvariance

from onpolicy.epistemic.marked import MarkedRollout
from onpolicy.rewards.uncertainty import SPACING
from onpolicy.types import Metrics

LEAST = 5
"""Fewer markers than this in a step say nothing about how they are used."""

_LETTER = re.compile(r"[^\W_]")


def audit(marked: Sequence[MarkedRollout], lexicon: str) -> Metrics:
    """``audit/...`` of a lexicon whose use was read (``TextFacts.uses``); what has too little to be said about is absent.

    - ``<lexicon>/vacuous``: share of markers after which nothing changes: up to the next marker, or for 60 words, no number that is
      new, and 80 % of the pairs of words stood in the 60 words before
    - ``<lexicon>/after_answer``: share of markers after the last stated answer
    - ``<lexicon>/first_word``: share of responses that begin with a marker
    - ``<lexicon>/crowded``: share of markers fewer than 20 words after another
    - ``<lexicon>/gap_dispersion``: variance over mean of the words between neighbours; regular spacing lowers it, bursts raise it
    - ``<lexicon>/carrier``: share of markers in the commonest phrase (marker and five words)
    - ``<lexicon>/precision``, ``recall``: share of responses with a marker that are wrong; share of wrong ones that have a marker
    - ``<lexicon>/dose_slope``: rise of the rate per 1,000 tokens from problems with pass rate 1 to problems with pass rate 0, by least
      squares over problems; habit is flat
    - ``repetition``: share of runs of four words that occurred before; ``compression``: compressed size over size
    """
    uses = [use for m in marked for use in m.uses[lexicon]]
    found = _responses(marked, lexicon)
    if len(uses) >= LEAST:
        found["vacuous"] = fmean(use.vacuous for use in uses)
        found["after_answer"] = fmean(use.after_answer for use in uses)
        found["crowded"] = fmean(use.gap is not None and use.gap < SPACING for use in uses)
        found["carrier"] = Counter(use.phrase for use in uses).most_common(1)[0][1] / len(uses)
    gaps = [use.gap for use in uses if use.gap is not None]
    if len(gaps) >= LEAST:
        found["gap_dispersion"] = pvariance(gaps) / max(fmean(gaps), 1.0)
    metrics = {f"audit/{lexicon}/{name}": float(value) for name, value in found.items()}
    if marked:
        metrics["audit/repetition"] = fmean(m.repetition for m in marked)
    sizes = [m.compression for m in marked if m.compression is not None]
    return metrics | ({"audit/compression": fmean(sizes)} if sizes else {})


def _responses(marked: Sequence[MarkedRollout], lexicon: str) -> dict[str, float]:
    """What is asked of whole responses."""
    if not marked:
        return {}
    with_marker = [m for m in marked if m.spans[lexicon] and m.correct is not None]
    incorrect = [m for m in marked if m.correct is False]
    found = {"first_word": fmean(bool(m.spans[lexicon]) and begins_with_marker(m, lexicon) for m in marked)}
    if with_marker:
        found["precision"] = fmean(not m.correct for m in with_marker)
    if incorrect:
        found["recall"] = fmean(bool(m.spans[lexicon]) for m in incorrect)
    slope = dose_slope(marked, lexicon)
    return found if slope is None else found | {"dose_slope": slope}


def begins_with_marker(m: MarkedRollout, lexicon: str) -> bool:
    return not _LETTER.search(m.text, 0, m.spans[lexicon][0][0])


def dose_slope(marked: Sequence[MarkedRollout], lexicon: str) -> float | None:
    """Least-squares slope of the problems' mean rates on their difficulty, 1 minus the pass rate; None where all are equally hard."""
    problems: dict[int, list[MarkedRollout]] = {}
    for m in marked:
        if not isnan(m.pass_rate):
            problems.setdefault(m.group, []).append(m)
    if not problems:
        return None
    points = [(1.0 - group[0].pass_rate, fmean(m.rate(lexicon) for m in group)) for group in problems.values()]
    x, y = fmean(p[0] for p in points), fmean(p[1] for p in points)
    spread = sum((a - x) ** 2 for a, _ in points)
    return sum((a - x) * (b - y) for a, b in points) / spread if spread else None
