"""Weights from the trainer's ranks to replicas by vLLM's weight transfer.

1. where the processes sit decides the way, and the start says which; 2. a replica's first weights come through the object store, and
after it they come directly, from its own group; 3. one that is lost within a transfer is replaced, and its successor begins with the
object store; transfers that fail again and again give way to it; 4. ranks that work, or have other weights by now, are asked later;
5. ranks that are lost end the call that waits for them, and the pool goes on with the next weights; 6. a whole run, with vLLM's own NCCL
classes between processes of Ray (``tests/store_nccl.py``): two ranks under ZeRO-3, a replica that dies within a transfer, and log-probs
agree.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from onpolicy.config.load import build
from onpolicy.config.resolve import resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schema import DistributedSettings
from onpolicy.distributed.actor_pool import ActorPool
from onpolicy.distributed.direct_weights import FAILURES, DirectWeights
from onpolicy.distributed.generator_pool import ReplicaSpec, VersionedWeights
from onpolicy.distributed.tasks import ActorLost
from onpolicy.distributed.weight_paths import Place, Sender, WeightPath, said, why_in_store
from onpolicy.distributed.weight_sender import TransferGroup
from onpolicy.distributed.weight_transfer import WeightRefs
from onpolicy.utils.faults import Faults, RoleLost
from tests.distributed.light_replica import Holder
from tests.runs import metrics, run_here, write_config

ROOT = Path(__file__).parents[2]

# --- who takes which way ---------------------------------------------------------------------------------------------

GPU_0, GPU_1, ELSEWHERE, CPU = Place("a", "GPU-0"), Place("a", "GPU-1"), Place("b", "GPU-2"), Place("a", None)


@pytest.mark.parametrize(
    ("trainer", "replica", "ranks", "backend", "why"),
    [
        (GPU_0, GPU_1, 1, "nccl", ""),
        (GPU_0, GPU_1, 4, "nccl", ""),
        (GPU_0, ELSEWHERE, 4, "nccl", ""),
        (GPU_0, Place("b", "GPU-0"), 1, "nccl", ""),
        (GPU_0, GPU_0, 1, "ipc", ""),
        (GPU_0, GPU_0, 2, None, "a replica shares the GPU of one of several ranks"),
        (CPU, CPU, 1, None, "the trainer works on a CPU"),
        (CPU, GPU_1, 1, None, "the trainer works on a CPU"),
        (GPU_0, CPU, 1, None, "a replica works on a CPU"),
    ],
)
def test_places_decide(trainer: Place, replica: Place, ranks: int, backend: Any, why: str) -> None:
    assert Sender(trainer, ranks).path_to(replica) == WeightPath(backend, why)


def resolved(generator: str) -> ResolvedConfig:
    return resolve(
        build(
            {
                "model": {"path": "nowhere"},
                "data": {"name": "file", "path": "unread.jsonl"},
                "generator": {"name": generator, "group_size": 2, "max_tokens": 6},
                "rewards": ["tests.runs:length_reward"],
                "objective": [{"name": "policy_gradient"}],
                "distributed": {"num_generators": 2},
            }
        )
    )


@pytest.mark.parametrize(
    ("generator", "trainer", "adapter", "why"),
    [
        ("vllm", GPU_0, False, ""),
        ("vllm", GPU_0, True, "adapters alone are sent"),
        ("vllm", None, False, "distributed.num_trainers is 0"),
        ("vllm", CPU, False, "the trainer works on a CPU"),
        ("transformers", GPU_0, False, "generator.name=transformers takes them from an iterator alone"),
    ],
)
def test_what_keeps_all_replicas_to_the_object_store(generator: str, trainer: Any, adapter: bool, why: str) -> None:
    assert why_in_store(resolved(generator), trainer, adapter=adapter) == why


def test_a_vllm_without_the_interface(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from onpolicy.rollout import vllm_transfer

    (tmp_path / "distributed" / "weight_transfer").mkdir(parents=True)
    (tmp_path / "distributed" / "weight_transfer" / "factory.py").write_text("class WeightTransferEngineFactory: ...")
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    vllm_transfer.why_no_transfer.cache_clear()
    assert why_in_store(resolved("vllm"), GPU_0, adapter=False) == "this vLLM has no class WeightTransferTrainerFactory"
    vllm_transfer.why_no_transfer.cache_clear()


# --- replicas and their supervisors under Ray, without a model -------------------------------------------------------


class Spec(ReplicaSpec):
    """Replicas as they are, but for what they do."""

    def __init__(self, direct: DirectWeights) -> None:
        self._direct = direct

    def start(self) -> Any:
        import ray

        return ray.remote(Holder).options(num_cpus=0, max_concurrency=4).remote(".")

    def send(self, actor: Any, task: Any) -> Any:
        return actor.answer.remote()

    def validate(self, task: Any, answer: Any, *, before: Any, now: Any) -> Any:
        return answer

    def give_up_error(self, task: Any, losses: int, lost: Any) -> None:
        return None


class Turn:
    """A lock that counts who found it taken."""

    def __init__(self) -> None:
        self.lock, self.refused = threading.RLock(), 0

    def acquire(self, blocking: bool = True) -> bool:
        found = self.lock.acquire(blocking)
        self.refused += not found
        return found

    def release(self) -> None:
        self.lock.release()


class HandDriven:
    """Ranks whose groups are calls of a replica; each transfer fails, and each call waits, as a test says."""

    def __init__(self) -> None:
        self.place, self.size, self.incarnation, self.read = GPU_0, 1, 1, 0
        self._changes = 0
        self.turn = Turn()
        self.calls: list[str] = []
        self.groups: dict[int, Any] = {}
        self.fails = 0
        self.lost = False

    @property
    def changes(self) -> int:
        self.read += 1
        return self._changes

    @changes.setter
    def changes(self, value: int) -> None:
        self._changes = value

    def gather(self, adapter: bool) -> WeightRefs:
        if self.lost:
            raise RoleLost("rank 0 of 1 died")
        self.calls.append("gather")
        return WeightRefs([])

    def ask_first(self, method: str, *arguments: Any, gather: bool = False) -> str:
        assert gather == (method == "send")
        failed: str = getattr(self, method)(*arguments)
        return failed

    def open_group(self, group: TransferGroup, replica: Any, leave: Sequence[int]) -> str:
        for number in leave:
            self.groups.pop(number, None)
        self.calls.append(f"open {group.number}" + (f", leave {list(leave)}" if leave else ""))
        self.groups[group.number] = replica
        return ""

    def send(self, number: int, version: int) -> str:
        import ray

        self.calls.append(f"send {number}")
        if self.lost:
            raise RoleLost("rank 0 of 1 died")
        if self.fails:
            self.fails -= 1
            return "TransferFailed: no answer"
        ray.get(self.groups[number].receive.remote(version))
        return ""


def until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.01)


class Site:
    def __init__(self, size: int) -> None:
        self.ranks, self.said = HandDriven(), list[str]()
        self.direct = DirectWeights(self.ranks, timeout=60.0, say=self.said.append)
        self.pool = ActorPool(Spec(self.direct), size, DistributedSettings(), Faults(self.said.append))
        self.version = 0
        self.up()

    def up(self) -> None:
        until(lambda: all(supervisor.pid for supervisor in self.pool.supervisors))

    def sync(self) -> None:
        self.version += 1
        self.pool.sync_state(VersionedWeights(self.direct.snapshot(), self.version))

    def ask(self) -> Future[Any]:
        (future,) = self.pool.submit(["task"])
        return future


@pytest.fixture
def site(ray: Any) -> Iterator[Callable[[int], Site]]:
    made: list[Site] = []

    def make(size: int = 1) -> Site:
        made.append(Site(size))
        return made[-1]

    yield make
    for each in made:
        each.pool.close()


@pytest.mark.ray
def test_first_the_object_store_then_a_group_of_its_own(site: Callable[..., Site]) -> None:
    s = site(2)
    for _ in range(3):
        s.sync()
    assert s.ask().result() == "store 1 nccl 2 nccl 3 "
    assert s.ranks.calls[0] == "gather" and s.ranks.calls.count("gather") == 1, "once for both"
    assert sorted(s.ranks.calls[1:]) == ["open 1", "open 2", "send 1", "send 1", "send 2", "send 2"]
    assert s.said == ["replicas of the generator take weights by NCCL"]


@pytest.mark.ray
def test_a_replica_that_is_lost_in_a_transfer_begins_anew(site: Callable[..., Site]) -> None:
    s = site()
    s.sync()
    s.ranks.fails = 1
    s.sync()
    assert s.ask().result() == "store 2 ", "the new replica has the newest weights before any work"
    s.sync()
    assert s.ask().result() == "store 2 nccl 3 "
    assert s.ranks.calls == ["gather", "open 1", "send 1", "gather", "open 2, leave [1]", "send 2"]
    assert (
        "generator: 1 of 1 did not take the weights by NCCL (TransferFailed: no answer); a new one takes its place"
        in s.said
    )


def test_transfers_that_always_fail_give_way_to_the_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where groups open well."""
    monkeypatch.setattr("onpolicy.distributed.direct_weights._path_of", lambda actor: WeightPath("nccl"))
    ranks, heard = HandDriven(), list[str]()
    direct, ranks.fails = DirectWeights(ranks, timeout=60.0, say=heard.append), 100
    for version in range(2 * FAILURES):
        replica = MagicMock()
        assert direct.sync(replica, direct.snapshot(), version) is replica.update_weights.remote.return_value
        if version < FAILURES:
            with pytest.raises(ActorLost, match="did not take the weights by NCCL"):
                direct.sync(replica, direct.snapshot(), version)
            direct.forget(replica)
        else:
            direct.sync(replica, direct.snapshot(), version)
            assert replica.update_weights.remote.call_count == 2
    assert len([call for call in ranks.calls if call.startswith("send")]) == FAILURES
    assert heard[-1] == said("a replica did not take the weights by NCCL (TransferFailed: no answer)")


