"""The ranks that one command starts on this machine: real processes, whose work is a line of Python.

1. each has torchrun's environment, they meet at one store, and rank 0 alone is heard; 2. a rank that fails ends the others, and what it
said is shown; 3. a rank that is killed has all started again, so often and no more; 4. the first request to stop reaches rank 0 alone,
which may take its time, the second ends all; 5. nothing is left behind; 6. what cannot be started is refused, and idle GPUs are named.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.config.schema import DistributedSettings
from onpolicy.distributed import ray_cluster
from onpolicy.distributed.node_ranks import rank_environment, start_ranks
from onpolicy.run.check_run import check_run
from onpolicy.run.devices import SHARDED, for_ranks, num_devices, refuse_devices_without_ranks, unused_devices
from onpolicy.utils.errors import ConfigError
from tests.runs import write_config


def ranks(code: str, size: int = 2, **options: Any) -> int:
    return start_ranks(["-c", "import os, sys, time, signal\nrank = int(os.environ['RANK'])\n" + textwrap.dedent(code)], size,
                       **{"max_restarts": 0, **options})  # fmt: skip


@pytest.mark.process
def test_they_meet_and_rank_0_is_heard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = f"""
        import torch.distributed as dist
        dist.init_process_group("gloo")
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, (rank, os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]))
        print("heard", rank, flush=True)
        open(r"{tmp_path}/" + str(rank), "w").write(repr(found))
        dist.destroy_process_group()
    """
    assert ranks(code, 3) == 0
    assert {(tmp_path / str(rank)).read_text() for rank in range(3)} == {repr([(i, str(i), "3") for i in range(3)])}
    said = capfd.readouterr()
    assert said.out == "heard 0\n" and "failed" not in said.err


@pytest.mark.process
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_ends_the_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], failing: int
) -> None:
    monkeypatch.setattr("onpolicy.distributed.node_ranks.GRACE", 0.5)
    before, start = len(psutil.Process().children(recursive=True)), time.monotonic()
    code = f"""
        if rank == {failing}:
            sys.exit("what is wrong") if rank else sys.exit(3)
        time.sleep(600)
    """
    assert ranks(code, max_restarts=5) == (1 if failing else 3), "an error is not repeated"
    assert time.monotonic() - start < 30 and len(psutil.Process().children(recursive=True)) == before
    said = capfd.readouterr().err
    assert ("rank 1 failed:\nwhat is wrong" in said) == bool(failing)


@pytest.mark.process
def test_a_rank_that_is_killed_has_all_started_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = f"""
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        open(r"{tmp_path}/" + str(rank) + attempt, "w").close()
        if rank == 1 and attempt != "2":
            while not os.path.exists(r"{tmp_path}/0" + attempt):
                time.sleep(.01)
            os.kill(os.getpid(), signal.SIGKILL)
        while rank == 0 and attempt != "2":
            time.sleep(.1)
    """
    assert ranks(code, max_restarts=3) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00", "01", "02", "10", "11", "12"]
    said = capfd.readouterr().err
    assert said.count("a rank was killed by signal 9; starting all 2 again, from the last checkpoint") == 2
    assert "(2 of distributed.max_restarts=3)" in said
    always = "if rank == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)"
    assert ranks(always, max_restarts=1) == 128 + signal.SIGKILL


PATIENT = """
def stop(number, frame):
    open(folder + "/asked" + rank, "w").close()
    time.sleep(1.5)
    open(folder + "/saved" + rank, "w").close()
    raise SystemExit(130 if rank == "0" else 0)
signal.signal(signal.SIGTERM, stop)
open(folder + "/ready" + rank, "w").close()
while rank == "0" or not os.path.exists(folder + "/saved0"):
    time.sleep(.05)
"""
DEAF = """
signal.signal(signal.SIGTERM, lambda *_: open(folder + "/asked" + rank, "w").close())
open(folder + "/ready" + rank, "w").close()
while True:
    time.sleep(.05)
