"""Rewards as tasks of a real Ray.

1. exactly what the scorer in this process says: built-in rewards, bonuses, `when`, rewards that do not apply, scheduled
weights and options as they are now; 2. groups are scored side by side, from several threads; 3. a worker that is killed or
hangs is replaced and its groups scored again; a group that does it three times is named, with the rewards; 4. what a reward
raises is raised as it is; 5. a worker loads no torch, and its rewards once; 6. a scorer that is closed ends its workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from onpolicy.annotation.build import build_rewards
from onpolicy.annotation.scoring import Scorer
from onpolicy.config.load import build
from onpolicy.config.resolve import resolve
from onpolicy.config.schedules import Coefficients
from onpolicy.distributed.heartbeat import Deadline
from onpolicy.distributed.reward_tasks import RemoteScorer, remote_scorer
from onpolicy.rewards.base import RewardError
from onpolicy.types import Prompt, Rollout, RolloutGroup
from onpolicy.utils.faults import Faults, GaveUp

BUILT_IN: list[dict[str, Any]] = [
    {"name": "math_answer", "weight": {"name": "linear", "initial": 1.0, "final": 0.0, "begin": 0, "end": 4}},
    {"name": "boxed_format", "weight": 0.2, "bonus": False},
    {"name": "density", "when": "correct", "weight": {"name": "phases", "values": [0.1, 0.7], "switch": [2]}},
    {"name": "saturating_floor", "floor": {"name": "linear", "initial": 5.0, "final": 200.0, "begin": 0, "end": 4}},
    {"name": "repetition", "weight": -0.5},
    {"name": "brevity", "budget": 5, "when": "wrong"},
    {"name": "brier"},
    {"name": "tests.distributed.light_rewards:sometimes", "share": 0.5},
    {"name": "tests.distributed.light_rewards:later", "bonus": False},
    {"name": "tests.distributed.light_rewards:of_a_group"},
]
TEXTS = (
    "wait, maybe 2 + 2 is 5. No: \\boxed{4}",
    "4",
    "hmm, perhaps \\boxed{5}",
    "again again again again again again \\boxed{4}\nConfidence: 80%",
)


pytestmark = pytest.mark.ray
PATIENCE = 300.0
"""Seconds without an answer: no worker needs so long, however busy the machine is."""


class Pair:
    """A scorer with workers, the one in this process, and what was said."""

    def __init__(self, rewards: list[Any], workers: int = 2) -> None:
        config = {
            "model": {"path": "unread"},
            "data": {"name": "file", "path": "unread.jsonl"},
            "rewards": rewards,
            "objective": [{"name": "policy_gradient"}],
            "distributed": {"num_reward_workers": workers, "heartbeat_timeout_s": PATIENCE},
        }
        self.resolved = resolve(build(config))
        self.said: list[str] = []
        self.faults = Faults(self.said.append, self.resolved.config.distributed.apart)
        self.here = Scorer(build_rewards(self.resolved), str.strip, self.resolved.correctness_name, steps=4)
        self.apart: RemoteScorer = remote_scorer(self.resolved, self.here, self.faults)


@pytest.fixture
def pair(ray: Any) -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(rewards: list[Any], **options: Any) -> Pair:
        made.append(Pair(rewards, **options))
        return made[-1]

    yield make
    for each in made:
        each.apart.close()


def group(name: str, texts: tuple[str, ...] = TEXTS) -> RolloutGroup:
    return RolloutGroup(
        prompt=Prompt(id=name, messages=({"role": "user", "content": "2 + 2?"},), fields={"answer": "4"}),
        rollouts=tuple(
            Rollout(
                prompt_ids=(1, 2),
                completion_ids=tuple(range(len(text.split()))),
                rollout_logprobs=(-1.0,) * len(text.split()),
                text=text,
                finish_reason="stop",
                policy_version=0,
            )
            for text in texts
        ),
    )


GROUPS = [group(f"p{i}", TEXTS[i % 3 :] + TEXTS[: i % 3]) for i in range(7)]


def test_exactly_what_the_scorer_here_says(pair: Any) -> None:
    p = pair(BUILT_IN)
    coefficients = Coefficients(p.resolved.coefficients)
    totals = []
    for step in (1, 2, 3, 4):
        coefficients.set(step, {})
        here, apart = p.here.score(GROUPS), p.apart.score(GROUPS)
        assert apart == here
        assert p.apart.correctness == p.here.correctness == "math_answer"
        totals.append([s.total for judged in apart for s in judged.rewards])
    parts = {name for judged in apart for s in judged.rewards for name in s.reward_breakdown}
    assert parts == {*(r["name"] for r in BUILT_IN), f"{BUILT_IN[-1]['name']}/step"}
    assert len({tuple(t) for t in totals}) == 4, "the schedules must have an effect"
    assert len({s.reward_breakdown["saturating_floor"] for s in apart[0].rewards}) > 1
    assert p.apart.score([]) == [] and not p.said


def test_several_threads_and_all_workers(pair: Any, tmp_path: Path) -> None:
    p = pair([{"name": "tests.distributed.light_rewards:meeting", "folder": str(tmp_path)}])
    with ThreadPoolExecutor(3) as threads:
        calls = list(threads.map(p.apart.score, [GROUPS] * 3))
    assert all([j.group for j in judged] == GROUPS for judged in calls)
    assert len({s.total for judged in calls for j in judged for s in j.rewards}) >= 2, (
        "Ray may start more than two, one after the other"
    )


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_worker_that_is_lost_is_replaced(
    pair: Any, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WhenItHangs(Deadline):
        """Passes as soon as the reward says that it hangs: the only worker's deadline for its answer."""

        def passed(self) -> bool:
            hangs = tmp_path / "hangs"
            if self.seconds != PATIENCE or not hangs.exists():
                return False
            hangs.unlink()
            return True

    monkeypatch.setattr("onpolicy.distributed.reward_tasks.Deadline", WhenItHangs)
    file = tmp_path / "left"
    file.write_text("xx")
    workers = 1 if how == "hangs" else 2
    p = pair([{"name": "tests.distributed.light_rewards:dying", "file": str(file), "how": how}], workers=workers)
    groups = [*GROUPS[:3], group("the bad one", ("deadly", "fine"))]
    judged = p.apart.score(groups)
    assert judged == p.here.score(groups)
    word = "died" if how == "dies" else "no sign of progress for 300 s"
    assert len(p.said) == 2 and all(word in line and line.startswith("rewards: ") for line in p.said), p.said
    assert p.faults.metrics() == {"faults/rewards": 2.0}


