"""``onpolicy check``: a run in some fifteen lines, the whole config, or both as JSON; and what it refuses, as ``train`` does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from onpolicy.cli import main
from onpolicy.config.resolve import load_resolved
from onpolicy.run.trackers.base import Tracker
from onpolicy.utils.ready import NotInstalled, installed, ready_if
from tests.runs import write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def checked(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Standard output of a check that finds no problem."""
    capsys.readouterr()
    assert main(["check", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_summary_says_what_a_run_does(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = f"eval.sets={{unseen: {{name: file, path: {config.parent / 'data.jsonl'}}}}}"
    more = ["rewards=[tests.runs:length_reward, {name: repetition, weight: 0.1}]", "trainer.warmup_steps=2"]
    *lines, preview, train = checked(capsys, config, *more, sets, "eval.every=2").splitlines()
    assert preview.startswith("next: ") and " preview " in preview and " train " in train
    assert main(["check", "quickstart"]) == 0
    said = capsys.readouterr().out
    assert "preview quickstart" in said and "train quickstart" in said
    found = {line[:14].strip(): line[14:] for line in lines}
    assert len(lines) == 17
    assert found["method"] == "distill by forward_kl" and found[""] == "+ 0.1 × policy_gradient"
    assert found["teacher"] == "ema(ema_decay=0.9); context teacher: reference_solution"
    assert found["rewards"].startswith(
        "tests.runs:length_reward, repetition(weight=0.1); tests.runs:length_reward decides"
    )
    assert found["advantages"] == "group_std"
    assert found["model"] == str(config.parent / "model")
    assert found["data"] == f"file path={config.parent / 'data.jsonl'}"
    assert found["columns"] == "prompt from prompt, answer from answer, solution from solution (of 12 rows)"
    assert found["each step"] == "2 prompts × group of 3 × at most 8 tokens = 48 tokens"
    assert found["learning rate"] == "0.001, constant after 2 steps of warm-up"
    assert found["precision"].startswith("auto: bfloat16 on a CUDA GPU, float32 on the CPU (here ")
    assert found["evaluation"] == "every 2 steps on unseen"
    assert found["memory"] == "each GPU 0.0 GiB, of 80 on 1 h100, by the forecast", "transformers reserves nothing"
    assert found["time"].startswith("under a minute, beside what starting takes, on 1 h100")
    assert "is valid" in lines[-1] and "--full" in lines[-1]


def test_a_model_that_is_elsewhere_has_no_forecast(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONPOLICY_CACHE", str(tmp_path / "empty"))
    for model in ("no-such-organisation/no-such-model", "smollm2-135m", "not a model"):
        said = checked(capsys, config, f"model.path={model}")
        assert said.count("not known before the model is on this machine") == 2, model
    assert not (tmp_path / "empty").exists(), "nothing is converted"


def test_completions_of_the_dataset_are_not_sampled(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["data.completions_column=solution", "objective=[cross_entropy]", "contexts={}", "rewards=[]"]
    said = checked(capsys, config, *own)
    assert "2 prompts with the completion in the column 'solution'" in said
    assert not any(line.startswith(("generator", "teacher", "rewards", "advantages")) for line in said.splitlines())


def test_full_prints_a_config_that_can_be_read_again(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = checked(capsys, config, "steps=7", "--full")
    text, _, valid = said.rpartition("✓")
    assert "is valid" in valid and "each step" not in said
    config.write_text(text)
    assert load_resolved(config).config.steps == 7 and len(yaml.safe_load(text)) > 20


def test_json_stands_alone(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noisy_rewards.py").write_text("print('hello')\n\n\ndef noisy(completion):\n    return 1.0\n")
    found = json.loads(
        checked(capsys, config, "rewards=[noisy_rewards:noisy]", "trainer.max_grad_norm=.inf", "--json"),
        parse_constant=pytest.fail,
    )
    assert found["summary"]["learning rate"] == "0.001, constant"
    assert found["config"]["trainer"]["max_grad_norm"] == ".inf" and found["config"]["steps"] == 3


def refused(capsys: pytest.CaptureFixture[str], command: str, *arguments: str | Path) -> list[str]:
    """The problems that a command prints."""
    capsys.readouterr()
    assert main([command, *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert "resumed" not in printed.out and "run folder" not in printed.out
    lines = printed.err.replace(f"onpolicy {command}: ", "").splitlines()
    return [line.strip().partition(". ")[2] for line in lines[1:]] if "problems:" in lines[0] else lines


@pytest.mark.parametrize("command", ["check", "train"])
def test_what_would_stop_a_run_is_refused_before_anything_is_loaded(
    config: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = config.parent / "nothing.jsonl"
    sets = f"eval.sets={{unseen: {{name: file, path: {config.parent / 'config.yaml'}}}}}"
    mistakes = [f"data.path={missing}", sets, "trainer.lr=-1"]
    mistakes.append("logging.trackers=[jsonl, tests.experiments.test_check:nowhere]")
    assert refused(capsys, command, config, *mistakes) == [
        "trainer.lr: got -1.0, expected 0 or more.",
        f"data: data file '{missing}' does not exist. Did you mean '{config.parent / 'data.jsonl'}'?",
        f"eval.sets.unseen: data file '{config}' ends with '.yaml', expected one of .parquet, .arrow, .jsonl, .jsonl.gz, .json, .json.gz, "
        ".csv, .csv.gz, .tsv, .tsv.gz",
        "logging.trackers[1]: needs the package no_such_package, which is not installed: pip install no-such-package",
    ]


@ready_if(installed("no_such_package", "pip install no-such-package"))
def nowhere(run_dir: Path, resume_at: int) -> Tracker:
    raise AssertionError("not called")


def test_a_folder_named_as_a_package_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases writes a folder ``wandb`` where it runs."""
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotInstalled):
        installed("no_such_package", "")()
    (tmp_path / "no_such_package" / "__init__.py").touch()
    installed("no_such_package", "")()


@pytest.mark.parametrize("command", ["check", "train"])
def test_an_objective_of_zeros_trains_nothing(config: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    zeros = ["objective[0].weight=0", "objective[1].weight=0.0"]
    (said,) = refused(capsys, command, config, *zeros)
    assert said.startswith("objective: every weight is 0")
    checked(capsys, config, zeros[0])


ALONE = ["generator.group_size=1", "objective[0].weight=0"]


@pytest.mark.parametrize(
    ("overrides", "who"),
    [
        ([], "objective[1] (policy_gradient) learns from advantages alone, and those of credit (group_std)"),
        (["objective[0].weight=1"], "objective[1] (policy_gradient)"),
        (["credit=leave_one_out", "objective[1]=gspo"], "objective[1] (gspo) learns from advantages alone"),
        (["credit=group_mean", "objective[1]=cispo"], "credit (group_mean)"),
        (["objective[1].token_weights=positive_advantage"], "objective[1] (policy_gradient)"),
    ],
)
def test_a_rollout_alone_has_no_advantage(
    config: Path, overrides: list[str], who: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (said,) = refused(capsys, "check", config, *ALONE, *overrides)
    assert said.startswith("generator.group_size: got 1, but ") and who in said and "expected at least 2" in said


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective[1]=sampled_kl"],
        ["objective[1]=ref_kl"],
        ["objective[1].advantage=teacher_logratio"],
        ["objective[1].advantage=tail_suppression"],
        ["credit=tests.experiments.test_check:as_they_are"],
        ["objective[1].weight=0", "objective[0].weight=1"],
        ["generator.group_size=2"],
    ],
)
def test_a_rollout_alone_can_be_learned_from_in_other_ways(
    config: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    checked(capsys, config, *ALONE, *overrides)


def as_they_are(rewards: list[float]) -> list[float]:
    """A credit that needs no siblings."""
    return [0.0] * len(rewards) if len(rewards) > 1 and min(rewards) == max(rewards) else list(rewards)


@pytest.mark.parametrize("command", ["check", "train", "preview"])
def test_a_grid_goes_to_sweep(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    (said,) = refused(capsys, command, "lab/decisive")
    assert "this is a grid: onpolicy sweep lab/decisive" in said


def test_a_name_alone_is_a_section(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["teacher=frozen", "credit=group_mean", "trainer=local", "generator=transformers", "data=gym"]
    names.append("rewards=[gym_answer]")
    settings = yaml.safe_load(checked(capsys, config, *names, "--full").rpartition("✓")[0])
    assert settings["teacher"] == {"name": "frozen"} and settings["data"] == {"name": "gym"}
    written = yaml.safe_load(config.read_text()) | {"teacher": "ema", "privileged_rollouts": "reference_solution"}
    written["objective"].append({"name": "cross_entropy", "route": "privileged"})
    config.write_text(yaml.safe_dump(written))
    settings = yaml.safe_load(checked(capsys, config, "teacher.ema_decay=0.5", "--full").rpartition("✓")[0])
    assert settings["teacher"] == {"name": "ema", "ema_decay": 0.5}
    assert settings["privileged_rollouts"] == {"name": "reference_solution"}
    (said,) = refused(capsys, "check", config, "teacher=frosen")
    assert said.startswith("teacher.name: unknown teacher 'frosen'. Did you mean 'frozen'?")


def rows(folder: Path, *given: Mapping[str, object]) -> str:
    """An override with a file of these rows."""
    (path := folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    return f"data.path={path}"


def unnamed(completion: str, tests: str) -> float:
    """A reward that needs a column."""
    return 0.0


def broken(group: object, index: int, rewards: object) -> None:
    """A context of a user's, which nobody calls before a run."""
    raise AssertionError


WHOLE = {"problem": "1 + 1?", "answer": "2", "solution": "1 + 1 = 2", "tests": "-"}
MISSING = {
    "problem": (WHOLE, "data: 1 of 2 rows cannot be read:", "no prompt: expected one of the columns"),
    "answer": (WHOLE, "data: 1 of 2 problems have no reference answer, which 'exact_answer' needs", "on_bad_row=skip"),
    "solution": (WHOLE, "contexts.teacher: prompt 'rows/2' has no 'solution'", "The same holds for 1 of 2 problems."),
    "tests": (
        WHOLE,
        "rewards[1]: 'tests.experiments.test_check:unnamed' takes 'tests', which 1 of 2 problems",
        "'rows/2'",
    ),
}


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize("column", MISSING)
def test_a_column_that_rows_lack(config: Path, command: str, column: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole, *expected = MISSING[column]
    rewards = "rewards=[exact_answer, tests.experiments.test_check:unnamed]"
    checked(capsys, config, rows(config.parent, whole, whole), rewards)
    lacking = {name: value for name, value in whole.items() if name != column}
    said = "\n".join(refused(capsys, command, config, rows(config.parent, whole, lacking), rewards))
    assert all(text in said for text in expected), said


def test_only_the_first_rows_are_read(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that lacks a column after them is found by the run; and where rows may be left out, only if all lack it."""
    lacking = {"problem": "2 + 2?", "solution": "4"}
    late = rows(config.parent, *[WHOLE] * 64, lacking)
    assert "(of the first 64 rows)" in checked(capsys, config, late, "rewards=[exact_answer]")
    early = rows(config.parent, lacking, *[WHOLE] * 64)
    (said,) = refused(capsys, "check", config, early, "rewards=[exact_answer]")
    assert said.startswith("data: 1 of the first 64 problems have no reference answer")
    checked(capsys, config, early, "rewards=[exact_answer]", "data.on_bad_row=skip")
    checked(capsys, config, early, "rewards=[exact_answer]", "data.coverage.problems=8")
    nowhere = rows(config.parent, *[lacking] * 70)
    assert refused(capsys, "check", config, nowhere, "rewards=[exact_answer]", "data.on_bad_row=skip")


def test_sets_are_checked_by_what_grades_them(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = rows(config.parent, WHOLE, {"problem": "2 + 2?"})
    sets = f"eval.sets={{unseen: {{name: file, path: {given.removeprefix('data.path=')}}}}}"
    (said,) = refused(capsys, "check", config, sets, "eval.graders=[exact_answer]")
    assert said.startswith("eval.sets.unseen: 1 of 2 problems have no reference answer, which 'exact_answer' needs")
    checked(capsys, config, sets.replace("name: file", "name: file, problems: 1"), "eval.graders=[exact_answer]")


def test_contexts_of_a_user_are_not_called(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checked(capsys, config, "contexts.teacher=tests.experiments.test_check:broken")