@pytest.mark.ray
def test_a_latecomer_gets_the_weights_when_the_ranks_are_free_and_still_have_them(site: Callable[..., Site]) -> None:
    s = site()
    s.sync()
    s.sync()
    s.ranks.turn.acquire()  # as in a step, which the main thread makes
    _kill(s.pool.supervisors[0].pid)
    asked = s.ask()
    until(lambda: s.ranks.turn.refused > 3 or asked.done())
    assert not asked.done()
    s.ranks.changes, before = 1, s.ranks.read
    s.ranks.turn.release()
    until(lambda: s.ranks.read > before + 3 or asked.done())
    assert not asked.done(), "they have others"
    s.ranks.changes = 0
    assert asked.result() == "store 2 ", "without another sync"


@pytest.mark.ray
def test_ranks_that_are_lost_end_the_call_and_not_the_pool(site: Callable[..., Site]) -> None:
    """A replica to which they were sending has some of the weights and is replaced."""
    s = site()
    s.sync()
    s.ranks.lost = True
    with suppress(RoleLost):  # or not, where the new replica is not up yet
        s.sync()
    with pytest.raises(RoleLost, match="rank 0 of 1 died"):
        s.ask().result()
    assert any("waits for weights from a trainer that is gone (rank 0 of 1 died)" in line for line in s.said)
    with pytest.raises(RoleLost, match="rank 0 of 1 died"):
        s.sync()
    s.ranks.lost, s.ranks.incarnation, s.ranks.changes = False, 2, s.ranks.changes + 1
    s.sync()
    assert s.ask().result() == f"store {s.version} "


