"""The guide is true: its pages are read from the first to the last in one folder, every block run, or checked where it says why not."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import pkgutil
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

import onpolicy
from onpolicy.cli import main
from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.config.shipped import find_config
from onpolicy.experiments.forecast.hardware import gpu_of
from onpolicy.experiments.sweep.grid import cells, read_grid
from onpolicy.utils.errors import UserError
from tests.guide import GUIDE, GUIDE_PAGES, Block, blocks, masked

ROOT = Path(__file__).parent.parent
NOTEBOOK = GUIDE / "notebook.ipynb"
OWN_MODULES = ("rewards", "my_terms", "my_divergence")
IN_ORDER = re.compile(r"\nNext: \[.+?\]\((\S+?\.md)\)")
LANGUAGES = {"sh", "python", "yaml", "csv", ""}


@contextlib.contextmanager
def read_in(folder: Path) -> Iterator[None]:
    """In this folder, with the modules that the pages write there, without a network."""
    path, kept = [*sys.path], {name: sys.modules.pop(name) for name in OWN_MODULES if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        with contextlib.chdir(folder), mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
            yield
    finally:
        sys.path[:] = path
        for name in OWN_MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


def typed(words: Sequence[str]) -> str:
    """A command of ours, in this process; returns what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        if words[0] == "sweep":  # started a second time: its runs have been, here instead of in processes of their own
            grid, overrides = Path(words[1]), [word for word in words[2:] if "=" in word]
            output = Path(words[words.index("--output") + 1])
            status = max(main(["train", str(c.config), *c.overrides]) for c in cells(grid, output, overrides))
        status = main([*words])
    assert status == (1 if words[0] == "diff" else 0), f"onpolicy {' '.join(words)}\n{printed.getvalue()}"
    return printed.getvalue()


