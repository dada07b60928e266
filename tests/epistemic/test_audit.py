"""Signs that markers are said for their own sake, and calibration.

1. each sign by hand; 2. an honest step raises none of the default alarms, a stuffed one raises all of them; 3. what has too little to be
judged by is absent; 4. Brier, ECE, AUROC by hand and against counting pairs; 5. the scoreboard's readings of confidence.
"""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onpolicy.config.default_guards import GUARDS
from onpolicy.config.resolve import section
from onpolicy.epistemic.audit import audit
from onpolicy.epistemic.calibration import auroc, auroc_within, brier, ece, scoreboard
from onpolicy.epistemic.marked import MarkedRollout
from onpolicy.epistemic.text_facts import compression
from onpolicy.run.guards import Guards, build_guards
from tests.epistemic.test_telemetry import marked

HONEST = [
    "We try 12 - 4 = 8. Wait, 8 is even, so the sum must be odd. Hmm, then 7 fits better than the other candidate and the check holds: "
    "7 + 5 = 12 with nothing left over, which is what the question expected. The answer is 7.",
    "Let x = 3. Then 2x = 6. Hold on, the text says twice the sum, hence 2(x + 1) = 8 must be used, and from there one more step gives "
    "x + 10 = 13 as the total of all the terms together. The answer is 13.",
    "The area is 5 * 4 = 20. Hmm, the path around it takes 2 on every side, which makes 9 by 8, and subtracting the garden in the middle "
    "from the outer rectangle leaves 72 - 20 = 52 square metres of path. The answer is 52.",
    "First 6 apples. Wait, two of them were eaten before, that leaves 4. I'm not sure about the pears though: the story has 11 of them "
    "and gives away every second one, so 6 of those stay and the basket holds 10 in the end. The answer is 10.",
]  # fmt: skip
STUFFED = [
    "Wait, let me double-check this. The sum is 8. Wait, let me double-check this. The sum is 8. Wait, let me double-check this. The sum "
    "is 8. The answer is 8. Wait, let me double-check this. The sum is 8. Hmm. Wait, let me double-check this. The sum is 8."
] * 4  # fmt: skip


