"""The lab: its problems against brute force, its words, its reasoner, and the effect in small.

1. answers are the only right ones; 2. nothing is in two sets; 3. traces are true and end right; 4. gradings by hand; 5. the tokenizer
gives back what it was given.
"""

from __future__ import annotations

from itertools import combinations, product, takewhile
from pathlib import Path
from random import Random

import pytest

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.data.rendering import Renderer
from onpolicy.experiments.lab import route, sums
from onpolicy.experiments.lab.data import lab
from onpolicy.experiments.lab.decisive import CONTROLS
from onpolicy.experiments.lab.grading import (
    corrected,
    facts,
    harmed,
    self_doubt_precision,
    self_doubt_recall,
    tried,
    verdicts,
)
from onpolicy.experiments.lab.pretrain import example
from onpolicy.experiments.lab.problem import HINT, Problem, direct, failed, mistaken, search
from onpolicy.experiments.lab.sets import families
from onpolicy.experiments.lab.words import vocabulary, write_tokenizer
from onpolicy.experiments.sweep.compare import pooled_metrics
from onpolicy.experiments.sweep.grid import cells, read_grid
from onpolicy.rewards.answer import exact_answer


@pytest.mark.parametrize("hops", [2, 3])
def test_routes_against_brute_force(hops: int) -> None:
    exits = route.exits("b")
    assert all(len(set(ways)) == route.EXITS and place not in ways for place, ways in exits.items())
    for problem in route.route_problems("b", hops)[:40]:
        start, goal = problem.question.split()[3], problem.question.split()[5]
        ways = [
            way
            for way in product(exits, repeat=hops)
            if way[-1] == goal and all(b in exits[a] for a, b in zip((start, *way), way, strict=False))
        ]
        assert [problem.answer] == [" ".join(way) for way in ways]
        assert {a.idea for a in problem.attempts if a.works} == {" ".join(ways[0][:-1])}


@pytest.mark.parametrize("count", [4, 5])
def test_sums_against_brute_force(count: int) -> None:
    for problem in sums.sum_problems(count, size=50, seed=1):
        *numbers, target = [int(w) for w in problem.question.split() if w.isdigit()]
        assert len(numbers) == count
        assert [problem.answer] == [f"{a} + {b}" for a, b in combinations(numbers, 2) if a + b == target]
        assert len(problem.attempts) == count * (count - 1) // 2


def test_nothing_is_in_two_sets() -> None:
    seen: set[str] = set()
    questions: set[str] = set()
    for split in families().values():
        for problem in (p for problems in split for p in problems):
            assert problem.id not in seen and problem.question not in questions
            seen.add(problem.id)
            questions.add(problem.question)
        assert [round(len(part) / sum(map(len, split)), 1) for part in split] == [0.4, 0.4, 0.2]
    train, test = lab(family="route-a-2"), lab(family="route-a-2", split="test")
    assert len(train) >= 512 and {p.id for p in train}.isdisjoint(p.id for p in test)


def test_the_reasoner_is_made_from_its_own_part_alone() -> None:
    kept = {problem.question for split in families().values() for problem in (*split.train, *split.test)}
    draw = Random(0)
    for split in families().values():
        for _ in range(200):
            prompt, _, _ = example(draw.choice(split.pretrain), split.pretrain, draw)
            assert prompt.split(f" {HINT} ")[0] not in kept


def test_examples_for_the_reasoner() -> None:
    problems = families()["route-b-3"].pretrain
    problem, draw, kinds = problems[0], Random(1), set()
    for _ in range(400):
        prompt, completion_prefix_ids, rest = example(problem, problems, draw)
        assert exact_answer(rest, problem.answer), "whatever is shown, the answer is right"
        hint = prompt.removeprefix(problem.question).removeprefix(f" {HINT} ")
        own = exact_answer(hint, problem.answer)
        if own:
            assert rest == direct(problem) and [t.verdict for t in tried(completion_prefix_ids)] == [False] * len(
                tried(completion_prefix_ids)
            )
        elif hint == problem.first:
            assert all(t.said.startswith(problem.first) for t in tried(rest)), "it looks where it is told to"
        else:
            assert tried(rest), "nothing that helps: a search"
        kinds.add((own, bool(tried(hint)), bool(completion_prefix_ids), hint == problem.first, bool(hint)))
    assert len(kinds) == 8, (
        "with and without thought, begun or not; its beginning; another's, with and without thought; nothing"
    )


def some() -> list[Problem]:
    return [problem for split in families().values() for problem in split.test[:3]]


