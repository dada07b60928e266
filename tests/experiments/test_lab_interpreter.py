"""The lab's second kind of task: programs, their interpreter, how a reasoner learns them, and what its teacher may see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean

import pytest
import yaml

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.data.rendering import Renderer
from onpolicy.experiments.lab import feedback as feedback_command
from onpolicy.experiments.lab.data import lab
from onpolicy.experiments.lab.feedback import summaries_by_arm
from onpolicy.experiments.lab.grading import interpreter, program_of
from onpolicy.experiments.lab.interpreter import (
    answered,
    first_error,
    instructions,
    named_step,
    printed,
    programs,
    trace,
    wrong_steps,
)
from onpolicy.experiments.lab.learn_interpreter import (
    RECIPE,
    executed,
    learn_interpreter,
    mixed_example,
    program_example,
)
from onpolicy.experiments.lab.problem import HINT
from onpolicy.experiments.lab.sets import program_families
from onpolicy.experiments.lab.soundness import PROGRAMS, SEARCHES, retries, soundness
from onpolicy.experiments.lab.words import vocabulary, vocabulary_with_programs
from onpolicy.experiments.sweep.grid import cells
from onpolicy.models import load_tokenizer, resolve_model
from onpolicy.protocols import OnGroup, ignore_group
from onpolicy.rewards.answer import exact_answer
from onpolicy.rollout.hf_generator import HFGenerator
from onpolicy.types import Prompt, Rollout, RolloutGroup, Sampling
from onpolicy.utils.errors import ModelError
from tests.runs import run_here

GRID = Path("configs/lab/feedback.yaml")


def test_programs_against_python() -> None:
    said = {"add": "v + {}", "take": "v - {}", "double": "v + v", "flip": "24 - v"}
    for program in programs(5, size=60, seed=2):
        value, steps = instructions(program)
        assert len(steps) == 5 == len(program.values) and program.question.endswith(steps[-1])
        for step, expected in zip(steps, program.values, strict=True):
            name, *operand = step.split()
            value = eval(said[name].format(*operand), {"v": value}) % 25
            assert value == expected
        assert program.answer == str(value)


def test_nothing_is_in_two_sets() -> None:
    questions = [p.question for split in program_families().values() for part in split for p in part]
    assert len(set(questions)) == len(questions) == 8000
    kept = {p.question for split in program_families().values() for p in (*split.train, *split.test)}
    draw = Random(0)
    assert not any(mixed_example(draw)[0].split(f" {HINT} ")[0] in kept for _ in range(2000))


def test_errors_by_hand() -> None:
    program = replace(
        programs(3, size=1, seed=0)[0], question="run 5 step 1 add 3 step 2 double step 3 take 2", values=(8, 16, 14)
    )
    begun, correct = "step 1 add 3 8 step 2 double", "step 1 add 3 8 step 2 double 16 step 3 take 2 14 so #### 14"
    assert answered(program, program.values) == correct and first_error(program, correct) == ""
    second = "expected step 2 double 16"
    assert first_error(program, f"{begun} 15 step 3 take 2 13 so #### 13") == f"got double 15 {second}"
    assert first_error(program, f"{begun} 15 step 3 take 2 14 so #### 14") == f"got double 15 {second}"
    assert first_error(program, "step 1 add 3 8 step 2 flip 16 step 3 take 2 14 so #### 1") == f"got flip 16 {second}"
    last = "expected step 3 take 2 14"
    assert first_error(program, "so #### 13") == f"got 13 {last}"
    assert first_error(program, correct[:-2] + "4") == f"got 4 {last}"
    assert first_error(program, "step 1 add 3 8") == last, "no answer"


def test_the_reward_says_what_went_wrong() -> None:
    program = program_families()["run-3"].train[0]
    wrong = (*program.values[:-1], (program.values[-1] + 1) % 25)
    assert interpreter(answered(program, program.values), program.id) == {"score": 1.0, "feedback": None}
    assert interpreter("so #### 1", "sums-1") is None, "searches are not its"
    assert interpreter(answered(program, wrong), program.id) == {
        "score": 0.0,
        "feedback": first_error(program, answered(program, wrong)),
    }


def test_examples_for_the_reasoner() -> None:
    draw, kinds = Random(1), set()
    program = program_families()["run-5"].pretrain[0]
    steps: list[int] = []
    for _ in range(600):
        prompt, begun, rest = program_example(program, draw)
        hint = prompt.removeprefix(program.question).removeprefix(f" {HINT} ")
        if not hint:
            kind = "alone"
            steps += executed(program, draw)[:1]
            assert rest.startswith("step 1 ") and not begun
        elif hint.startswith("got "):
            kind = "feedback"
            known = trace(program, program.values[: int(hint.split(" step ")[1].split()[0])])
            assert known.endswith(hint.partition(" expected ")[2]), "the step that was named"
            assert rest.startswith(f"{known} "), "correct up to it"
        else:
            kind = "answer begun" if begun else "answer"
            assert exact_answer(hint, program.answer) and rest == printed(program)
        kinds.add(kind)
    assert kinds == {"alone", "feedback", "answer", "answer begun"}
    wrong = fmean(value != program.values[0] for value in steps)
    assert 0.08 < wrong < 0.18, "one step in eight"


def test_the_new_words_are_behind_the_old_ones() -> None:
    words = vocabulary_with_programs()
    assert words[: len(vocabulary())] == vocabulary() and len(set(words)) == len(words)


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After two steps of its recipe: it knows the words, and searches as before."""
    folder, losses = tmp_path_factory.mktemp("reasoner"), []
    recipe = replace(RECIPE, steps=2, tokens=512)
    learn_interpreter(resolve_model("lab-reasoner"), folder, recipe, lambda step, loss: losses.append(loss))
    assert len(losses) == 2
    return folder


