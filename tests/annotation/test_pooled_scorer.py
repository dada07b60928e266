"""Groups in processes, as soon as they are whole.

1. scores, breakdowns, examples and metrics are those without processes, to the last bit, also where scheduled options change: built-in
rewards, TRL's shape, what has to stay in this process (asynchronous, stateful, closures), token classes, telemetry, a baseline;
2. which rewards leave this process; 3. what a reward raises reads as it does here; 4. a process that dies changes nothing but time;
5. the processes load no torch; 6. texts that are read elsewhere are not read again; 7. a tokenizer that cannot leave keeps the texts here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from onpolicy.annotation import reading
from onpolicy.annotation.build import build_annotator, group_work, local_scorer, text_telemetry
from onpolicy.annotation.group_work import can_leave
from onpolicy.annotation.pooled_scorer import PooledScorer
from onpolicy.annotation.scoring import Scorer
from onpolicy.config.load import build
from onpolicy.config.resolve import resolve
from onpolicy.config.schedules import Bound, Coefficients
from onpolicy.data.rendering import Renderer
from onpolicy.rewards.base import RewardError
from onpolicy.rewards.uncertainty import SPACING
from onpolicy.types import Prompt, Rollout, RolloutGroup
from onpolicy.utils.worker_processes import WorkerProcesses
from tests.annotation import model_rewards, pool_rewards, rewards_beside_a_model
from tests.tiny import byte_tokenizer

REWARDS: list[dict[str, Any]] = [
    {"name": "math_answer"},
    {"name": "tests.annotation.pool_rewards:later", "weight": 0.3},
    {
        "name": "tests.annotation.pool_rewards:tenths",
        "scale": {"name": "linear", "initial": 1.0, "final": 0.0, "end": 4},
    },
    {"name": "tests.annotation.pool_rewards:counting", "weight": 0.01, "bonus": False},
    {"name": "tests.annotation.pool_rewards:of_a_group", "when": "correct"},
    {"name": "tests.annotation.pool_rewards:anonymous", "weight": -0.5},
    {"name": "tests.annotation.pool_rewards:closed_over"},
    {"name": "saturating_floor", "floor": 30.0},
    {"name": "target_rate"},
]
CONFIG: dict[str, Any] = {
    "model": {"path": "unread"},
    "data": {"name": "file", "path": "unread.jsonl"},
    "custom_lexicons": {"own": ["so it is", "again"]},
    "epistemic": {"lexicons": ["self_doubt", "hedges", "own", "neutral"], "baseline": 2},
    "contexts": {"teacher": {"name": "successful_sibling"}},
    "spans": {"ends": {"name": "pattern", "regex": "box"}},
    "objective": [
        {"name": "distill", "divergence": "forward_kl", "token_weights": {"name": "spans", "marked": "ends"}},
    ],
    "steps": 4,
}
TEXTS = (
    "wait, maybe 2 + 2 is 5. No: \\boxed{4}",
    "<think>hmm, perhaps — é 🙂 it is 5</think>so the answer is \\boxed{5}",
    "Hold on, that's not right. Alternatively $x = wait$, therefore \\boxed{4}\n<confidence>0.8</confidence>",
    "again again again again again again again again and then so it is likely \\boxed{4}, certainly, or what if not",
)
RENDERER = Renderer(byte_tokenizer())


def group(name: str, *texts: str) -> RolloutGroup:
    prompt = Prompt(
        id=name, messages=({"role": "user", "content": f"What is 2 + 2 in {name}?"},), fields={"answer": "4"}
    )
    return RolloutGroup(prompt=prompt, rollouts=tuple(map(rollout, texts)))


def rollout(text: str) -> Rollout:
    ids = tuple(RENDERER.tokenizer.encode(text, add_special_tokens=False))
    return Rollout(
        prompt_ids=(5,), completion_ids=ids, rollout_logprobs=tuple(-1.0 / (i + 1) for i in range(len(ids))),
        text=RENDERER.completion_text(ids), finish_reason="stop", policy_version=0,
    )  # fmt: skip


GROUPS = [group(f"p{i}", *(f"{text} {'so ' * i}" for text in TEXTS)) for i in range(5)]


class Pair:
    """A scorer and the same with processes."""

    def __init__(self, rewards: list[dict[str, Any]], count: int = 2) -> None:
        self.resolved = resolve(build(CONFIG | {"rewards": rewards}))
        self.said: list[str] = []
        self.here = local_scorer(self.resolved, RENDERER)
        work = group_work(self.resolved, RENDERER, self.here.rewards)
        assert work is not None
        self.leaving, self.processes = set(work.rewards), WorkerProcesses(work, count, self.said.append)
        self.pooled = PooledScorer(
            rewards=self.here.rewards, final_part=self.here.final_part, correctness=self.here.correctness, steps=self.here.steps,
            inner=self.here, processes=self.processes, values=Coefficients(self.resolved.coefficients).values,
        )  # fmt: skip

    def examples(self, scorer: Scorer, version: int = 0) -> str:
        """Everything that a step knows about its rollouts, to the last bit."""
        pool_rewards.counting.calls = 0
        begun = {place: scorer.begin(group) for place, group in enumerate(GROUPS)}
        scored = scorer.score(GROUPS, begun)
        telemetry = text_telemetry(self.resolved, RENDERER)
        assert telemetry is not None
        baseline = telemetry.build_baseline(self.here.score(GROUPS[:3]), SPACING)
        annotator = build_annotator(
            self.resolved, RENDERER, max_teacher_prompt_tokens=2000, queries=None, baseline=baseline
        )
        return repr(annotator.annotate(scored, version=version))


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(rewards: list[dict[str, Any]], **options: Any) -> Pair:
        made.append(Pair(rewards, **options))
        return made[-1]

    yield make
    for one in made:
        one.pooled.close()


@pytest.mark.process
def test_the_same_to_the_last_bit(pair: Callable[..., Pair]) -> None:
    p = pair(REWARDS)
    assert p.leaving == {"math_answer", "saturating_floor", "target_rate"} | {
        f"tests.annotation.pool_rewards:{name}" for name in ("tenths", "of_a_group")
    }
    found = []
    for step in (1, 2, 3):
        Coefficients(p.resolved.coefficients).set(step, {})
        here, pooled = p.examples(p.here), p.examples(p.pooled)
        assert pooled == here and "<own>" in here and "epistemic/own/rate_per_1k" in here
        found.append(pooled)
    assert len(set(found)) == 3 and not p.said, "the scheduled option changes with the step"
    assert [s.texts is not None for s in p.pooled.score(GROUPS)] == [True] * 5


@pytest.mark.process
def test_a_group_that_is_sampled_ahead_is_graded_as_it_is_here(pair: Callable[..., Pair]) -> None:
    """Some groups of a batch arrived in an earlier step, in which the scheduled option was another."""
    p = pair(REWARDS)
    scheduled = Coefficients(p.resolved.coefficients)
    scheduled.set(1, {})
    begun = {place: p.pooled.begin(GROUPS[place]) for place in (0, 2)}
    scheduled.set(2, {})
    begun |= {place: p.pooled.begin(GROUPS[place]) for place in (1, 3, 4)}
    found = []
    for scorer, given in ((p.here, {}), (p.pooled, begun)):
        pool_rewards.counting.calls = 0
        found.append(str([scored.rewards for scored in scorer.score(GROUPS, given)]))
    assert found[0] == found[1]


def test_which_rewards_can_leave() -> None:
    def inner(completion: str) -> float:
        return 1.0

    may: dict[str, Any] = {
        "tenths": Bound(pool_rewards.tenths, scale=1.0), "of_a_group": pool_rewards.of_a_group,
        "nested": Bound(pool_rewards.tenths, scale=1.0, grader=Bound(pool_rewards.tenths, scale=2.0)),
    }  # fmt: skip
    stay: dict[str, Any] = {
        "async": pool_rewards.later,
        "object": pool_rewards.counting,
        "bound method": pool_rewards.bound,
        "lambda": pool_rewards.anonymous,
        "closure": pool_rewards.closed_over,
        "decorated": pool_rewards.decorated,
        "local": inner,
        "partial": partial(pool_rewards.counting),
        "model": model_rewards.by_length,
        "package of a model": rewards_beside_a_model.by_words,
        "unpicklable option": Bound(pool_rewards.tenths, scale=lambda: 1),
        "object among options": Bound(pool_rewards.tenths, scale=1.0, grader=pool_rewards.counting),
        "built in": len,
    }
    assert {name: can_leave(function) for name, function in (may | stay).items()} == {
        name: name in may for name in may | stay
    }


@pytest.mark.process
@pytest.mark.parametrize("name", ["refusing", "refusing_one"])
def test_errors_read_as_they_do_here(name: str, pair: Callable[..., Pair]) -> None:
    p = pair([{"name": "math_answer"}, {"name": f"tests.annotation.pool_rewards:{name}"}])
    groups = [GROUPS[0], group("p9", "one", "two")]
    said = []
    for scorer in (p.here, p.pooled):
        with pytest.raises(RewardError) as raised:
            scorer.score(groups)
        said.append((str(raised.value), repr(raised.value.__cause__)))
    assert said[0] == said[1] and f"pool_rewards:{name}" in said[0][0] and not p.said
    assert p.pooled.score(groups[:1]) == p.here.score(groups[:1]) if name == "refusing_one" else True


@pytest.mark.process
def test_a_process_that_dies_changes_nothing(pair: Callable[..., Pair], tmp_path: Path) -> None:
    reward = {"name": "tests.annotation.pool_rewards:deadly", "driver": os.getpid(), "folder": str(tmp_path)}
    p = pair([{"name": "math_answer"}, reward], count=1)
    assert p.examples(p.pooled) == p.examples(p.here)
    assert len(list(tmp_path.iterdir())) == len(p.said) == 4 and p.said[-1].endswith("no more are started")
    assert p.examples(p.pooled) == p.examples(p.here), "without any process"


@pytest.mark.process
def test_they_load_no_torch_and_are_others(pair: Callable[..., Pair]) -> None:
    names = [f"tests.annotation.pool_rewards:{name}" for name in ("loaded", "where")]
    p = pair([{"name": "math_answer"}, *({"name": name} for name in names)])
    parts = [own.reward_breakdown for scored in p.pooled.score(GROUPS) for own in scored.rewards]
    assert {part[names[0]] for part in parts} == {0.0}
    assert {int(part[names[1]]) for part in parts} <= set(p.processes.pids()) and not p.said


@pytest.mark.process
def test_what_was_read_elsewhere_is_not_read_again(pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    p, read, own = pair([{"name": "math_answer"}]), list[str](), reading.TextReader.read

    def counted(reader: Any, group: RolloutGroup, index: int) -> reading.ReadText:
        read.append(group.prompt.id)
        return own(reader, group, index)

    monkeypatch.setattr(reading.TextReader, "read", counted)
    p.examples(p.pooled)
    assert not read
    p.examples(p.here)
    assert len(read) == sum(len(g.rollouts) for g in GROUPS)


@pytest.mark.process
def test_texts_that_read_differently_elsewhere_are_read_here(pair: Callable[..., Pair]) -> None:
    p = pair([{"name": "math_answer"}])
    rollouts = tuple(replace(r, text=f"{r.text} and more") for r in GROUPS[0].rollouts)
    (scored,) = p.pooled.score([replace(GROUPS[0], rollouts=rollouts)])
    assert scored.texts is None and scored == p.here.score([replace(GROUPS[0], rollouts=rollouts)])[0]


def test_a_tokenizer_that_cannot_leave_keeps_the_texts_here() -> None:
    class Slow:
        """Every other attribute is that of the tokenizer within."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(self._inner, name)

    resolved = resolve(build(CONFIG | {"rewards": [{"name": "math_answer"}]}))
    rewards = local_scorer(resolved, RENDERER).rewards
    work = group_work(resolved, Renderer(Slow(byte_tokenizer())), rewards)
    assert work is not None and work.reader is None and set(work.rewards) == {"math_answer"}
    assert group_work(resolved, Renderer(Slow(byte_tokenizer())), []) is None
