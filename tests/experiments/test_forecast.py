"""The forecast: published parameter counts, bytes that a real trainer holds, time by hand, ZeRO's divisions, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from onpolicy.cli import main
from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.config.schema import TrainerSettings
from onpolicy.experiments.forecast import host
from onpolicy.experiments.forecast.forecast import (
    DRIVER_SECONDS_A_TOKEN,
    HOST_SECONDS_A_TOKEN,
    Assumptions,
    forecast,
    step_flops,
)
from onpolicy.experiments.forecast.hardware import GIB, GPUS, Gpu, gpu_of
from onpolicy.experiments.forecast.host import checkpoint_bytes, copied_for_a_checkpoint, host_memory
from onpolicy.experiments.forecast.memory import RESERVED
from onpolicy.experiments.forecast.passes import Load
from onpolicy.experiments.forecast.shape import ModelShape, shape_of
from onpolicy.experiments.forecast.trainer_memory import copies_of_the_model, largest, moments_bytes, trainer_bytes
from onpolicy.models import skeleton
from onpolicy.run.assemble import assemble
from onpolicy.run.display import Display
from onpolicy.run.preflight import first_rollouts
from onpolicy.trainer.engine import TorchEngine
from onpolicy.trainer.moments import Moments
from onpolicy.trainer.optimizer import adamw, moment_bytes
from onpolicy.trainer.trainer import PolicyTrainer
from onpolicy.utils.errors import ConfigError
from tests.runs import write_config
from tests.tiny import tiny_model

HOST_RESULT = Path(__file__).parents[2] / "docs/results/benchmarks/host.json"
SHAPES = Path(__file__).parent / "shapes"
LOAD = Load(prompt=20, completion=50)
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


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [("live", "float32"), ("frozen", "float32"), ("ema", "float32"), ("frozen", "bfloat16"), ("ema", "bfloat16")],
)
def test_what_a_trainer_holds(rule: str, dtype: str, tmp_path: Path) -> None:
    """Weights, gradients, moments and the teacher's copy, tensor by tensor, of a checkpoint in this dtype."""
    config = write_config(tmp_path, teacher={"name": rule})
    tiny_model().to(getattr(torch, dtype)).save_pretrained(tmp_path / "model")
    resolved = resolve(load(config, [f"run_dir={tmp_path / 'run'}", "trainer.precision=bfloat16"]))
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
    foreseen = trainer_bytes(resolved, shape_of(str(tmp_path / "model")), LOAD)
    assert {name: foreseen[name] for name in held} == held and foreseen["gradients"] == held["weights"]
    assert foreseen["ZeRO's copy"] == 0.0


def test_zero_divides_what_it_divides(tmp_path: Path) -> None:
    def parts(*overrides: str, ranks: int = 4) -> dict[str, float]:
        own = ["trainer.name=deepspeed", "teacher.name=ema", *overrides]
        found = trainer_bytes(resolve(load(write_config(tmp_path), own)), TINY, replace(LOAD, ranks=ranks))
        return {part: held / 4e6 for part, held in found.items()}

    two, three = parts(), parts("trainer.config=configs/deepspeed/zero3.json")
    names = ("weights", "gradients", "moments", "ZeRO's copy", "teacher and reference model")
    assert [two[n] for n in names] == [1.0, 0.25, 0.5, 0.25, 1.0], "stage 2"
    assert [three[n] for n in names] == [0.25, 0.25, 0.5, 0.25, 0.25], "stage 3"
    offloaded = parts("trainer.config=configs/deepspeed/zero3_offload.json")
    assert [offloaded[n] for n in names] == [0.0, 0.0, 0.0, 0.0, 0.0], "gradients too are where the optimizer is"
    # buckets of half a billion numbers, for float32 and for bfloat16; TINY is whole at once, and its head stays until its gradient is known
    assert [p["buckets of gradients"] * 4e6 for p in (two, three)] == [3e9, 3e9]
    assert parts("trainer.precision=float32")["buckets of gradients"] * 4e6 == 2e9
    assert two["gathered weights"] == 0.0 and three["gathered weights"] * 4e6 == 2 * (1_000_000 + 1000 * 100)


