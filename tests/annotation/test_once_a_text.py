"""What is read off a text is read once a step: each lexicon's markers, the text's words, formulas and quotations, whoever asks for them."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest

from onpolicy.annotation.spans import markers
from onpolicy.epistemic.ids import span_name
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.rewards import lexicon
from onpolicy.utils.thinking import split_thinking
from tests.annotation.test_queries import annotate, group

NAMES = ("self_doubt", "hedges", "alternatives", "paper10")
TEXTS = [
    f"wait, maybe {i} is a number. Hmm, so what if the sum of two of them is {i}, perhaps, and not {i + 1}?"
    for i in range(9)
]


def test_each_lexicon_and_each_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done: Counter[Any] = Counter()

    def counted(name: str) -> None:
        work = getattr(lexicon, name)

        def run(*arguments: Any) -> Any:
            done[name, arguments] += 1
            return work(*arguments)

        monkeypatch.setattr(lexicon, name, run)

    for name in ("_matches", "quotations", "literal"):
        counted(name)
    telemetry = TextTelemetry(NAMES, "self_doubt", partial(split_thinking, opened=False))
    classes = {span_name(name): partial(markers, lexicon=name) for name in NAMES}
    examples, metrics = annotate(
        [group(*TEXTS[:5]), group(*TEXTS[5:], name="p2")], classes=classes, telemetry=telemetry
    )
    assert len(examples) == 9 and metrics["epistemic/self_doubt/count"] == 2.0
    assert sum(any(e.spans[span_name("self_doubt")]) for e in examples) == 9
    assert Counter(name for name, _ in done) == {"_matches": 9 * len(NAMES), "quotations": 9, "literal": 9}
    assert set(done.values()) == {1}