def test_the_recipe_keeps_the_reasoner_and_adds_words(reasoner: Path) -> None:
    words, tokenizer = vocabulary_with_programs(), load_tokenizer(str(reasoner))
    assert tokenizer.convert_tokens_to_ids(words) == list(range(len(words)))
    generator = HFGenerator(
        renderer=Renderer(tokenizer),
        model=str(reasoner),
        sampling=Sampling(group_size=2, max_tokens=160),
        max_model_len=512,
        batch_size=256,
    )
    prompts = lab(family="route-a-2", split="test")[:20]
    said = [(p, r.text) for p, g in zip(prompts, generator.generate(prompts, seed=0), strict=True) for r in g.rollouts]
    assert fmean(exact_answer(text, p.fields["answer"]) for p, text in said) > 0.7


def test_configs_are_valid() -> None:
    resolve(load("configs/lab/interpreter.yaml"))
    arms = yaml.safe_load(GRID.read_text())["arms"]
    assert len({c.folder for c in cells(GRID, Path("nowhere"))}) == 3 * len(arms) * 2


class Scripted:
    """A sampler with slips that follows an error, or overlooks it."""

    def __init__(self, *, follows: bool) -> None:
        self.follows, self.draw = follows, Random(4)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        sampling: Sampling | None = None,
        on_group: OnGroup = ignore_group,
    ) -> list[RolloutGroup]:
        assert sampling is not None
        return [
            RolloutGroup(prompt=prompt, rollouts=tuple(self.answer(prompt) for _ in range(sampling.group_size)))
            for prompt in prompts
        ]

    def answer(self, prompt: Prompt) -> Rollout:
        question, _, error = prompt.messages[0]["content"].partition(f" {HINT} ")
        program = program_of(question.replace(" ", "-"))
        known = named_step(error) if error and self.follows else 0
        return Rollout(
            prompt_ids=(1,),
            completion_ids=(2,),
            rollout_logprobs=(0.0,),
            text=answered(program, executed(program, self.draw, known=known)),
            finish_reason="stop",
            policy_version=0,
        )


def test_retries_that_follow_are_told_from_those_that_do_not() -> None:
    following, other = (retries(Scripted(follows=follows)) for follows in (True, False))
    assert following.failed == other.failed and following.one_wrong == other.one_wrong
    assert 0.2 < following.failed / 400 < 0.5 and 0.7 < following.one_wrong / following.failed < 1.0
    assert following.followed == 1.0 and 0.8 < following.all_right < 1.0, "slips after the named step are its own"
    assert other.all_right < other.followed < 0.9


