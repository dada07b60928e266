"""Level 4: verl's own entry point, unmodified, from sampling to validation and checkpoint; half a minute each, one after the other.

1. a moving teacher on two ranks, with GRPO beside the distillation, a bonus for doubt and validation, started by ``onpolicy verl
train``, that is told to stop, saves, and goes on with the same teacher; 2. the student as its own teacher, a floor under the markers'
probability, in verl's asynchronous trainer; 3. a frozen teacher with verl's reward function and advantages; 4. a served teacher;
5. verl without us; 6. another model as the teacher, under Ulysses; 7. another model that is served, under our loss. All but 1 are nightly.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from tests.integrations.verl.runs import ROOT, logged, main_ppo, run, smallest, told_to_stop, words, write_data
from tests.tiny import tiny_model_dir

pytestmark = [pytest.mark.verl, pytest.mark.ray]

REWARD = (
    "def score(data_source, solution_str, ground_truth, extra_info=None):\n    return (len(solution_str) % 7) / 7\n"
)
LETTERS = """
def share_of_letters(data_source, solution_str, ground_truth, extra_info=None, **named):
    return sum(c.isalpha() for c in solution_str) / max(1, len(solution_str))
"""


def write(folder: Path, onpolicy: dict[str, Any], **more: Any) -> Path:
    """A config file of a user's, next to nothing but our base."""
    search = ["pkg://onpolicy.integrations.verl.config", "pkg://verl.trainer.config"]
    path = folder / "method.yaml"
    config = {"defaults": ["onpolicy_ppo", "_self_"], "hydra": {"searchpath": search}, "onpolicy": onpolicy, **more}
    path.write_text(yaml.safe_dump(config))
    return path


def finite(rows: list[dict[str, Any]], name: str) -> list[float]:
    values = [float(row[name]) for row in rows if row["step"]]
    assert values and all(value == value and abs(value) < 1e6 for value in values), (name, values)
    return values


