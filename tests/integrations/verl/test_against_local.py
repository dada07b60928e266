"""Level 3: verl's FSDP2 engine with our loss and the embedded trainer agree, on one rank and on two.

1. loss and gradient of SDPO, OPSD, the sampled token, a mixture, and terms that need the whole update read first, packed and
padded, whatever rows verl made up; 2. a teacher that reads the student's prompt teaches nothing; 3. five steps under every rule of the
teacher, which survives a checkpoint; 4. metrics are the same numbers; 5. a head of its own, an adapted head, bfloat16; 6. the bytes of
logits that are alive at a time; 7. prompts that rows share are read once, and change nothing.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import verl  # noqa: F401 first, as it imports the rig and our plug-in in its own order
from omegaconf import OmegaConf

from onpolicy.integrations.verl.memory import engine_bytes
from tests.runs import on_ranks

pytestmark = pytest.mark.verl


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("verl")
    done = on_ranks(request.param, "tests.integrations.verl.against_local", str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    results = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    return results | {"ranks": {"ranks": request.param}}


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("method", ["sdpo", "opsd", "sampled", "mixed", "survey"])
def test_loss_and_gradient_are_the_embedded_trainers(found: dict[str, Any], method: str, layout: str) -> None:
    gradients = found["gradients"]
    assert gradients[f"{method}/size"] > 1e-2
    assert gradients[f"{method}/{layout}"] < 1e-6


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("method", ["sdpo", "opsd", "sampled", "mixed", "survey"])
def test_a_prompt_that_rows_share_is_read_once_with_the_same_gradient(
    found: dict[str, Any], method: str, layout: str
) -> None:
    shared = found["shared"]
    assert shared[f"{method}/size"] > 1e-3
    assert shared[f"{method}/{layout}"] < 1e-6
    assert shared[f"{method}/metrics"] < 1e-5
    assert shared[f"{method}/student"] > 0.4 and shared[f"{method}/teacher"] > 0.15


@pytest.mark.parametrize("case", ["recomputed", "fails", "differs"])
def test_sharing_with_recomputation_and_models_that_cannot_share(found: dict[str, Any], case: str) -> None:
    assert found["shared_variants"][case] < 1e-6


def test_a_teacher_that_moves_reads_shared_prompts(found: dict[str, Any]) -> None:
    assert found["shared_variants"]["steps"] < 1e-4


@pytest.mark.parametrize("case", ["identical", "adapters"])
def test_with_shared_prompts_the_students_own_prompt_teaches_nothing(found: dict[str, Any], case: str) -> None:
    variants = found["shared_variants"]
    assert variants[case] == 0.0 and variants[f"{case}/gradient"] < 1e-7
    assert variants[f"{case}/saved"] > 0.2


def test_a_rank_without_rollouts_takes_part(found: dict[str, Any]) -> None:
    assert max(found["alone"].values()) < 1e-6


def test_the_students_own_prompt_teaches_nothing(found: dict[str, Any]) -> None:
    """Exactly 0, but for the last bits of JSD's mixture and of a softmax less itself."""
    identical = found["identical"]
    assert identical["sampled/loss"] == identical["sampled"] == identical["opsd/loss"] == 0.0
    assert identical["sdpo/loss"] < 1e-8
    assert max(identical["sdpo"], identical["opsd"]) < 1e-7


@pytest.mark.parametrize("rule", ["live", "frozen", "ema", "snapshot", "trust_region"])
def test_five_steps_lead_to_the_same_weights(found: dict[str, Any], rule: str) -> None:
    assert found["steps"][rule] < 1e-4, "Adam divides what rounding leaves of small gradients by their size"


@pytest.mark.parametrize("rule", ["ema", "snapshot"])
def test_a_teacher_that_moves_follows_and_comes_back(found: dict[str, Any], rule: str) -> None:
    steps = found["steps"]
    assert steps[f"{rule}/was_moved"] > 1e-3
    assert steps[f"{rule}/teacher"] < 1e-4
    assert steps[f"{rule}/resumed"] == 0.0 and steps[f"{rule}/state"] == 0.0


