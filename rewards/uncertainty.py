"""Rewards for expressed uncertainty. Each of them can be a bonus or, with a negative weight, a penalty.

Rates are markers per 1,000 sampled tokens. Where a bonus *claims protection*, its markers are counted by ``paid``: as words, not
inside mathematics, code or quotations of the prompt; neighbours ("wait, wait, hmm") as one; at least ``spacing`` words apart; not
after the final answer; not where nothing changes afterwards (``vacuous``). What remains to be gained is capped: a floor pays no more
above it, and a target is highest at the reference model's own rate. A marker that is written for the reward and followed by new text cannot
be told from one that expresses uncertainty; the audit and its held-out words watch for that.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right

from .answer import math_answer
from .extract import stated_answers
from .lexicon import find
from .vacuous import vacuous
from .words import word_places

SPACING = 20
"""The least number of words between two markers that both count."""


def density(completion: str, num_tokens: int, *, lexicon: str = "self_doubt", scale: float = 10.0) -> float:
    """rate / scale, unbounded. **For ablation only: it can be gamed**, since a rollout stuffed with markers earns most.

    Args:
        lexicon: list of markers
        scale: rate that earns 1, markers per 1,000 tokens
    """
    return per_1k(len(find(completion, lexicon)), num_tokens) / scale


def saturating_floor(
    completion: str,
    num_tokens: int,
    prompt: object = "",
    *,
    floor: float,
    lexicon: str = "self_doubt",
    spacing: int = SPACING,
) -> float:
    """min(1, rate / floor): the reflection reward of REA-RL (arXiv 2505.19862), a floor, not something to maximise.

    Its authors put the floor at a low quantile of the reference model's own rate (4.4 per 1,000 tokens for R1-Distill-7B). With the
    weight `{name: dual_ascent, metric: epistemic/self_doubt/rate_per_1k, share: 0.9, rate: 0.01}` it is a Lagrangian floor: it pays only
    while the mean rate lies below nine tenths of the reference model's.

    Args:
        floor: rate from which nothing more is earned, markers per 1,000 tokens
        lexicon: list of markers
        spacing: least number of words between two markers that both count
    """
    return min(1.0, per_1k(paid(completion, prompt, lexicon, spacing), num_tokens) / floor)


def target_rate(
    completion: str,
    num_tokens: int,
    prompt: object = "",
    ref_rate: float = 0.0,
    ref_std: float = 0.0,
    *,
    lexicon: str = "self_doubt",
    band: float = 1.0,
    least_std: float = 0.5,
    one_sided: bool = False,
    spacing: int = SPACING,
) -> float:
    """-min(1, max(0, |rate - rho_0| / sigma_0 - band)): 0 near the reference model's own rate on this problem, at most -1 away from it.

    This reward comes from no paper. It is highest at the initial rate, so that there is nothing to gain from more markers. rho_0 and
    sigma_0 are the columns `ref_rate` and `ref_std`, which the framework measures before the first step (``epistemic.baseline``).

    Args:
        lexicon: list of markers; must be that of the baseline
        band: half-width of the range without a penalty, in standard deviations
        least_std: lower bound of the standard deviation, markers per 1,000 tokens
        one_sided: penalises only a rate below the range
        spacing: least number of words between two markers that both count
    """
    distance = per_1k(paid(completion, prompt, lexicon, spacing), num_tokens) - ref_rate
    distance = max(-distance, 0.0) if one_sided else abs(distance)
    return -min(1.0, max(0.0, distance / max(ref_std, least_std) - band))


def recovery(completion: str, answer: str, final: str | None = None, *, harm: float = 1.0) -> float:
    """1 where an interim answer was wrong and the final one is correct; -harm where the last interim was correct and the final is wrong.

    It rewards the outcome of self-doubt, without a word list, and is sparse. **It can be gamed**: a wrong interim answer may be inserted on
    purpose, and an answer that is correct at once earns nothing. This reward comes from no paper. An answer counts as stated in
    `\\boxed{}`, after `####`, or after "the answer is".

    Args:
        harm: penalty for giving up a correct answer
    """
    stated = [said for _, said in stated_answers(completion)]
    interim = [math_answer(f"\\boxed{{{said}}}", answer) for said in stated[:-1]]
    if not interim:
        return 0.0
    if math_answer(completion, answer, final):
        return float(not all(interim))
    return -harm if interim[-1] else 0.0


def repetition(completion: str, *, n: int = 4) -> float:
    """-(fraction of the runs of n words that occurred before): 0 for text that never repeats itself, near -1 for a loop.

    Args:
        n: words in a run
    """
    words = re.findall(r"\w+", completion.casefold())
    runs = list(zip(*(words[i:] for i in range(n)), strict=False))
    return -(1.0 - len(set(runs)) / len(runs)) if runs else 0.0


def per_1k(count: int, num_tokens: int) -> float:
    return 1000.0 * count / max(num_tokens, 1)


def paid(completion: str, prompt: object, lexicon: str, spacing: int) -> int:
    """The number of markers that count by the rules of this module."""
    answers = stated_answers(completion)
    end = answers[-1][0] if answers else len(completion)
    counted, last = 0, None
    spans = find(completion, lexicon, prompt=prompt_text(prompt), merge=True)
    starts, ends = word_places(completion)
    for (start, stop), empty in zip(spans, vacuous(completion, spans), strict=True):
        between = spacing if last is None else bisect_left(starts, start) - bisect_right(ends, last)
        if stop <= end and between >= spacing and not empty:
            counted, last = counted + 1, stop
    return counted


def prompt_text(prompt: object) -> str:
    """The text of a prompt that is given as text or as messages."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(m.get("content", "")) for m in prompt) if isinstance(prompt, list | tuple) else ""
