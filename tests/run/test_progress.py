"""Nothing is silent for long without a terminal, and what a command tells you to run next works as it is printed.

1. the lines by hand, on a clock that the test moves; 2. a run that says how far it is; 3. every command that train, report and eval
print, pasted.
"""

from __future__ import annotations

import io
import itertools
import re
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from rich.console import Console

from onpolicy.cli import main
from onpolicy.run import progress
from onpolicy.run.display import Display
from onpolicy.run.progress import Heartbeat, RunProgress
from onpolicy.utils.timer import in_words
from tests.runs import run_here, write_config

SAID = io.StringIO()
"""Standard output of the run of ``patient``."""


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def forward(self, seconds: float) -> None:
        self.seconds += seconds


def test_the_lines_by_hand() -> None:
    clock = Clock()
    run = RunProgress(4, now=clock)
    assert run.line() == "loading the model"
    run.phase("evaluate")
    clock.forward(10)
    run.count(32, 64, 500)
    assert run.line() == "evaluating 32/64 at 50 tokens/s, about 10 s left of this"
    run.count(40, 64, 100)  # another call of the generator, in the same phase
    assert run.line() == "evaluating 40/64 at 60 tokens/s, about 6 s left of this"
    run.count(64, 64, 900)
    clock.forward(10)
    assert run.line() == "evaluating 64/64", "what is graded is sampled already"
    run.start_step(1)
    run.phase("generate")
    assert run.line() == "step 1/4: sampling from the student"
    clock.forward(10)
    run.count(8, 16, 2800)
    # 20 s a step, of which 10 are over, and three more steps
    assert run.line() == "step 1/4: sampling from the student 8/16 at 280 tokens/s, over 70 s left"
    clock.forward(90)
    run.phase("update")
    clock.forward(20)
    assert run.line() == "step 1/4: learning, over 6 min left", "3 x 120 s so far"
    run.start_step(2)
    run.phase("generate")
    clock.forward(30)
    assert run.line() == "step 2/4: sampling from the student, about 6 min left", "2 x 120 s, and 90 s of this one"
    clock.forward(500)
    assert run.line().endswith("about 4 min left"), "a phase that takes longer than before"
    run.phase("update")
    run.start_step(4)
    run.phase("update")
    clock.forward(1000)
    assert run.line() == "step 4/4: learning", "nobody knows"


def test_few_answers_that_have_ended_say_little() -> None:
    """Completions end late in a batch: by their number, 1 of 16 after 100 s would be 25 minutes more."""
    clock = Clock()
    run = RunProgress(0, most_tokens=200, now=clock)
    run.phase("evaluate")
    clock.forward(100)
    run.count(0, 16, 1600)
    assert run.line() == "evaluating 0/16 at 16 tokens/s, at most 2 min left of this", "16 x 200 tokens at 16 a second"
    run.count(1, 16, 1600)
    assert run.line().endswith("at most 2 min left of this")
    clock.forward(50)
    run.count(15, 16, 2000)
    assert run.line().endswith("about 10 s left of this"), "150 s x 1/15"


def test_the_first_step_is_as_long_as_the_check_before_it() -> None:
    clock = Clock()
    run = RunProgress(11, now=clock)
    run.phase("check")
    clock.forward(40)
    run.count(16, 16, 1000)
    run.count(0, 1, 5)  # further samples, of which the check alone has need
    clock.forward(5)
    run.start_step(1)
    run.phase("generate")
    assert run.line() == "step 1/11: sampling from the student, over 7 min left", "11 x 40 s"


STEP = {"generate": 40.0, "reward": 5.0, "annotate": 1.0, "score": 10.0, "update": 20.0, "sync": 4.0}
RARE = {"evaluate": (3, 30.0), "save": (0, 10.0)}
"""Phase -> every how many steps, and seconds."""
LENGTHS = [20, 25, 30, 35, 40, 40, 45, 50, 50, 60, 70, 80, 90, 120, 150, 200]
"""Tokens of a batch's rollouts, at five a second each."""


def simulated(steps: int) -> Iterator[tuple[int, str, float]]:
    """A run on a clock of its own: step, what it says every second about the time left, and how much that is in truth."""
    clock = Clock()
    run = RunProgress(steps, 256, {phase: every for phase, (every, _) in RARE.items()}, now=clock)
    said: list[tuple[int, str, float]] = []

    def spend(phase: str, seconds: float) -> None:
        run.phase(phase)
        for second in range(1, round(seconds) + 1):
            clock.forward(1)
            if phase in ("generate", "check"):
                position = 5 * second
                run.count(sum(n <= position for n in LENGTHS), 16, sum(min(n, position) for n in LENGTHS))
            said.append((run.step, run.left(), clock()))

    spend("load", 30)
    spend("check", 40)
    spend("evaluate", 30)
    for step in range(1, steps + 1):
        run.start_step(step)
        for phase, seconds in STEP.items():
            spend(phase, seconds)
        for phase, (every, seconds) in RARE.items():
            if step == steps or (every and step % every == 0):
                spend(phase, seconds)
    return ((step, text, clock() - then) for step, text, then in said)


