"""Replicas of the generator under a real Ray, on this machine.

1. the same rollouts as the generator in this process, in the order of the prompts, whoever samples them; 2. new weights
are in every replica before anything is sampled with the old ones; 3. a replica that is killed, stopped or answers nonsense
is replaced, has the current weights before any work, and nothing is lost or there twice; one that dies while it takes
weights too; 4. what the user did wrong is raised as it is; 5. the run gives up on what does not get better; 6. a run that
goes back hands over older weights, and what was under way is forgotten; 7. nothing listens beyond this machine, and what
was started ends; 8. a whole run; 9. with vLLM.

A replica takes many seconds to start, so one pair of them serves most tests. Their generator does what files beside the
model tell it to: a test stops it in the middle, acts, and lets it go on; nothing depends on how fast this machine is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from onpolicy.config.load import build
from onpolicy.config.resolve import resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.rendering import PromptTooLong, Renderer
from onpolicy.distributed import ray_cluster
from onpolicy.distributed.generator_pool import GeneratorPool
from onpolicy.distributed.heartbeat import HeartbeatMonitor
from onpolicy.distributed.supervisor import ActorSupervisor
from onpolicy.distributed.weight_transfer import WeightRefs, pack_weights
from onpolicy.models import open_model
from onpolicy.protocols import ignore_group
from onpolicy.rollout.build import local_generator
from onpolicy.rollout.hf_generator import HFGenerator
from onpolicy.rollout.weight_version import StaleWeights
from onpolicy.types import Prompt, RolloutGroup, Sampling
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.faults import Faults, GaveUp
from tests.runs import metrics, run_here, start, write_config
from tests.tiny import tiny_model, tiny_model_dir

PROMPTS = [Prompt(id=str(i), messages=({"role": "user", "content": "x" * (i % 5 + 1)},)) for i in range(12)]
AS_TOLD = "tests.distributed.test_generator_pool:AsTold"

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("replicas") / "model").parent


def checked(folder: Path, generator: str = AS_TOLD, **roles: Any) -> ResolvedConfig:
    return resolve(
        build(
            {
                "model": {"path": str(folder / "model")},
                "data": {"name": "file", "path": str(folder / "unread.jsonl")},
                "generator": {"name": generator, "group_size": 2, "max_tokens": 6},
                "rewards": ["tests.runs:length_reward"],
                "objective": [{"name": "policy_gradient"}],
                "distributed": {"num_generators": 2, "heartbeat_timeout_s": 120.0, "max_restarts": 100, **roles},
            }
        )
    )


def until(true: Callable[[], bool]) -> None:
    """No deadline but pytest's own: other processes may keep this machine busy."""
    while not true():
        time.sleep(0.01)


class Site:
    """Replicas, what they said, and the generator they stand for."""

    def __init__(self, plan_: ResolvedConfig) -> None:
        self.said: list[str] = []
        self.faults = Faults(self._hear, plan_.config.distributed.apart)
        self.model = open_model(plan_)
        self.replicas = GeneratorPool(plan_, self.model, self.faults)
        self.own = local_generator(plan_, self.model)
        self.orders = Path(plan_.config.model.path).parent / "orders"

    def _hear(self, line: str) -> None:
        self.said.append(line)
        self.set_patience(120.0)  # whoever takes the place has time to start

    def set_patience(self, seconds: float, supervisors: Sequence[ActorSupervisor] | None = None) -> None:
        for supervisor in supervisors or self.replicas.actors.supervisors:
            supervisor._timeout = seconds
            if (monitor := supervisor._monitor) is not None:
                monitor.timeout = seconds
                for deadline in (*monitor._answers, monitor._progressing):
                    deadline.seconds = seconds

    def begin(self) -> Site:
        """As new: the reference model's weights in all replicas, once they are up, nothing said and nothing ordered."""
        for order in self.orders.glob("*"):
            order.unlink()
        assert self.processes
        self.replicas.reset_version()
        self.update(0, 0)
        self.said.clear()
        return self

    def update(self, seed: int, version: int) -> None:
        """The same weights for the replicas and for the generator here."""
        self.replicas.update_weights(weights(seed), version=version)
        self.own.policy_version = version - 1
        self.own.update_weights(weights(seed), version=version)

    @contextmanager
    def stopped(self, *, seed: int) -> Iterator[Future[list[RolloutGroup]]]:
        """For the time of the block a call stands still in the middle: four of its prompts are done, the others wait."""
        some = threading.Event()
        self.replicas.on_progress = lambda done, total, tokens: some.set() if done == 8 else None
        for i in range(4):
            self.order(f"let {i} through")
        self.order("wait")
        with ThreadPoolExecutor(1) as threads:
            call = threads.submit(self.replicas.generate, PROMPTS, seed=seed)
            try:
                until(lambda: some.is_set() or call.done())
                assert not call.done()
                yield call
            finally:
                (self.orders / "wait").unlink()

    def order(self, what: str) -> None:
        self.orders.mkdir(exist_ok=True)
        (self.orders / what).touch()

    @property
    def processes(self) -> list[int]:
        """The replicas' process ids, once all are up."""
        until(lambda: all(supervisor.pid for supervisor in self.replicas.actors.supervisors))
        return [pid for supervisor in self.replicas.actors.supervisors if (pid := supervisor.pid)]


