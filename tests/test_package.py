"""The wheel: everything that a user needs is inside, nothing else takes a name of theirs, and in a fresh environment it trains."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.test_newcomers import own_files

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git knows of the checkout, so that no leftover of another build is inside."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    options = ["-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(out), str(source)], check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own, which hides the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["-q", "--no-deps", "--disable-pip-version-check", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    return folder


def test_what_the_wheel_holds(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {"onpolicy", wheel.name.split("-py3")[0] + ".dist-info"}
    for folder in ("configs", "rewards"):
        shipped = {
            f"onpolicy/{folder}/{p.relative_to(ROOT / folder)}"
            for p in (ROOT / folder).rglob("*.*")
            if p.suffix != ".pyc"
        }
        assert shipped <= names
    for name in (
        "experiments/report/js/main.js",
        "experiments/report/vendor/LICENSE",
        "experiments/lab/reasoner/model.safetensors",
        "py.typed",
    ):
        assert f"onpolicy/{name}" in names


@pytest.mark.parametrize(
    "start", [["-m", "onpolicy"], ["-c", "import sys; from onpolicy.cli import main; sys.exit(main())"]]
)
def test_it_runs_beside_a_users_own_rewards(installed: Path, tmp_path: Path, start: list[str]) -> None:
    (tmp_path / "rewards.py").write_text("def short(completion):\n    return 1.0 / (1 + len(completion))\n")
    (tmp_path / "d.jsonl").write_text(json.dumps({"problem": "1 + 1?", "answer": "2"}))
    overrides = ["model.path=m", "data.path=d.jsonl", "rewards=[rewards:short, math_answer]"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(installed)}
    found = subprocess.run(
        [sys.executable, *start, "check", "sdpo", *overrides], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert "rewards:short" in found.stdout
    where = "import onpolicy, onpolicy.rewards; print(onpolicy.__file__, onpolicy.rewards.__file__)"
    paths = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=env, capture_output=True, text=True).stdout
    assert all(Path(path).is_relative_to(installed) for path in paths.split())


def test_a_csv_of_ones_own_start_to_end(installed: Path, tmp_path: Path) -> None:
    """The files and commands of docs/data.md, as the installed command runs them in a folder with nothing else."""
    section = (ROOT / "docs" / "data.md").read_text().split("\n## ")[1]
    commands, small_model = re.findall(r"^```sh\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    readme = (ROOT / "README.md").read_text()
    assert "mine.yaml" not in readme or commands in readme
    for name, text in own_files().items():
        (tmp_path / name).write_text(text)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(installed)}
    where = "import onpolicy; print(onpolicy.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=env, capture_output=True, text=True).stdout
    assert Path(found.strip()).is_relative_to(installed)
    printed = {}
    for command in commands.splitlines():
        program, what, *arguments = shlex.split(command, comments=True)
        typed = [
            str(installed / "bin" / program),
            what,
            *arguments,
            *([] if what == "report" else shlex.split(small_model)),
        ]
        done = subprocess.run(typed, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        printed[what] = " ".join(done.stdout.split())
    assert list(printed) == ["preview", "check", "train", "report"]
    assert "prompt from task answer from gold solution from explanation" in printed["preview"]
    assert "so #### 5 + 11" in printed["preview"] and "other columns" not in printed["preview"]
    assert "tokenizer does not know" not in printed["preview"]
    assert "rewards rewards:my_reward" in printed["check"]
    metrics = json.loads((tmp_path / "runs/mine/metrics.jsonl").read_text())
    assert metrics["step"] == 1 and 0 < metrics["reward/mean"] < 1
    assert "5 + 11" in (tmp_path / "runs/mine/report.html").read_text()
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"mine.yaml", "problems.csv", "rewards.py", "runs"}


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
def test_it_trains_in_a_fresh_environment(wheel: Path) -> None:
    """With the locked CPU set, from an empty folder, without a checkout on the path: a user's first command."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with TemporaryDirectory() as folder:  # 4.5 GB, which pytest would keep
        venv, empty = Path(folder, "venv"), Path(folder, "empty")
        empty.mkdir()
        setup = ["make", "setup", f"VENV={venv}", f"PYTHON={sys.executable}", f"PACKAGE={wheel}"]
        subprocess.run(setup, cwd=ROOT, env=env, check=True)
        where = [str(venv / "bin/python"), "-c", "import onpolicy; print(onpolicy.__file__)"]
        found = subprocess.run(where, cwd=empty, env=env, capture_output=True, text=True, check=True).stdout
        assert Path(found.strip()).is_relative_to(venv)
        command = [str(venv / "bin/onpolicy"), "train", "quickstart", "steps=1", "run_dir=run"]
        done = subprocess.run(command, cwd=empty, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-4000:]
        assert (empty / "run/checkpoints/step-000001/model.safetensors").is_file()
