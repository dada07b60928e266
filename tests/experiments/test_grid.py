"""What the arms of a grid may differ in.

1. beneath the axes, and nothing else; 2. without axes in one section, the same for all arms; 3. what is told is allowed and said;
4. what a run keeps, and where and how fast it runs, never counts; nor does a default that one arm spells out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onpolicy.config.resolve import load_resolved
from onpolicy.experiments.sweep.grid import Cell, cells, confounds, read_grid, refuse_doubles
from onpolicy.run.checkpoint import Checkpoints
from onpolicy.run.run_dir import prepare_folder, write_choices
from onpolicy.trainer.forward_settings import ForwardReport, ForwardSettings
from onpolicy.utils.errors import ConfigError
from tests.experiments.test_sweep import grid
from tests.runs import save, state_alone

SLOW = {"trainer.lr": 1e-6}
HALF = {"objective[1].weight": 0.5}


def arms(folder: Path, other: dict[str, Any], **changes: Any) -> Path:
    return grid(folder, **{"arms": {"plain": {}, "other": other}, "axes": [], "confounds": [], "seeds": [0], **changes})


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as found:
        list(cells(path, path.parent / "out"))
    return str(found.value)


def test_what_lies_under_no_axis_is_refused(tmp_path: Path) -> None:
    said = refusal(arms(tmp_path, SLOW | HALF, axes=["objective"]))
    assert "arm 'other': trainer.lr: 1e-06 differs from 0.001 in arm 'plain'" in said
    assert "under no axis (axes: objective)" in said and "axes if" in said and "confounds if" in said
    assert len(list(cells(arms(tmp_path, SLOW | HALF, axes=["objective", "trainer.lr"]), tmp_path))) == 2
    assert "weight_decay: 0.1 differs from 0.0" in refusal(
        arms(tmp_path, {"trainer.weight_decay": 0.1}, axes=["trainer.lr"])
    )
    many = {
        "teacher": {"name": "live"},
        "eval.samples_per_problem": 3,
        "eval.temperature": 0.5,
        "guards": [],
        "steps": 3,
    }
    said = refusal(arms(tmp_path, many | SLOW, axes=["objective", "guards"]))
    assert "teacher.name: live differs from ema in arm 'plain'" in said
    assert "So do teacher.ema_decay, trainer.lr, eval.samples_per_problem and 2 more." in said


def test_every_cross_is_looked_at(tmp_path: Path) -> None:
    factors = {"few": {"data.coverage.problems": 2}, "all": {}}
    assert len(list(cells(arms(tmp_path, SLOW, factors=factors), tmp_path))) == 4, "a factor is the same for all arms"
    said = refusal(arms(tmp_path, {"data.coverage.problems": 2}, factors=factors, axes=["objective"]))
    assert "arm 'other' x 'all': data.coverage.problems: 2 differs from null" in said


def test_without_axes_one_section_may_differ(tmp_path: Path) -> None:
    assert len(list(cells(arms(tmp_path, SLOW | {"trainer.weight_decay": 0.1}), tmp_path))) == 2
    said = refusal(arms(tmp_path, HALF | SLOW))
    assert "without axes arms may differ in one section only" in said
    third = {"plain": {}, "slow": SLOW, "half": HALF}
    said = refusal(arms(tmp_path, {}, arms=third))
    assert "arm 'half': objective[1].weight: 0.5 differs from 0.1" in said
    assert "arm 'slow' differs in trainer.lr" in said and "here trainer" in said
    assert len(list(cells(arms(tmp_path, {}, arms=third, confounds=["trainer"]), tmp_path))) == 3


def test_what_is_told_is_said(tmp_path: Path) -> None:
    path = arms(tmp_path, SLOW | HALF, axes=["objective"], confounds=["trainer.lr", "eval"], seeds=[0, 1])
    (found,) = confounds(path, read_grid(path), list(cells(path, tmp_path)))
    assert (found.arm, found.key, found.value, found.reference) == ("other", "trainer.lr", "1e-06", "0.001")


def test_what_never_counts(tmp_path: Path) -> None:
    apart = {
        "checkpoint.keep_last": 5,
        "logging.samples": 7,
        "trainer.micro_batch_tokens": 50,
        "preflight.enabled": False,
    }
    spelled = {
        "trainer.weight_decay": 0.0,
        "data.shuffle": True,
        "objective[0].weight": 1.0,
        "rewards[0].when": "always",
        "data.coverage": {"seed": 0},
        "objective[0].importance_cap": None,  # options of plug-ins, too
        "objective[0].divergence": "onpolicy.losses.divergences:forward_kl",
        "objective[0].support": {"name": "full"},
        "credit": {"name": "group_std"},
        "contexts.teacher.name": "onpolicy.annotation.contexts.reference_solution:reference_solution",
    }
    assert len(list(cells(arms(tmp_path, {**apart, **spelled, **HALF}, axes=["objective"]), tmp_path))) == 2


def test_one_run_under_two_names(tmp_path: Path) -> None:
    path = arms(tmp_path, SLOW)
    found = list(cells(path, tmp_path, ["trainer.lr=0.5"]))
    with pytest.raises(
        ConfigError, match=r"runs 'plain seed 0' and 'other seed 0' have the same settings. .*\(trainer.lr=0.5\)"
    ):
        refuse_doubles(found, ["trainer.lr=0.5"])
    refuse_doubles(found[:1], ["trainer.lr=0.5"])  # of one nobody else is left
    refuse_doubles(list(cells(arms(tmp_path, SLOW, seeds=[0, 1]), tmp_path)), [])


def test_what_every_run_has_for_itself(tmp_path: Path) -> None:
    assert "arms.other: seed: every run of a sweep has its own" in refusal(arms(tmp_path, {"seed": 3}))
    assert "factors.far: run_dir:" in refusal(arms(tmp_path, SLOW, factors={"far": {"run_dir": "x"}}))
    with pytest.raises(ConfigError, match="the command line: seed: "):
        list(cells(arms(tmp_path, SLOW), tmp_path, ["seed=7"]))


def test_every_character_arrives(tmp_path: Path) -> None:
    text = "{question} \U0001f914 \u2028 \x85 \ufeff {solution} 'a' \"b\" # c: d"
    _, other = cells(arms(tmp_path, {"contexts.teacher.template": text}), tmp_path)
    assert other.settings.contexts["teacher"]["template"] == text


@pytest.mark.parametrize("name", ["sw #2", "it's", "'quoted'", "a: b", "{x}", "010", "20261129_173000", " x "])
def test_every_run_is_below_the_folder_that_was_named(tmp_path: Path, name: str) -> None:
    found = list(cells(arms(tmp_path, HALF), tmp_path / name))
    assert [c.settings.run_dir for c in found] == [str(tmp_path / name / arm / "seed-0") for arm in ("plain", "other")]


def test_text_without_quotes_arrives_in_an_arm(tmp_path: Path) -> None:
    path = arms(tmp_path, HALF, axes=["model.revision", "objective", "rewards"])
    odd = "model.revision: 0123456\n    objective[1].weight: 5e-1\n    rewards: [{name: brevity, budget: 0x10}]"
    path.write_text(path.read_text().replace("objective[1].weight: 0.5", odd))
    _, other = cells(path, tmp_path)
    assert other.settings.model.revision == "0123456"
    assert other.settings.objective[1]["weight"] == 0.5 and other.settings.rewards == [
        {"name": "brevity", "budget": 16}
    ]


@pytest.mark.parametrize(
    ("key", "message"),
    [("objectives", "got 'objectives'"), ("lr", "got 'lr', expected the beginning of a config's key"), ("", "got ''")],
)
def test_an_axis_that_no_config_has(tmp_path: Path, key: str, message: str) -> None:
    for where in ("axes", "confounds"):
        said = refusal(arms(tmp_path, HALF, **{where: [key]}))
        assert f"{where}: {message}" in said
    assert "Did you mean 'objective'?" in refusal(arms(tmp_path, HALF, axes=["objectives[0]"]))


def test_a_run_that_has_gone_farther(tmp_path: Path) -> None:
    path = arms(tmp_path, HALF)
    longer, _ = cells(path, tmp_path / "out")
    checkpoint = longer.folder / "checkpoints/step-000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text('{"step": 3, "score": null, "files": {}}')
    with pytest.raises(ConfigError, match=r"steps: .* holds a run of 3 steps, the grid wants 2. Give steps=3"):
        longer.finished()
    checkpoint.rename(checkpoint.with_name("step-000002"))
    (longer.folder / "checkpoints/step-000002/manifest.json").write_text('{"step": 2, "score": null, "files": {}}')
    assert longer.finished()
    (longer.folder / "metrics.jsonl").write_text(
        '{"step": 1}\n{"step": 4}\n'
    )  # it was cut off before it was saved again
    with pytest.raises(ConfigError, match=r"holds a run of 4 steps, the grid wants 2. Give steps=4"):
        longer.finished()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_whose_precision_the_device_chose_is_finished(tmp_path: Path, device: str) -> None:
    """The folder is written as a run writes it, without training."""
    plain, other = cells(arms(tmp_path, SLOW), tmp_path / "out")
    resolved = load_resolved(plain.config, plain.overrides)
    prepare_folder(plain.folder, resolved)
    save(Checkpoints(plain.folder / "checkpoints", keep_last=1, best=None), 2, state_alone(), {})
    chosen_there = ForwardSettings().on(torch.device(device))
    write_choices(plain.folder, resolved, ForwardReport((device,), chosen_there, chosen_there))
    assert chosen_there.precision in (plain.folder / "config.yaml").read_text()
    assert plain.finished() and not other.finished()
    assert "trainer.lr: 0.001 there, 1e-06 here" in refused(replace(other, folder=plain.folder))


def refused(cell: Cell) -> str:
    with pytest.raises(ConfigError) as found:
        cell.finished()
    return str(found.value)