@pytest.fixture
def site(ray: Any, folder: Path) -> Iterator[Callable[..., Site]]:
    """Replicas of a test's own."""
    made: list[Site] = []

    def make(generator: str, **roles: Any) -> Site:
        made.append(Site(checked(folder, generator, **roles)))
        return made[-1]

    yield make
    for each in made:
        each.replicas.close()


@pytest.fixture(scope="module")
def shared(ray: Any, folder: Path) -> Iterator[Site]:
    made = Site(checked(folder))
    yield made
    made.replicas.close()


@pytest.fixture
def pair(shared: Site) -> Site:
    """Two replicas as new."""
    return shared.begin()


def said(groups: list[RolloutGroup]) -> list[tuple[str, list[tuple[int, ...]], list[int]]]:
    return [
        (g.prompt.id, [r.completion_ids for r in g.rollouts], [r.policy_version for r in g.rollouts]) for g in groups
    ]


def weights(seed: int) -> list[tuple[str, Tensor]]:
    return list(tiny_model(seed=seed).state_dict().items())


# --- generators that misbehave, as a user's plug-ins would -----------------------------------------------------------


class AsTold(HFGenerator):
    """Does what the files in a folder say: each order is carried out once, by whichever process is first."""

    def __init__(self, *, renderer: Renderer, model: str, sampling: Sampling, max_model_len: int) -> None:
        super().__init__(renderer=renderer, model=model, sampling=sampling, max_model_len=max_model_len)
        self.orders = Path(model).parent / "orders"

    def told(self, what: str) -> bool:
        try:
            (self.orders / what).unlink()
        except FileNotFoundError:
            return False
        return True

    def generate(
        self, prompts: Any, *, seed: int, sampling: Any = None, on_group: Any = ignore_group
    ) -> list[RolloutGroup]:
        until(lambda: not (self.orders / "wait").exists() or any(self.told(f"let {i} through") for i in range(4)))
        if self.told("fail") or any(self.told(f"fail {i}") for i in range(3)):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        groups = super().generate(prompts, seed=seed, sampling=sampling, on_group=on_group)
        if not self.told("garble"):
            return groups
        wrong = [replace(r, rollout_logprobs=(float("nan"),) * len(r.completion_ids)) for r in groups[0].rollouts]
        return [replace(groups[0], rollouts=tuple(wrong)), *groups[1:]]

    def update_weights(self, weights: Any, *, version: int) -> None:
        if self.told("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().update_weights(weights, version=version)


class Hopeless(HFGenerator):
    def __init__(self, *, renderer: Renderer, model: str, sampling: Sampling, max_model_len: int) -> None:
        super().__init__(renderer=renderer, model=model, sampling=sampling, max_model_len=max_model_len)

    def generate(
        self, prompts: Any, *, seed: int, sampling: Any = None, on_group: Any = ignore_group
    ) -> list[RolloutGroup]:
        os._exit(1)


# --- the same as in this process -------------------------------------------------------------------------------------


def test_the_same_rollouts_as_in_this_process_and_progress(pair: Site) -> None:
    s = pair
    seen: list[tuple[int, int, int]] = []
    s.replicas.on_progress = lambda done, total, tokens: seen.append((done, total, tokens))
    arrived: dict[int, RolloutGroup] = {}
    done_at: list[int] = []

    def on_group(place: int, group: RolloutGroup) -> None:
        arrived[place] = group
        done_at.append(seen[-1][0] if seen else 0)

    groups = s.replicas.generate(PROMPTS, seed=3, on_group=on_group)
    assert all(arrived[place] is group for place, group in enumerate(groups)) and len(done_at) == len(groups)
    assert done_at[0] == 0 < done_at[-1], "before the last task has ended"
    own = s.own.generate(PROMPTS, seed=3)
    assert said(groups) == said(own)
    assert [g.prompt for g in groups] == PROMPTS
    for ours, theirs in zip(groups, own, strict=True):
        for one, other in zip(ours.rollouts, theirs.rollouts, strict=True):
            assert one.rollout_logprobs == pytest.approx(other.rollout_logprobs, abs=1e-5)
            assert (one.prompt_ids, one.text, one.finish_reason) == (other.prompt_ids, other.text, other.finish_reason)
    assert seen[-1] == (24, 24, sum(r.num_sampled for g in groups for r in g.rollouts)) and seen == sorted(seen)
    few = Sampling(group_size=1, max_tokens=3)
    assert said(s.replicas.generate(PROMPTS[:1], seed=4, sampling=few)) == said(
        s.own.generate(PROMPTS[:1], seed=4, sampling=few)
    )
    assert s.replicas.generate([], seed=0) == [] and not s.said


def test_weights_reach_every_replica_and_threads_share_them(pair: Site) -> None:
    s = pair
    before = s.replicas.generate(PROMPTS, seed=0)
    for version, handed in ((2, weights(1)), (3, WeightRefs([_put(p) for p in pack_weights(weights(2), 50_000)]))):
        s.replicas.update_weights(iter(handed) if isinstance(handed, list) else handed, version=version)
        s.own.update_weights(iter(handed), version=version)
        with ThreadPoolExecutor(3) as threads:
            calls = [threads.submit(s.replicas.generate, PROMPTS, seed=seed) for seed in range(3)]
            found = [said(call.result()) for call in calls]
        assert found == [said(s.own.generate(PROMPTS, seed=seed)) for seed in range(3)]
        assert found[0] != said(before)
    with pytest.raises(StaleWeights, match="got version 3"):
        s.replicas.update_weights(weights(1), version=3)


def _put(bucket: Any) -> Any:
    import ray

    return ray.put(bucket)


def test_weights_in_the_middle_of_sampling(pair: Site) -> None:
    """Every rollout carries the version that sampled it, the later ones the new one."""
    s = pair
    with s.stopped(seed=0) as call:
        s.replicas.update_weights(weights(1), version=1)
    mixed = said(call.result())
    old = said(s.own.generate(PROMPTS, seed=0))
    s.own.update_weights(weights(1), version=1)
    new = said(s.own.generate(PROMPTS, seed=0))
    assert all(group in (old[i], new[i]) for i, group in enumerate(mixed))
    assert {v for _, _, versions in mixed for v in versions} == {0, 1}


@pytest.mark.nightly
def test_a_slow_replica_gets_less(pair: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    s = pair
    pids, counts, finish = s.processes, {1: 0, 2: 0}, ActorSupervisor._on_result

    def counted(supervisor: ActorSupervisor, *arguments: Any) -> None:
        finish(supervisor, *arguments)
        counts[supervisor.number] += 1

    monkeypatch.setattr(ActorSupervisor, "_on_result", counted)
    os.kill(pids[0], signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as threads:
            call = threads.submit(s.replicas.generate, PROMPTS, seed=0)
            until(lambda: counts[2] > len(PROMPTS) / 2)
            os.kill(pids[0], signal.SIGCONT)
            assert said(call.result()) == said(s.own.generate(PROMPTS, seed=0)) and not s.said
    finally:
        os.kill(pids[0], signal.SIGCONT)
    until(lambda: sum(counts.values()) == len(PROMPTS))
    assert 0 < counts[1] < counts[2]


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "died"), pytest.param(signal.SIGSTOP, "no sign of progress", marks=pytest.mark.nightly)],
)
def test_a_replica_that_is_lost_is_replaced_and_loses_nothing(pair: Site, number: int, words: str) -> None:
    s = pair
    s.update(1, 5)
    victim, before = s.processes[1], s.faults.metrics()["faults/generator"]
    with s.stopped(seed=1) as call:
        os.kill(victim, number)
        if number == signal.SIGSTOP:
            s.set_patience(6.0, s.replicas.actors.supervisors[1:])  # until something is said
    assert said(call.result()) == said(s.own.generate(PROMPTS, seed=1)), (
        "the same as if nothing had happened, each once"
    )
    assert len(s.said) == 1 and words in s.said[0] and s.said[0].startswith("generator: 2 of 2 "), s.said
    assert s.faults.metrics() == {"faults/generator": before + 1}
    until(lambda: not _alive(victim))
    assert victim not in s.processes
    assert said(s.replicas.generate(PROMPTS, seed=2)) == said(s.own.generate(PROMPTS, seed=2))
    assert len(s.said) == 1, "the new one has the weights before any work"


