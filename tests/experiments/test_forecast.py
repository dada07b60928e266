"""The forecast: published parameter counts, bytes that a real trainer holds, time by hand, ZeRO's divisions, the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onpolicy.cli import main
from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.experiments.forecast.forecast import (
    GIB,
    GPUS,
    Assumptions,
    ModelShape,
    forecast,
    frozen_copies,
    shape_of,
    step_flops,
    trainer_bytes,
)
from onpolicy.run.assemble import assemble
from onpolicy.run.display import Display
from onpolicy.run.preflight import first_rollouts
from onpolicy.trainer.engine import TorchEngine
from onpolicy.trainer.trainer import PolicyTrainer
from tests.runs import write_config

SHAPES = Path(__file__).parent / "shapes"
TINY = ModelShape(parameters=1_000_000, layers=10, hidden=100, width=100, kv_width=50, vocabulary=1000)


@pytest.mark.parametrize(
    ("name", "billions", "kv_bytes"),
    [
        ("qwen3_8b", 8.19, 36 * 8 * 128 * 4),
        ("qwen3_1.7b", 1.72, 28 * 8 * 128 * 4),
        ("r1_distill_7b", 7.62, 28 * 4 * 128 * 4),
        ("olmo3_7b", 7.30, 32 * 32 * 128 * 4),
    ],
)
def test_shapes_of_the_papers_models(name: str, billions: float, kv_bytes: float) -> None:
    shape = shape_of(str(SHAPES / f"{name}.json"))
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=0.006) and shape.kv_bytes(1) == kv_bytes


def test_layers_with_a_window() -> None:
    olmo = shape_of(str(SHAPES / "olmo3_7b.json"))
    assert (olmo.windowed, olmo.window) == (24, 4096), "three of four layers"
    assert shape_of(str(SHAPES / "qwen3_8b.json")).windowed == 0
    shape = ModelShape(parameters=0, layers=3, hidden=10, width=10, kv_width=5, vocabulary=7, windowed=2, window=4)
    assert shape.kv_bytes(10) == 4 * 5 * (10 + 2 * 4) and shape.kv_bytes(3) == 4 * 5 * 9
    # of 8 tokens each attends to 4 on average; within a window of 4, to (0 + 1 + 2 + 3 + 4 x 4) / 8 ~ 3 (as an integral)
    assert shape.flops(8, 8) == 8 * 4 * 10 * (4 + 2 * 3.0)


@pytest.mark.parametrize("rule", ["live", "frozen", "ema"])
def test_what_a_trainer_holds(rule: str, tmp_path: Path) -> None:
    """Weights, gradients, moments and the teacher's copy, tensor by tensor."""
    resolved = resolve(load(write_config(tmp_path, teacher={"name": rule}), [f"run_dir={tmp_path / 'run'}"]))
    run = assemble(resolved, tmp_path / "run", Display(1))
    try:
        trainer = run.trainer.apply(lambda itself: itself)
        assert isinstance(trainer, PolicyTrainer) and isinstance(trainer.engine, TorchEngine)
        trainer.step(first_rollouts(run, resolved))
        state = trainer.engine.optimizer.state.values()
        held = {
            "weights": sum(p.nbytes for p in trainer.student.parameters()),
            "moments": sum(s["exp_avg"].nbytes + s["exp_avg_sq"].nbytes for s in state),
            "teacher and reference model": sum(
                p.nbytes
                for r in trainer.teacher_scorer.readers
                if r.model is not trainer.student
                for p in r.model.parameters()
            ),
        }
    finally:
        run.close()
    foreseen = trainer_bytes(resolved, shape_of(str(tmp_path / "model")), 1)
    assert {name: foreseen[name] for name in held} == held and foreseen["gradients"] == held["weights"]
    assert foreseen["ZeRO's copy"] == 0.0


def test_zero_divides_what_it_divides(tmp_path: Path) -> None:
    def parts(*overrides: str, ranks: int = 4) -> dict[str, float]:
        own = ["trainer.name=deepspeed", "teacher.name=ema", *overrides]
        return {k: v / 4e6 for k, v in trainer_bytes(resolve(load(write_config(tmp_path), own)), TINY, ranks).items()}

    two, three = parts(), parts("trainer.config=configs/deepspeed/zero3.json")
    names = ("weights", "gradients", "moments", "ZeRO's copy", "teacher and reference model")
    assert [two[n] for n in names] == [1.0, 0.25, 0.5, 0.25, 1.0], "stage 2"
    assert [three[n] for n in names] == [0.25, 0.25, 0.5, 0.25, 0.25], "stage 3"
    offloaded = parts("trainer.config=configs/deepspeed/zero3_offload.json")
    assert [offloaded[n] for n in names] == [0.0, 0.25, 0.0, 0.0, 0.0]


