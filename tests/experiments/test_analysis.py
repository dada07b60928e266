"""``onpolicy analyze``: the commands on a real tiny model, and the comparison of contexts by hand."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from onpolicy.annotation.contexts.critique import critique
from onpolicy.annotation.contexts.failed_sibling import failed_sibling
from onpolicy.annotation.contexts.final_answer import final_answer
from onpolicy.annotation.contexts.successful_sibling import successful_sibling
from onpolicy.annotation.queries import ContextQueries
from onpolicy.annotation.scoring import Reward, Scorer
from onpolicy.cli import main
from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.data.rendering import PromptTooLong
from onpolicy.experiments.analysis.context_answers import ContextAnswers, answer_with_contexts
from onpolicy.experiments.analysis.context_rows import UNGUIDED, context_rows
from onpolicy.experiments.analysis.pass_rates import ANY_PASS_RATE, within_pass_rates
from onpolicy.experiments.analysis.richness import richness
from onpolicy.models import open_model
from onpolicy.types import Message, Prompt, RolloutGroup, Sampling, ScoredGroup
from onpolicy.utils.seeds import step_seed
from tests.annotation.test_queries import RENDERER, Scripted, problem, right, rollout
from tests.runs import write_config
from tests.tiny import byte_tokenizer, tiny_model


class Doubtful:
    """Right half of the time and full of self-doubt markers; told the answer, right and short."""

    sampling, policy_version = Sampling(group_size=2), 0

    def generate(self, prompts: Any, *, seed: int, sampling: Any = None) -> list[RolloutGroup]:
        def answers(prompt: Prompt) -> list[str]:
            if "final answer is" in prompt.messages[-1]["content"] or prompt.id.endswith("@sibling"):
                return ["right", "right"]
            return ["wait maybe wrong", "right, hmm"] if prompt.id != "p3" else ["right"] * 2

        return [RolloutGroup(prompt=p, rollouts=tuple(map(rollout, answers(p)))) for p in prompts]


def compared(bounds: tuple[float, float] = ANY_PASS_RATE, problems: int = 9) -> Any:
    generator: Any = Doubtful()
    scorer = Scorer([Reward("right", 1.0, right)], str, "right")
    prompts = [problem(f"p{i}") for i in range(1, 4)]
    unguided = list(
        within_pass_rates(
            prompts, generator=generator, scorer=scorer, pass_rates=bounds, problems=problems, seed=0, note=print
        )
    )
    queries = ContextQueries(generator, scorer, prompts, step_seed, RENDERER, 2000, False)
    contexts: dict[str, Any] = {"answer": final_answer, "sibling": partial(successful_sibling, threshold=0.5)}
    guided = answer_with_contexts(unguided, contexts, generator=generator, scorer=scorer, queries=queries, seed=0)
    return context_rows(unguided, guided, {}, ["self_doubt"], RENDERER.split_thinking) if unguided else []


def test_contexts_by_hand() -> None:
    plain, told, sibling = compared()
    assert (plain.context, told.context, sibling.context) == (UNGUIDED, "answer", "sibling")
    assert plain.mean("score").mean == pytest.approx((0.5 + 0.5 + 1.0) / 3)
    assert told.mean("score").mean == sibling.mean("score").mean == 1.0
    assert plain.problems == told.problems == 3 and plain.samples == 2
    # wait, maybe, hmm in two answers of 26 tokens together
    assert plain.mean("paper_count").mean == pytest.approx((3 / 2 + 3 / 2 + 0) / 3)
    assert plain.mean("paper_per_1k").mean == pytest.approx((2 * 3000 / 26) / 3, rel=0.01)
    assert plain.mean("rate/self_doubt").mean == pytest.approx((2 * 1000 * 2 / 26) / 3, rel=0.01)
    assert told.mean("rate/self_doubt").mean == 0.0 and plain.mean("score").low < plain.mean("score").mean
    assert told.difference("score").mean == pytest.approx(1 / 3) and plain.difference("tokens").mean == 0.0
    assert told.by_problem["p3"]["score"] == 1.0 and told.against["p1"]["score"] == 0.5


def test_an_answer_that_is_too_long_to_be_shown_is_left_out() -> None:
    generator: Any = Scripted(["right"], Sampling(group_size=2))
    scorer = Scorer([Reward("right", 1.0, right)], str, "right")
    texts = {"p1": "long " * 50, "p2": "no"}
    groups = scorer.score([RolloutGroup(prompt=problem(p), rollouts=(rollout(text),) * 2) for p, text in texts.items()])

    def answered(context: Any, limit: int) -> Any:
        queries = ContextQueries(generator, scorer, [], step_seed, RENDERER, limit, False)
        found = answer_with_contexts(
            groups, {"c": context}, generator=generator, scorer=scorer, queries=queries, seed=0
        )
        return list(found["c"].messages)

    assert answered(failed_sibling, 200) == ["p2"]
    assert answered(partial(critique, question="{question} {attempt}", template="{question}"), 200) == ["p2"]
    with pytest.raises(PromptTooLong, match="prompt 'p1' with the context 'c'"):
        answered(final_answer, 20)


def test_a_band_of_problems() -> None:
    hard, *_ = compared((0.125, 0.5))
    assert set(hard.by_problem) == {"p1", "p2"} and compared((0.6, 0.9)) == []
    first, *_ = compared((0.125, 0.5), problems=1)
    assert set(first.by_problem) == {"p1"}


def test_collecting_goes_on_until_there_are_enough() -> None:
    asked = []

    class Hard(Doubtful):
        def generate(self, prompts: Any, *, seed: int, sampling: Any = None) -> list[RolloutGroup]:
            asked.append([p.id for p in prompts])
            every_third = [p.id[1:] for p in prompts if int(p.id[1:]) % 3 == 0]
            texts = {True: ["right", "wrong"], False: ["wrong"] * 2}
            return [
                RolloutGroup(prompt=p, rollouts=tuple(map(rollout, texts[p.id[1:] in every_third]))) for p in prompts
            ]

    generator: Any = Hard()
    prompts, notes = [problem(f"p{i}") for i in range(1, 40)], list[str]()
    scorer = Scorer([Reward("right", 1.0, right)], str, "right")
    found = within_pass_rates(
        prompts, generator=generator, scorer=scorer, pass_rates=(0.4, 0.6), problems=4, seed=0, note=notes.append
    )
    assert [g.group.prompt.id for g in found] == ["p3", "p6", "p9", "p12"]
    assert [len(a) for a in asked] == [4, 12], "the second call is as large as the first one's share asks for"
    assert notes[-1] == "4 of 4 problems within 0.4 to 0.6, after 16 of 39"


def test_what_a_context_tells_by_hand(tmp_path: Path) -> None:
    """Against the model's own probabilities, one sequence at a time."""
    resolved = resolve(load(write_config(tmp_path)))
    model = open_model(resolved)
    question = problem("p1")
    shown: tuple[Message, ...] = ({"role": "user", "content": "p1? Hint: right"},)

    def judged(texts: list[str], scores: tuple[float, ...]) -> ScoredGroup:
        return ScoredGroup(RolloutGroup(prompt=question, rollouts=tuple(map(rollout, texts))), (), scores)

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").requires_grad_(False)

    def gain(text: str) -> float:
        likelihood = []
        for messages in (shown, question.messages):
            before, after = RENDERER.prompt_ids(messages), RENDERER.tokenizer.encode(text)
            logits = plain(torch.tensor([[*before, *after]])).logits[0, len(before) - 1 : -1]
            likelihood.append(-float(torch.nn.functional.cross_entropy(logits, torch.tensor(after), reduction="sum")))
        return likelihood[0] - likelihood[1]

    without = judged(["wrong", "right, at last", "right?"], (0, 1, 1))
    hinted = ContextAnswers({"p1": shown}, [judged(["right", "right!", "wrong"], (1, 1, 0))])
    found = richness(resolved, model, [without], {"hint": hinted, "nothing": ContextAnswers({})})
    assert set(found) == {"hint"} and found["hint"].problems == 1
    assert found["hint"].with_context.mean == pytest.approx((gain("right") + gain("right!")) / 2, abs=1e-4)
    assert found["hint"].without_context is not None
    assert found["hint"].without_context.mean == pytest.approx((gain("right, at last") + gain("right?")) / 2, abs=1e-4)
    silent = ContextAnswers({"p1": question.messages}, [without])
    assert richness(resolved, model, [without], {"silent": silent})["silent"].with_context.mean == 0.0