def teacher(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The shards of two ranks put together."""
    parts = [
        load_file(folder / f"checkpoints/global_step_{step}/actor/onpolicy_world_size_2_rank_{rank}.safetensors")
        for rank in range(2)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def student(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoints/global_step_{step}/actor/huggingface/model.safetensors")


def test_a_moving_teacher_on_two_ranks_is_told_to_stop_and_goes_on(tmp_path: Path) -> None:
    """It would not save of its own accord, nor resume; what it says goes on with the same teacher."""
    method = {
        "rewards": ["tests.runs:length_reward", {"name": "density", "weight": 0.1}],
        "contexts": {"teacher": {"name": "reference_solution"}},
        "teacher": {"name": "ema", "ema_decay": 0.9},
        "objective": [
            {
                "name": "distill",
                "divergence": {"name": "jsd", "beta": 0.5},
                "support": {"name": "student_topk", "k": 20},
            },
            {"name": "policy_gradient", "weight": {"name": "linear", "initial": 0.2, "final": 0.1, "end": 10}},
        ],
    }
    write_data(tmp_path / "data.parquet", task="What is the sum? " * 10)
    overrides = smallest(tmp_path, ranks=2) | {
        "trainer.val_before_train": True,
        "trainer.test_freq": 1,
        "trainer.total_training_steps": 500,
        "trainer.total_epochs": 500,
        "actor_rollout_ref.actor.checkpoint.save_contents": "[model,optimizer,extra,hf_model]",
    }
    onpolicy = [sys.executable, "-m", "onpolicy"]
    command = ["verl", "train", str(write(tmp_path, method)), *words(overrides, tmp_path)]
    status, said = told_to_stop([*onpolicy, *command], tmp_path, lines=2)  # the first is validation
    assert status == 130, said[-8000:]
    rows = logged(tmp_path)
    last = rows[-1]["step"]
    assert [row["step"] for row in rows] == list(range(last + 1)) and last < 500
    assert "onpolicy: the driver reads texts" not in said, "workers have read them"
    assert "val-aux/sums/density/mean@1" in rows[0] and "val-core/sums/reward/mean@1" in rows[1]
    for name in ("reward/tests.runs:length_reward", "reward/density", "distill/divergence", "policy_gradient/loss",
                 "epistemic/self_doubt/rate_per_1k", "policy/entropy", "teacher/teacher/gap", "context/teacher/share"):  # fmt: skip
        finite(rows, name)
    for reader in ("student", "teacher"):
        assert min(finite(rows, f"{reader}/tokens_saved")) > 0.4, "two rows of each prompt, on one rank"
    assert "each row reads its own prompt" not in said
    assert max(finite(rows, "rollout/logprob_gap")) < 1e-4, "the weights reach the rollout servers"
    assert "actor/entropy" not in rows[-1], "one update needs no pass for old log-probabilities"
    weights = [row["schedule/objective[1].weight"] for row in rows[1:]]
    assert weights == pytest.approx([0.2 - 0.01 * step for step in range(1, last + 1)])
    assert min(finite(rows, "actor/grad_norm")) > 0
    assert "stopping after this step, with a checkpoint; again to stop at once" in said.splitlines()
    assert (tmp_path / "checkpoints/latest_checkpointed_iteration.txt").read_text() == str(last)
    assert (tmp_path / f"checkpoints/global_step_{last}/onpolicy.json").is_file()
    assert not (tmp_path / "checkpoints/stop").exists(), "it would stop the next one"
    again = shlex.split(said.splitlines()[-1].partition("to go on: ")[2])
    kept = [word for word in command if word != "trainer.resume_mode=disable"]
    assert again[-len(kept) - 1 :] == [*kept, "trainer.resume_mode=auto"]

    (tmp_path / "metrics.jsonl").unlink()
    shorter = [word.replace("steps=500", f"steps={last + 1}") for word in again[-len(kept) - 1 :]]
    run([*onpolicy, *shorter, "trainer.save_freq=1"], tmp_path)
    assert [row["step"] for row in logged(tmp_path) if "actor/loss" in row] == [last + 1]
    before, after, learned = teacher(tmp_path, last), teacher(tmp_path, last + 1), student(tmp_path, last + 1)
    for name, value in after.items():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * learned[name].float(), atol=1e-6, rtol=0)
    shard = tmp_path / f"checkpoints/global_step_{last + 1}/actor/onpolicy_world_size_2_rank_0.safetensors"
    with safe_open(shard, "pt") as file:
        assert json.loads(file.metadata()["onpolicy"])["steps"] == last + 1


@pytest.mark.nightly
def test_a_live_teacher_with_a_floor_under_the_markers(tmp_path: Path) -> None:
    """Under verl's asynchronous trainer with the same mixin, where rollouts go on under new weights."""
    method = {
        "custom_lexicons": {"toy": ["w", "h", "m"]},
        "rewards": [
            "tests.runs:length_reward",
            {"name": "saturating_floor", "floor": 5.0, "lexicon": "toy", "weight": 0.1},
        ],
        "contexts": {"teacher": {"name": "reference_solution"}},
        "teacher": {"name": "live"},
        "objective": [
            "policy_gradient",
            {"name": "distill", "divergence": "forward_kl", "target": {"name": "marker_mass_floor", "lexicon": "toy"}},
        ],
        "epistemic": {"lexicons": ["toy"], "lexicon": "toy"},
    }
    config = write(tmp_path, method, trainer={"v1": {"trainer_mode": "onpolicy_colocate_async"}})
    rows = main_ppo(smallest(tmp_path), tmp_path, config=config)
    assert [row["step"] for row in rows] == [1, 2]
    for name in ("reward/saturating_floor", "distill/divergence", "epistemic/toy/mass/student", "epistemic/toy/mass/teacher",
                 "epistemic/toy/mass/ref", "epistemic/toy/rate_per_1k"):  # fmt: skip
        finite(rows, name)
    assert rows[-1]["critic/score/mean"] == pytest.approx(rows[-1]["reward/mean"], abs=1e-6), (
        "verl sees the weighed rewards"
    )


@pytest.mark.nightly
def test_another_model_teaches_two_ranks_that_share_each_batch(tmp_path: Path) -> None:
    """OPD with a wider teacher, under Ulysses."""
    tiny_model_dir(tmp_path / "teacher", "llama", seed=3, width=96)
    overrides = smallest(tmp_path, ranks=2) | {
        "onpolicy.teacher.path": str(tmp_path / "teacher"),
        "actor_rollout_ref.actor.ulysses_sequence_parallel_size": 2,
        "+actor_rollout_ref.model.override_config.attn_implementation": "flash_attention_2",
    }
    rows = main_ppo(overrides, tmp_path, config=ROOT / "configs" / "verl" / "opd.yaml")
    assert [row["step"] for row in rows] == [1, 2]
    assert min(map(abs, finite(rows, "teacher/teacher/gap"))) > 0.1, "the two models have nothing to do with each other"
    assert max(finite(rows, "rollout/logprob_gap")) < 1e-4
    assert min(finite(rows, "actor/grad_norm")) > 0


@pytest.mark.nightly
def test_a_served_teacher_of_another_size_under_our_loss(tmp_path: Path) -> None:
    """It says the sampled token and the likely ones: two requests for each trajectory."""
    tiny_model_dir(tmp_path / "teacher", "llama", seed=3, width=96)
    overrides = smallest(tmp_path) | {
        "onpolicy.teacher.path": str(tmp_path / "teacher"),
        "onpolicy.objective": "[teacher_advantage,{name:distill,divergence:forward_kl,support:{name:teacher_topk,k:8}}]",
        "distillation.distillation_loss.loss_mode": "forward_kl_topk",
        "distillation.distillation_loss.topk": 8,
        "distillation.teacher_models.teacher_model.inference.name": "vllm",
        "distillation.teacher_models.teacher_model.inference.prompt_length": 256,
        "distillation.teacher_models.teacher_model.inference.max_model_len": 512,
        "+ray_kwargs.ray_init.num_gpus": 2,
    }
    rows = main_ppo(overrides, tmp_path, config=ROOT / "configs" / "verl" / "opd_served.yaml")
    assert [row["step"] for row in rows] == [1, 2]
    assert min(map(abs, finite(rows, "teacher/teacher/gap"))) > 0.1 and min(finite(rows, "distill/divergence")) > 0.1
    assert "teacher/teacher/entropy" not in rows[-1], "nobody knows it"
    assert min(finite(rows, "actor/grad_norm")) > 0


@pytest.mark.nightly
def test_a_frozen_teacher_with_verls_reward_and_advantages(tmp_path: Path) -> None:
    """Started by our command; rows that verl makes up to fill the mini-batch teach nothing."""
    (tmp_path / "reward.py").write_text(REWARD)
    method = {
        "contexts": {"teacher": {"name": "reference_solution"}},
        "teacher": {"name": "frozen"},
        "objective": ["policy_gradient", {"name": "distill", "divergence": "forward_kl", "route": "failures"}],
    }
    overrides = smallest(tmp_path) | {
        "reward.reward_manager.name": "naive",
        "reward.custom_reward_function.path": str(tmp_path / "reward.py"),
        "reward.custom_reward_function.name": "score",
        "algorithm.adv_estimator": "grpo",
        "data.train_batch_size": 3,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 2,
    }
    config = write(tmp_path, method)
    rows = main_ppo(overrides, tmp_path, command=("-m", "onpolicy", "verl", "train", str(config)))
    assert finite(rows, "reward/score") and max(finite(rows, "rollout/tokens")) <= 3 * 2 * 8
    assert all(0.0 < share <= 1.0 for share in finite(rows, "route/distill"))


@pytest.mark.nightly
def test_a_served_teacher(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    overrides = smallest(tmp_path) | {
        "reward.custom_reward_function.path": str(tmp_path / "reward.py"),
        "reward.custom_reward_function.name": "score",
        "+ray_kwargs.ray_init.num_gpus": 2,
        "distillation.teacher_models.teacher_model.inference.name": "transformers",
    }
    rows = main_ppo(overrides, tmp_path, config=ROOT / "configs" / "verl" / "served_teacher.yaml")
    assert len(rows) == 2
    finite(rows, "actor/grad_norm")
    assert min(finite(rows, "actor/distillation/loss")) > 0, "the solution tells the teacher something"


@pytest.mark.nightly
def test_stock_main_ppo(tmp_path: Path) -> None:
    """Rollouts, rewards, update, weights to the server and validation, by verl alone: our plug-in is installed and not named."""
    reward = tmp_path / "reward.py"
    reward.write_text(LETTERS)
    mine = {
        "algorithm.adv_estimator": "grpo",
        "reward.custom_reward_function.path": str(reward),
        "reward.custom_reward_function.name": "share_of_letters",
        "trainer.val_before_train": True,
        "trainer.test_freq": 1,
    }
    steps = main_ppo(smallest(tmp_path) | mine, tmp_path)
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert all("val-core/sums/acc/mean@1" in step for step in steps)
    for step in steps[1:]:
        assert math.isfinite(step["actor/loss"]) and step["actor/grad_norm"] > 0
        assert step["training/rollout_probs_diff_max"] < 1e-4
    assert not [name for name in steps[-1] if name.startswith(("distill/", "epistemic/"))]
    assert not left_over(tmp_path)


@pytest.mark.nightly
def test_stock_teacher_pool(tmp_path: Path) -> None:
    """Two ranks that learn from verl's served teacher: it is the student's first checkpoint, so there is nothing to learn at first."""
    overrides = smallest(tmp_path, ranks=2)
    teacher = "distillation.teacher_models.teacher_model"
    mine = {
        "algorithm.adv_estimator": "grpo",
        "distillation.enabled": True,
        "distillation.n_gpus_per_node": 1,
        "distillation.nnodes": 1,
        "distillation.distillation_loss.loss_mode": "forward_kl_topk",
        "distillation.distillation_loss.topk": 16,
        f"{teacher}.model_path": overrides["actor_rollout_ref.model.path"],
        f"{teacher}.num_replicas": 1,
        f"{teacher}.inference.name": "vllm",
        f"{teacher}.inference.tensor_model_parallel_size": 1,
        f"{teacher}.inference.max_model_len": 512,
        "+ray_kwargs.ray_init.num_gpus": 3,
    }
    reward = tmp_path / "reward.py"
    reward.write_text(LETTERS)
    mine |= {
        "reward.custom_reward_function.path": str(reward),
        "reward.custom_reward_function.name": "share_of_letters",
    }
    first, second = main_ppo(overrides | mine, tmp_path)
    assert abs(first["actor/distillation/loss"]) < 1e-6 < second["actor/distillation/loss"]
    assert second["training/rollout_probs_diff_max"] < 1e-4


def left_over(folder: Path) -> list[str]:
    """Processes of the run in the folder, which all have inherited where it logs."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("VERL_FILE_LOGGER_PATH", "").startswith(str(folder)):
                found.append(process.name())
    return found
