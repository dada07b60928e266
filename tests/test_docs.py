"""The texts are true: the generated page is current, links lead somewhere, what the README says to type exists."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from onpolicy import __version__
from onpolicy.cli import main
from onpolicy.config.load import load
from onpolicy.config.options import options
from onpolicy.config.resolve import resolve
from onpolicy.config.shipped import find_config
from onpolicy.config.show import markdown
from onpolicy.experiments.forecast.forecast import Assumptions, forecast
from onpolicy.experiments.forecast.shape import shape_of
from onpolicy.experiments.sweep.grid import cells, read_grid
from onpolicy.run.devices import foreseen_ranks
from onpolicy.utils.timer import in_words

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"
GPU_PAGE = ROOT / "docs" / "gpu.md"
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *GUIDE, *(ROOT / "examples").glob("*.md")])


def script(name: str) -> Any:
    """A file of scripts/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == markdown() + "\n", "run `make docs`"


def test_the_methods_page_is_current() -> None:
    assert (ROOT / "docs" / "methods.md").read_text() == script("methods").page(), "run `make docs`"


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


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = [
        re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    ]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_anchors_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / target if target else page), f"{page.name}: {target}#{anchor}"


def test_the_readme_is_read_in_one_go() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 120 and not [line for line in lines if len(line) > 150]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"^make ([\w-]+)", page.read_text(), flags=re.MULTILINE):
            assert f"\n{target}:" in makefile, f"{page.name}: make {target}"


def commands(page: Path) -> list[list[str]]:
    """Every ``onpolicy`` command in a page's shell blocks, as words; a placeholder such as CONFIG or … makes it a pattern, left out."""
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [
        line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("onpolicy ")
    ]
    found = [shlex.split(line, comments=True)[1:] for line in lines]
    return [
        words
        for words in found
        if not any("…" in w or "..." in w or re.fullmatch(r"[A-Z]+(\.yaml)?", w) for w in words)
    ]


# What the guide types is run, or checked, by tests/test_guide.py.
@pytest.mark.parametrize("page", [p for p in PAGES if p not in GUIDE and commands(p)], ids=lambda p: p.name)
def test_commands_parse_and_their_configs_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    monkeypatch.setattr("onpolicy.cli._run", parsed.append)
    for words in commands(page):
        try:
            main(words)
        except SystemExit as ended:
            assert ended.code == 0, f"{page.name}: onpolicy {' '.join(words)}"
    own = set(re.findall(r"`([\w-]+\.yaml)`", page.read_text()))
    for arguments in parsed:
        for name, argument in arguments.passed_on.items():
            path = getattr(arguments, name)
            if argument.is_config and str(path) not in own and not (ROOT / path).exists():
                assert find_config(path).exists(), f"{page.name}: {path}"


@pytest.fixture
def a_readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that README shows: a block of Python or YAML is the file of that kind named last before it."""
    text = (ROOT / "README.md").read_text()
    for block in re.finditer(r"^```(python|yaml)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        ending = {"python": "py", "yaml": "yaml"}[block[1]]
        name = re.findall(rf"`([\w-]+\.{ending})`", text[: block.start()])[-1]
        assert not (tmp_path / name).exists(), f"README shows {name} twice"
        (tmp_path / name).write_text(block[2])
    for name in ("problems", "held_out"):
        (tmp_path / f"{name}.csv").write_text("task,gold,explanation\nWhat is 2+2?,4,Two and two are four.\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("rewards", "my_loss"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


def test_what_the_readme_shows_is_valid(a_readers_folder: Path) -> None:
    used = set()
    for command, name, *rest in commands(ROOT / "README.md"):
        overrides = [word for word in rest if "=" in word]
        if command in ("train", "check", "eval", "preview", "forecast"):
            resolve(load(find_config(Path(name)), overrides))
        elif command == "sweep":
            arms = read_grid(Path(name)).arms  # the first seed is enough
            first = itertools.islice(cells(Path(name), a_readers_folder / "runs", overrides), len(arms))
            assert [cell.arm for cell in first] == list(arms)
        used.add(command)
    assert {"train", "check", "preview", "forecast", "sweep"} <= used


def test_the_forecasts_of_the_readme() -> None:
    """Memory as README says it for a run of Qwen3-8B on one H100; if this fails, README promises what the forecast does not."""
    text = (ROOT / "README.md").read_text()
    said = [float(gib) for gib in re.findall(r"(\d+) GiB", text)]
    foreseen = []
    for command, name, *rest in commands(ROOT / "README.md"):
        if command == "forecast":
            resolved = resolve(load(find_config(Path(name)), [word for word in rest if "=" in word]))
            shape = shape_of(str(ROOT / "tests/experiments/shapes/qwen3_8b.json"))
            held = forecast(resolved, shape, Assumptions("h100")).memory
            foreseen.append(round(max(sum(parts.values()) for parts in held.values())))
    assert said and said == foreseen


def test_the_forecasts_of_the_gpu_page() -> None:
    """Its table is what the forecast says of the commands above it, row by row."""
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in re.findall(r"^\| Qwen3-.*\|$", GPU_PAGE.read_text(), re.MULTILINE)
    ]
    assert [gpu_row(words, *row[:2]) for words, row in zip(gpu_commands(), rows, strict=True)] == rows


def gpu_commands() -> list[list[str]]:
    """The words of the runs of docs/gpu.md, behind ``onpolicy train``."""
    (block,) = re.findall(r"^```sh\n(onpolicy train.*?)^```", GPU_PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line.partition("onpolicy train ")[2]) for line in lines]


def gpu_row(words: Sequence[str], what: str, gpus: str) -> list[str]:
    """The row of docs/gpu.md about such a run on GPUs like ``8 h100``."""
    number, gpu = gpus.split()
    config, size = find_config(Path(words[0])), int(number)
    given = [word.replace("devices=all", f"devices={size}") for word in words[1:]]
    resolved = resolve(load(config, foreseen_ranks(config, given, size)[0]))
    model = re.search(r"Qwen3-([\d.]+)B", resolved.config.model.path)
    assert model is not None
    shape = shape_of(str(ROOT / f"tests/experiments/shapes/qwen3_{model[1].lower()}b.json"))
    found = forecast(resolved, shape, Assumptions(gpu, ranks=size))
    memory = [f"{sum(parts.values()):.0f}" for parts in found.memory.values()]
    return [what, gpus, *memory, in_words(sum(found.seconds.values()))]


def test_the_numbers_of_the_readme_are_the_committed_ones() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    configs = [path for path in (ROOT / "configs").glob("*.yaml") if path.stem not in ("quickstart", "smollm2")]
    papers = {re.findall(r"arXiv (\d{4}\.\d{5})", path.read_text())[0] for path in configs}
    parity = json.loads((ROOT / "docs/results/parity.json").read_text())
    published = {row["config"] for row in parity if any("formula" not in source for source in row["published"])}
    assert f"{len(configs)} configs of {len(papers)} papers" in text
    assert f"{len(published)} of them compared with numbers from published code" in text


def test_the_loop_in_the_docs_is_the_loop() -> None:
    loop = textwrap.dedent((ROOT / "onpolicy/train.py").read_text().split('"""\n')[-1])
    assert f"```python\n{loop}```" in (ROOT / "docs/architecture.md").read_text()


