"""What the commands print with ``--json``: JSON that every reader takes, and nothing else on standard output."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onpolicy.cli import main
from onpolicy.config.builtins import TABLES
from onpolicy.rewards.code import SandboxUnavailable
from onpolicy.run import doctor
from tests.runs import write_config

Printed = Callable[..., Any]
SHAPE = Path(__file__).parent / "experiments" / "shapes" / "qwen3_8b.json"


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    def run(*arguments: str | Path, status: int = 0) -> Any:
        capsys.readouterr()
        assert main([*map(str, arguments), "--json"]) == status
        return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)

    return run


def noisy(completion: str) -> float:
    """A reward of a user that prints."""
    print("a reward says something")
    return float(len(completion) % 2)


def test_names(printed: Printed) -> None:
    assert {"data", "generator", "term", "context"} <= printed("list").keys()
    assert printed("list", "credit")["credit"].keys() == {"group_mean", "group_std", "leave_one_out"}
    assert printed("list", "configs")["configs"]["sdpo"].startswith("SDPO")


def test_options(printed: Printed) -> None:
    found = printed("show", "generator.max_tokens")
    assert [option["key"] for option in found] == ["generator.max_tokens"] and found[0]["default"] == "256"


@pytest.mark.parametrize(
    ("text", "first", "others"),
    [
        ("lr", "trainer.lr", {"trainer.lr_schedule"}),
        ("warm up", "trainer.warmup_steps", {"trainer.lr_schedule"}),
        ("math_answer", "rewards[] (math_answer)", set()),
        ("ref_kl", "objective[] (ref_kl)", set()),
        ("ema", "teacher.ema_decay (ema)", {"teacher (ema)"}),
    ],
)
def test_a_search_of_options(text: str, first: str, others: set[str], printed: Printed) -> None:
    found = [option["key"] for option in printed("show", text)]
    assert first in found and others <= set(found)
    assert len(found) < 40


def test_an_option_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "data.on_bad_row"]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == "data.on_bad_row (file): error | skip = error"
    assert second.startswith("    `error` stops at rows") and second.endswith("onpolicy.data:file")
    assert main(["show"]) == 0
    *lines, _, _ = capsys.readouterr().out.splitlines()
    assert len(lines) % 2 == 0 and all(line.startswith("    ") for line in lines[1::2])


def test_nothing_found_names_what_is_close(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "lerning_rate", "--json"]) == main(["show", "lrr"]) == 2
    said = capsys.readouterr()
    assert "Did you mean 'lr'" in said.err and not said.out


@pytest.mark.parametrize(
    "words",
    [
        ["check", "nope"],
        ["diff", "sdpo", "nope"],
        ["list", "nope"],
        ["show", "nothing at all"],
        ["forecast", "sdpo", "model.path=/nowhere"],
        ["eval", "sdpo"],
    ],
    ids=lambda words: words[0],
)
def test_what_fails_prints_no_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"onpolicy {words[0]}: ")


def next_lines(said: str) -> list[list[str]]:
    return [shlex.split(line.partition("onpolicy ")[2]) for line in said.splitlines() if line.startswith("next: ")]


SHIPPED_RUN = "lab/self_distillation"
"""Model and data come with the package."""


@pytest.mark.parametrize(
    "words",
    [
        ["check", SHIPPED_RUN],
        ["preview", SHIPPED_RUN, "--rows", "1"],
        ["forecast", "paper/math", "--model-config", str(SHAPE)],
        ["diff", "sdpo", "sdpo_ema"],
        ["diff", "sdpo", "sdpo"],
        ["doctor"],
        ["show"],
        ["list"],
        *(["list", kind] for kind in ("configs", *TABLES)),
    ],
    ids=" ".join,
)
def test_what_to_run_next_works(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training apart, which is tried in tests/run/test_progress.py: here its config is checked."""
    monkeypatch.setattr(doctor, "GROUPS", ())
    assert main(words) in (0, 1)
    followed = next_lines(capsys.readouterr().out)
    assert followed
    for command in followed:
        assert main(["check", *command[1:]] if command[0] == "train" else command) in (0, 1), command


def test_differences(printed: Printed) -> None:
    found = printed("diff", "sdpo", "sdpo_ema", status=1)
    assert {"key": "teacher", "one": "frozen", "other": "ema(ema_decay=0.95)"} in found["axes"]
    assert printed("diff", "sdpo", "sdpo") == {"axes": [], "settings": []}


@pytest.mark.parametrize("works", [True, False])
def test_the_doctor(works: bool, printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [doctor.Check("Python", works, "3", "get another"), doctor.Check("GPU", False, "none", needed=False)]
    monkeypatch.setattr(doctor, "GROUPS", (lambda: found,))
    first, second = printed("doctor", status=int(not works))
    assert first == {"name": "Python", "ok": works, "found": "3", "remedy": "get another", "needed": True}
    assert not second["needed"]


def test_a_forecast(tmp_path: Path, printed: Printed) -> None:
    own = ["paper/math", "--model-config", SHAPE, "--gpu", "b200", "--output", tmp_path / "out.json"]
    found = printed("forecast", *own)
    assert found["hours"] > 1 and found["assumed"]["gpu"] == "b200" and not found["refusals"]
    assert found == json.loads((tmp_path / "out.json").read_text())


def test_an_evaluation(tmp_path: Path, printed: Printed) -> None:
    config = write_config(tmp_path)
    sets = f"eval.sets={{few: {{name: file, path: {tmp_path / 'data.jsonl'}, problems: 2}}}}"
    own = [sets, "rewards=[tests.test_cli:noisy]", "eval.samples_per_problem=2", "eval.pass_at=[1]"]
    found = printed("eval", config, *own, f"run_dir={tmp_path / 'eval'}")
    assert found["folder"] == str(tmp_path / "eval") and 0 <= found["metrics"]["eval/few/avg@2"] <= 1


@pytest.mark.process
def test_the_doctor_tries_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = doctor.sandbox()
    assert check.ok and check.found.startswith(("namespaces", "bubblewrap")), "it has to work where these tests run"

    def nothing() -> str:
        raise SandboxUnavailable("code cannot be run safely here")

    monkeypatch.setattr("onpolicy.rewards.code.mechanism", nothing)
    (check,) = doctor.sandbox()
    assert not check.ok and not check.needed and "install bubblewrap" in check.remedy


def test_the_doctor_looks_for_what_deepspeed_compiles_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils import cpp_extension

    assert doctor.kernels() == [], "nothing is compiled on a CPU"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    (check,) = doctor.kernels()
    assert not check.ok and not check.needed and check.found.startswith("no nvcc") and "set CUDA_HOME" in check.remedy
    (tmp_path / "bin").mkdir()
    for tool in ("nvcc", "ninja", "c++"):
        (tmp_path / "bin" / tool).write_text("")
        (tmp_path / "bin" / tool).chmod(0o755)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (check,) = doctor.kernels()
    assert check.ok and check.found == f"CUDA_HOME={tmp_path}"
