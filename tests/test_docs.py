"""The texts are true: the generated page is current, links lead somewhere, what the README says to type exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from onpolicy.cli import main
from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.config.show import markdown, options

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md")])


def test_the_configuration_page_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == markdown() + "\n", "run `make docs`"


def test_the_methods_page_is_current() -> None:
    spec = importlib.util.spec_from_file_location("methods", ROOT / "scripts" / "methods.py")
    assert spec is not None and spec.loader is not None
    methods = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(methods)
    assert (ROOT / "docs" / "methods.md").read_text() == methods.page(), "run `make docs`"


def test_diff_names_the_axes(capsys: pytest.CaptureFixture[str]) -> None:
    sdpo, ema, grpo = (str(ROOT / "configs" / f"{name}.yaml") for name in ("sdpo", "sdpo_ema", "grpo_paper"))
    assert main(["diff", sdpo, ema]) == 1
    output = capsys.readouterr().out
    assert "ema(ema_decay=0.95)" in output and "settings" not in output
    assert main(["diff", sdpo, grpo]) == 1 and "trainer.lr" in capsys.readouterr().out
    assert main(["diff", sdpo, sdpo]) == 0 and "say the same" in capsys.readouterr().out
    assert main(["diff", sdpo, "configs/nothing.yaml"]) == 2 and "does not exist" in capsys.readouterr().err


def test_every_option_says_what_it_means() -> None:
    assert not [option.key for option in options() if not option.meaning]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_in_the_readme_are_valid() -> None:
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^onpolicy (?:train|check|eval) (\S+)(.*)$", text, flags=re.MULTILINE)
    assert len(commands) >= 5
    for name, rest in commands:
        resolve(load(name, [word for word in rest.split("#")[0].split() if "=" in word]))
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in re.findall(r"^make (\w+)", text, flags=re.MULTILINE))


@pytest.mark.parametrize("arguments", [["list"], ["list", "divergence"], ["show", "generator"], ["show"]])
def test_listing_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert (main(arguments) == 0 and "vllm" in capsys.readouterr().out) or arguments == ["list", "divergence"]


def test_unknown_sections_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "generater"]) == 2 and "Did you mean 'generator'" in capsys.readouterr().err
    assert main(["list", "divergance"]) == 2 and "Did you mean 'divergence'" in capsys.readouterr().err


@pytest.mark.vllm
@pytest.mark.deepspeed
@pytest.mark.ray
def test_the_doctor_finds_this_machine_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "a run can start here" in output and "torch companions" in output
