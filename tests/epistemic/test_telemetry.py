"""Telemetry of expressed uncertainty: in text, and token by token.

1. rates by hand: pooled and by response, by word, thinking and answer, quarters, right and wrong, easy and hard; 2. the paper's count is
its three lines; 3. gaps, matched gaps, entropies, mass, shares by hand; 4. how a step is cut into micro-batches does not matter;
5. a run logs it, resumes with it, and can leave it out; 6. lists of one's own, by YAML.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onpolicy.epistemic.baseline import Baseline, ProblemBaseline, problem_baselines
from onpolicy.epistemic.ids import span_name
from onpolicy.epistemic.marked import MarkedRollout, locate_markers
from onpolicy.epistemic.suppression import mantel_haenszel, suppression
from onpolicy.epistemic.text import marker_rates
from onpolicy.epistemic.tokens import TokenTelemetry, matched_difference
from onpolicy.rewards.lexicon import LEXICONS, count
from onpolicy.rewards.uncertainty import target_rate
from onpolicy.types import Example, LossInputs, Prompt, Rollout, RolloutGroup, RolloutReward, ScoredGroup, TeacherScores
from onpolicy.utils.thinking import split_thinking
from tests.runs import metrics, run_here, write_config
from tests.tiny import random_examples
from tests.trainer.test_teacher import distill_term, trainer

TEXTS = (
    "Wait, wait. So 4.</think>It is 4, perhaps.",
    "Unlikely. <think>hmm</think> maybe: $wait$ hold on",
    "等wait一下 Hmm… `check` double-check WAIT\n```\nmaybe\n```",
    "",
)


def rollout(text: str, tokens: int) -> Rollout:
    return Rollout(
        prompt_ids=(5,), completion_ids=(6,) * tokens, rollout_logprobs=(-1.0,) * tokens, text=text, finish_reason="stop", policy_version=0
    )  # fmt: skip


def marked(
    *groups: list[tuple[str, int, float]], lexicons: tuple[str, ...] = ("self_doubt", "hedges")
) -> list[MarkedRollout]:
    """Rollouts of several problems, each given by its text, its tokens and its score."""
    judged = []
    for number, rows in enumerate(groups):
        prompt = Prompt(id=f"p{number}", messages=({"role": "user", "content": "q"},))
        group = RolloutGroup(prompt=prompt, rollouts=tuple(rollout(text, tokens) for text, tokens, _ in rows))
        scored = tuple(RolloutReward(score, 0.0, {}) for *_, score in rows)
        judged.append(ScoredGroup(group, scored, tuple(score for *_, score in rows)))
    return locate_markers(judged, lexicons, lambda text: split_thinking(text, opened=True), lexicons)


def rates(*groups: list[tuple[str, int, float]]) -> dict[str, float]:
    return marker_rates(marked(*groups), ["self_doubt", "hedges"])


def test_the_papers_counter_is_its_three_lines() -> None:
    for text in TEXTS:
        lowered = text.lower()
        expected = sum(lowered.count(word) for word in LEXICONS["paper10"])
        assert sum(count(text, "paper10", "paper").values()) == expected
    found = rates([(t, 10, 1.0) for t in TEXTS])
    assert found["epistemic/paper10/paper_count"] == pytest.approx((3 + 4 + 6 + 0) / 4)


def test_rates_by_hand() -> None:
    # two markers of A, since wait wait is one; the second rollout never stops thinking
    first, second = "wait wait so 4" + " hmm  </think>" + "." * 27 + "4", "no doubt about this at all"
    found = rates([(first, 100, 1.0), (second, 300, 0.0)])
    a = {k.removeprefix("epistemic/self_doubt/"): v for k, v in found.items() if k.startswith("epistemic/self_doubt/")}
    assert a["rate_per_1k"] == pytest.approx(1000 * 2 / 400) and a["rate_per_1k/by_completion"] == pytest.approx(
        (20 + 0) / 2
    )
    assert (
        a["count"] == 1.0
        and a["word_per_1k/wait"] == pytest.approx(1000 * 2 / 400)
        and a["word_per_1k/hmm"] == pytest.approx(2.5)
    )
    assert a["rate_per_1k/correct"] == pytest.approx(20.0) and a["rate_per_1k/incorrect"] == 0.0
    thinking = 100 * (len(first) - 28) / len(first)
    assert a["rate_per_1k/thinking"] == pytest.approx(1000 * 2 / (thinking + 300)) and a["rate_per_1k/answer"] == 0.0
    quarters = [a[f"rate_per_1k/quarter_{q}"] for q in (1, 2, 3, 4)]
    assert quarters == pytest.approx([10.0, 10.0, 0.0, 0.0], rel=0.1)  # one each among (100 + 300) / 4 tokens


def test_easy_and_hard_problems() -> None:
    half, none = [("wait", 10, 1.0), ("no", 10, 0.0)], [("hmm", 10, 0.0), ("hmm", 10, 0.0)]
    found = rates(half, none)
    assert found["epistemic/self_doubt/rate_per_1k/medium"] == pytest.approx(50.0)
    assert found["epistemic/self_doubt/rate_per_1k/hard"] == pytest.approx(100.0)
    assert "epistemic/self_doubt/rate_per_1k/easy" not in found and rates() == {}
    assert "epistemic/self_doubt/rate_per_1k/medium" not in rates(none)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def loss_inputs(marked: list[bool]) -> LossInputs:
    mask, zero = torch.ones(1, 4, dtype=torch.bool), row(0, 0, 0, 0)
    scores = TeacherScores(logprobs=row(-3.0, -1.0, -1.5, -1.0), entropy=row(0, 0, 0, 0), mask=mask)
    return LossInputs(
        logprobs=row(-1.0, -1.0, -1.0, -1.0), entropy=row(1.0, 1.0, 0.1, 3.0), old_logprobs=zero, rollout_logprobs=zero,
        ref_logprobs=None, advantages=zero, sampled_mask=mask, teacher={"teacher": scores}, divergences={},
        spans={span_name("self_doubt"): torch.tensor([marked]), span_name("number"): torch.tensor([[False, False, True, False]])},
        marker_mass={("<student>", "self_doubt"): row(0.2, 0.001, 0.1, 0.001).log(),
        ("teacher", "self_doubt"): row(0.1, 0.9, 0.1, 0.001).log()},
    )  # fmt: skip


def test_token_telemetry_by_hand() -> None:
    telemetry = TokenTelemetry("self_doubt", ("self_doubt", "number"))
    telemetry.observe(loss_inputs([True, False, False, False]))
    found = telemetry.metrics()
    assert found["epistemic/gap/teacher/self_doubt"] == pytest.approx(-2.0) and found[
        "epistemic/gap/teacher/number"
    ] == pytest.approx(-0.5)
    assert found["epistemic/self_doubt/entropy_at"] == 1.0 and found[
        "epistemic/self_doubt/entropy_around"
    ] == pytest.approx((1.0 + 0.1 + 3.0) / 3)
    assert found["epistemic/self_doubt/probability"] == pytest.approx(math.exp(-1))
    assert found["epistemic/self_doubt/mass_gap/teacher"] == pytest.approx(
        (math.log(0.5) + 0.0) / 2
    )  # two opportunities: .2 -> .1, .1 -> .1
    assert found["epistemic/self_doubt/mass/student"] == pytest.approx(0.302 / 4)
    assert "epistemic/self_doubt/gap_matched/teacher" not in found, "its stratum holds no other token"
    assert telemetry.fork_threshold == pytest.approx(1.8) and found["epistemic/fork_rate"] == 0.25
    telemetry.observe(replace(loss_inputs([True, False, False, False]), entropy=row(2.0, 0, 0, 0)))
    assert telemetry.metrics()["epistemic/fork_rate"] == 0.25 and telemetry.metrics() == {}


def test_a_marker_of_several_tokens_is_looked_at_where_it_begins() -> None:
    telemetry = TokenTelemetry("self_doubt", ("self_doubt", "number"))
    telemetry.observe(replace(loss_inputs([False, True, True, True]), entropy=row(0.0, 2.0, 0.1, 0.1)))
    found = telemetry.metrics()
    assert found["epistemic/self_doubt/entropy_at"] == 2.0, "what follows within it is foregone"
    assert found["epistemic/gap/teacher/self_doubt"] == pytest.approx((0.0 - 0.5 + 0.0) / 3), "its tokens all the same"


def test_the_matched_gap_compares_within_strata() -> None:
    # two markers against three others in the first stratum, one marker alone in the second, one against one in the third
    table = torch.tensor([[-4.0, 2, -3.0, 3], [-9.0, 1, 0.0, 0], [1.0, 1, 3.0, 1]])
    assert matched_difference(table) == pytest.approx((2 * (-2 + 1) + (1 - 3)) / 3)
    assert matched_difference(torch.zeros(2, 4)) is None


def with_marks(examples: list[Example]) -> list[Example]:
    draw = torch.Generator().manual_seed(5)
    marks = lambda e: tuple((torch.rand(len(e.rollout.completion_ids), generator=draw) < 0.3).tolist())  # noqa: E731
    return [replace(e, spans={span_name("self_doubt"): marks(e), span_name("number"): marks(e)}) for e in examples]


def test_how_a_step_is_cut_does_not_matter() -> None:
    examples = with_marks(random_examples(8))
    found = []
    for budget in (1, 100, 1000):
        one = trainer(
            ema_rule(), distill_term(), telemetry=TokenTelemetry("self_doubt", ("self_doubt", "number")),
            spans=(span_name("self_doubt"), span_name("number")),
            marker_ids={"self_doubt": [5, 6, 7, 8, 9, 10]},
        )  # fmt: skip
        one.settings.micro_batch_tokens = budget
        found.append({k: v for k, v in one.step(examples).items() if k.startswith("epistemic/")})
    assert len(found[0]) > 12
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4, abs=1e-6)


def ema_rule() -> Any:
    from onpolicy.trainer.teacher_rules import frozen

    return frozen()


def test_shares_of_the_divergence_add_up() -> None:
    examples = with_marks(random_examples(8, with_teacher=1.0))
    marks = [e.spans[span_name("self_doubt")] for e in examples]
    half = [
        replace(e, spans={span_name("self_doubt"): m, span_name("number"): tuple(not inside for inside in m)})
        for e, m in zip(examples, marks, strict=True)
    ]
    one = trainer(
        ema_rule(),
        distill_term(),
        telemetry=TokenTelemetry("self_doubt", ("self_doubt", "number")),
        spans=(span_name("self_doubt"), span_name("number")),
    )
    found = one.step(half)
    assert found["epistemic/divergence_share/teacher/self_doubt"] + found[
        "epistemic/divergence_share/teacher/number"
    ] == pytest.approx(1.0)
    share = sum(map(sum, (e.spans[span_name("self_doubt")] for e in half))) / sum(
        len(e.rollout.completion_ids) for e in half
    )
    ratio = (
        found["epistemic/divergence_share/teacher/self_doubt"]
        / found["epistemic/divergence_concentration/teacher/self_doubt"]
    )
    assert ratio == pytest.approx(share)


def test_a_run_logs_it_resumes_with_it_and_can_leave_it_out(tmp_path: Path) -> None:
    own = {
        "custom_lexicons": {"letters": ["a", "e", "the end"]},
        "epistemic": {"lexicon": "letters", "lexicons": ["letters", "paper10"]},
    }
    config = write_config(tmp_path, **own)
    try:
        assert run_here(config, f"run_dir={tmp_path / 'whole'}") == 0
        assert run_here(config, f"run_dir={tmp_path / 'parts'}", "steps=1") == 0
        assert run_here(config, f"run_dir={tmp_path / 'parts'}") == 0
        assert run_here(config, f"run_dir={tmp_path / 'none'}", "epistemic.lexicons=[]", "steps=1") == 0
    finally:
        LEXICONS.pop("letters", None)
    whole = metrics(tmp_path / "whole")
    assert whole == metrics(tmp_path / "parts")
    assert all(
        {"epistemic/letters/rate_per_1k", "epistemic/fork_rate", "epistemic/paper10/paper_count"} <= set(r)
        for r in whole
    )
    assert not any(name.startswith("epistemic/") for name in metrics(tmp_path / "none")[0])


def test_suppression_by_hand() -> None:
    start = ProblemBaseline(
        tokens=[100, 100], correct=[True, False], paid=[0, 1], markers={"self_doubt": [0, 1], "hedges": [1, 3]}
    )
    now = marked([("wait", 100, 1.0), ("no", 100, 0.0)], [("wait", 100, 1.0)])
    found = suppression(now, {"p0": start}, ("self_doubt", "hedges"), "self_doubt")
    assert (
        found["epistemic/self_doubt/suppression"] == 0.0 and found["epistemic/self_doubt/suppression/problems"] == 1.0
    )
    assert found["epistemic/hedges/suppression"] == pytest.approx(math.log(0.5 / 20.5))
    assert found["audit/self_doubt/lead"] == pytest.approx(-math.log(0.5 / 20.5)), (
        "markers that stay while the held-out words go"
    )
    prompt = Baseline({"p0": start}).add_columns(now[0].prompt)
    assert prompt.fields["ref_rate"] == 5.0 and prompt.fields["ref_std"] == 5.0
    assert suppression(now, {}, ("self_doubt",), "self_doubt") == {}


def test_the_start_models_markers_are_counted_as_the_rewards_count() -> None:
    text = "wait one more wait two more wait three more"
    (one,) = marked([(text, 10, 1.0)], lexicons=("self_doubt",))
    for spacing, counted in ((0, 3), (20, 1)):
        (problem_baseline,) = problem_baselines([one], "self_doubt", spacing).values()
        prompt = Baseline({"p0": problem_baseline}).add_columns(one.prompt)
        start = {name: prompt.fields[name] for name in ("ref_rate", "ref_std")}
        assert problem_baseline.paid == [counted] and target_rate(text, 10, **start, spacing=spacing) == 0.0


def test_length_alone_does_not_suppress() -> None:
    # short answers have no marker and long ones have; the model now gives short ones more often, with the same habit at each length
    start = ProblemBaseline(tokens=[100, 1000], correct=[True, True], paid=[0, 0], markers={"self_doubt": [0, 10]})
    long = ("wait . " + "so ") * 10
    now = marked([("so", 100, 1.0), ("so", 100, 1.0), ("so", 100, 1.0), (long, 1000, 1.0)], lexicons=("self_doubt",))
    found = suppression(now, {"p0": start}, ("self_doubt",), "self_doubt")
    assert found["epistemic/self_doubt/suppression"] < -0.1 and found[
        "epistemic/self_doubt/suppression/at_length"
    ] == pytest.approx(0.0, abs=1e-9)


def test_mantel_haenszel_by_hand() -> None:
    # strata with 4 and 2 markers in 1,000 and 3,000 tokens, against 1 and 0 in 1,000 tokens; .5 per 1,000 added
    table = np.array([[4.0, 1000, 1, 1000], [2.0, 3000, 0, 1000], [9.0, 10, 0, 0]])
    ratio = (4.5 * 1000 / 2000 + 3.5 * 1000 / 4000) / (1.5 * 1000 / 2000 + 0.5 * 3000 / 4000)
    assert mantel_haenszel(table) == pytest.approx(math.log(ratio))
    assert mantel_haenszel(table[2:]) is None


def test_a_run_aims_at_the_start_models_own_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reward = {"name": "target_rate", "lexicon": "letters", "spacing": 0, "weight": 0.1}
    changes: dict[str, Any] = {
        "custom_lexicons": {"letters": ["a", "e", "x"]}, "epistemic": {"lexicon": "letters", "lexicons": ["letters"], "baseline": 4},
        "rewards": [{"name": "tests.runs:length_reward"}, reward],
    }  # fmt: skip
    config = write_config(tmp_path, **changes)
    try:
        assert run_here(config, f"run_dir={tmp_path / 'whole'}") == 0
        assert run_here(config, f"run_dir={tmp_path / 'parts'}", "steps=1") == 0
        assert run_here(config, f"run_dir={tmp_path / 'parts'}") == 0
        assert metrics(tmp_path / "parts")[1:] == metrics(tmp_path / "whole")[1:], (
            "measured with the reference model's weights all the same"
        )
        assert run_here(config, f"run_dir={tmp_path / 'run'}", "rewards[1].lexicon=A") == 2
        assert "rewards[1].lexicon: got 'A', but the reference model's markers are counted with 'letters'" in (
            capsys.readouterr().err
        )
        assert run_here(config, f"run_dir={tmp_path / 'run'}", "epistemic.baseline=0") == 2
        assert (
            "rewards[1]: 'target_rate' compares with the reference model's rate; set epistemic.baseline"
            in capsys.readouterr().err
        )
    finally:
        LEXICONS.pop("letters", None)
    assert all(
        "epistemic/letters/suppression/low" in r and -1 <= r["reward/target_rate"] <= 0
        for r in metrics(tmp_path / "whole")[1:]
    )
    start = metrics(tmp_path / "whole")[0]
    assert start["step"] == 0 and {"epistemic/letters/rate_per_1k", "audit/repetition", "group/any_correct"} <= set(
        start
    )
