"""What grading costs: milliseconds per completion, of ordinary answers and of text that goes on for ever.

    python -m benchmarks.grading

Completions of some 700 words end in a box with a whole number, fraction, decimal, amount, point, root or formula, half of them wrong and
no two alike. To compare two commits, run the file in a tree of each: it needs ``math_answer(completion, answer)`` and nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from onpolicy.rewards.answer import math_answer

TEXT = (
    "We add the first two, which gives $12 + 7 = 19$, so what is left must be smaller. Wait, is it? Let me check again. "
    * 30
)
KINDS: dict[str, Callable[[int], tuple[str, str]]] = {
    "whole number": lambda i: (f"{17 + i}", f"{17 + i + i % 2}"),
    "fraction": lambda i: (rf"\frac{{{3 + i}}}{{{7 + 2 * i}}}", rf"\frac{{{3 + i + i % 2}}}{{{7 + 2 * i}}}"),
    "decimal": lambda i: (f"{i}.25", rf"{i + i % 2}\frac{{1}}{{4}}"),
    "amount": lambda i: (rf"\$1,{100 + i}", f"1{100 + i + i % 2}"),
    "point": lambda i: (f"({i}, -{i + 1})", f"({i},-{i + 1 + i % 2})"),
    "root": lambda i: (rf"{i + 2}\sqrt{{3}}", rf"\sqrt{{{3 * (i + 2) ** 2 + i % 2}}}"),
    "formula": lambda i: (rf"x^2+{i}x+1", rf"1+{i}x+x^{{2}}" if i % 2 else rf"x^2+{i + 1}x+1"),
}
EACH, REPEATS = 40, 3


def milliseconds(pairs: list[tuple[str, str]]) -> float:
    """Per completion, the median over all of them."""
    found = []
    for given, expected in pairs:
        start = time.perf_counter()
        math_answer(rf"{TEXT}The answer is \boxed{{{given}}}.", expected)
        found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found)


def main() -> None:
    math_answer(r"\boxed{x+1}", "1+2x")  # imports
    for kind, pair in KINDS.items():
        runs = [milliseconds([pair(EACH * run + i) for i in range(EACH)]) for run in range(REPEATS)]
        print(f"{kind:14s} {statistics.median(runs):8.3f} ms   {min(runs):.3f} to {max(runs):.3f}")
    for count in (2730, 5460):
        start = time.perf_counter()
        math_answer("So the answer is " + "\\boxed{" * count, "72")
        print(f"{7 * count:6d} characters of opened boxes {time.perf_counter() - start:6.2f} s")


if __name__ == "__main__":
    main()