def test_frozen_copies_the_student(tmp_path: Path) -> None:
    start = "objective=[{name: distill, divergence: forward_kl}, {name: policy_gradient}, {name: ref_kl, weight: 0.1}]"
    for overrides, wanted in (
        (["teacher={name: live}"], 0), (["teacher={name: frozen}"], 1), (["teacher={name: frozen}", start], 1),
        (["teacher={name: ema}", start], 2), (["teacher={name: live}", start], 1),
        (["teacher={name: model, path: other}"], 1), (["teacher={name: model, path: other}", "trainer.lora_rank=4"], 1),
        (["teacher={name: frozen}", "trainer.lora_rank=4"], 0),
    ):  # fmt: skip
        assert frozen_copies(resolve(load(write_config(tmp_path), overrides))) == wanted, overrides


def test_logits_of_a_chunk_by_hand(tmp_path: Path) -> None:
    """2,048 tokens of a micro-batch on a GPU, 1,000 entries each in float32, for the student, a teacher and the reference model."""
    ref = "objective=[{name: distill, divergence: forward_kl}, {name: ref_kl, weight: 0.1}]"
    for tokens, overrides, numbers in ((8192, [], 2 * 2048e3), (8192, [ref], 3 * 2048e3), (200, [], 2 * 200e3)):
        own = [f"trainer.micro_batch_tokens={tokens}", *overrides]
        assert trainer_bytes(resolve(load(write_config(tmp_path), own)), TINY, 1)["logits of a chunk"] == 4 * numbers


def test_time_by_hand(tmp_path: Path) -> None:
    resolved = resolve(load(write_config(tmp_path), ["generator.max_tokens=100", "eval.every=0", "steps=36"]))
    assumed = Assumptions("h100", utilisation=0.5, bandwidth=0.25, prompt_tokens=20, completion_tokens=50)
    # two problems, three answers: 300 tokens and two prompts, in sequences of 70; the teacher reads as much again
    plain = 340 * (2e6 + 2 * 10 * 100 * 70)
    flops = step_flops(resolved, TINY, assumed, 6, 50.0)
    assert flops == {"score": pytest.approx(640 * (2e6 + 2000 * 120)), "learn": pytest.approx(4 * plain)}, "recomputed"
    found = forecast(resolved, TINY, assumed)
    assert found.seconds["learn"] == pytest.approx(4 * plain / (989e12 * 0.5))
    # all six at a time: 2 MB of weights, and keys and values of 45 tokens, 2000 bytes each, once for each of 50 tokens
    assert found.seconds["sample"] == pytest.approx(50 * (2e6 + 6 * 45 * 2000) / (3.35e12 * 0.25))
    assert found.hours == pytest.approx(36 * sum(found.seconds.values()) / 3600) and found.evaluation_hours == 0.0
    assert found.memory["each"]["engine: keys and values"] == pytest.approx(0.4 * 80 - 2e6 / GIB)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["configs/paper/math.yaml", "--model-config", str(SHAPES / "qwen3_8b.json"), "--completion-tokens", "10000"]
    assert main(["forecast", *own, "--gpu", "b200", "--output", str(tmp_path / "out.json")]) == 0
    said = capsys.readouterr().out
    assert "8.19 billion parameters, 8 GPUs of kind b200" in said and "of 180" in said and "assumed: b200" in said
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["memory"]) == {"a trainer's", "a generator's"} and found["hours"] > 1
    capsys.readouterr()
    tight = ["trainer.config=null", "distributed.num_trainers=1"]
    assert main(["forecast", *own, *tight, "--gpu", "h100"]) == 1, "one GPU does not hold it"
    assert "does not fit: a trainer's GPU would hold" in capsys.readouterr().out
    assert main(["forecast", *own, "generator.gpu_memory_utilization=0.18"]) == 1, "no room for keys and values"
    assert "generator.gpu_memory_utilization: of its share" in " ".join(capsys.readouterr().out.split())
    assert main(["forecast", *own, "--gpu", "h10"]) == 2
    assert f"expected one of {', '.join(GPUS)}. Did you mean 'h100'?" in capsys.readouterr().err
    assert main(["forecast", *own[:2], "data.path=x", "--model-config", str(tmp_path / "no.json")]) == 2
    assert "--model-config: got" in capsys.readouterr().err
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "nothing"}')
    assert main(["forecast", *own[:1], f"model.path={tmp_path / 'odd'}", "data.path=x"]) == 2
    assert "has no usable config" in capsys.readouterr().err
