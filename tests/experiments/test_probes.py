"""Causal probes: each intervention on scripted answers whose outcome is known, and the command on a real tiny model.

The scripted model answers by rules on what it is given to continue, so that every number can be worked out by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from onpolicy.annotation.scoring import Reward, Scorer
from onpolicy.cli import main
from onpolicy.data.rendering import Renderer
from onpolicy.experiments.analysis.probes import NEUTRAL, SELF_DOUBT, Probe, ProbedAnswer, Prober, compared
from onpolicy.types import Prompt, Rollout, RolloutGroup, Sampling
from onpolicy.utils.errors import ConfigError
from tests.runs import write_config
from tests.tiny import byte_tokenizer, tiny_model

ADDED = ("wait", "Wait", "hmm", "so", "then")
RENDERER = Renderer(byte_tokenizer(added=ADDED))
IDS = {text: RENDERER.tokenizer.convert_tokens_to_ids(text) for text in ADDED}


def problem(name: str) -> Prompt:
    return Prompt(id=name, messages=({"role": "user", "content": "2 + 2?"},), fields={"answer": "4"})


def right(completion: str) -> bool:
    return "answer is 4" in completion


class Scripted:
    """Says what a rule makes of the problem, of the text it has to continue, and of the words it must not say."""

    def __init__(self, rule: Callable[[str, str, Sequence[int]], str], size: int = 2) -> None:
        self.rule, self.sampling, self.policy_version = rule, Sampling(group_size=size, max_tokens=200), 0
        self.on_progress: Any = None

    def generate(self, prompts: Sequence[Prompt], *, seed: int, sampling: Sampling | None = None) -> list[RolloutGroup]:
        chosen = sampling or self.sampling
        return [
            RolloutGroup(prompt=p, rollouts=(self._rollout(p, chosen.max_tokens),) * chosen.group_size) for p in prompts
        ]

    def _rollout(self, prompt: Prompt, max_tokens: int) -> Rollout:
        text = self.rule(
            prompt.id.partition("/")[0], RENDERER.completion_text(prompt.completion_prefix_ids), prompt.banned_token_ids
        )
        ids = tuple(RENDERER.tokenizer.encode(text, add_special_tokens=False))
        reason: Any = "length" if len(ids) > max_tokens else "stop"
        kept = ids[:max_tokens]
        return Rollout(
            prompt_ids=(5, *prompt.completion_prefix_ids), completion_ids=kept, rollout_logprobs=(-1.0,) * len(kept),
            text=RENDERER.completion_text(kept), finish_reason=reason, policy_version=0,
        )  # fmt: skip


def probes(
    rule: Callable[[str, str, Sequence[int]], str], *names: str, window: int = 1000
) -> dict[tuple[str, str], Probe]:
    generator: Any = Scripted(rule)
    scorer = Scorer([Reward("right", 1.0, right)], str, "right")
    prober = Prober(generator, scorer, RENDERER, "self_doubt", window=window, continuations=3, seed=0)
    return {(p.arm, p.against): p for p in prober.probe([problem(name) for name in names])}


def functional(name: str, completion_prefix_ids: str, banned_token_ids: Sequence[int]) -> str:
    """Self-doubt, once said, finds the answer; without it the first guess stays. p2 never doubts by itself."""
    if "wait" in completion_prefix_ids.casefold():
        return " no, 2 + 2 is not 5. The answer is 4."
    if name == "p2" or "it is 5" in completion_prefix_ids or IDS["wait"] in banned_token_ids:
        return "it is 5. no doubt. The answer is 5."
    return "it is 5. wait no, 2 + 2 is not 5. The answer is 4."


def idle(name: str, completion_prefix_ids: str, banned_token_ids: Sequence[int]) -> str:
    """Says "wait" by habit; the outcome hangs on the problem alone."""
    marker = "" if IDS["wait"] in banned_token_ids or "it is" in completion_prefix_ids else "it is so. wait. "
    return f"{marker} go on. The answer is {'4' if name == 'p1' else '5'}."


def test_self_doubt_that_works() -> None:
    found = probes(functional, "p1", "p2")
    kept = found["self_doubt kept", "self_doubt left out"]
    assert (kept.accuracy.mean, kept.difference.mean, kept.problems, kept.answers) == (1.0, 1.0, 1, 12)
    for other in ("neutral words", "nothing"):
        mended = found["self-doubt at 25% of wrong answers", other]
        assert (mended.accuracy.mean, mended.difference.mean, mended.problems) == (1.0, 1.0, 1)
    # p1 is cut behind its first sentence, before it doubts; whoever goes on without doubt stays with the guess
    assert found["self-doubt at 25% of correct answers", "nothing"].difference.mean == 1.0
    assert found["self-doubt at 75% of correct answers", "nothing"].difference.mean == 0.0, "cut after its doubt"
    ban, control = found["self_doubt banned", "nothing banned"], found["neutral banned", "nothing banned"]
    assert (ban.accuracy.mean, ban.difference.mean, ban.problems) == (0.0, -0.5, 2)
    assert (ban.difference.low, ban.difference.high) == (-1.0, 0.0), "one of two problems"
    assert (control.accuracy.mean, control.difference.mean) == (0.5, 0.0)


def test_self_doubt_out_of_habit() -> None:
    found = probes(idle, "p1", "p2")
    assert {name for name, _ in found} >= {
        "self_doubt kept",
        "self_doubt banned",
        "neutral banned",
        "self-doubt at 50% of wrong answers",
    }
    assert all(p.difference.mean == 0.0 for p in found.values())


def test_the_arms_are_as_long() -> None:
    words = [len(text.split()) for text in (SELF_DOUBT, NEUTRAL)]
    assert words[0] == words[1]
    encoded = [len(RENDERER.tokenizer.encode(text)) for text in (SELF_DOUBT, NEUTRAL)]
    assert abs(encoded[0] - encoded[1]) <= 8


def test_where_there_is_no_place_there_is_no_probe() -> None:
    found = probes(lambda name, completion_prefix_ids, banned_token_ids: "4", "p1")
    assert {name for name, _ in found} == {"self_doubt banned", "neutral banned"}


def test_a_full_window_is_named() -> None:
    with pytest.raises(ConfigError, match="leaves no tokens to continue an answer"):
        probes(functional, "p1", window=40)


def test_differences_are_by_problem() -> None:
    one = [ProbedAnswer("p", True, 4), ProbedAnswer("p", False, 6), ProbedAnswer("q", True, 9)]
    other = [ProbedAnswer("p", False, 1), ProbedAnswer("q", True, 9)]
    found = compared("x", one, "y", other)
    assert found.accuracy.mean == 0.75 and found.difference.mean == 0.25 and found.tokens.mean == 2.0
    assert found.difference.low == 0.0 and found.difference.high == 0.5


def test_probes_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, rewards=[{"name": "tests.experiments.test_probes:lucky"}])
    command = ["analyze", "probes", str(config), "--problems", "4", "--output", str(tmp_path / "out.json")]
    assert main(command) == 2 and "none of its markers is a single token" in capsys.readouterr().err
    tiny_model(vocab_size=300).save_pretrained(tmp_path / "model")
    byte_tokenizer(added=ADDED).save_pretrained(tmp_path / "model")
    assert main([*command, "generator.max_tokens=60", "generator.group_size=4"]) == 0
    assert "banned" in capsys.readouterr().out
    report = json.loads((tmp_path / "out.json").read_text())
    banned_token_ids = next(p for p in report["probes"] if p["arm"] == "self_doubt banned")
    assert banned_token_ids["problems"] == 4 and banned_token_ids["answers"] == 32
    assert any(p["arm"] == "self_doubt kept" for p in report["probes"]), "a random model says wait now and then"
    assert main([*command, "rewards=[]"]) == 2 and "expected a reward" in capsys.readouterr().err


def lucky(completion: str) -> bool:
    return len(completion) % 2 == 0


def test_a_ban_for_one_token_is_for_one_token() -> None:
    """The arm that leaves a marker out may doubt later: only the place is taken away."""

    def rule(name: str, completion_prefix_ids: str, banned_token_ids: Sequence[int]) -> str:
        return (
            "so "
            if banned_token_ids
            else " wait. The answer is 4."
            if "so" in completion_prefix_ids
            else "it is. wait no. The answer is 5."
        )

    (probe,) = (p for key, p in probes(rule, "p1").items() if key[0] == "self_doubt kept")
    assert probe.accuracy.mean == 0.0 and probe.difference.mean == -1.0