def test_copies_of_the_model(tmp_path: Path) -> None:
    """Those that stay float32, and those that never change."""
    start = "objective=[{name: distill, divergence: forward_kl}, {name: policy_gradient}, {name: ref_kl, weight: 0.1}]"
    for overrides, wanted in (
        (["teacher={name: live}"], (0, 0)), (["teacher={name: frozen}"], (0, 1)), (["teacher={name: frozen}", start], (0, 1)),
        (["teacher={name: ema}"], (1, 0)), (["teacher={name: ema}", start], (1, 1)), (["teacher={name: live}", start], (0, 1)),
        (["teacher={name: trust_region_weights}"], (2, 0)), (["teacher={name: trust_region_logits}"], (0, 1)),
        (["teacher={name: model, path: other}"], (0, 1)), (["teacher={name: model, path: other}", start], (0, 2)),
        (["teacher={name: model, path: other}", "trainer.lora_rank=4"], (0, 1)),
        (["teacher={name: ema}", "trainer.lora_rank=4", start], (1, 0)), (["teacher={name: frozen}", "trainer.lora_rank=4"], (0, 0)),
    ):  # fmt: skip
        assert copies_of_the_model(resolve(load(write_config(tmp_path), overrides))) == wanted, overrides


def test_a_copy_that_never_changes_is_kept_in_bfloat16_where_it_is_by_hand(tmp_path: Path) -> None:
    """900,000 of a million parameters of two bytes each, before ZeRO-3, if the passes are in bfloat16."""
    shape, ref = (
        replace(TINY, rounded=900_000),
        "objective=[{name: distill, divergence: forward_kl}, {name: ref_kl, weight: 0.1}]",
    )
    for overrides, expected in (
        (["teacher={name: frozen}"], 2.2e6), (["teacher={name: frozen}", "trainer.precision=float32"], 4e6),
        (["teacher.name=ema"], 4e6), (["teacher.name=ema", ref], 4e6 + 2.2e6), (["teacher={name: trust_region_weights}"], 8e6),
        (["teacher={name: frozen}", "trainer.name=deepspeed"], 2.2e6),
        (["teacher={name: frozen}", "trainer.name=deepspeed", "trainer.config=configs/deepspeed/zero3.json"], 1e6),
    ):  # fmt: skip
        resolved = resolve(load(write_config(tmp_path), overrides))
        assert trainer_bytes(resolved, shape, replace(LOAD, ranks=4))["teacher and reference model"] == expected, (
            overrides
        )


def test_the_dtype_of_a_checkpoint_decides_what_is_kept_in_bfloat16() -> None:
    qwen, olmo = (shape_of(str(SHAPES / f"{name}.json")) for name in ("qwen3_8b", "olmo3_7b"))
    assert 0.999 < qwen.rounded / qwen.parameters < 1, "all but the norms"
    assert olmo.rounded == 0, "its shape here has no dtype"


def test_states_that_teachers_left_by_hand(tmp_path: Path) -> None:
    """A window of sixteen micro-batches of 10 tokens and one of them joined, or all 300 tokens that there are; 100 numbers of two bytes a
    token, for each who reads a context."""
    ref = "objective=[{name: distill, divergence: forward_kl}, {name: ref_kl, weight: 0.1}]"
    for tokens, length in ((10, 17 * 10), (200, 300 + 200)):
        for overrides, states in (
            ([], 2), (["trainer.precision=float32"], 4), ([ref], 4), (["teacher={name: trust_region_logits}"], 4),
            (["teacher={name: trust_region_logits}", ref], 6),
        ):  # fmt: skip
            own = [f"trainer.micro_batch_tokens={tokens}", *overrides]
            found = trainer_bytes(resolve(load(write_config(tmp_path), own)), TINY, LOAD)["states that teachers left"]
            assert found == length * 100 * states, (tokens, overrides)