def test_the_lab_s_figures_are_drawn_from_the_committed_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = script("lab_figures")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(figures, "IMAGES", tmp_path)
    figures.main()
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) == 9

    def rounded(path: Path) -> str:
        return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", path.read_text())

    assert [path.name for path in drawn if rounded(path) != rounded(ROOT / "docs/images" / path.name)] == []
    for path in drawn:
        root = ElementTree.fromstring(path.read_text())
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        inside = [
            0 <= float(t.get("x", 0)) <= width and 0 <= float(t.get("y", 0)) <= height for t in root.iter(f"{SVG}text")
        ]
        assert all(inside), f"{path.name}: words outside of the picture"


@pytest.mark.parametrize(
    ("name", "file", "page"),
    [
        ("sound", "soundness", "docs/lab.md"),
        ("helps_or_harms", "feedback", "docs/paper.md"),
        ("program_arms", "feedback", "docs/lab.md"),
        ("start", "start", "docs/frontier.md"),
        ("start", "start_large", "docs/frontier.md"),
        ("coverage", "headroom", "docs/frontier.md"),
        ("trained_on", "headroom", "docs/frontier.md"),
        ("by_step", "headroom", "docs/frontier.md"),
        ("claims_again", "headroom", "docs/frontier.md"),
        ("new_claims", "headroom", "docs/frontier.md"),
        ("main_arms", "frontier", "docs/frontier.md"),
        ("frontier", "frontier", "docs/frontier.md"),
        ("frontier", "frontier_added", "docs/frontier.md"),
        ("frontier", "frontier_recipe_5", "docs/frontier.md"),
        ("frontier", "frontier_programs", "docs/frontier.md"),
        ("frontier", "frontier_large", "docs/frontier.md"),
        ("orders", "frontier", "docs/frontier.md"),
        ("guesses", "guesses", "docs/frontier.md"),
        ("bonuses", "bonus_screen", "docs/frontier.md"),
        ("bonuses", "bonus", "docs/frontier.md"),
        ("frontier", "confirmation", "docs/frontier.md"),
        ("confirmed", "confirmation", "docs/frontier.md"),
        ("by_kind", "confirmation_runs", "docs/frontier.md"),
        ("power", "confirmation_runs", "docs/frontier.md"),
        ("frontier", "frontier_parts", "docs/frontier.md"),
        ("parts", "frontier_parts_runs", "docs/frontier.md"),
        ("losses", "frontier_parts_runs", "docs/frontier.md"),
        ("headline", "confirmation", "README.md"),
    ],
)
def test_the_tables_of_the_lab_are_the_committed_results(
    name: str, file: str, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = (ROOT / "docs/results/lab").glob(f"{file}.json*")
    text = path.read_text()
    report = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    getattr(script("lab_tables"), name)(report)
    made = capsys.readouterr().out
    assert len(made.splitlines()) > 4 and made in (ROOT / page).read_text()


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


def test_the_command_alone_is_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["onpolicy"])
    as_typed: list[list[str] | None] = [[], None]
    for arguments in as_typed:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capsys.readouterr()
        assert ended.value.code == 0 and not printed.err
        assert all(f"    {command} " in printed.out for command in ("train", "check", "preview", "doctor"))


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"onpolicy {__version__}\n"
