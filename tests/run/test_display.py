"""The terminal's column and the closing table follow ``epistemic.lexicon``."""

from __future__ import annotations

import io

from rich.console import Console

from onpolicy.run.display import Display, closing_table

METRICS = {"train/loss": 0.5, "epistemic/self_doubt/rate_per_1k": 1.25, "epistemic/paper10/rate_per_1k": 7.5}


def test_the_rate_of_the_followed_lexicon_is_shown() -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    Display(1, console, lexicon="paper10").finish_step(1, METRICS)
    console.print(closing_table(METRICS, METRICS, lexicon="paper10"))
    text = shown.getvalue()
    assert "markers 7.5" in text and "epistemic/paper10/rate_per_1k" in text and "epistemic/self_doubt" not in text
