"""The lab's tasks of which a reasoner knows part: their sets, what a reasoner is told of them, and what it reads from a hint."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from random import Random
from statistics import fmean

import pytest
import torch

from onpolicy.experiments.lab import route
from onpolicy.experiments.lab.data import lab
from onpolicy.experiments.lab.grading import facts, problem_of, tried, verdicts
from onpolicy.experiments.lab.lab_command import run_lab
from onpolicy.experiments.lab.learn_partial import (
    LARGE_RECIPE,
    RECIPE,
    learn_partial,
    mixed_partial_example,
    partial_example,
    pretrain_large,
    searched,
    under_hint,
)
from onpolicy.experiments.lab.partial import (
    STATED,
    Knowledge,
    by_fact,
    in_another_world,
    in_the_corpus,
    knowledge,
    right,
)
from onpolicy.experiments.lab.problem import HINT, NO, SO, TRY, Problem
from onpolicy.experiments.lab.sets import families, partial_families
from onpolicy.experiments.lab.words import vocabulary, vocabulary_with_partial
from onpolicy.models import REASONER, load_causal_lm, load_tokenizer, resolve_model
from onpolicy.rewards.answer import exact_answer

FAMILIES = tuple(partial_families())


def everything(family: str) -> list[Problem]:
    return [problem for part in partial_families()[family] for problem in part]


def test_routes_of_the_third_map_against_brute_force() -> None:
    exits = route.exits("c")
    for problem in everything("route-c-2")[:40]:
        start, goal = problem.question.split()[3], problem.question.split()[5]
        ways = [w for w in product(exits[start], exits) if w[1] == goal and goal in exits[w[0]]]
        assert [problem.answer.split()] == [list(w) for w in ways]
        assert len(problem.attempts) == 3
        assert not {start, goal} & {way[0] for way in ways}, "from an outer place by an inner one to an outer one"


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_in_two_sets_and_every_tested_fact_is_taught(family: str) -> None:
    _, train, test = partial_families()[family]
    ids = Counter(p.id for p in everything(family))
    assert max(ids.values()) == 1
    assert not {p.id for split in families().values() for part in split for p in part} & set(ids), (
        "the old sets are others"
    )
    taught = set(by_fact(train))
    assert set(by_fact(test)) <= taught, "a new problem, not a new fact"
    assert not {p.question for p in train} & {p.question for p in test}
    shares = Counter(knowledge(right(p).idea) for p in test)
    assert 0.4 < shares[Knowledge.KNOWN] / len(test) < 0.75
    unknown = shares[Knowledge.FAINT] + shares[Knowledge.UNKNOWN]
    assert shares[Knowledge.FAINT] / unknown > 0.3, "a third can be found by sampling"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_corpus_says_of_a_fact(family: str) -> None:
    draw = Random(0)
    correct: dict[Knowledge, list[bool]] = {what: [] for what in Knowledge}
    for _ in range(1500):
        problem = draw.choice(partial_families()[family].pretrain)
        stated = in_the_corpus(problem, draw)
        for told, true in zip(stated.attempts, problem.attempts, strict=True):
            correct[knowledge(true.idea)].append(told == true)
            works = told.working.split()[1:].count(problem.question.split()[-3 if family.startswith("route") else -1])
            assert bool(works) == told.works, "the goal is seen where, and only where, it is reached"
    assert fmean(correct[Knowledge.KNOWN]) == 1.0 and fmean(correct[Knowledge.UNKNOWN]) < 0.05
    assert abs(fmean(correct[Knowledge.FAINT]) - STATED) < 0.08


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hint_is_another_world_where_the_same_way_works(family: str) -> None:
    draw = Random(1)
    for problem in partial_families()[family].pretrain[:60]:
        first, second = in_another_world(problem, draw), in_another_world(problem, draw)
        assert right(first).idea == right(second).idea == right(problem).idea
        for told, true in zip(first.attempts, problem.attempts, strict=True):
            assert told.idea == true.idea and told.works == true.works
            assert knowledge(true.idea) is not Knowledge.KNOWN or told == true
    if family.startswith("route"):
        unknown = next(p for p in partial_families()[family].pretrain if knowledge(right(p).idea) is Knowledge.UNKNOWN)
        assert len({right(in_another_world(unknown, draw)).working for _ in range(20)}) > 15, "nothing to memorise"


@pytest.mark.parametrize("family", FAMILIES)
def test_examples_of_a_part_that_is_known(family: str) -> None:
    problems, draw = partial_families()[family].pretrain, Random(2)
    kinds: Counter[str] = Counter()
    for _ in range(800):
        prompt, begun, rest = partial_example(problems, draw)
        question, _, hint = prompt.partition(f" {HINT} ")
        problem = next(p for p in problems if p.question == question)
        found = exact_answer(rest, problem.answer)
        if hint and exact_answer(hint, problem.answer):
            assert found and rest.endswith(problem.answer), (
                "the answer, at once or when the attempt under way has ended"
            )
            assert len(tried(rest)) == 0, "no attempt is begun"
            kinds["hint, begun" if begun else "hint"] += 1
        else:
            assert not begun and (found or rest.endswith(f" {NO}"))
            known = knowledge(right(problem).idea)
            assert found or known is not Knowledge.KNOWN
            assert not found or known is not Knowledge.UNKNOWN
            kinds["other hint" if hint else "found" if found else "not found"] += 1
    assert all(kinds[kind] > 20 for kind in ("hint", "hint, begun", "other hint", "found", "not found"))


def test_an_attempt_under_way_is_ended_as_the_hint_says() -> None:
    draw, begun_only, proposed = Random(3), 0, 0
    for problem in partial_families()["route-c-2"].pretrain[:120]:
        told = in_another_world(problem, draw)
        hint, begun, rest = under_hint(told, draw)
        said = {f"{a.idea} {a.working}": a.works for a in told.attempts}
        assert all(said[t.said] == t.verdict for t in tried(f"{begun} {rest}".strip()))
        under_way = not rest.startswith(f"{SO} ")
        if under_way:
            ended = tried(f"{begun} {rest}")[-1]
            assert ended.said in hint, "what it reads stands in the hint"
            assert ended.verdict or begun.split()[-1] not in TRY, "an idea that fails is not proposed"
        begun_only += under_way
        proposed += begun.endswith(TRY)
    assert begun_only > 40 and proposed > 5


def test_a_search_that_knows_its_way_is_true_and_right() -> None:
    known = [p for p in partial_families()["sums-3-large"].pretrain if knowledge(right(p).idea) is Knowledge.KNOWN]
    for seed, problem in enumerate(known[:30]):
        text = searched(problem, Random(seed))
        assert exact_answer(text, problem.answer) and verdicts(text, problem.id) == 1.0
        assert facts(text, problem.id) is not None and problem_of(problem.id) == problem


def test_words_and_data() -> None:
    words = vocabulary_with_partial()
    assert words[: len(vocabulary())] == vocabulary() and len(set(words)) == len(words)
    draw = Random(4)
    assert all(set(" ".join(mixed_partial_example(draw)).split()) <= set(words) for _ in range(2000))
    for family in FAMILIES:
        for prompt in lab(family=family, split="test")[:20]:
            assert exact_answer(prompt.fields["solution"], prompt.fields["answer"])
            assert facts(prompt.fields["solution"], prompt.fields["problem_id"]) == 1.0, "solutions state what is true"


def test_both_recipes_make_a_reasoner_that_loads(tmp_path: Path) -> None:
    losses: list[float] = []
    report = lambda step, loss: losses.append(loss)  # noqa: E731
    learn_partial(resolve_model(REASONER), tmp_path / "small", replace(RECIPE, steps=2, tokens=512), report)
    pretrain_large(tmp_path / "large", replace(LARGE_RECIPE, steps=2, tokens=512), report)
    assert len(losses) == 4 and all(map(math.isfinite, losses))
    sizes = [
        sum(p.numel() for p in load_causal_lm(str(tmp_path / name), dtype="float32").parameters())
        for name in ("small", "large")
    ]
    assert 4 < sizes[1] / sizes[0] < 10
    for name in ("small", "large"):
        words = vocabulary_with_partial()
        assert load_tokenizer(str(tmp_path / name)).convert_tokens_to_ids(words) == list(range(len(words)))


def test_the_large_reasoner_goes_on_from_the_round_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a learning rate of 0 a further round leaves the weights as they are, which no new model has."""
    weights = lambda: load_causal_lm(str(tmp_path)).state_dict()  # noqa: E731
    first, second = (
        replace(LARGE_RECIPE, steps=2, tokens=512, lr=lr, seed=seed) for seed, lr in enumerate((1e-3, 0.0))
    )
    monkeypatch.setattr("onpolicy.experiments.lab.partial_start.measure_start", lambda folder: {})
    monkeypatch.setattr("onpolicy.experiments.lab.learn_partial.LARGE_ROUNDS", (first,))
    assert run_lab("pretrain_large", tmp_path, jobs=1) == 0
    made = weights()
    with (tmp_path / "pretrain.jsonl").open("a") as log:  # the second is cut off in its first step
        log.write(json.dumps(asdict(second)) + "\n")
    monkeypatch.setattr("onpolicy.experiments.lab.learn_partial.LARGE_ROUNDS", (first, second))
    for _ in range(2):  # the second time nothing is left to train
        assert run_lab("pretrain_large", tmp_path, jobs=1) == 0
        assert all(torch.equal(value, made[name]) for name, value in weights().items())
        lines = [json.loads(line) for line in (tmp_path / "pretrain.jsonl").read_text().splitlines()]
        assert [line["seed"] for line in lines if "seed" in line] == [0, 1, 1], "other examples, all on record"
        assert [line["step"] for line in lines if "step" in line] == [2, 2]
