"""``onpolicy completion``: what real shells make of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from onpolicy.cli import main
from onpolicy.utils.completion import SHELLS

shtab = pytest.importorskip("shtab")
pytestmark = pytest.mark.process
ASK = """
source completion.bash
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_shtab_onpolicy
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """With a completion for bash, a config, and files that are none."""
    assert main(["completion", "bash"]) == 0
    (tmp_path / "completion.bash").write_text(capsys.readouterr().out)
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def completed(*words: str) -> set[str]:
    """What bash offers for the last of these words."""
    done = subprocess.run(["bash", "-c", ASK, "bash", *words], capture_output=True, text=True, check=False)
    assert not done.stderr
    return set(done.stdout.split())


def test_what_bash_completes(folder: Path) -> None:
    assert completed("onpolicy", "s") == {"sweep", "sft", "show"}
    assert completed("onpolicy", "verl", "") == {"train", "check", "data"}
    assert completed("onpolicy", "check", "--") == {"--help", "--full", "--json"}
    assert "sdpo" in completed("onpolicy", "train", "sdp") and "mine.yaml" in completed("onpolicy", "train", "mi")
    assert completed("onpolicy", "train", "lab/deci") == {"lab/decisive"}
    found = completed("onpolicy", "train", "")
    assert {"sdpo", "lab/sdpo", "mine.yaml", "runs/"} <= found and "notes.txt" not in found
    assert "sdpo" in completed("onpolicy", "diff", "sdpo_ema", "sdp")
    assert "runs" in {word.rstrip("/") for word in completed("onpolicy", "report", "ru")}
    assert completed("onpolicy", "vi") == {"view"}
    assert completed("onpolicy", "view", "--") == {"--help", "--port", "--wait"}
    assert "runs" in {word.rstrip("/") for word in completed("onpolicy", "view", "ru")}
    assert completed("onpolicy", "lab", "re") == {"reproduce"}
    assert "notes.txt" in completed("onpolicy", "forecast", "--output", "no")


def test_the_shells_are_those_of_shtab(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(SHELLS) <= set(shtab.SUPPORTED_SHELLS)
    for shell in ("zsh", "tcsh"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "sweep" in script
        if found := shutil.which(shell):
            assert subprocess.run([found, "-n"], input=script, text=True, check=False).returncode == 0
