"""Marks that cannot rot, and what many test files share.

`make check` runs every test without one of the marks in STARTS. A test that starts a process, or loads an engine, and has
no mark that says so fails, in whatever tier it runs.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: two workers do not fight over two cores
if not Path("/dev/nvidiactl").exists():
    # DeepSpeed decides at its first import, which may be within a test that shows torch GPUs
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
for _name, _value in {
    "gcs_server_port_wait_time_s": 600,
    "raylet_start_wait_time_s": 120,  # rarely a node does not come up at all, and then another one has to be started
    "agent_register_timeout_ms": 600_000,
    "worker_register_timeout_seconds": 600,
    "health_check_failure_threshold": 100,
}.items():  # Ray has as long as it needs, however busy the machine is
    os.environ.setdefault(f"RAY_{_name}", str(_value))

ROOT = Path(__file__).parents[1]
ENGINES = ("deepspeed", "ray", "verl", "vllm")
STARTS = ("process", *ENGINES)
PROCESS_EVENTS = ("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system")

FONT_SEARCH = "fc-list"
"""matplotlib runs it once on a machine, whichever test loads it first."""


class Watch:
    """Hears of every process and every engine that the running test starts."""

    def __init__(self) -> None:
        self.marks: set[str] | None = None
        """Of the running test; None where none runs."""
        self.found: list[str] = []

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: Python calls it for everything."""
        if self.marks is None:
            return
        if event in PROCESS_EVENTS and self.marks.isdisjoint(STARTS) and arguments[0] != FONT_SEARCH:
            self.found.append(f"starts a process without one of the marks {', '.join(STARTS)}: {event} {arguments[:2]}")
        elif (
            event == "import" and arguments[0] in ENGINES and not self._may_load(arguments[0]) and not _by_accelerate()
        ):
            self.found.append(f"loads {arguments[0]} without the mark '{arguments[0]}'")

    def _may_load(self, engine: str) -> bool:
        """Whether a mark says so; vLLM and verl load Ray themselves."""
        assert self.marks is not None
        return engine in self.marks or (engine == "ray" and not self.marks.isdisjoint({"vllm", "verl"}))


def _by_accelerate() -> bool:
    """Whether the import is accelerate's, which looks for DeepSpeed's classes whenever transformers saves a model."""
    settings: Any = sys._getframe()
    while settings is not None and (
        "importlib" in settings.f_code.co_filename or settings.f_code.co_filename == __file__
    ):
        settings = settings.f_back
    return settings is not None and "accelerate" in settings.f_code.co_filename


watch = Watch()
sys.addaudithook(watch.hear)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    watch.marks, watch.found = {mark.name for mark in item.iter_markers()}, []
    try:
        return (yield)
    finally:
        watch.marks = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    result = yield
    if watch.found:
        pytest.fail(f"{item.nodeid} {watch.found[0]}", pytrace=False)
    return result


class OneFileAtATime(LoadFileScheduling):
    """A worker takes one file after the other, and one of them all files that use Ray.

    Two clusters that start at the same moment choose ports from the same range, and one of them may never come up. The ids of tests are
    all that the scheduler knows, so a file is asked for the mark itself: the groups of xdist 3.8 have no effect under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "ray" if _uses_ray(file) else file


@functools.cache
def _uses_ray(file: str) -> bool:
    return "pytest.mark.ray" in (ROOT / file).read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return OneFileAtATime(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those files first that take longest."""
    items.sort(key=lambda item: (not any(item.iter_markers("ray")), not _starts(item)))


def _starts(item: pytest.Item) -> bool:
    return any(mark.name in STARTS for mark in item.iter_markers())


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """One cluster for all tests of this worker that use Ray."""
    import ray as module

    from onpolicy.config.schema import DistributedSettings
    from onpolicy.distributed import ray_cluster

    while not module.is_initialized():
        try:
            ray_cluster.join(DistributedSettings())
        except Exception as error:  # half a minute, which nothing can change
            if "timed out during startup" not in str(error):
                raise
            module.shutdown()
    yield module
    ray_cluster.leave()
    assert not module.is_initialized()


@pytest.fixture(autouse=True)
def linear_layers_stay_torchs() -> Iterator[None]:
    """ZeRO-3 replaces torch's function for linear layers in the whole process, and what another test measures of them with it."""
    yield
    zero = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    original = None if zero is None else getattr(zero.InsertPostInitMethodToModuleSubClasses, "linear_bk", None)
    if original is not None:
        sys.modules["torch"].nn.functional.linear = original
