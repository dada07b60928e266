"""What expressed doubt is worth. Each of these can be a bonus or, with a negative weight, a penalty.

Rates are markers per 1,000 sampled tokens. Where a bonus *claims protection*, its markers are counted by ``paid``: as words, not
inside mathematics, code or quotations of the prompt; neighbours ("wait, wait, hmm") as one; at least ``spacing`` words apart; none
after the final answer; none after which nothing changes (``vacuous``). What remains to be gained is capped: a floor pays no more
above it, a target is highest at the reference model's own habit. Doubt that is said and followed by new text cannot be told from doubt that
is meant; the audit and its held-out words watch for that.
"""

from __future__ import annotations

import re

from .answer import math_answer
from .extract import stated_answers
from .lexicon import find
from .vacuous import vacuous

SPACING = 20
"""Words between two markers that both count."""


def density(completion: str, num_tokens: int, *, lexicon: str = "self_doubt", scale: float = 10.0) -> float:
    """rate / scale, unbounded. **For ablation only: it can be gamed**: a rollout stuffed with markers earns most.

    Args:
        lexicon: whose markers
        scale: rate that is worth 1, markers per 1,000 tokens
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
    """min(1, rate / floor): the reflection reward of REA-RL (arXiv 2505.19862), a floor and not a maximand.

    Its authors put the floor at a low quantile of the reference model's own rate (4.4 per 1,000 tokens for R1-Distill-7B). With the
    weight `{name: dual_ascent, metric: epistemic/self_doubt/rate_per_1k, share: 0.9, rate: 0.01}` it is a Lagrangian floor: paid only
    while the mean rate lies under nine tenths of the reference model's.

    Args:
        floor: rate from which nothing more is earned, markers per 1,000 tokens
        lexicon: whose markers
        spacing: words between two markers that both count
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

    No paper behind it. The highest reward is the initial habit, so there is nothing to ratchet up. rho_0 and sigma_0 are the columns
    `ref_rate` and `ref_std`, which the framework measures before the first step (``epistemic.baseline``).

    Args:
        lexicon: whose markers; must be that of the baseline
        band: half-width of the band in which nothing is lost, in standard deviations
        least_std: the standard deviation counts as at least this, markers per 1,000 tokens
        one_sided: only a rate below the band costs
        spacing: words between two markers that both count
    """
    distance = per_1k(paid(completion, prompt, lexicon, spacing), num_tokens) - ref_rate
    distance = max(-distance, 0.0) if one_sided else abs(distance)
    return -min(1.0, max(0.0, distance / max(ref_std, least_std) - band))


def recovery(completion: str, answer: str, *, harm: float = 1.0) -> float:
    """1 where an interim answer was wrong and the final one is right; -harm where the last interim was right and the final is wrong.

    Rewards what doubt is for, without a word list; sparse. **It can be gamed**: a wrong interim answer may be planted, and an answer that
    is right at once earns nothing. No paper behind it. An answer counts as stated where it stands in `\\boxed{}`, behind
    `####`, or behind "the answer is".

    Args:
        harm: what is lost by giving up a right answer
    """
    *interim, final = [math_answer(f"\\boxed{{{said}}}", answer) for _, said in stated_answers(completion)] or [False]
    if not interim:
        return 0.0
    if final:
        return float(not all(interim))
    return -harm if interim[-1] else 0.0


def repetition(completion: str, *, n: int = 4) -> float:
    """-(share of the runs of n words that occurred before): 0 for text that never repeats itself, near -1 for a loop.

    Args:
        n: words in a run
    """
    words = re.findall(r"\w+", completion.casefold())
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return -(1.0 - len(set(runs)) / len(runs)) if runs else 0.0


def per_1k(count: int, num_tokens: int) -> float:
    return 1000.0 * count / max(num_tokens, 1)


def paid(completion: str, prompt: object, lexicon: str, spacing: int) -> int:
    """How many markers count, by the rules above."""
    answers = stated_answers(completion)
    end = answers[-1][0] if answers else len(completion)
    counted, last = 0, None
    spans = find(completion, lexicon, prompt=prompt_text(prompt), merge=True)
    for (start, stop), empty in zip(spans, vacuous(completion, spans), strict=True):
        between = spacing if last is None else len(re.findall(r"\w+", completion[last:start]))
        if stop <= end and between >= spacing and not empty:
            counted, last = counted + 1, stop
    return counted


def prompt_text(prompt: object) -> str:
    """A prompt as text, whether it is text or messages."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(m.get("content", "")) for m in prompt) if isinstance(prompt, list | tuple) else ""
