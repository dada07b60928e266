"""Configs by name, and a user's own modules beside them, from any folder and both ways to start the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from onpolicy.cli import main
from onpolicy.config.load import load
from onpolicy.config.shipped import find_config, shipped_configs
from onpolicy.utils.errors import ConfigError
from tests.config.test_problems import SOUND
from tests.runs import row

ROOT = Path(__file__).parents[2]
STARTS = {"module": ["-m", "onpolicy"], "script": ["-c", "import sys; from onpolicy.cli import main; sys.exit(main())"]}
"""A console script has its own folder first on the path, ``python -m`` the current one."""


def run(folder: Path, start: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in another folder, with the repository on the path, as where it is installed from a checkout."""
    command = [sys.executable, *(["-P"] if start == "script" else []), *STARTS[start], *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_shipped_configs_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"sdpo", "lab/decisive", "paper/math", "verl/sdpo", "verl/sdpo_qwen3_1.7b"} <= shipped_configs().keys()
    for name, path in shipped_configs().items():
        assert find_config(name) == path and path.is_file()
    config = load("sdpo", ["model.path=m", "data.path=d.jsonl"])
    assert config == load(ROOT / "configs" / "sdpo.yaml", ["model.path=m", "data.path=d.jsonl"])


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab").mkdir()
    assert find_config("lab/sdpo") == shipped_configs()["lab/sdpo"]
    (tmp_path / "sdpo").write_text(yaml.safe_dump(SOUND))
    assert find_config("sdpo") == Path("sdpo") and load("sdpo").steps == 3


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'lab/decisiv' does not exist. Did you mean 'lab/decisive'\?.*list configs"):
        find_config("lab/decisiv")


def test_commands_take_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["list", "configs"]) == 0
    output = capsys.readouterr().out
    assert "lab/decisive" in output and "arXiv" in output
    assert main(["diff", "sdpo", "sdpo_ema"]) == 1 and "ema(ema_decay=0.95)" in capsys.readouterr().out
    (tmp_path / "d.jsonl").write_text(json.dumps({"problem": "1 + 1?", "answer": "2"}))
    assert main(["check", "sdpo", "model.path=m", "data.path=d.jsonl"]) == 0
    assert main(["eval", "sdpo", "model.path=m", "data.path=d.jsonl"]) == 2
    assert "onpolicy eval: eval.sets: empty" in capsys.readouterr().err
    assert main(["forecast", "sdp", "model.path=m"]) == 2 and "Did you mean 'sdpo'" in capsys.readouterr().err


@pytest.mark.parametrize("start", sorted(STARTS))
@pytest.mark.parametrize("package", [False, True], ids=["rewards.py", "rewards/"])
@pytest.mark.process
def test_a_users_own_rewards(tmp_path: Path, start: str, package: bool) -> None:
    file = tmp_path / ("rewards/__init__.py" if package else "rewards.py")
    file.parent.mkdir(exist_ok=True)
    file.write_text("def short(completion):\n    return 1.0\n")
    (tmp_path / "my_terms.py").write_text(
        "from rewards import short\n\n\ndef brief(completion):\n    return short(completion)\n"
    )
    config = {**SOUND, "rewards": ["math_answer", "rewards:short", "my_terms:brief"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "d.jsonl").write_text(json.dumps(row(1, 1)))
    done = run(tmp_path, start, "check", "config.yaml")
    assert done.returncode == 0, done.stderr
    assert "rewards:short" in done.stdout