def test_what_is_most_is_what_counts() -> None:
    one = {"states": 2.0, "activations": 5.0, "learning": 9.0, "scoring": 8.0, "update": 10.0}
    assert largest(**one) == {"states that teachers left": 2.0, "activations": 5.0, "temporaries of a pass": 4.0}
    assert largest(**one | {"scoring": 9.5}) == {
        "states that teachers left": 2.0,
        "temporaries of a teacher's pass": 9.5,
    }
    assert largest(**one | {"update": 12.0}) == {"temporaries of the optimizer": 12.0}


def test_moments_by_hand(tmp_path: Path) -> None:
    """Two numbers of four bytes; of a byte each with two scales of four bytes for 256, but for what is no matrix; on the host."""
    shape = replace(TINY, matrices=768_000)
    resolved = resolve(load(write_config(tmp_path), []))
    assert moments_bytes(resolved, shape, 1e6) == (8e6, 0.0)
    for kept, expected in (("8bit", (768_000 * 2 + 3000 * 8 + 232_000 * 8.0, 0.0)), ("host", (0.0, 8e6))):
        plugin = replace(resolved.trainer.plugin, options={**resolved.trainer.plugin.options, "moments": kept})
        chosen = replace(resolved, trainer=replace(resolved.trainer, plugin=plugin))
        assert moments_bytes(chosen, shape, 1e6) == expected


def test_what_the_host_and_the_disk_hold_by_hand(tmp_path: Path) -> None:
    """A million parameters, a copy that is moved by the student, vLLM beside the trainer."""
    own = ["generator={name: vllm, max_tokens: 100}", "checkpoint={every: 1, keep_last: 3}", "steps=100"]
    resolved = resolve(load(write_config(tmp_path), own))
    held = host_memory(resolved, TINY, replace(LOAD, ranks=4), here=2)
    assert {part: gib * GIB for part, gib in held["while it loads"].items()} == {"weights in float32": 4e6}
    training = {part: gib * GIB for part, gib in held["while it trains"].items() if gib}
    assert training == {
        "engine asleep": pytest.approx(2 * 2e6),
        "to write a checkpoint": pytest.approx(2e6 + 2 * GIB),
    }
    # the model for the engine, the weights, two moments and the teacher
    size, number = checkpoint_bytes(resolved, TINY, LOAD)
    assert size == 2e6 + 4e6 + 8e6 + 4e6 and number == 4
    assert copied_for_a_checkpoint(resolved, TINY, LOAD) * GIB == 4e6 + 8e6 + 4e6
    assert copied_for_a_checkpoint(resolved, TINY, replace(LOAD, ranks=2)) == 0.0, "ranks wait"
    best = resolve(load(write_config(tmp_path), [*own, "checkpoint.best_metric=reward/mean", "teacher={name: frozen}"]))
    assert checkpoint_bytes(best, TINY, LOAD) == (2e6 + 4e6 + 8e6, 5)
    last = resolve(load(write_config(tmp_path), ["checkpoint.every=0"]))
    assert checkpoint_bytes(last, TINY, LOAD)[1] == 1
    zero = resolve(
        load(
            write_config(tmp_path),
            ["trainer.name=deepspeed", "trainer.config=configs/deepspeed/zero3_offload.json", "teacher={name: live}"],
        )
    )
    for here, share in ((None, 1.0), (2, 0.5)):
        offloaded = host_memory(zero, TINY, replace(LOAD, ranks=4), here=here)["while it trains"]["offloaded by ZeRO"]
        assert offloaded * GIB == pytest.approx((4e6 + 16e6) * share)


def test_a_container_has_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = host.this_host()
    (tmp_path / "memory.max").write_text("1073741824\n")
    monkeypatch.setattr(host, "CGROUP_LIMITS", (tmp_path / "no", tmp_path / "memory.max"))
    assert host.this_host() == 1.0
    (tmp_path / "memory.max").write_text("max\n")
    assert host.this_host() >= whole


def test_time_on_the_host_is_as_committed() -> None:
    found = {line["what"]: line["ratio"][0] / 1e6 for line in json.loads(HOST_RESULT.read_text())["lines"]}
    alone, driver = (
        next(took for what, took in found.items() if part in what) for part in ("annotation, prose", "driver, prose")
    )
    assert pytest.approx(alone, rel=0.1) == HOST_SECONDS_A_TOKEN
    assert pytest.approx(driver, rel=0.1) == DRIVER_SECONDS_A_TOKEN