@pytest.mark.ray
def test_new_ranks_begin_with_the_object_store(site: Callable[..., Site]) -> None:
    """They do not know yet which tensors there are, and the groups of the old ones are gone."""
    s = site()
    s.sync()
    s.sync()
    s.ranks.incarnation += 1
    s.sync()
    s.sync()
    assert s.ask().result() == "store 1 nccl 2 store 3 nccl 4 "


def _kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.deepspeed
@pytest.mark.vllm
def test_a_run_in_which_a_replica_dies_within_a_transfer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ray: Any
) -> None:
    from tests import store_nccl

    (tmp_path / "die").touch()
    monkeypatch.setenv(store_nccl.SWITCH, str(tmp_path))
    trainer = {"name": "deepspeed", "lr": 1e-2, "config": str(ROOT / "configs/deepspeed/zero3.json")}
    generator = {"name": "tests.store_nccl:StoreVLLM", "group_size": 3, "max_tokens": 8}
    config = write_config(tmp_path, trainer=trainer, generator=generator, steps=3)
    roles = ["distributed.num_trainers=2", "distributed.num_generators=1"]
    assert run_here(config, f"run_dir={tmp_path / 'run'}", *roles) == 0
    heard = " ".join(capsys.readouterr().out.split())
    assert "weight syncs go from GPU to GPU" in heard
    assert "1 of 1 did not take the weights by NCCL (TransferFailed: ActorDiedError" in heard
    assert "replicas of the generator take weights by NCCL" in heard
    ways = (tmp_path / "ways").read_text().splitlines()
    assert ways == ["store 0", "store 0", "nccl 1", "nccl 2", "nccl 3"], (
        "preflight syncs twice, and in the second it dies"
    )
    rows = metrics(tmp_path / "run")
    assert rows[-1]["faults/generator"] == 1 and rows[-1]["faults/trainer"] == 0
    assert max(row["rollout/logprob_gap"] for row in rows) < 1e-5
