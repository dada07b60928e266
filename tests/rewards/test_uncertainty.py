"""Rewards for doubt: by hand, and against a rollout that is stuffed with markers.

1. values by hand; 2. what is paid: words, merged, spaced, outside mathematics and quotations, before the final answer; 3. every bonus
that claims protection pays a stuffed rollout no more than an honest one, and the plain density does not claim it; 4. recovery.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from onpolicy.rewards.lexicon import LEXICONS, add, find
from onpolicy.rewards.uncertainty import density, paid, recovery, repetition, saturating_floor, target_rate

FILLER = (
    "we add the two numbers and carry the one over to the next column of the sum before we go on with the rest of it "
)


def thought(n: int) -> str:
    """As long as the filler, and about something new."""
    return f"{FILLER}which gives {n} "


HONEST = f"{thought(1)}wait, that is off. {thought(2)}{thought(3)}hmm, let us see. {thought(4)}\\boxed{{4}}"
RARE = f"{thought(1)}wait, that is off. {''.join(map(thought, range(2, 20)))}\\boxed{{4}}"
STUFFED = "wait so wait then " * 40 + "\\boxed{4}" + " wait" * 20
SPACED = f"{FILLER}" + f"wait {FILLER}" * 20 + "\\boxed{4}"


def tokens(text: str) -> int:
    return len(text.split())


def test_what_is_paid() -> None:
    count = lambda text, prompt="": paid(text, prompt, "self_doubt", 3)  # noqa: E731
    assert count("Wait, wait... Hmm: no, not so.") == 1
    assert count("wait one two wait three four") == 1 and count("wait one two three wait four five") == 2
    assert count("one two wait one two wait one two") == 0 and count("wait") == 0, "nothing new behind it"
    assert count("$wait$ and `hmm` \\(wait\\) ```\nwait\n```") == 0 and count("unlikely awaiting double-check") == 0
    assert count("x \\boxed{4} wait a b") == 0 and count("wait \\boxed{3} one two three wait a \\boxed{4} hmm a c") == 2
    question = "Is it true that we wait for the green light"
    assert count(f"You ask: {question}. I wait for you.", question) == 1
    assert count(f"You ask: {question}.", ({"role": "user", "content": question},)) == 0


def test_values_by_hand() -> None:
    assert density("wait wait", 100, scale=10.0) == 2.0
    assert saturating_floor("wait a b", 1000, floor=4.0) == 0.25 and saturating_floor("wait a b", 10, floor=4.0) == 1.0
    near = partial(target_rate, num_tokens=1000, ref_rate=4.0, ref_std=1.0)
    text = {n: "".join(f"wait {thought(i)}" for i in range(n)) for n in (0, 3, 4, 6, 9)}
    assert [near(text[n]) for n in (3, 4, 6, 9, 0)] == pytest.approx([0.0, 0.0, -1.0, -1.0, -1.0])
    assert near(text[9], one_sided=True) == 0.0 and near(text[0], one_sided=True) == -1.0
    assert target_rate(text[0], 1000, ref_rate=0.6, ref_std=0.0) == pytest.approx(-0.2)  # (.6 / .5) - 1
    assert repetition("a b c d e a b c d") == pytest.approx(-1 / 6) and repetition("a b") == 0.0
    assert repetition("wait so " * 50) < -0.9


PROTECTED: list[Any] = [
    partial(saturating_floor, floor=10.0),
    partial(target_rate, ref_rate=18.0, ref_std=2.0),
    partial(target_rate, ref_rate=18.0, ref_std=2.0, one_sided=True),
]


@pytest.mark.parametrize("bonus", PROTECTED, ids=lambda b: b.func.__name__)
def test_stuffing_does_not_pay(bonus: Any) -> None:
    honest = bonus(HONEST, num_tokens=tokens(HONEST))
    for stuffed in (STUFFED, SPACED):
        assert bonus(stuffed, num_tokens=tokens(stuffed)) <= honest
        assert paid(stuffed, "", "self_doubt", 20) <= paid(RARE, "", "self_doubt", 20) == 1, (
            "nor is it paid for more markers than a rare one"
        )
    assert bonus(HONEST + " wait hmm" * 30, num_tokens=tokens(HONEST) + 60) <= honest, "nothing after the final answer"


def test_plain_density_is_gamed_and_says_so() -> None:
    assert density(STUFFED, tokens(STUFFED)) > 5 * density(HONEST, tokens(HONEST))
    assert "can be gamed" in (density.__doc__ or "")


def test_recovery_by_hand() -> None:
    assert recovery("The answer is 5. Wait, no. \\boxed{4}", "4") == 1.0
    assert recovery("The answer is 4. Wait, no. \\boxed{5}", "4") == -1.0
    assert (
        recovery("The answer is 4. Indeed \\boxed{4}", "4") == recovery("\\boxed{4}", "4") == recovery("no", "4") == 0.0
    )
    assert (
        recovery("\\boxed{3} hmm #### 7", "4", harm=0.5) == 0.0
        and recovery("\\boxed{4} or \\boxed{3}", "4", harm=0.5) == -0.5
    )


def test_merging_and_exclusions_of_find() -> None:
    text = "Wait, wait... hmm. So wait"
    assert [text[a:b] for a, b in find(text, "self_doubt", merge=True)] == ["Wait, wait... hmm", "wait"]
    code = "check `check` $likely$ 等check一下 -check double-check check-in"
    assert [a for a, b in find(code, "paper10")] == [0, code.index("等") + 1, code.index("-check") + 1]


def test_money_is_no_mathematics() -> None:
    assert len(find("It costs $5. Wait, that is $7.", "self_doubt")) == 1 and not find(
        "Let $x = wait$ and $5 wait$.", "self_doubt"
    )


def test_a_list_of_ones_own() -> None:
    add("mine", ["Not  sure", "eh"])
    try:
        assert LEXICONS["mine"] == ("not sure", "eh") and len(find("Eh, NOT sure", "mine")) == 2
        add("mine", ["not sure", "eh"])
        with pytest.raises(ValueError, match="'mine': the name is taken"):
            add("mine", ["other"])
        add("sharp", ["don\u2019t know", "wei\u00df nicht"])
        assert len(find("I DON'T know. I don\u2019t know. Wei\u00df nicht.", "sharp")) == 3
        assert not find("double\u2011check", "paper10")
        with pytest.raises(ValueError, match="expected a list of words"):
            add("empty", [])
    finally:
        del LEXICONS["mine"]
        LEXICONS.pop("sharp", None)