def test_time_on_the_host_by_who_annotates(tmp_path: Path) -> None:
    """A small step is the driver's; the groups of ranks come at once, and eight processes read them while the GPUs wait."""
    large = "generator={name: vllm, group_size: 8, max_tokens: 8000}"

    def of_a_token(ranks: int, *overrides: str) -> float:
        resolved = resolve(
            load(write_config(tmp_path), ["data.prompts_per_step=64", "eval.every=0", large, *overrides])
        )
        found = forecast(resolved, TINY, Assumptions("h100", completion_tokens=1000, ranks=ranks))
        return found.seconds["grade and annotate"] / (64 * 8 * 1000)

    assert of_a_token(1) == pytest.approx(DRIVER_SECONDS_A_TOKEN)
    assert of_a_token(8) == pytest.approx(DRIVER_SECONDS_A_TOKEN + HOST_SECONDS_A_TOKEN / 8)
    assert of_a_token(8, "distributed.num_annotation_workers=0") == pytest.approx(HOST_SECONDS_A_TOKEN)
    assert of_a_token(1, "data.prompts_per_step=1", "generator.max_tokens=100") * 64 == pytest.approx(
        HOST_SECONDS_A_TOKEN
    )


def test_time_by_hand(tmp_path: Path) -> None:
    resolved = resolve(
        load(
            write_config(tmp_path),
            ["generator={name: vllm, group_size: 3, max_tokens: 100}", "eval.every=0", "steps=36"],
        )
    )
    assumed = Assumptions("h100", utilisation=0.5, bandwidth=0.25, prompt_tokens=20, completion_tokens=50)
    # two problems, three answers: 300 tokens and two prompts, in sequences of 70; the teacher reads as much again
    plain = 340 * (2e6 + 2 * 10 * 100 * 70)
    flops = step_flops(resolved, TINY, assumed, 6, 50.0)
    assert flops == {"score": pytest.approx(640 * (2e6 + 2000 * 120)), "learn": pytest.approx(4 * plain)}, "recomputed"
    found = forecast(resolved, TINY, assumed)
    assert found.seconds["grade and annotate"] == pytest.approx(300 * HOST_SECONDS_A_TOKEN)
    assert found.seconds["learn"] == pytest.approx(4 * plain / (989e12 * 0.5))
    # all six at a time: 2 MB of weights, and keys and values of 45 tokens, 2000 bytes each, once for each of 50 tokens
    assert found.seconds["sample"] == pytest.approx(50 * (2e6 + 6 * 45 * 2000) / (3.35e12 * 0.25))
    assert found.hours == pytest.approx(36 * sum(found.seconds.values()) / 3600) and found.evaluation_hours == 0.0
    training, sampling = found.memory["each GPU, training"], found.memory["each GPU, sampling"]
    assert sampling[RESERVED] == pytest.approx(0.4 * 80 - 2e6 / GIB) and RESERVED not in training, "the engine sleeps"
    assert "gradients" in training and "gradients" not in sampling and sampling["moments"] == training["moments"]


def test_evaluations_by_hand(tmp_path: Path) -> None:
    """Two sets with a number, and one of which the config says nothing, before the first and after every third of six steps."""
    sets = "eval.sets={a: {name: file, path: x, problems: 20}, b: {name: file, path: x, coverage: {problems: 8}}, c: {name: file, path: x}}"
    own = [
        sets,
        "eval.every=3",
        "steps=6",
        "eval.samples_per_problem=2",
        "eval.pass_at=[]",
        "generator.max_tokens=100",
        "eval.max_tokens=null",
    ]
    resolved = resolve(load(write_config(tmp_path), own))
    assumed = Assumptions(
        "h100", utilisation=0.5, bandwidth=0.25, prompt_tokens=20, completion_tokens=50, eval_problems=100
    )
    found = forecast(resolved, TINY, assumed)
    assert "3 evaluations of 128 problems, 2 answers of 50 tokens each" in found.notes
    # four times 64 answers at a time: 2 MB of weights, and keys and values of 45 tokens, 2000 bytes each, for each of 50 tokens
    assert found.evaluation_hours * 3600 == pytest.approx(3 * 4 * 50 * (2e6 + 64 * 45 * 2000) / (3.35e12 * 0.25))