def test_wrong_steps_by_hand() -> None:
    program = replace(
        programs(3, size=1, seed=0)[0], question="run 5 step 1 add 3 step 2 double step 3 take 2", values=(8, 16, 14)
    )
    for said, wrong in {
        "step 1 add 3 8 step 2 double 16 step 3 take 2 14 so #### 14": 0,
        "step 1 add 3 9 step 2 double 18 step 3 take 2 16 so #### 16": 1,
        "step 1 add 3 9 step 2 double 18 step 3 take 2 15 so #### 15": 2,
        "step 1 add 3 8 step 2 flip 16 step 3 take 2 14 so #### 14": 1,
        "so #### 14": 3,
    }.items():
        assert wrong_steps(program, said) == wrong, said


def test_a_reasoner_that_overlooks_errors_is_refused(
    reasoner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path("configs/lab/interpreter.yaml").read_text().replace("runs/interpreter_reasoner", str(reasoner))
    (tmp_path / "interpreter.yaml").write_text(config)
    (tmp_path / "feedback.yaml").write_text(GRID.read_text())
    monkeypatch.setattr(feedback_command, "GRID", tmp_path / "feedback.yaml")
    with pytest.raises(
        ModelError, match=r"follows the interpreter's error in 0\.0\d of \d+ retries, expected at least 0\.9"
    ):
        feedback_command.feedback(tmp_path / "runs", 1)
    assert not (tmp_path / "runs").exists(), "before any run"


def test_what_is_measured_of_a_reasoner(reasoner: Path) -> None:
    shipped = resolve_model("lab-reasoner")
    found = soundness(str(reasoner), shipped, problems=12)
    assert set(found.alone) == {*PROGRAMS, *SEARCHES} and set(found.shipped) == set(SEARCHES)
    assert all(found.shipped[family] > 0.6 for family in SEARCHES)
    assert found.alone["run-3"] < 0.2 and found.retries.failed > 0.8 * 48 and found.answer_given < 0.9


@pytest.mark.parametrize("arm", ["answer", "feedback", "both"])
def test_what_each_arm_shows_of_a_failure(arm: str, reasoner: Path, tmp_path: Path) -> None:
    (cell,) = (c for c in cells(GRID, tmp_path) if (c.arm, c.factor, c.seed) == (arm, "all", 0))
    small = [
        f"model.path={reasoner}",
        "steps=1",
        "eval.sets={}",
        "eval.every=0",
        f"run_dir={tmp_path / 'run'}",
        "logging.samples=64",
    ]
    assert run_here(Path("configs/lab/interpreter.yaml"), *cell.overrides, *small) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert row["reward/mean"] < 1.0
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    failed = [s for s in samples if s["reward"] == 0.0]
    assert failed
    for sample in failed:
        shown = sample["teacher_prompts"]["teacher"]
        assert ("expected step " in shown) == (arm != "answer") and (" so #### " in shown) == (arm != "feedback")


def test_summaries_of_arms(reasoner: Path, tmp_path: Path) -> None:
    (cell,) = (c for c in cells(GRID, tmp_path) if (c.arm, c.factor, c.seed) == ("feedback", "all", 0))
    sets = ["unseen", "longer", "route_a", "route_b", "sums"]
    few = [f"eval.sets.{name}.problems={n}" for n, name in enumerate(sets, start=1)]
    small = [f"model.path={reasoner}", "steps=1", "eval.every=1", *few]
    assert run_here(Path("configs/lab/interpreter.yaml"), *cell.overrides, *small) == 0
    (row,) = summaries_by_arm([cell], {"search": sets[2:]})
    assert (row["arm"], row["factor"], row["seeds"]) == ("feedback", "all", 1)
    for when, at in (("start", 0), ("end", -1)):
        logged = json.loads((cell.folder / "metrics.jsonl").read_text().splitlines()[at])
        assert row[when]["route_a"]["accuracy"] == logged["eval/route_a/avg@4"]
        pooled = sum(n * row[when][name]["tokens"] for n, name in enumerate(sets[2:], start=3)) / 12
        assert row[when]["search"]["tokens"] == pytest.approx(pooled)