def test_a_group_that_cannot_be_scored_is_named(pair: Any, tmp_path: Path) -> None:
    file = tmp_path / "left"
    file.write_text("x" * 100)
    p = pair([{"name": "tests.distributed.light_rewards:dying", "file": str(file), "how": "dies"}], workers=1)
    with pytest.raises(
        GaveUp, match=r"group of 'bad rollout 0' cost 3 workers under tests.distributed.light_rewards:dying"
    ):
        p.apart.score([GROUPS[0], group("bad", ("deadly",))])
    assert p.apart.score(GROUPS) == p.here.score(GROUPS), "the others can still be scored"


def test_what_a_reward_raises_is_raised_as_it_is(pair: Any) -> None:
    p = pair(["tests.distributed.light_rewards:refusing"])
    with pytest.raises(RewardError) as here:
        p.here.score(GROUPS)
    with pytest.raises(RewardError) as apart:
        p.apart.score(GROUPS)
    assert str(apart.value) == str(here.value) and "'p0 rollout 0'" in str(apart.value)
    assert not p.said


def test_a_worker_loads_no_torch_and_its_rewards_once(pair: Any, tmp_path: Path) -> None:
    heavy = {"name": "tests.distributed.light_rewards:heavy", "folder": str(tmp_path)}
    p = pair([heavy, {"name": "density"}, {"name": "math_answer"}], workers=1)
    judged = [*p.apart.score(GROUPS), *p.apart.score(GROUPS)]
    assert {s.reward_breakdown[heavy["name"]] for j in judged for s in j.rewards} == {0.0}, "no libtorch"
    processes = [path.read_text() for path in tmp_path.iterdir()]
    assert len(set(processes)) == len(processes) < len(GROUPS), (
        "a process scores many groups and loads what it needs once"
    )


def test_a_scorer_that_is_closed_ends_its_workers(pair: Any, tmp_path: Path) -> None:
    p = pair([{"name": "tests.distributed.light_rewards:blocking", "folder": str(tmp_path)}], workers=1)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(p.apart.score, GROUPS)
        wait_until(lambda: list(tmp_path.iterdir()))
        p.apart.close()
        with pytest.raises(CancelledError):
            call.result()
    (pid,) = [int(path.name) for path in tmp_path.iterdir()]
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def wait_until(true: Callable[[], Any]) -> None:
    """No deadline but pytest's own."""
    while not true():
        time.sleep(0.05)