def test_traces_are_true_and_end_right() -> None:
    for seed, problem in enumerate(some()):
        draw = Random(seed)
        text = search(problem, draw)
        assert facts(text, problem.id) == verdicts(text, problem.id) == 1.0
        assert exact_answer(text, problem.answer) and harmed(text, problem.id) == 0.0
        assert self_doubt_precision(text, problem.id) in (None, 1.0) and self_doubt_recall(text, problem.id) in (
            None,
            1.0,
        )
        assert tried(text)[-1].verdict is True
        assert len({t.said for t in tried(text)}) == len(tried(text)), "nothing is tried twice"
        completion_prefix_ids = failed(problem, draw, 2)
        assert [t.verdict for t in tried(completion_prefix_ids)] == [False] * len(
            tried(completion_prefix_ids)
        ) and completion_prefix_ids.endswith(" no")
        assert exact_answer(direct(problem), problem.answer) and not tried(direct(problem))
        assert not exact_answer(mistaken(problem, draw), problem.answer)


def test_gradings_by_hand() -> None:
    problem = next(p for p in families()["sums-4"].test if p.question.startswith("add 1 "))
    right = next(a for a in problem.attempts if a.works)
    first, second = [a for a in problem.attempts if not a.works][:2]
    text = (
        f"maybe {first.idea} {first.working} no wait perhaps {second.idea} = 0 no hmm "
        f"maybe {right.idea} {right.working} no so #### 1 + 1"
    )
    assert [t.verdict for t in tried(text)] == [False, False, False]
    assert facts(text, problem.id) == pytest.approx(2 / 3), "the second sum is wrong"
    assert verdicts(text, problem.id) == 0.5, "of the two true ones, the third was judged wrongly"
    assert self_doubt_precision(text, problem.id) == pytest.approx(2 / 3), (
        "the first deserves it, the false sum too, the third not"
    )
    assert self_doubt_recall(text, problem.id) == 1.0
    assert corrected(text, problem.id) == 0.0 and harmed(text, problem.id) == 1.0
    assert corrected(direct(problem), problem.id) is None and facts("", problem.id) is None
    stumbled = f"maybe no wait maybe maybe {right.idea} {right.working} yes so #### {right.idea}"
    assert [t.said for t in tried(stumbled)] == [f"{right.idea} {right.working}"], "a marker is no idea"
    cut = f"maybe {first.idea} {first.working}"
    assert tried(cut)[0].verdict is None and verdicts(cut, problem.id) is None


def test_every_word_has_a_token_and_comes_back(tmp_path: object) -> None:
    from transformers import AutoTokenizer

    folder = Path(str(tmp_path))
    write_tokenizer(folder, vocabulary())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == len(vocabulary()) == len(set(vocabulary()))
    renderer = Renderer(tokenizer)
    for seed, problem in enumerate(some()):
        for text in (search(problem, Random(seed)), f"{problem.question} {HINT} {problem.answer}"):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.unk_token_id not in ids and len(ids) == len(text.split())
            assert renderer.completion_text(ids) == text
        prompt = renderer.prompt_ids([{"role": "user", "content": problem.question}])
        assert renderer.decode(prompt) == f"<user> {problem.question} <end> <assistant>"
    assert renderer.eos_ids == (tokenizer.convert_tokens_to_ids("<end>"),)


@pytest.mark.parametrize("seeds", [1, pytest.param(None, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "coverage",
        "headroom_coverage",
        "frontier",
        "frontier_programs",
        "confirmation",
        "surprise",
        pytest.param("decisive", marks=pytest.mark.slow),
        pytest.param("bonus", marks=pytest.mark.nightly),
    ],
)
def test_grids_are_valid(name: str, seeds: int | None) -> None:
    """Its first seed, and at night all."""
    path = Path(f"configs/lab/{name}.yaml")
    wanted = read_grid(path).seeds[:seeds]
    found = list(takewhile(lambda cell: cell.seed in wanted, cells(path, Path("nowhere"))))
    assert len({c.folder for c in found}) == len(found) >= 3


@pytest.mark.parametrize("name", ["contexts", "self_distillation"])
def test_configs_are_valid(name: str) -> None:
    resolve(load(f"configs/lab/{name}.yaml"))


def test_controls_are_arms() -> None:
    arms = read_grid(Path("configs/lab/decisive.yaml")).arms
    assert {*CONTROLS, *(c for controls in CONTROLS.values() for c in controls)} <= arms.keys()


def test_pools_weigh_by_problems() -> None:
    metrics = {
        "eval/a/avg@4": 1.0,
        "eval/a/problems": 3.0,
        "eval/b/avg@4": 0.0,
        "eval/b/problems": 1.0,
        "eval/a/only": 1.0,
    }
    found = pooled_metrics(metrics, {"both": ["a", "b"]})
    assert found["eval/both/avg@4"] == 0.75 and "eval/both/only" not in found
