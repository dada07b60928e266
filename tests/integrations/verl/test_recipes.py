"""examples/cluster: 1. every command that the files start composes and is accepted, on as many GPUs as the file asks for; 2. the scripts
parse; 3. the one that starts Ray does, with two nodes on this machine in the place of Slurm's, and hands SIGTERM on."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import verl  # noqa: F401 first, as it imports the rig and our plug-in in its own order
import yaml
from ray.util import get_node_ip_address

from onpolicy.integrations.verl.command import check
from tests.integrations.verl.runs import ROOT, write_data

pytestmark = pytest.mark.verl

CLUSTER = ROOT / "examples" / "cluster"
JOBS = {"one_node.sbatch": 1, "two_nodes.sbatch": 2, "eight_nodes.sbatch": 8, "skypilot.yaml": 2}


def script(path: Path) -> str:
    return yaml.safe_load(path.read_text())["run"] if path.suffix == ".yaml" else path.read_text()


def variables(path: Path, given: dict[str, str]) -> dict[str, str]:
    """What the file sets, as far as it is no command's output, with what is given from outside."""
    if path.suffix == ".yaml":
        return yaml.safe_load(path.read_text())["envs"] | given
    simple = r"^(?:export )?([A-Z_]+)=(?:\$\{\1:-([^}]*)\}|(\d+))$"
    return {name: default or number for name, default, number in re.findall(simple, path.read_text(), re.M)} | given


@pytest.mark.parametrize("name", JOBS)
def test_the_command_is_accepted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, nodes = CLUSTER / name, JOBS[name]
    data, count = str(write_data(tmp_path / "data.parquet")), str(nodes)
    scheduler = {
        "SLURM_JOB_NUM_NODES": count,
        "SLURM_JOB_NAME": "x",
        "SKYPILOT_NUM_NODES": count,
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    }
    for variable, value in variables(path, {"TRAIN": data, "VAL": data, **scheduler}).items():
        monkeypatch.setenv(variable, value)
    commands = re.findall(r"onpolicy verl train (.*)$", script(path).replace("\\\n", " "), re.M)
    assert len(commands) == 1
    words = shlex.split(os.path.expandvars(os.path.expandvars(commands[0])))  # a default may name another variable
    assert not [word for word in words if "$" in word], "a variable that the file does not set"
    config = check(ROOT / words[0], words[1:])
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (nodes, 8)
    asked = path.read_text()
    assert re.search(rf"--nodes={nodes}$|^num_nodes: {nodes}$", asked, re.M)
    assert re.search(r"--gpus-per-node=8$|accelerators: H100:8$", asked, re.M)


def test_the_scripts_parse(tmp_path: Path) -> None:
    sky = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    for part in ("setup", "run"):
        (tmp_path / f"{part}.sh").write_text(sky[part])
    files = [*tmp_path.glob("*.sh"), *CLUSTER.glob("*.sh"), *CLUSTER.glob("*.sbatch")]
    assert len(files) == 6
    for file in files:
        subprocess.run(["bash", "-n", str(file)], check=True)


def test_what_the_files_name_is_there() -> None:
    for path in CLUSTER.iterdir():
        text = path.read_text()
        named = re.findall(r"(?:configs|examples|requirements|scripts)/[\w./-]+\.\w+", text)
        assert [name for name in named if not (ROOT / name).exists()] == [], path.name
        assert not re.findall(r"--(?:partition|account)=(?!\.\.\.)", text), f"{path.name} is hard-wired to a site"


SRUN = '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
COMMAND = """
import pathlib, ray, signal, sys
ray.init(logging_level="ERROR")
def stop(*_):
    pathlib.Path("stopped").touch()
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("nodes").write_text(str(sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])))
print("ready", flush=True)
signal.pause()
"""


def test_ray_starts_on_all_nodes_and_the_command_is_told_to_stop(tmp_path: Path, no_cluster: dict[str, str]) -> None:
    hosts = f"#!/usr/bin/env bash\nprintf '%s\\n' {' '.join(2 * [get_node_ip_address()])}\n"
    for name, text in (("srun", SRUN), ("scontrol", hosts)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    slurm = {
        "SLURM_JOB_NODELIST": "two",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "1",
        "GPUS": "3",
        "RAY_PORT": str(port),
    }
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    words = ["bash", str(CLUSTER / "ray_on_slurm.sh"), sys.executable, "-c", COMMAND]
    job = subprocess.Popen(
        words, cwd=tmp_path, env=os.environ | no_cluster | slurm | {"PATH": path}, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout is not None
    for line in job.stdout:
        if line == "ready\n":
            job.send_signal(signal.SIGTERM)
            break
    job.stdout.close()
    assert job.wait() == 3 and (tmp_path / "stopped").exists()
    assert (tmp_path / "nodes").read_text() == "6.0"