"""


@pytest.mark.process
def test_the_one_that_was_killed_is_the_reason(tmp_path: Path) -> None:
    """Rank 0 fails in the same moment, because of it."""
    code = f"""
        first = not os.path.exists(r"{tmp_path}/again")
        if rank == 1 and first:
            open(r"{tmp_path}/again", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        while rank == 0 and first and not os.path.exists(r"{tmp_path}/again"):
            time.sleep(.001)
        sys.exit(1 if rank == 0 and first else 0)
    """
    assert ranks(code, max_restarts=1) == 0


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of no other system kills them")
def test_ranks_do_not_outlive_what_started_them(tmp_path: Path) -> None:
    process = started(tmp_path, DEAF)
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    left = psutil.Process(process.pid).children()
    process.kill()
    _, alive = psutil.wait_procs(left, timeout=10)
    assert len(left) == 2 and not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_request_to_stop_reaches_rank_0_which_may_take_its_time(tmp_path: Path, number: int) -> None:
    process = started(tmp_path, PATIENT)
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    process.send_signal(number)
    assert process.wait(60) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asked0", "ready0", "ready1", "saved0", "work.py"]


@pytest.mark.process
def test_the_second_request_ends_all(tmp_path: Path) -> None:
    process = started(tmp_path, DEAF)
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    ranks = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    wait_for(tmp_path / "asked0")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGKILL
    assert len(ranks) == 2 and not any(rank.is_running() for rank in ranks)


def started(folder: Path, work: str) -> subprocess.Popen[bytes]:
    """A process that starts two ranks; they find ``rank`` and ``folder``."""
    (folder / "work.py").write_text(
        f"import os, signal, time\nrank, folder = os.environ['RANK'], {str(folder)!r}\n" + work
    )
    code = f"raise SystemExit(start_ranks([{str(folder / 'work.py')!r}], 2, max_restarts=3))"
    return subprocess.Popen([sys.executable, "-c", "from onpolicy.distributed.node_ranks import start_ranks\n" + code])


def wait_for(*paths: Path) -> None:
    until = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until, paths
        time.sleep(0.05)


def test_each_rank_has_its_share_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert rank_environment(1, 4, 5, 0)["OMP_NUM_THREADS"] == "4"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in rank_environment(1, 4, 5, 0)


def gpus(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


@pytest.mark.parametrize(("there", "asked", "number"), [(8, "all", 8), (8, 3, 3), (8, 1, 1), (0, "all", 1), (0, 2, 2)])
def test_how_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, asked: object, number: int
) -> None:
    gpus(monkeypatch, there)
    config = write_config(tmp_path)
    assert num_devices(resolve(load(config, [f"trainer.devices={asked}"]))) == number
    overrides, size = for_ranks(config, [f"trainer.devices={asked}", "steps=7"])
    assert size == number and overrides[:2] == [f"trainer.devices={asked}", "steps=7"]
    assert (overrides[2:4] == [*SHARDED] and overrides[4].startswith("run_dir=runs/config-")) == (number > 1)
    assert len(overrides) == (5 if number > 1 else 2)


def test_a_trainer_of_several_ranks_and_a_run_folder_stay(tmp_path: Path) -> None:
    given = ["trainer={name: deepspeed, devices: 2}", f"run_dir={tmp_path / 'run'}"]
    assert for_ranks(write_config(tmp_path), given) == (given, 2)


def test_a_rank_starts_no_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rank_environment(0, 2, 5, 0).items():
        monkeypatch.setenv(name, value)
    assert for_ranks(write_config(tmp_path), ["trainer.devices=2"]) == (["trainer.devices=2"], 1)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.devices=some"], r"trainer\.devices: got 'some', expected a number of GPUs from 1 on, or all"),
        (["trainer.devices=0"], r"trainer\.devices: got '0', expected"),
        (
            ["trainer.devices=2", "distributed.num_trainers=2"],
            r"trainer\.devices: got 2, and distributed\.num_trainers is 2; expected one",
        ),
        (
            ["trainer.devices=2", "trainer.moments=8bit"],
            r"trainer\.moments: 'deepspeed' has no such option.*zero3_offload",
        ),
    ],
)
def test_what_cannot_be_started_is_refused(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as found:
        check_run(write_config(tmp_path), overrides)
    assert len(found.value.problems) == 1


def test_a_config_with_problems_is_left_to_the_runs_own_check(tmp_path: Path) -> None:
    given = ["trainer.devices=2", "generater.x=1", "steps=many"]
    assert for_ranks(write_config(tmp_path), given) == (given, 1)


def test_more_than_there_are_is_refused_and_idle_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, 8)
    config = write_config(tmp_path)
    with pytest.raises(
        ConfigError, match=r"trainer\.devices: got 16, expected at most 8, the GPUs of this machine, or all"
    ):
        for_ranks(config, ["trainer.devices=16"])
    assert (
        unused_devices(resolve(load(config)))
        == "uses 1 of the 8 GPUs of this machine; trainer.devices=all uses them all"
    )
    assert not unused_devices(resolve(load(config, ["distributed.num_trainers=8", "trainer.name=deepspeed"])))
    with pytest.raises(ConfigError, match="needs processes of their own, which `onpolicy train` starts"):
        refuse_devices_without_ranks(resolve(load(config, ["trainer.devices=2"])))
    gpus(monkeypatch, 1)
    assert not unused_devices(resolve(load(config)))


def test_trainers_without_a_generator_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "cluster_gpus", lambda: 8)
    resolved = resolve(load(write_config(tmp_path), ["distributed.num_trainers=2", "trainer.name=deepspeed"]))
    with pytest.raises(
        ConfigError, match=r"num_generators: got 0, with 2 trainers on GPUs .*expected at least 1, or trainer\.devices"
    ):
        ray_cluster.resources(resolved, gpus=1)


@pytest.mark.parametrize(
    ("shown", "own", "left"),
    [(None, 0, "1,2,3"), (None, 2, "0,1,3"), ("4,6,5", 1, "4,5"), ("4,5", None, "4,5"), (None, None, None)],
)
def test_ray_does_not_get_the_drivers_gpu(
    monkeypatch: pytest.MonkeyPatch, shown: str | None, own: int | None, left: str | None
) -> None:
    """Ray counts what this variable shows when it starts."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # as being asked for its memory leaves it
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0 if own is None else 1000)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: own)
    with ray_cluster.without_the_drivers_gpu():
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == left
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == shown
    ray_cluster.refuse_driver_on_cluster(DistributedSettings(address="auto", num_reward_workers=2))
    joined = DistributedSettings(address="auto", num_generators=2)
    if own is None:
        ray_cluster.refuse_driver_on_cluster(joined)
    else:
        with pytest.raises(
            ConfigError, match=r"distributed\.num_trainers: got 0, .*expected 1 with trainer\.name=deepspeed"
        ):
            ray_cluster.refuse_driver_on_cluster(joined)


def test_an_engine_on_several_gpus_is_not_trained(tmp_path: Path) -> None:
    config = write_config(tmp_path, generator={"name": "vllm", "group_size": 3, "max_tokens": 8})
    given = ["generator.tensor_parallel_size=2"]
    assert resolve(load(config, given)), "it may be evaluated"
    with pytest.raises(ConfigError, match=r"generator\.tensor_parallel_size: got 2, expected 1: .*verl"):
        check_run(config, given)
