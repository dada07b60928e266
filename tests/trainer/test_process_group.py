"""How DeepSpeed's ranks find each other, and how they part."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from onpolicy.trainer.process_group import find_store, open_store

ROOT = Path(__file__).parents[2]
GROUP_OF_ONE = """
import atexit, os, socket
import torch.distributed as dist
atexit.register(lambda: print("at the end:", dist.is_initialized()))  # the first registered runs last
from onpolicy.trainer.process_group import join_process_group
device = join_process_group()
print(device, dist.get_rank(), dist.get_world_size(), "MASTER_PORT" in os.environ, join_process_group() == device)
"""


@pytest.mark.process
@pytest.mark.deepspeed
def test_a_group_of_one_asks_for_no_port_and_is_gone_before_python_is() -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, "-c", GROUP_OF_ONE], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-2:] == ["cpu 0 1 False True", "at the end: False"]


def test_ranks_meet_at_a_port_that_nobody_can_take_before() -> None:
    store = open_store("127.0.0.1")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", store.port))
    find_store(("127.0.0.1", store.port), 2).set("rank 1", "is here")
    assert store.get("rank 1") == b"is here"


def test_ranks_of_one_machine_meet_in_a_file(tmp_path: Path) -> None:
    find_store(tmp_path / "meeting", 2).set("rank 1", "is here")
    assert find_store(tmp_path / "meeting", 2).get("rank 1") == b"is here"