def test_any_gpu() -> None:
    assert gpu_of("24GiB,165TFLOP/s,1.01TB/s") == gpu_of("24gib, 165tflop/s, 1.01tb/s") == Gpu(165e12, 1.01e12, 24)
    for wrong in ("24GiB", "24GiB,0TFLOP/s,1TB/s", "x"):
        with pytest.raises(ConfigError, match="expected one of a100, h100"):
            gpu_of(wrong)


def test_an_engine_that_samples_meanwhile_does_not_sleep(tmp_path: Path) -> None:
    own = ["generator={name: vllm, max_tokens: 100, max_staleness: 1}"]
    held = forecast(resolve(load(write_config(tmp_path), own)), TINY, Assumptions()).memory
    assert list(held) == ["each GPU"] and {"gradients", RESERVED} <= set(held["each GPU"])


def test_a_generator_without_a_share_of_the_gpu_holds_what_its_batch_needs(tmp_path: Path) -> None:
    own = ["generator={name: transformers, max_tokens: 100, batch_size: 4}"]
    assumed = Assumptions("h100", prompt_tokens=20, completion_tokens=50)
    held = forecast(resolve(load(write_config(tmp_path), own)), TINY, assumed).memory["each GPU"]
    assert RESERVED not in held and held["engine: weights"] * GIB == 4e6, "float32"
    assert held["keys and values of a batch"] * GIB == 4 * 70 * 2 * 2000, "four sequences of 70 tokens, in float32"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["configs/paper/math.yaml", "--model-config", str(SHAPES / "qwen3_8b.json"), "--completion-tokens", "10000"]
    assert main(["forecast", *own, "--gpu", "b200", "--output", str(tmp_path / "out.json")]) == 0
    said = capsys.readouterr().out
    assert "8.19 billion parameters, 8 GPUs of kind b200" in said and "of 180" in said and "assumed: b200" in said
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["memory"]) == {"a trainer's GPU", "a generator's GPU"} and found["hours"] > 1
    capsys.readouterr()
    tight = ["trainer.config=null", "distributed.num_trainers=1"]
    assert main(["forecast", *own, *tight, "--gpu", "h100"]) == 1, "one GPU does not hold it"
    assert "does not fit: a trainer's GPU would hold" in capsys.readouterr().out
    assert main(["forecast", *own, "generator.gpu_memory_utilization=0.18"]) == 1, "no room for keys and values"
    assert "generator.gpu_memory_utilization: of its share" in " ".join(capsys.readouterr().out.split())
    assert main(["forecast", *own, "--gpu", "h10"]) == 2
    assert f"expected one of {', '.join(GPUS)}, or memory, dense" in capsys.readouterr().err
    assert main(["forecast", *own[:2], "data.path=x", "--model-config", str(tmp_path / "no.json")]) == 2
    assert "--model-config: got" in capsys.readouterr().err
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "nothing"}')
    assert main(["forecast", *own[:1], f"model.path={tmp_path / 'odd'}", "data.path=x"]) == 2
    assert "has no usable config" in capsys.readouterr().err


@pytest.mark.parametrize("kept", ["float32", "8bit"])
def test_moments_are_those_that_the_optimizer_will_have(tmp_path: Path, kept: Moments) -> None:
    """Of Qwen3-8B, without its weights; what is too small for 8 bits does not count in the forecast."""
    folder = tmp_path / "qwen"
    folder.mkdir()
    (folder / "config.json").write_text((SHAPES / "qwen3_8b.json").read_text())
    model, shape = skeleton(str(folder)), shape_of(str(folder))
    own = moment_bytes(model, adamw(model, TrainerSettings(), torch.device("cpu"), kept))
    resolved = resolve(load(write_config(tmp_path, trainer={"moments": kept})))
    assert moments_bytes(resolved, shape, shape.parameters)[0] == pytest.approx(own, rel=1e-3)