@pytest.mark.parametrize("method", ["sdpo", "survey"])
def test_an_update_without_a_token_moves_nothing(found: dict[str, Any], method: str) -> None:
    assert found["special"][f"{method}/moved"] == 0.0 and found["special"][f"{method}/silent"] < 1e-4


def test_a_reference_engine_whose_layers_stay_whole_follows_too(found: dict[str, Any]) -> None:
    assert found["special"]["kept"] < 1e-5


@pytest.mark.parametrize("where", ["layers", "head"])
def test_without_its_adapters_the_student_is_the_start_model(found: dict[str, Any], where: str) -> None:
    adapters = found["adapters"]
    assert adapters[f"live/{where}/start"] == adapters[f"frozen/{where}/start"] == 0.0
    assert adapters[f"live/{where}"] < 1e-7
    assert adapters[f"frozen/{where}"] > 1e-5


@pytest.mark.parametrize("method", ["mixed", "sdpo"])
def test_a_head_that_is_sharded_apart_from_the_model_gets_its_gradient(found: dict[str, Any], method: str) -> None:
    assert found["untied"][f"{method}/head"] > 1e-3
    assert found["untied"][method] < 1e-6


@pytest.mark.parametrize("method", ["sdpo", "opsd", "sampled"])
def test_another_model_teaches_as_in_the_embedded_trainer(found: dict[str, Any], method: str) -> None:
    assert found["other"][method] < 1e-6


@pytest.mark.parametrize("layout", ["True", "False"], ids=["packed", "padded"])
@pytest.mark.parametrize("method", ["sampled", "top"])
def test_a_served_teacher_teaches_as_one_in_memory(found: dict[str, Any], method: str, layout: str) -> None:
    assert found["served"][f"{method}/{layout}"] < 1e-6


def test_bfloat16(found: dict[str, Any]) -> None:
    assert found["rounded"]["identical"] == 0.0
    assert found["rounded"]["cosine"] > 0.999


@pytest.mark.parametrize("method", ["sdpo", "opsd", "sampled", "mixed", "survey"])
def test_ranks_that_share_each_batch_make_the_gradient_of_one(found: dict[str, Any], method: str) -> None:
    """verl's Ulysses; with one rank there is nothing to share."""
    ulysses, ranks = found["ulysses"], found["ranks"]["ranks"]
    assert ulysses[f"{method}/heads"] == 2 / ranks, "no all-to-all gave each rank its share of the heads"
    assert ulysses[method] < 1e-6
    assert ulysses[f"{method}/metrics"] < 1e-5


def test_a_teacher_that_moves_under_ulysses(found: dict[str, Any]) -> None:
    assert found["ulysses"]["steps"] < 1e-4


def test_a_head_that_is_not_understood_is_refused(found: dict[str, Any]) -> None:
    assert found["heads"] == {"granite": 1.0, "hyperclovax": 0.0}


def test_beside_fused_kernels(found: dict[str, Any]) -> None:
    assert found["fused"]["distance"] < 1e-6


def test_no_more_logits_are_alive_with_more_tokens(found: dict[str, Any]) -> None:
    """Those of one chunk of the student, the teacher and the reference model, with what is computed from them."""
    shares = found["logits"]
    assert shares["1000"] * 1000 == pytest.approx(shares["500"] * 500)


def test_metrics_are_the_embedded_trainers(found: dict[str, Any]) -> None:
    assert found["metrics"]["distance"] < 1e-5


def test_shards_have_the_bytes_of_the_estimate(found: dict[str, Any]) -> None:
    """In float32: weights, gradients, two moments and a reference engine over all ranks, and the whole head of a tied model."""
    held, config = found["shards"], OmegaConf.create({"model_dtype": "fp32", "fsdp_size": -1})
    each = engine_bytes(held["parameters"], config, found["ranks"]["ranks"])
    assert [held[part] / each for part in ("weights", "gradients", "moments", "reference")] == [1.0, 1.0, 2.0, 1.0]
    assert held["head"] == 264 * 64 * 4