def test_contexts_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = {"teacher": {"name": "reference_solution"}, "answer": {"name": "final_answer"}}
    terms = [{"name": "distill", "divergence": "forward_kl"}, {"name": "sampled_kl", "context": "answer", "weight": 0}]
    config = write_config(tmp_path, contexts=both, objective=terms)
    out = ["--output", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.svg")]
    assert main(["analyze", "contexts", str(config), "--problems", "3", *out]) == 0
    assert "unguided" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["context"] for row in found} == {UNGUIDED, "teacher", "answer"} and found[0]["samples"] == 3
    assert set(found[1]["by_problem"]) == set(found[0]["by_problem"]) and len(found[0]["by_problem"]) == 3
    assert found[1]["mean"]["tokens"]["mean"] > 0 and found[0]["gain"] is None
    drawn = (tmp_path / "out.svg").read_text()
    assert all(
        f">{name}<" in drawn or f"<!-- {name} -->" in drawn for name in (UNGUIDED, "teacher", "answer", "tokens")
    )
    assert main(["analyze", "contexts", str(config), "--pass-rate", "0.6", "0.6"]) == 2, (
        "three answers: 0, 1/3, 2/3 or 1"
    )
    assert "widen --pass-rate" in capsys.readouterr().err
    assert main(["analyze", "contexts", str(config), "--plot", str(tmp_path / "out.drawing")]) == 2
    assert "--plot: got" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_a_context_longer_than_a_prompt_may_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What only teachers read in training is an ordinary prompt here; beyond its own limit it is refused by name, or left out."""
    config = write_config(tmp_path, contexts={"teacher": {"name": "reference_solution"}})
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row | {"solution": "x" * 400}) + "\n" for row in rows))
    own = ["rendering.max_prompt_tokens=100", "generator.max_tokens=8", "--problems", "2"]
    ask = ["analyze", "contexts", str(config), *own]
    assert main([*ask, "rendering.max_teacher_prompt_tokens=900", "--output", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert found[1]["context"] == "teacher" and found[1]["problems"] == 2
    own_window = ["rendering.max_teacher_prompt_tokens=900", "distributed.num_generators=1"]
    assert main([*ask, *own_window]) == 0, "a replica has the same window as the driver thinks it has"
    assert main([*ask, "rendering.max_teacher_prompt_tokens=300"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "with the context 'teacher'" in said and "rendering.max_teacher_prompt_tokens" in said
    assert main([*ask, "rendering.max_teacher_prompt_tokens=300", "rendering.overlong=drop"]) == 0


@pytest.mark.parametrize(
    ("command", "flag", "value", "expected"),
    [
        (["analyze", "contexts"], "--problems", ["0"], "got '0', expected a whole number above 0"),
        (["analyze", "contexts"], "--pass-rate", ["0.5", "0.125"], "got '0.5 0.125', expected two fractions between 0 and 1"),
        (["analyze", "contexts"], "--pass-rate", ["2", "3"], "got '2 3', expected two fractions between 0 and 1"),
        (["analyze", "contexts"], "--output", ["missing/x.json"], "got 'missing/x.json', expected a file; there is no folder"),
        (["analyze", "probes"], "--continuations", ["-1"], "got '-1', expected a whole number above 0"),
        (["sft"], "--batch", ["0"], "got '0', expected a whole number above 0"),
        (["forecast"], "--utilisation", ["0"], "got '0', expected a number above 0, at most 1"),
        (["forecast"], "--completion-tokens", ["nan"], "got 'nan', expected a number above 0"),
    ],
)  # fmt: skip
def test_options_are_checked_first(
    command: list[str], flag: str, value: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "no.yaml", flag, *value])
    said = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 2 and f"argument {flag}: {expected}" in said


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        (["analyze", "contexts"], "--band", "--pass-rate"),
        (["sft"], "--band", "--pass-rate"),
        (["sweep"], "--only", "--arm"),
        (["forecast"], "--shape", "--model-config"),
    ],
)
def test_an_old_option_is_answered_with_the_new_one(
    command: list[str], old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "no.yaml", old, "0.1", "0.5"])
    assert stopped.value.code == 2 and f"argument {old}: this option is now called {new}" in capsys.readouterr().err


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
        set(found["pressure"]) == {"self_doubt", "paper10", "neutral", "companion9"} & set(found["pressure"])
        and found["rollouts"] == 6
    )
    assert found["pressure"]["self_doubt"]["relative"] != 0 and found["pressure"]["self_doubt"]["tokens"] > 0
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all((before[name] == after[name]).all() for name in before)
