"""``onpolicy doctor verl``: the plug-in in a worker of the cluster that a run would use."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.verl.runs import environment

pytestmark = [pytest.mark.verl, pytest.mark.ray]


def doctor(folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "onpolicy", "doctor", "verl"]
    return subprocess.run(
        words,
        cwd=folder,
        env=environment(folder) | variables | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_doctor_looks_into_a_worker(tmp_path: Path, no_cluster: dict[str, str]) -> None:
    done = doctor(tmp_path, no_cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("registered") == 2


@pytest.mark.nightly
def test_the_doctor_names_the_variable_that_blocks_the_plug_in(tmp_path: Path, no_cluster: dict[str, str]) -> None:
    blocked = doctor(tmp_path, no_cluster | {"VERL_USE_EXTERNAL_PLUGINS": "none"})
    assert blocked.returncode == 1 and "VERL_USE_EXTERNAL_PLUGINS" in blocked.stdout


def test_the_doctor_looks_into_a_worker_of_the_cluster_that_is_there(
    tmp_path: Path, no_cluster: dict[str, str]
) -> None:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=0"]
    variables = os.environ | environment(tmp_path) | no_cluster
    # what every one of its workers reads: that the doctor asked this cluster, and not one of its own
    cluster = subprocess.Popen(
        [*ray, "--include-dashboard=false"], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env=variables | {"VERL_USE_EXTERNAL_PLUGINS": "auto", "VERL_USE_EXTERNAL_MODULES": "nowhere.to_be_found"},
    )  # fmt: skip
    try:
        assert cluster.stdout is not None and any("--block" in line for line in cluster.stdout)
        done = doctor(tmp_path, no_cluster)
        assert done.returncode == 1 and "nowhere" in done.stdout, done.stdout + done.stderr
    finally:
        cluster.terminate()
        cluster.wait()


def test_the_doctor_does_not_wait_for_a_cluster_that_does_not_answer(
    tmp_path: Path, no_cluster: dict[str, str]
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        done = doctor(tmp_path, no_cluster | {"RAY_ADDRESS": address})
    assert done.returncode == 1 and f"RAY_ADDRESS={address}: " in done.stdout, done.stdout + done.stderr
