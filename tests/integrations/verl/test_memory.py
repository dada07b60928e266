"""Memory on verl, from configs alone: 1. each setting moves the parts that it is about; 2. `verl check` says it, or why it cannot; 3. the
numbers of docs/verl.md are what the committed command gives. Its shards beside real ones: ``test_against_local.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import verl  # noqa: F401 first, as it imports the rig and our plug-in in its own order

from onpolicy.cli import main
from onpolicy.experiments.forecast.hardware import GIB
from onpolicy.experiments.forecast.shape import shape_of
from onpolicy.integrations.verl.command import compose
from onpolicy.integrations.verl.memory import HOST, SAMPLING, SCORING, TRAINING, Models, models_at_hand, verl_memory
from onpolicy.integrations.verl.settings import method
from tests.integrations.verl.runs import ROOT, write_data
from tests.test_docs import script

pytestmark = pytest.mark.verl

SHAPES = ROOT / "tests" / "experiments" / "shapes"
TEACHER, STATES, HEAD = "teacher and reference model", "states that teachers left", "the teacher's head"
RESULTS = ROOT / "docs" / "results" / "verl_memory.json"


def memory(*overrides: str, other: str | None = None) -> Mapping[str, Mapping[str, float]]:
    """Of Qwen3-1.7B with configs/verl/sdpo.yaml on eight GPUs."""
    given = [
        "data.train_files=x",
        "data.val_files=x",
        "actor_rollout_ref.model.path=some/model",
        "trainer.n_gpus_per_node=8",
    ]
    config = compose(ROOT / "configs" / "verl" / "sdpo.yaml", [*given, *overrides])
    shapes = [shape_of(str(SHAPES / f"{name}.json")) for name in ("qwen3_1.7b", other) if name]
    return verl_memory(config, method(config), Models(*shapes))


def teacher(section: str) -> list[str]:
    """In the place of the config's."""
    return ["~onpolicy.teacher", f"+onpolicy.teacher={section}"]


FROZEN, LIVE, EMA = (teacher(section) for section in ("{name: frozen}", "{name: live}", "{name: ema, ema_decay: 0.9}"))


def test_engines_are_shared_by_all_ranks() -> None:
    numbers = shape_of(str(SHAPES / "qwen3_1.7b.json")).parameters
    held = memory("trainer.nnodes=2")[TRAINING]
    each = 4 * numbers / 16 / GIB
    assert [held[part] / each for part in ("weights", "gradients", "moments", TEACHER)] == pytest.approx([1, 1, 2, 1])
    assert (
        memory("trainer.nnodes=2", "actor_rollout_ref.actor.fsdp_config.fsdp_size=8")[TRAINING]["weights"] == 2 * each
    )


def test_a_teacher_with_the_students_weights_costs_its_states() -> None:
    live, ema = memory(*LIVE)[TRAINING], memory(*EMA)[TRAINING]
    assert live[TEACHER] == live[HEAD] == 0 and live[STATES] == ema[STATES] > 0 and ema[TEACHER] > 0
    both = memory(*teacher("{name: trust_region_logits, student_share: 0.1}"))[TRAINING]
    assert both[STATES] == 2 * live[STATES], "it is read twice"


def test_a_frozen_teacher_may_be_small_or_elsewhere() -> None:
    ref = "actor_rollout_ref.ref.fsdp_config"
    full, half = memory(*FROZEN), memory(*FROZEN, f"{ref}.model_dtype=bf16")
    away = memory(*FROZEN, f"{ref}.param_offload=true")
    assert half[TRAINING][TEACHER] == full[TRAINING][TEACHER] / 2
    assert away[TRAINING][TEACHER] == away[SAMPLING][TEACHER] == 0 and away[HOST][TEACHER] == full[TRAINING][TEACHER]


def test_another_model_has_its_own_size() -> None:
    held = memory(*teacher("{name: model, path: other/model}"), other="qwen3_8b")[TRAINING]
    large = shape_of(str(SHAPES / "qwen3_8b.json"))
    assert held[TEACHER] == pytest.approx(4 * large.parameters / 8 / GIB)
    assert held[HEAD] == pytest.approx(2 * large.vocabulary * large.hidden / GIB)