def step(texts: list[str]) -> list[MarkedRollout]:
    return marked([(t, len(t) // 4, 1.0) for t in texts])


def test_signs_by_hand() -> None:
    #       new number 2      the same pairs again    behind the answer
    text = "hmm so it is 2. Wait, so it is 2. The answer is 2. Hmm so it is 2"
    (m,) = marked([(text, 20, 0.0)])
    first, second, third = m.uses["self_doubt"]
    assert [u.vacuous for u in (first, second, third)] == [False, False, True], "the second goes on to 'the answer is'"
    assert [u.after_answer for u in (first, second, third)] == [False, False, True]
    assert [u.gap for u in (first, second, third)] == [None, 4, 8]
    assert first.phrase == "hmm so it is 2 wait" and third.phrase == "hmm so it is 2"


def test_nothing_behind_a_marker_is_nothing_new() -> None:
    (m,) = marked([("so 4 it is. wait", 8, 1.0)])
    assert [u.vacuous for u in m.uses["self_doubt"]] == [True]


def test_what_is_asked_of_responses() -> None:
    found = audit(
        marked([("Wait no", 10, 1.0), ("hmm", 10, 0.0)], [("so", 10, 0.0), ("so hmm", 10, 0.0)]), "self_doubt"
    )
    assert found["audit/self_doubt/first_word"] == 0.5
    assert found["audit/self_doubt/precision"] == pytest.approx(2 / 3) and found[
        "audit/self_doubt/recall"
    ] == pytest.approx(2 / 3)
    # difficulties .5 and 1, rates 100 and 50 markers per 1,000 tokens
    assert found["audit/self_doubt/dose_slope"] == pytest.approx((50 - 100) / 0.5)
    assert "audit/self_doubt/vacuous" not in found and "audit/compression" not in found, "three markers, short texts"
    assert (
        "audit/self_doubt/dose_slope" not in audit(marked([("hmm", 9, 1.0)], [("so", 9, 1.0)]), "self_doubt")
        and audit([], "self_doubt") == {}
    )


def test_repetition_and_compression() -> None:
    assert audit(marked([("a b c d e a b c d f", 9, 1.0)]), "self_doubt")["audit/repetition"] == pytest.approx(1 / 7)
    assert compression("x" * 99) is None
    varied, loop = compression(HONEST[0]), compression(STUFFED[0])
    assert varied is not None and loop is not None and loop < 0.5 < varied


def guards() -> Guards:
    specs = json.loads(json.dumps(GUARDS).replace("{lexicon}", "self_doubt"))
    return build_guards([section("guard", spec, f"guards[{i}]") for i, spec in enumerate(specs)])


def test_a_stuffed_step_trips_what_an_honest_one_does_not() -> None:
    watched = guards()
    honest, stuffed = audit(step(HONEST), "self_doubt"), audit(step(STUFFED), "self_doubt")
    assert not watched.check(0, honest)
    assert not watched.check(1, audit(step(list(reversed(HONEST))), "self_doubt"))
    reasons = " ".join(reason for reason, _ in watched.check(2, stuffed))
    for sign in ("vacuous", "after_answer", "crowded", "carrier"):
        assert f"audit/self_doubt/{sign} rose" in reasons
    assert "audit/repetition rose" in reasons
    assert stuffed["audit/self_doubt/first_word"] == 1.0 > honest["audit/self_doubt/first_word"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_scores_against_their_definitions(pairs: list[tuple[float, bool]]) -> None:
    confidence, right = [c for c, _ in pairs], [r for _, r in pairs]
    wins = [float(a > b) + 0.5 * (a == b) for a, r in pairs if r for b, s in pairs if not s]
    found = auroc(confidence, right)
    assert (found is None) == (not wins) and (found is None or found == pytest.approx(fmean(wins)))
    assert auroc_within(confidence, right, [0] * len(pairs)) == (pytest.approx(found) if found is not None else None)
    assert 0 <= brier(confidence, right) <= 1 and 0 <= ece(confidence, right) <= 1


def test_calibration_by_hand() -> None:
    assert brier([1.0, 0.5], [True, False]) == pytest.approx(0.125)
    assert ece([0.9, 0.7], [True, False]) == pytest.approx(abs(0.5 - 0.8)), "too few answers for two bins"
    # 40 answers, two bins of 20: said .2 and right 0, said .8 and right 1
    assert ece([0.2] * 20 + [0.8] * 20, [False] * 20 + [True] * 20) == pytest.approx(0.2)
    assert ece([0.5] * 200, [False] * 100 + [True] * 100) == 0.0, "equal confidence, one bin"
    # .2 five times too often for a bin of its own mass: all of it in one bin, .8 in the other
    assert ece([0.2] * 25 + [0.8] * 15, [True] * 5 + [False] * 20 + [True] * 12 + [False] * 3) == pytest.approx(0.0)
    # pairs within problems: (.9 right, .1 wrong) won; (.3 right, .4 wrong) lost; across problems does not count
    assert auroc_within([0.9, 0.1, 0.3, 0.4], [True, False, True, False], [0, 0, 1, 1]) == 0.5
    assert auroc_within([0.9, 0.1], [True, False], [0, 1]) is None


def test_the_scoreboard() -> None:
    said = lambda answer, c: f"\\boxed{{{answer}}} <confidence>{c}</confidence>"  # noqa: E731
    rows: Any = [(said(1, 0.9), 10, 1.0), (said(1, 0.6), 10, 1.0), (said(2, 0.7), 10, 0.0), ("wait hmm wait", 10, 0.0)]
    found = scoreboard(marked(rows), "self_doubt")
    assert found["calibration/stated/share"] == 0.75
    assert found["calibration/stated/brier"] == pytest.approx((0.01 + 0.16 + 0.49) / 3)
    assert found["calibration/stated/auroc"] == pytest.approx(0.5), ".9 beats .7, .6 does not"
    # one of three siblings agrees with each right answer, none with the wrong one; the last has no answer
    assert found["calibration/agreement/gap"] == pytest.approx((1 / 3 + 1 / 3 + 0) / 3 - 2 / 3)
    assert (
        found["calibration/no_hedging/auroc_within"] == pytest.approx(0.75)
        and found["calibration/likelihood/auroc"] == 0.5
    )
    assert "calibration/stated/brier" not in scoreboard(marked([("no", 3, 1.0)]), "self_doubt")
