"""What newcomers get wrong, and what the command line answers: docs/mistakes.md, row by row.

Each mistake is made in the folder of docs/data.md, with the model that comes with the package. `python -m tests.test_newcomers` writes
the page anew.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import yaml

from onpolicy.cli import main
from onpolicy.config.resolve import load_resolved
from onpolicy.run.run_dir import prepare_folder
from tests.tiny import tiny_model_dir

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "mistakes.md"
HEADING = "| the mistake | what you typed | what onpolicy answers |\n| --- | --- | --- |\n"


def own_files() -> dict[str, str]:
    """The files of docs/data.md's own csv, by name."""
    section = (DOCS / "data.md").read_text().split("\n## ")[1]
    blocks = dict(re.findall(r"^```(csv|python|yaml)\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL))
    return {"problems.csv": blocks["csv"], "rewards.py": blocks["python"], "mine.yaml": blocks["yaml"]}


def nothing(folder: Path) -> None:
    """Leaves the files as they are."""


def changed(name: str, old: str, new: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), encoding=encoding)

    return change


def reward(body: str) -> Callable[[Path], None]:
    return changed("rewards.py", "return float(completion.endswith(gold))", body)


def written(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def model(*lost: str) -> Callable[[Path], None]:
    """A model's folder that lacks files."""

    def make(folder: Path) -> None:
        tiny_model_dir(folder / "model")
        for name in lost:
            (folder / "model" / name).unlink()

    return make


def a_run(folder: Path) -> None:
    """A run folder with one checkpoint, whose config has another learning rate."""
    prepare_folder(folder / "runs" / "mine", load_resolved(folder / "mine.yaml", ["trainer.lr=2e-6"]))
    (folder / "runs" / "mine" / "checkpoints" / "step-000004").mkdir(parents=True)
    (folder / "runs" / "mine" / "metrics.jsonl").touch()


def an_adapter(folder: Path) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")


@dataclass(frozen=True)
class Mistake:
    """One row of the page."""

    what: str
    typed: str
    """After ``onpolicy``."""
    words: tuple[str, ...]
    """What the answer has to name: the key or file, the value, what was expected, what to do."""
    prepare: Callable[[Path], None] = nothing
    until: str = ""
    """Where the page cuts the answer: what follows is another program's, or a long list."""
    missing: str = ""
    """A package that is not installed."""


def train(
    what: str, typed: str, *words: str, prepare: Callable[[Path], None] = nothing, until: str = "", missing: str = ""
) -> Mistake:
    return Mistake(what, f"train mine.yaml {typed}".strip(), words, prepare, until, missing)


MISTAKES = [
    train("a key is misspelled", "generator.max_token=64", "generator.max_token:", "Did you mean 'max_tokens'?"),
    train("a key of TRL", "learning_rate=1e-5", "learning_rate: unknown key", "Here this is trainer.lr.", until=" Known here"),
    train("epochs", "num_train_epochs=3", "Here this is steps", "data.prompts_per_step", until=" Known here"),
    train("a key of verl", "algorithm.adv_estimator=grpo", "algorithm:", "onpolicy verl train", until=" Known here"),
    train("a setting like an option", "--steps 10", "--steps 10", "a setting has no dashes", "steps=10"),
    train("a setting in two words", "steps 10", "override 'steps': expected key=value in one word"),
    train("a section in place of its key", "model=Qwen/Qwen3-8B", "model: got 'Qwen/Qwen3-8B'", "model.path=Qwen/Qwen3-8B"),
    train("a file in place of a source", "data=problems.csv", "data.name=file data.path=problems.csv", until=" Known"),
    train("text for a number", "trainer.lr=fast", "trainer.lr: got 'fast', expected a number"),
    train("a number below 0", "trainer.lr=-1e-5", "trainer.lr: got -1e-05, expected 0 or more"),
    train("no steps", "steps=0", "steps: got 0, expected at least 1"),
    train("half a step", "steps=1.5", "steps: got 1.5, expected a whole number"),
    train("yes in another language", "data.shuffle=ja", "data.shuffle: got 'ja', expected true or false"),
    Mistake("the config's file is misspelled", "train mine.yml", ("'mine.yml' does not exist", "Did you mean 'mine.yaml'?")),
    Mistake("the config's name is misspelled", "check sdop", ("'sdop' does not exist", "Did you mean 'sdpo'?")),
    Mistake("no model and no data", "train sdpo", ("model.path: missing", "model.path=VALUE", "data.path: missing", "data.path=VALUE")),
    Mistake("a grid is given to train", "train lab/decisive", ("this is a grid: onpolicy sweep lab/decisive",)),
    Mistake("a run's config is given to sweep", "sweep mine.yaml", ("mine.yaml: expected", "onpolicy train mine.yaml")),
    train("the data file is misspelled", "data.path=problem.csv", "'problem.csv' does not exist", "Did you mean 'problems.csv'?"),
    train("a column is misspelled", "data.columns.prompt=Task", "rows 2, 3, 4, 5: data.columns.prompt", "Did you mean 'task'?"),
    train("columns are not named", "'data.columns={}'", "no prompt: expected one of", "it has 'task', 'gold'", "data.columns.prompt=task"),
    train("the teacher's column is not named", "'data.columns={prompt: task, answer: gold}'",
          "'problems/2' has no 'solution'", "data.columns.solution=COLUMN"),
    train("a comma without quotes", "", "problems.csv, row 2: has more values", "',' stands in quotes",
          prepare=changed("problems.csv", "add 3", "add, 3")),
    train("a quote inside of a value", "", "'problems.csv' is not a readable csv file: row 2", "twice",
          prepare=changed("problems.csv", "add 3", '"add" 3')),
    train("a file of a spreadsheet", "", "line 2 is not UTF-8", "iconv", prepare=changed("problems.csv", "so ", "sö ", "latin-1")),
    train("two columns of one name", "", "two columns are called 'task'", prepare=changed("problems.csv", "gold", "task")),
    train("a broken line of JSON", "'data={name: file, path: rows.jsonl}'", "rows.jsonl, row 2: is not JSON", "data.on_bad_row=skip",
          prepare=written("rows.jsonl", '{"problem": "1 + 1"}\n{"problem": "1 + 2\n')),
    train("a reward without its file", "'rewards=[my_reward]'", "rewards.py defines it: write 'rewards:my_reward'"),
    train("a reward, not a list", "rewards=rewards:my_reward", "rewards: got 'rewards:my_reward', expected a list",
          "'rewards=[rewards:my_reward]'"),
    train("a reward with its file's ending", "'rewards=[rewards.py:my_reward]'", "write 'rewards:my_reward'"),
    train("a reward's name is misspelled", "'rewards=[rewards:my_rewad]'", "has no 'my_rewad'", "Did you mean 'my_reward'?"),
    train("a reward's file is misspelled", "'rewards=[reward:my_reward]'", "there is no reward.py", "write 'rewards:my_reward'"),
    train("a reward that Python cannot read", "", "rewards[0]: cannot import 'rewards'", "rewards.py, line 1",
          prepare=changed("rewards.py", "gold):", "gold)")),
    train("a reward's module that fails", "", "cannot import 'rewards'", "NameError", "(rewards.py, line 1)",
          prepare=changed("rewards.py", "def", "nope\ndef")),
    train("a reward wants a column that is not there", "", "has a parameter 'golden'", "the rows have", "Did you mean 'gold'?",
          prepare=changed("rewards.py", "completion, gold", "completion, golden")),
    train("a reward that returns text", "", "rewards:my_reward failed on", "returned 'good', expected a number",
          prepare=reward("return 'good'")),
    train("a reward that returns NaN", "", "returned nan, expected a finite number", prepare=reward("return float('nan')")),
    train("a reward of a group returns one number", "", "returned 1.0, expected a list of 8 numbers",
          prepare=written("rewards.py", "def my_reward(completions, **rest):\n    return 1.0\n")),
    train("a reward that raises", "", "rewards:my_reward failed on 'problems/", "ZeroDivisionError", prepare=reward("return 1 / 0")),
    train("GRPO without a group", "contexts={} 'objective=[policy_gradient]' generator.group_size=1", "generator.group_size: got 1",
          "expected at least 2"),
    train("a loss of nothing", "objective[0].weight=0", "objective: every weight is 0"),
    train("no network", "model.path=Qwen/Qwen3-8B", "model.path: 'Qwen/Qwen3-8B' has no usable config", "lab-reasoner",
          until="(?<=usable config):"),
    train("a gguf file", "model.path=model.gguf", "model.path: 'model.gguf' is a file, expected a Hugging Face model folder",
          prepare=written("model.gguf", "GGUF")),
    train("an adapter without its model", "model.path=adapter", "model.path: folder 'adapter' holds an adapter", "merge",
          prepare=an_adapter),
    train("a run in place of its model", "model.path=runs/mine", "is a run; its last checkpoint is 'runs/mine/checkpoints/step-000004'",
          prepare=a_run),
    train("a model without its tokenizer", "model.path=model", "folder 'model' has no tokenizer", "copy it",
          prepare=model("tokenizer.json", "tokenizer_config.json")),
    train("a base model", "model.path=model", "no chat template", "rendering.chat_template", prepare=model("chat_template.jinja")),
    train("completions longer than the model's window", "generator.max_tokens=600", "generator.max_tokens: 600", "window of 512"),
    train("a teacher's prompt longer than the window", "generator.max_tokens=495", "contexts.teacher", "the limit is 17", "window",
          "rendering.overlong=drop"),
    train("a GPU that is not there", "trainer.device=cuda:99", "trainer.device: got 'cuda:99', expected one of", until=" cpu"),
    train("adapters without peft", "trainer.lora_rank=8", "trainer.lora_rank needs the package peft", "pip install", until=": pip", 
          missing="peft"),
    train("a run goes on with other settings", "run_dir=runs/mine", "holds a run with other settings (trainer.lr: 2e-06 there",
          "another run_dir", prepare=a_run),
    train("the run folder is a file", "run_dir=problems.csv", "run_dir: cannot write", "there is a file of that name"),
    train("the run folder cannot be written", "run_dir=/proc/mine", "run_dir: cannot write into the folder '/proc/mine'"),
    Mistake("a report of something else", "report runs", ("'runs' holds no run", "metrics.jsonl", "it holds runs: runs/mine"), a_run),
    Mistake("an evaluation without a set", "eval mine.yaml", ("eval.sets: empty", "name at least one set")),
    Mistake("a run's folder in place of its config", "eval runs/mine", ("'runs/mine' is a folder", "'runs/mine/config.yaml'"), a_run),
]  # fmt: skip


@contextlib.contextmanager
def newcomer(folder: Path) -> Iterator[None]:
    """In this folder stand the files of docs/data.md, for the model that comes with the package; there is no network."""
    own = own_files()
    config = yaml.safe_load(own["mine.yaml"])
    config |= {"model": {"path": "lab-reasoner"}, "generator": {"name": "transformers", "max_tokens": 12}, "steps": 1}
    for name, text in (own | {"mine.yaml": yaml.safe_dump(config, sort_keys=False)}).items():
        (folder / name).write_text(text)
    before, path, kept = Path.cwd(), [*sys.path], {k: v for k, v in sys.modules.items() if k in ("rewards", "reward")}
    for name in kept:
        del sys.modules[name]
    os.chdir(folder)
    try:
        with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
            yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        sys.modules.pop("rewards", None)
        sys.modules.update(kept)


def answer(mistake: Mistake, folder: Path) -> str:
    """What the command prints on standard error, which ends it with status 2."""
    mistake.prepare(folder)
    error = io.StringIO()
    hidden = {mistake.missing: None} if mistake.missing else {}
    with (
        mock.patch.dict(sys.modules, hidden),
        contextlib.redirect_stderr(error),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            status = main(shlex.split(mistake.typed))
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            status = ended.code
    assert status == 2, error.getvalue()
    return error.getvalue().replace(str(folder), "/home/me")


def row(mistake: Mistake, said: str) -> str:
    """The row of the page: the answer in one line, cut where the mistake says so."""
    lines = [" ".join(line.split()) for line in said.strip().splitlines()]
    said = "\n".join(lines[-1:] if said.startswith("usage") else lines)
    if mistake.until:
        cut = re.split(mistake.until, said)[0]
        said = said if cut == said else f"{cut} …"
    said = said.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")
    return f"| {mistake.what} | `onpolicy {mistake.typed}` | {said} |\n"


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_newcomers_mistake(mistake: Mistake, tmp_path: Path) -> None:
    with newcomer(tmp_path):
        said = answer(mistake, tmp_path)
    lacking = [word for word in mistake.words if word not in said]
    assert not lacking, f"{lacking} not in: {said}"
    assert "Traceback" not in said and not list(tmp_path.glob("**/model.safetensors.partial"))
    is_told = row(mistake, said) in PAGE.read_text()
    assert is_told, f"run `python -m tests.test_newcomers`: {said}"


def test_the_page_has_these_mistakes_and_no_others() -> None:
    rows = re.findall(r"^\| (.+?) \| `onpolicy (.+?)` \| ", PAGE.read_text(), flags=re.MULTILINE)
    assert rows == [(mistake.what, mistake.typed) for mistake in MISTAKES] and len(rows) >= 18


def write_page() -> None:
    """Makes every mistake and writes what is answered into the page, below what stands above its table."""
    above = PAGE.read_text().partition(HEADING)[0]
    rows = []
    for mistake in MISTAKES:
        with tempfile.TemporaryDirectory() as name, newcomer(folder := Path(name)):
            rows.append(row(mistake, answer(mistake, folder)))
    PAGE.write_text(above + HEADING + "".join(rows))


if __name__ == "__main__":
    write_page()