def test_models_are_found_by_their_paths(tmp_path: Path) -> None:
    """Another model beside the student counts; on verl's teacher servers it is elsewhere."""
    for name in ("qwen3_1.7b", "qwen3_8b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text((SHAPES / f"{name}.json").read_text())
    given = ["data.train_files=x", "data.val_files=x", f"actor_rollout_ref.model.path={tmp_path / 'qwen3_1.7b'}"]
    for name, beside in (("opd", True), ("opd_served", False)):
        path = ROOT / "configs" / "verl" / f"{name}.yaml"
        config = compose(path, [*given, f"onpolicy.teacher.path={tmp_path / 'qwen3_8b'}"])
        found = models_at_hand(config, method(config))
        assert found.student.layers == 28 and (found.other is not None) == beside
        assert found.copied.layers == (36 if beside else 28)


def test_what_is_offloaded_is_back_for_an_update() -> None:
    actor = "actor_rollout_ref.actor.fsdp_config"
    stays, goes = memory(), memory(f"{actor}.param_offload=true", f"{actor}.optimizer_offload=true")
    assert goes[TRAINING] == stays[TRAINING]
    assert stays[SAMPLING]["moments"] > goes[SAMPLING]["moments"] == goes[SAMPLING]["weights"] == 0
    assert goes[HOST]["moments, while it samples"] == stays[SAMPLING]["moments"]
    away = memory(f"{actor}.offload_policy=true")
    assert away[TRAINING]["moments"] == away[TRAINING]["gradients"] == 0 < away[HOST]["gradients"]


def test_adapters_have_gradients_and_moments_alone() -> None:
    held, whole = (memory(*FROZEN, f"actor_rollout_ref.model.lora_rank={rank}") for rank in (16, 0))
    assert held[TRAINING][TEACHER] == 0, "without its adapters the student is the start model"
    assert held[TRAINING]["moments"] < 0.05 * whole[TRAINING]["moments"]
    assert held[TRAINING]["weights"] > whole[TRAINING]["weights"]


def test_activations_follow_the_budget_and_recomputation() -> None:
    model = "actor_rollout_ref.model.enable_gradient_checkpointing"
    budget = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
    short, long = (memory(f"{budget}={tokens}")[TRAINING]["activations"] for tokens in (8192, 16384))
    assert long == pytest.approx(2 * short, rel=0.05)
    assert memory(f"{model}=false", f"{budget}=8192")[TRAINING]["activations"] > 5 * short


def test_four_ranks_share_a_batch_and_keep_the_states_of_all_of_it() -> None:
    budget = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192"
    alone, shared = (
        memory(budget)[TRAINING],
        memory(budget, "actor_rollout_ref.actor.ulysses_sequence_parallel_size=4")[TRAINING],
    )
    assert shared["activations"] == pytest.approx(alone["activations"], rel=0.1)
    assert shared[STATES] > 3.5 * alone[STATES]


def test_verls_pass_for_old_log_probabilities_counts_where_it_is_made() -> None:
    one, fused = (
        "actor_rollout_ref.actor.ppo_mini_batch_size=${data.train_batch_size}",
        "actor_rollout_ref.model.use_fused_kernels=true",
    )
    two = ["data.train_batch_size=64", "actor_rollout_ref.actor.ppo_mini_batch_size=32"]
    assert SCORING not in memory(one) and SCORING not in memory(*two, fused)
    tokens = "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=10000"
    assert memory(*two, tokens)[SCORING]["logits"] == pytest.approx(2 * 10_000 * 151_936 / GIB)


@pytest.fixture
def checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    data = write_data(tmp_path / "data.parquet")

    def run(model: str, *overrides: str) -> dict[str, Any]:
        words = [
            f"data.train_files={data}",
            f"data.val_files={data}",
            f"actor_rollout_ref.model.path={model}",
            *overrides,
        ]
        assert main(["verl", "check", str(ROOT / "configs" / "verl" / "sdpo.yaml"), *words, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def test_check_says_it_with_the_models_config_alone(checked: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((SHAPES / "qwen3_1.7b.json").read_text())
    found = checked(str(tmp_path), "trainer.n_gpus_per_node=8")
    assert found["memory"] == memory()
    told = found["summary"]["memory"]
    assert f"{TRAINING} {sum(memory()[TRAINING].values()):.3g} GiB" in told
    assert "vllm takes 50% of each GPU while it samples, and gives it back for training" in told
    there = checked(str(tmp_path), "actor_rollout_ref.rollout.free_cache_engine=false")["summary"]["memory"]
    assert "at all times (rollout.free_cache_engine=false)" in there


def test_check_says_why_it_cannot(checked: Any) -> None:
    found = checked("some/model")
    assert found["memory"] is None
    assert found["summary"]["memory"].startswith("not estimated: the config of 'some/model' is not on this machine")


def test_the_committed_numbers_are_current() -> None:
    assert json.loads(RESULTS.read_text()) == json.loads(json.dumps(script("verl_memory").found()))


def test_the_table_of_the_page_has_the_committed_numbers() -> None:
    cases = json.loads(RESULTS.read_text()).values()
    columns = [side for case in cases for side in (case["with logits"], case["memory"][TRAINING])]
    parts = dict.fromkeys(part for column in columns[::-1] for part in column)
    expected = [[part, *(f"{c[part]:.1f}" if part in c else "" for c in columns)] for part in parts]
    expected.append(["training, total", *(f"{sum(c.values()):.1f}" for c in columns)])
    for name, when in (("sampling, beside vLLM's share", SAMPLING), ("verl's pass for old log-probabilities", SCORING)):
        expected.append([name, *(text for case in cases for text in 2 * [f"{sum(case['memory'][when].values()):.1f}"])])
    page = (ROOT / "docs" / "verl.md").read_text()
    (table,) = re.findall(r"^\| GiB of a GPU .*\n\|[- |]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()] == expected