def in_seconds(text: str) -> float:
    """``about 12 min left`` -> 720."""
    units = {"s": 1, "min": 60, "h": 3600}
    return sum(int(n) * units[unit] for n, unit in re.findall(r"(\d+) (s|min|h)\b", text))


def test_an_estimate_that_can_be_believed() -> None:
    """Before the first step is over it says less than the truth, and that it does; then it is right, and falls as time passes."""
    steps = 8
    said = list(simulated(steps))
    before = [(text, true) for step, text, true in said if step < 2]
    assert [text for text, _ in before[:30]] == [""] * 30, "while the model is loaded"
    assert all(text.startswith(("at most ", "over ")) for text, _ in before[30:])
    assert all(in_seconds(text) < 1.02 * true for text, true in before if text.startswith("over ")), "a lower bound"
    assert all(in_seconds(text) > 0.14 * true for text, true in before[30:])
    estimates = [in_seconds(text) for text, _ in before[70:]]
    assert min(estimates) >= 300, "as long as all steps sample, from the check on"
    rest = [(text, true) for step, text, true in said if step > 1 and text]
    assert all(text.startswith("about ") for text, _ in rest)
    rounding = 30  # to whole minutes
    save = RARE["save"][1]  # which comes once, and is not known before
    assert all(abs(in_seconds(text) - true) <= rounding + save for text, true in rest)
    estimates = [in_seconds(text) for text, _ in rest]
    assert all(later <= earlier for earlier, later in itertools.pairwise(estimates))


def test_durations_in_words() -> None:
    assert [in_words(s) for s in (0.4, 89.4, 90, 5000, 11_100, 184_000)] == [
        "1 s",
        "89 s",
        "2 min",
        "83 min",
        "3 h 5 min",
        "2 days 3 h",
    ]


def test_it_speaks_after_silence_alone() -> None:
    clock, said = Clock(), list[float]()
    heartbeat = Heartbeat(lambda: said.append(clock()), now=clock)
    assert heartbeat.beat() == 20.0 and not said
    clock.forward(15)
    heartbeat.hear()
    clock.forward(15)
    assert heartbeat.beat() == 5.0 and not said
    clock.forward(5)
    assert heartbeat.beat() == 20.0 and said == [135.0]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_has_the_bar_instead(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SILENCE_S", 0.01)
    shown = io.StringIO()
    display = Display(1, Console(file=shown, force_terminal=terminal, width=200))
    before = {thread.name for thread in threading.enumerate()}
    with display.never_silent():
        display.phase("evaluate")
        display.progress(12, 64, 100)
        while not terminal and "evaluating 12/64" not in shown.getvalue():
            time.sleep(0.005)
        assert ("heartbeat" in {t.name for t in threading.enumerate()} - before) != terminal
    assert "heartbeat" not in {t.name for t in threading.enumerate()} - before


def patient(completion: str) -> float:
    """A reward that takes as long as it takes the run to say so."""
    while "scoring answers" not in SAID.getvalue():
        time.sleep(0.005)
    return (len(completion) % 7) / 7


def test_a_run_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SILENCE_S", 0.02)
    SAID.truncate(0)
    config = write_config(tmp_path, rewards=[{"name": "tests.run.test_progress:patient"}], preflight={"enabled": False})
    with redirect_stdout(SAID):
        assert run_here(config, f"run_dir={tmp_path / 'run'}", "steps=1") == 0
    assert "step 1/1: scoring answers" in SAID.getvalue() and "loading the model" in SAID.getvalue()


def next_commands(said: str) -> list[list[str]]:
    """The arguments of every command that is to be run next."""
    lines = [line.removeprefix("next: ") for line in said.splitlines() if line.startswith("next: ")]
    words = [shlex.split(line) for line in lines]
    return [w[next(i for i, word in enumerate(w) if word.endswith("onpolicy")) + 1 :] for w in words]


def test_what_to_run_next_works_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the folder in which it is printed, with relative paths and whatever the names; also in 40 columns."""
    monkeypatch.setenv("COLUMNS", "40")
    (folder := tmp_path / "my configs [red] #1").mkdir()
    monkeypatch.chdir(tmp_path)
    sets = {"sums": {"name": "file", "path": str(folder / "data.jsonl"), "problems": 2}}
    config = write_config(folder, eval={"sets": sets}, rewards=["exact_answer"]).relative_to(tmp_path)
    assert run_here(config, "steps=1", "run_dir=runs/it's one") == 0
    evaluation, longer = next_commands(capsys.readouterr().out)
    assert evaluation[:3] == ["eval", str(config), "steps=1"]
    assert longer == ["train", str(config), "run_dir=runs/it's one", "steps=2"] and main(longer) == 0
    assert "step    2" in capsys.readouterr().out
    assert main(["report", "runs/it's one"]) == 0
    (again,) = next_commands(capsys.readouterr().out)
    assert again[0] == "eval" and main(again) == 0 and main(evaluation) == 0
    train = next_commands(capsys.readouterr().out)[-1]
    assert train == ["train", *evaluation[1:]] and main(train) == 0