class Reader:
    """Takes the pages in order, and keeps what is in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.has_read: list[Path] = []

    def read_up_to(self, page: Path) -> None:
        """Reads the pages that come before it, unless they have been, and the page."""
        for each in GUIDE_PAGES[len(self.has_read) : GUIDE_PAGES.index(page) + 1]:
            self.has_read.append(each)
            with read_in(self.folder):
                self._read(each)

    def _read(self, page: Path) -> None:
        printed, namespace = "", {"__name__": page.stem}
        for block in blocks(page):
            if block.name:
                assert not Path(block.name).exists(), f"{page.name} writes {block.name} again"
                Path(block.name).write_text(block.text)
            elif block.language == "yaml":
                part = yaml.safe_load(block.text)
                resolve(load({**yaml.safe_load(Path("mine.yaml").read_text()), **part}))
            elif block.language == "python":
                exec(compile(block.text, page.name, "exec"), namespace)
            elif block.language == "sh" and not block.not_run:
                printed = "".join(typed(words[1:]) for words in block.typed())
            elif not block.language:
                for line in block.text.splitlines():
                    assert masked(line) in masked(printed), f"{page.name}: {line!r} is not printed:\n{printed}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("reader"))


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDE_PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page: Path, reader: Reader) -> None:
    reader.read_up_to(page)


def test_the_pages_lead_from_one_to_the_next() -> None:
    assert [page.name[0] for page in GUIDE_PAGES] == [*"123456789"]
    for page, after in itertools.pairwise(GUIDE_PAGES):
        assert IN_ORDER.findall(page.read_text()) == [after.name]
    for page in GUIDE_PAGES:
        end = page.read_text().rpartition("\n\n")[2]
        assert re.search(r"\]\(\.\./[\w-]+\.md", end), f"{page.name} does not end with where to read more"


@pytest.mark.parametrize("page", GUIDE_PAGES, ids=lambda page: page.stem)
def test_a_page_is_short_and_every_block_is_run_or_says_why_not(page: Path) -> None:
    text = page.read_text()
    lines = text.splitlines()
    assert len(lines) <= 120 and not [line for line in lines if len(line) > 160 and not line.startswith("|")]
    found = list(blocks(page))
    assert len(found) == text.count("\n```") / 2, "a block that is not read"
    assert {block.language for block in found} <= LANGUAGES
    assert text.count("<!--") == sum(bool(block.added or block.not_run) for block in found), "a mark above no block"
    for block in found:
        assert block.language == "sh" or not (block.added or block.not_run), "only commands are marked"
        if block.language == "sh" and not block.not_run:
            assert all(words[0] == "onpolicy" for words in block.commands()), f"{block.text}: only our commands are run"
    assert [block for block in found if block.language == "sh" and not block.not_run], "nothing on this page is run"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of its cells in order, as a script in a namespace of its own that is ``__main__``; no kernel of Jupyter is started."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells))
    with read_in(tmp_path):
        ended = runpy.run_path(str(script), run_name="__main__")
    ended["plt"].close(ended["figure"])
    lines = [json.loads(line) for line in (tmp_path / "runs/notebook/metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in ended["points"]] == [1, 2, 3]
    assert lines[-1]["reward/__main__:doubts"] > 0
    assert ended["gaps"] and ended["found"]["eval/sums/avg@4"] >= 0


def test_the_notebook_holds_no_output() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4 and {"markdown", "code"} == {cell["cell_type"] for cell in notebook["cells"]}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None]
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


def test_the_site_has_every_page_and_llms_txt_is_current() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    sections = [pages for section in site["nav"] for pages in section.values() if isinstance(pages, list)]
    listed = [page for pages in sections for page in pages]
    docs = ROOT / "docs"
    written = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    notebooks = {path.relative_to(docs).with_suffix(".md").as_posix() for path in docs.rglob("*.ipynb")}
    assert sorted(listed) == sorted(written | notebooks)
    specification = importlib.util.spec_from_file_location("llms", ROOT / "scripts" / "llms.py")
    assert specification is not None and specification.loader is not None
    llms = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(llms)
    assert (docs / "llms.txt").read_text() == llms.text(), "run `make docs`"


def test_the_api_page_names_what_is_there() -> None:
    text = (ROOT / "docs/api.md").read_text()
    names = re.findall(r"^::: ([\w.]+)", text, flags=re.MULTILINE)
    for name in names:
        assert pkgutil.resolve_name(name).__doc__, name
    known = {name.rpartition(".")[2] for name in [*names, *re.findall(r"heading: (\w+)", text)]}
    divergences = {"forward_kl", "reverse_kl", "jsd"}
    assert set(onpolicy.__all__) <= known | divergences and "onpolicy.losses.divergences" in names


def not_run() -> list[Any]:
    return [
        pytest.param(words, id=f"{page.stem}: {' '.join(words)[:60]}")
        for page in GUIDE_PAGES
        for block in blocks(page)
        if block.not_run
        for words in block.commands()
    ]


@pytest.fixture
def a_readers_folder(tmp_path: Path) -> Iterator[Path]:
    """The files of all pages."""
    for page in GUIDE_PAGES:
        for block in blocks(page):
            if block.name:
                (tmp_path / block.name).write_text(block.text)
    with read_in(tmp_path):
        yield tmp_path


@pytest.mark.parametrize("words", not_run())
def test_what_is_not_run_is_valid(words: list[str], a_readers_folder: Path) -> None:
    program, *rest = words
    if program == "make":
        assert f"\n{rest[0]}:" in (ROOT / "Makefile").read_text()
    elif program == "torchrun":
        assert rest[rest.index("-m") + 1] == "onpolicy"
        our_command_is_valid(rest[rest.index("onpolicy") + 1 :], a_readers_folder)
    elif program == "onpolicy":
        our_command_is_valid(rest, a_readers_folder)
    else:
        assert program in ("source", "pip"), f"{' '.join(words)}: a program that no test knows"


def our_command_is_valid(words: Sequence[str], folder: Path) -> None:
    """It parses, its config resolves, a forecast knows the GPU, and a sweep has runs."""
    parsed: list[Any] = []
    with mock.patch("onpolicy.cli._run", parsed.append):
        main([*words])
    command, *rest = words
    given = [word for word in rest if "=" in word and not word.startswith("-")]
    if command in ("train", "check", "preview", "forecast"):
        resolve(load(find_config(Path(rest[0])), given))
        if command == "forecast":
            assert gpu_of(rest[rest.index("--gpu") + 1])
    elif command == "sweep":
        assert next(cells(Path(rest[0]), folder / "runs", []))
    elif command == "verl":
        assert find_config(Path(rest[1])).exists()


def test_the_grids_are_grids(a_readers_folder: Path) -> None:
    grids = [path for path in sorted(a_readers_folder.glob("*.yaml")) if "arms" in yaml.safe_load(path.read_text())]
    assert len(grids) == 2
    for path in grids:
        arms = list(read_grid(path).arms)  # the first seed is enough
        assert [c.arm for c in itertools.islice(cells(path, a_readers_folder / "runs", []), len(arms))] == arms


def test_a_wrong_command_on_a_page_is_found(a_readers_folder: Path) -> None:
    with pytest.raises(UserError, match="expected at least 1"):
        our_command_is_valid(["train", "mine.yaml", "steps=0"], a_readers_folder)
    with pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        our_command_is_valid(["forcast", "mine.yaml"], a_readers_folder)


def test_what_tests_add_takes_the_place_of_the_pages_own() -> None:
    text = "onpolicy train a.yaml steps=40 lr=1 --output x --keep  # a comment\n"
    block = Block("sh", text, name="", added="steps=2 --output y", not_run="")
    assert block.typed() == [["onpolicy", "train", "a.yaml", "lr=1", "--keep", "steps=2", "--output", "y"]]
