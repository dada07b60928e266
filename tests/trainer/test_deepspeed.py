"""DeepSpeed, real, on gloo, against the local trainer on the same rollouts; two ranks and one (nightly), ZeRO 0 to 3.

1. gradient and EMA agree to 1e-6, metrics and the loss over ten steps to rounding; 2. so do several updates a step, clipping,
untied weights, a trust region, adapters, terms that read the whole update, offload, and teachers that read in windows; 3. a
gradient that is not finite on one rank is skipped on all, one of exactly 0 moves nothing, a rank without rollouts computes
along; 4. a state goes over to any other stage and number of ranks, and to the local trainer;
5. a DeepSpeed config that contradicts ours is refused by key; 6. in bfloat16, under the flag that a GPU shows DeepSpeed,
student and teachers run in it, ranks exchange fewer bytes, and weights and teacher are written, changed, saved and resumed to the
last bit; a frozen teacher is kept in it before ZeRO-3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onpolicy.trainer.deepspeed import persistent_size, read_config
from onpolicy.utils.errors import ConfigError
from tests.runs import on_ranks

ROOT = Path(__file__).parents[2]
STAGES = (0, 1, 2, 3)
RANKS = [pytest.param(2, id="two_ranks"), pytest.param(1, id="one_rank", marks=pytest.mark.nightly)]


@pytest.fixture(scope="module", params=RANKS)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What all stages found in all cases, from one start of the ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    done = on_ranks(
        request.param, "tests.ranks.against_local", str(folder), "0,1,2,3", "equal,rules,windowed,faults,resumed"
    )
    assert done.returncode == 0, done.stderr[-4000:]
    read = {file.stem: json.loads(file.read_text()) for file in folder.glob("*-?.json") if "stage" not in file.stem}
    return {"ranks": request.param, **read}


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", STAGES)
def test_gradient_teacher_and_curve_are_those_of_the_local_trainer(found: dict[str, Any], stage: int) -> None:
    one = found[f"equal-{stage}"]
    assert one["gradient_by_10"] < 1e-7, "the first moment is a tenth of the gradient"
    assert one["ema"] < 1e-6 and one["ema_later"] < 1e-5
    assert one["metrics"] < 1e-6 and one["curve"] < 1e-5 and one["weights"] < 1e-5


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", STAGES)
def test_the_same_with_other_rules_updates_adapters_and_offload(found: dict[str, Any], stage: int) -> None:
    one = found[f"rules-{stage}"]
    adapters = {"adapters", "adapter_on_head", "adapter_on_tied", "adapters_on_experts"}
    expected = {"updates", "trust_region", "surveyed", "moving", "adapters_alone"} | adapters
    assert set(one) == expected | ({"offload"} if stage >= 2 else set())
    assert max(one.values()) < 1e-4


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", STAGES)
def test_the_same_with_teachers_that_read_in_windows(found: dict[str, Any], stage: int) -> None:
    one = dict(found[f"windowed-{stage}"])
    windows = one.pop("windows")
    assert max(windows) > 3 and len(set(windows)) == len(windows), "on one rank more than on the other"
    assert one.pop("surveyed") < 1e-4
    assert set(one) == {"live", "ema", "two_readers", "adapters"} and max(one.values()) < 1e-5


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_not_finite_or_nothing_moves_nothing(found: dict[str, Any], stage: int) -> None:
    one = found[f"faults-{stage}"]
    assert (one["skipped"], one["moved_by_nan"], one["empty"], one["moved_by_nothing"]) == (1.0, 0.0, 1.0, 0.0)
    assert one["after_nan"] < 1e-5 and one["single"] < 1e-5


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", STAGES)
def test_a_state_goes_over_to_any_other_stage(found: dict[str, Any], stage: int) -> None:
    one = dict(found[f"resumed-{stage}"])
    assert one.pop("files") == found["ranks"], "each rank has written its own"
    assert set(one) == {"to_0", "to_2", "to_3", "from_8bit"} and max(one.values()) < 1e-5


@pytest.fixture(scope="module", params=RANKS)
def in_bfloat16(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[int, Any]]:
    """The number of ranks, and by stage what they found."""
    folder = tmp_path_factory.mktemp("bfloat16")
    done = on_ranks(request.param, "tests.ranks.in_bfloat16", str(folder), "0,2,3")
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param, {stage: json.loads((folder / f"bfloat16-{stage}.json").read_text()) for stage in (0, 2, 3)}


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bfloat16_over_weights_in_float32(in_bfloat16: tuple[int, dict[int, Any]], stage: int) -> None:
    ranks, found = in_bfloat16[0], in_bfloat16[1][stage]
    assert found["dtypes"] == ["bfloat16"] * 3, "student, teacher, reference model"
    assert [found[name] for name in ("read", "undone", "resumed", "next", "zero")] == [0.0] * 5, "to the last bit"
    kept = "float32" if stage == 3 else "bfloat16"  # ZeRO-3 holds shards in float32
    assert found["frozen"] == [kept] and found["frozen_zero"] == 0.0
    assert found["head"] < 1e-5, "of the model's logits, whatever a forward pass rounds"
    assert found["changed"] > 0.1 and found["moved"] > 1e-4
    assert found["metrics"] < 1e-3 and found["gradient"] < 0.02, (
        "the local trainer's, to the rounding of what is reduced"
    )
    exchanged, before = found["bytes"], found["float32"]
    assert "torch.bfloat16" not in before
    if ranks > 1 and stage > 0:
        assert exchanged["torch.bfloat16"] > 0.25 * sum(exchanged.values())
        assert 0.6 < sum(exchanged.values()) / sum(before.values()) < 0.85, "all but embeddings and norms at half"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "does not exist"),
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ('{"gradient_clipping": 1}', "sets 'gradient_clipping', which is set by trainer.max_grad_norm"),
        ('{"bf16": {"enabled": true}}', "trainer.precision"),
        ('{"zero_optimization": {"stage": 5}}', "stage 5, expected 0, 1, 2 or 3"),
        ('{"zero_optimization": 3}', "zero_optimization"),
    ],
)
def test_a_config_of_deepspeed_is_checked(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "ds.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"trainer\.config") as caught:
        read_config(str(path))
    assert expected in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.deepspeed
@pytest.mark.parametrize(
    ("zero", "size"),
    [
        ({"stage": 3}, 100_000),
        ({"stage": 3, "stage3_param_persistence_threshold": "auto"}, 100_000),
        ({"stage": 3, "stage3_param_persistence_threshold": 7}, 7),
        ({"stage": 3, "param_persistence_threshold": 7}, 7),
        ({"stage": 3, "stage3_param_persistence_threshold": 1e3}, 1000),
        ({"stage": 2, "stage3_param_persistence_threshold": 7}, 0),
    ],
)
def test_which_parameters_stay_gathered_is_read_as_deepspeed_reads_it(zero: dict[str, Any], size: int) -> None:
    assert persistent_size(zero) == size


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "deepspeed").glob("*.json")), ids=lambda p: p.stem)
def test_the_configs_that_ship_are_read(path: Path) -> None:
    assert read_config(str(path))["zero_optimization"]["stage"] in (2, 3)