@pytest.mark.nightly
def test_an_idle_replica_that_dies_is_replaced_before_it_is_needed(pair: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    s = pair
    victim = s.processes[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: bool(s.said))
    assert victim not in s.processes
    assert said(s.replicas.generate(PROMPTS, seed=1)) == said(s.own.generate(PROMPTS, seed=1))
    extended, ask = dict[int, list[bool]](), HeartbeatMonitor._ask

    def watched(monitor: HeartbeatMonitor, index: int, busy: bool) -> None:
        pending, before = index in monitor._pending, monitor._progressing._start
        ask(monitor, index, busy)
        if pending and index not in monitor._pending:  # it has answered
            extended.setdefault(id(monitor), []).append(monitor._progressing._start > before)

    monkeypatch.setattr(HeartbeatMonitor, "_ask", watched)
    until(lambda: len(extended) == 2 and min(map(len, extended.values())) >= 3)  # one a second
    assert all(map(all, extended.values())), "one that has no work makes no progress and is none the worse for it"
    assert len(s.said) == 1


def _alive(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("order", "words"), [("garble", "nonsense: it has a rollout of prompt"), ("fail", "RuntimeError: CUDA error")]
)
def test_a_replica_that_answers_nonsense_or_fails_is_replaced(pair: Site, order: str, words: str) -> None:
    pair.order(order)
    found = said(pair.replicas.generate(PROMPTS, seed=1))
    assert found == said(pair.own.generate(PROMPTS, seed=1))
    assert len(pair.said) == 1 and words in pair.said[0] and "\n" not in pair.said[0], pair.said


def test_a_replica_that_dies_while_it_takes_weights(pair: Site) -> None:
    pair.order("die")
    pair.replicas.update_weights(weights(1), version=1)
    assert not list(pair.orders.iterdir())
    pair.own.update_weights(weights(1), version=1)
    assert said(pair.replicas.generate(PROMPTS, seed=0)) == said(pair.own.generate(PROMPTS, seed=0))
    assert len(pair.said) == 1 and "died" in pair.said[0]


def test_what_the_user_did_wrong_is_raised_as_it_is(pair: Site) -> None:
    long = Prompt(id="long", messages=({"role": "user", "content": "x" * 5000},))
    with pytest.raises(PromptTooLong) as caught:
        pair.replicas.generate([*PROMPTS, long], seed=0)
    assert caught.value.limit == 1018 and type(caught.value) is PromptTooLong
    assert "in process" in caught.value.__notes__[0] and "prompt_ids" in caught.value.__notes__[0]


@pytest.mark.nightly
def test_a_run_that_goes_back(pair: Site) -> None:
    s = pair
    s.update(1, 7)
    with s.stopped(seed=0) as call:
        s.replicas.reset_version()
        with pytest.raises(CancelledError):
            call.result()
    s.update(2, 3)
    assert said(s.replicas.generate(PROMPTS, seed=0)) == said(s.own.generate(PROMPTS, seed=0))
    assert s.replicas.policy_version == 3 and not s.said
    with pytest.raises(StaleWeights):
        s.replicas.update_weights(weights(1), version=2)


def test_an_error_that_three_replicas_raise_is_the_works(pair: Site) -> None:
    for i in range(3):
        pair.order(f"fail {i}")
    with pytest.raises(RuntimeError, match="CUDA error: an illegal memory access"):
        pair.replicas.generate(PROMPTS[:1], seed=0)
    assert len(pair.said) == 3


@pytest.mark.nightly
def test_what_does_not_get_better_is_given_up(site: Any) -> None:
    s = site("tests.distributed.test_generator_pool:Hopeless", num_generators=1, max_restarts=2)
    with pytest.raises(GaveUp, match=r"generator 1 of 1 was replaced 2 times in a row .* at last: died"):
        s.replicas.generate(PROMPTS[:1], seed=0)
    assert len(s.said) == 2
    with pytest.raises(GaveUp):
        s.replicas.update_weights(weights(1), version=1)


@pytest.mark.nightly
def test_weights_of_another_model_end_the_run(site: Any) -> None:
    s = site("transformers", num_generators=1)
    assert s.processes
    with pytest.raises(ValueError, match="tensors are missing"):
        s.replicas.update_weights(weights(1)[:2], version=1)
    assert not s.said


# --- Ray itself ------------------------------------------------------------------------------------------------------


def test_nothing_listens_beyond_this_machine(shared: Site) -> None:
    import psutil

    assert len(shared.processes) == 2
    me = psutil.Process()
    found = set()
    for process in [me, *me.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # some end meanwhile
            listening = [c for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
            found |= {(process.name(), connection.laddr.ip) for connection in listening}
    assert len(found) > 2 and {ip for _, ip in found} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, found


def test_this_process_keeps_its_signal_handlers(ray: Any) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_too_few_gpus(ray: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "cluster_gpus", lambda: 3)
    with pytest.raises(
        ConfigError, match=r"distributed.num_generators: 2 of 1 GPUs each and 2 trainers .* want 4 GPUs.* has 3"
    ):
        ray_cluster.resources(checked(folder, num_trainers=2), gpus=1)
    assert ray_cluster.resources(checked(folder), gpus=1)["num_gpus"] == 1


def test_a_cluster_that_is_not_there(folder: Path) -> None:
    code = (
        "from onpolicy.distributed import ray_cluster; from onpolicy.config.schema import DistributedSettings\n"
        "ray_cluster.join(DistributedSettings(address='127.0.0.1:1'))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ConfigError: distributed.address: cannot join '127.0.0.1:1'" in found.stderr


def test_a_whole_run_with_roles(tmp_path: Path, ray: Any) -> None:
    """Under a Ray of its own, under one that it joins, and without."""
    config = write_config(tmp_path, distributed={"num_generators": 1, "num_reward_workers": 1})
    address = ray.get_runtime_context().gcs_address
    output = _finish(config, f"run_dir={tmp_path / 'apart'}")
    assert not [line for line in output.splitlines() if "ray" in line.lower()], output
    _finish(config, f"run_dir={tmp_path / 'joined'}", f"distributed.address={address}")
    assert (
        run_here(
            config, f"run_dir={tmp_path / 'here'}", "distributed.num_generators=0", "distributed.num_reward_workers=0"
        )
        == 0
    )
    apart, joined, here = (metrics(tmp_path / name) for name in ("apart", "joined", "here"))
    for row, second, other in zip(apart, joined, here, strict=True):
        assert row == second and row.pop("faults/generator") == row.pop("faults/rewards") == 0.0
        assert row == pytest.approx(other, abs=1e-4, rel=1e-3)
    assert ray.is_initialized() and ray.cluster_resources()["CPU"], "the joined one goes on"


def _finish(config: Path, *overrides: str) -> str:
    process = start(config, *overrides)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.mark.vllm
def test_replicas_of_vllm_get_the_adapters_alone(tmp_path: Path, ray: Any) -> None:
    config = write_config(tmp_path, generator={"name": "vllm", "group_size": 3, "max_tokens": 8})
    options = ["distributed.num_generators=1", "trainer.lora_rank=4", "trainer.lr=0.01"]
    output = _finish(config, f"run_dir={tmp_path / 'run'}", *options)
    said = " ".join(output.split())
    assert "weight syncs send the adapters alone (rank 4)" in said
    assert "weight syncs go through the object store: adapters alone are sent" in said
    assert max(row["rollout/logprob_gap"] for row in metrics(tmp_path / "run")) < 1e-5


@pytest.mark.nightly
@pytest.mark.vllm
def test_vllm_replicas(site: Any) -> None:
    s = site("vllm")
    assert said(s.replicas.generate(PROMPTS, seed=0)) == said(s.own.generate(PROMPTS, seed=0))
    s.replicas.update_weights(weights(1), version=1)
    s.own.update_weights(weights(1), version=1)
    os.kill(s.processes[0], signal.SIGKILL)
    assert said(s.replicas.generate(PROMPTS, seed=1)) == said(s.own.generate(PROMPTS, seed=1))
    assert len(s.said) == 1
    s.own.close()
