"""``onpolicy analyze``: the commands on a real tiny model, and the comparison of contexts by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from onpolicy.__main__ import main
from onpolicy.analyze.contexts import UNGUIDED, compare_contexts
from onpolicy.contexts.final_answer import final_answer
from onpolicy.contexts.successful_sibling import successful_sibling
from onpolicy.inquiry import Inquiry
from onpolicy.randomness import step_seed
from onpolicy.sampling import Sampling
from onpolicy.scoring import Judge, Reward
from onpolicy.types import Prompt, RolloutGroup
from tests.runs import write_config
from tests.test_asking import RENDERER, problem, right, rollout
from tests.tiny import byte_tokenizer, tiny_model


class Doubtful:
    """Right half of the time and full of doubt; told the answer, right and short."""

    sampling, policy_version = Sampling(group_size=2), 0

    def generate(self, prompts: Any, *, seed: int, sampling: Any = None) -> list[RolloutGroup]:
        def answers(prompt: Prompt) -> list[str]:
            if "final answer is" in prompt.messages[-1]["content"] or prompt.id.endswith("@sibling"):
                return ["right", "right"]
            return ["wait maybe wrong", "right, hmm"] if prompt.id != "p3" else ["right"] * 2

        return [RolloutGroup(prompt=p, rollouts=tuple(map(rollout, answers(p)))) for p in prompts]


def compared(band: tuple[float, float] = (0.0, 1.0)) -> Any:
    generator: Any = Doubtful()
    judge = Judge([Reward("right", 1.0, right)], str)
    prompts = [problem(f"p{i}") for i in range(1, 4)]
    inquiry = Inquiry(generator, judge, prompts, step_seed, RENDERER, 2000, False)
    return compare_contexts(
        prompts, {"answer": final_answer, "sibling": successful_sibling}, generator=generator, judge=judge, inquiry=inquiry,
        lexicons=["A"], seed=0, band=band,
    )  # fmt: skip


def test_contexts_by_hand() -> None:
    plain, told, sibling = compared()
    assert (plain.context, told.context, sibling.context) == (UNGUIDED, "answer", "sibling")
    assert plain.score.mean == pytest.approx((0.5 + 0.5 + 1.0) / 3) and told.score.mean == sibling.score.mean == 1.0
    assert plain.problems == told.problems == 3 and plain.samples == 2
    assert plain.paper_count.mean == pytest.approx((3 / 2 + 3 / 2 + 0) / 3)  # wait, maybe, hmm in two answers
    assert plain.rates["A"].mean == pytest.approx((2 * 1000 * 2 / 26) / 3, rel=0.01) and told.rates["A"].mean == 0.0
    assert plain.score.low < plain.score.mean < plain.score.high
    hard, *_ = compared(band=(0.125, 0.5))
    assert hard.problems == 2 and compared(band=(0.6, 0.9)) == []


def test_contexts_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = {"teacher": {"name": "reference_solution"}, "answer": {"name": "final_answer"}}
    terms = [{"name": "distill", "divergence": "forward_kl"}, {"name": "sampled_kl", "view": "answer", "weight": 0}]
    config = write_config(tmp_path, contexts=both, objective=terms)
    assert main(["analyze", "contexts", str(config), "--problems", "3", "--output", str(tmp_path / "out.json")]) == 0
    assert "unguided" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["context"] for row in rows} == {UNGUIDED, "teacher", "answer"} and rows[0]["samples"] == 3
    assert (
        main(["analyze", "contexts", str(config), "--band", "2", "3"]) == 2
        and "widen --band" in capsys.readouterr().err
    )


def test_pressure_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert main(["analyze", "pressure", str(config)]) == 2
    assert "none has a marker that is a single token" in capsys.readouterr().err
    tokenizer = byte_tokenizer(added=("wait", "hmm", "so"))
    tiny_model(vocab_size=270).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert main(["analyze", "pressure", str(config), "--output", str(tmp_path / "out.json")]) == 0
    assert "suppression pressure" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert (
        set(found["pressure"]) == {"A", "seed10", "F", "companion9"} & set(found["pressure"]) and found["rollouts"] == 6
    )
    assert found["pressure"]["A"]["relative"] != 0 and found["pressure"]["A"]["tokens"] > 0
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all((before[name] == after[name]).all() for name in before)
