"""The terminal's column and the table at the end follow ``epistemic.lexicon``."""

from __future__ import annotations

import io

from rich.console import Console

from onpolicy.run.closing import training_change_table
from onpolicy.run.display import Display

METRICS = {"train/loss": 0.5, "epistemic/self_doubt/rate_per_1k": 1.25, "epistemic/paper10/rate_per_1k": 7.5}


def test_the_rate_of_the_followed_lexicon_is_shown() -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    Display(1, console, lexicon="paper10").finish_step(1, METRICS)
    console.print(training_change_table(METRICS, METRICS, lexicon="paper10"))
    text = shown.getvalue()
    assert "markers 7.5" in text and "epistemic/paper10/rate_per_1k" in text and "epistemic/self_doubt" not in text


def test_names_are_whole_on_a_narrow_terminal() -> None:
    names = [f"rollout/{what}" for what in ("completion_length/mean", "truncated", "logprob_gap")]
    shown = io.StringIO()
    Console(file=shown, width=40).print(
        training_change_table(dict.fromkeys(names, 1234.5), dict.fromkeys(names, 0.00012345))
    )
    first = [line.strip("│┃ ").split("│")[0].strip() for line in shown.getvalue().splitlines()]
    assert all(name in "".join(first) for name in names) and "…" not in shown.getvalue()
