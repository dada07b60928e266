"""Level 2: the section ``onpolicy`` of a verl config, without Ray and without a model.

1. every config of ours composes, and so do the embedded trainer's methods; 2. what cannot work is refused with its key; 3. names
are in verl's registries.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import verl  # noqa: F401 first, as it imports the rig and our plug-in in its own order
import yaml
from omegaconf import OmegaConf, open_dict

from onpolicy.integrations.verl.command import check, compose
from onpolicy.integrations.verl.names import READING, SECTION
from onpolicy.integrations.verl.refusals import needs_reference
from onpolicy.integrations.verl.settings import OURS, method, prepare, served, unpack_config
from onpolicy.utils.errors import ConfigError
from tests.config.test_other_names import rows as keys_of_the_page
from tests.integrations.verl.runs import ROOT, write_data

pytestmark = pytest.mark.verl

OURS_ON_VERL = sorted((ROOT / "configs" / "verl").glob("*.yaml"))
EMBEDDED = sorted((ROOT / "configs").glob("*.yaml"))
ROLLOUTS_ELSEWHERE = [
    "data.train_batch_size=32",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=4",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
]
"""What verl's separate trainer wants."""
REASONS = ("asks the model", "third copy", "needs reference model", "samples failed groups again")
"""Why a method of the embedded trainer may not go over."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a user has to say in any case."""
    data = write_data(tmp_path_factory.mktemp("data") / "data.parquet")
    return [f"data.train_files={data}", f"data.val_files={data}", "actor_rollout_ref.model.path=some/model"]


def composed(given: list[str], *overrides: str) -> Any:
    return compose(ROOT / "configs" / "verl" / "sdpo.yaml", [*given, *overrides])


@pytest.mark.parametrize("path", OURS_ON_VERL, ids=lambda p: p.stem)
def test_every_config_is_accepted_by_verl_and_by_us(path: Path, given: list[str]) -> None:
    # verl looks for vLLM as soon as there are adapters, and there is none here
    adapters = ["actor_rollout_ref.model.lora_rank=0"] if "lora_rank" in path.read_text() else []
    teacher = ["onpolicy.teacher.path=another/model"] if 'name: model, path: "???"' in path.read_text() else []
    config = check(path, [*given, *adapters, *teacher])
    assert config.actor_rollout_ref.actor.strategy == "fsdp2"


def test_the_papers_runs_have_its_settings() -> None:
    """Models, sizes and rates of arXiv 2603.24472's math runs."""
    for name, model in (
        ("qwen3_8b", "Qwen/Qwen3-8B"),
        ("qwen3_1.7b", "Qwen/Qwen3-1.7B"),
        ("r1_distill_7b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
        ("olmo3_7b", "allenai/Olmo-3-7B-Instruct"),
    ):
        for algorithm, lr in (("sdpo", 1e-5), ("grpo", 1e-6)):
            config = compose(
                ROOT / "configs" / "verl" / f"{algorithm}_{name}.yaml", ["data.train_files=x", "data.val_files=y"]
            )
            actor = config.actor_rollout_ref
            assert (actor.model.path, actor.actor.optim.lr, actor.rollout.n) == (model, lr, 8)
            assert (config.data.train_batch_size, actor.actor.ppo_mini_batch_size) == (256, 128)
            assert (config.data.max_prompt_length, config.data.max_response_length) == (2048, 20480)
            assert config.trainer.total_training_steps == 100
            assert needs_reference(config, method(config)) == (algorithm == "sdpo")


@pytest.mark.parametrize("path", EMBEDDED, ids=lambda p: p.stem)
def test_methods_of_the_embedded_trainer_go_over(path: Path, given: list[str]) -> None:
    """Their sections, word for word; those that ask the model in the middle of a step, or need a third model, say so."""
    given_there = yaml.safe_load(path.read_text().replace("???", "x"))
    sections = {k: v for k, v in given_there.items() if k in (*OURS, "privileged_rollouts")}
    config = composed(given)
    with open_dict(config):
        config.onpolicy = sections
        if (thinking := sections.get("rendering", {}).get("thinking")) is not None:
            config.data.apply_chat_template_kwargs = {"enable_thinking": thinking}
        if not sections.get("rewards"):
            config.reward.reward_manager.name = "naive"
    try:
        method(config)
    except ConfigError as error:
        assert any(reason in str(error) for reason in REASONS), error


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("actor_rollout_ref.actor.fsdp_config.pad_to_length=true", "pad_to_length: got true"),
        ("actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2", "got 1, expected 2, that of the actor"),
        ("actor_rollout_ref.actor.strategy=fsdp", "actor_rollout_ref.actor.strategy: got 'fsdp', expected 'fsdp2'"),
        ("actor_rollout_ref.actor.strategy=megatron", "expected 'fsdp2': Megatron splits the head over ranks"),
        ("actor_rollout_ref.actor.use_kl_loss=true", "has no effect: the loss is onpolicy.objective"),
        ("actor_rollout_ref.actor.entropy_coeff=0.1", "entropy_coeff: got 0.1, which has no effect"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=gspo", "loss_mode: got 'gspo', which has no effect"),
        ("algorithm.rollout_correction.rollout_is=token", "rollout_is: got 'token', which has no effect"),
        ("algorithm.rollout_correction.rollout_rs=token", "rollout_rs: got 'token', which has no effect"),
        ("algorithm.rollout_correction.loss_type=reinforce", "loss_type: got 'reinforce', which has no effect"),
        ("algorithm.norm_adv_by_std_in_grpo=false", "norm_adv_by_std_in_grpo: got False, which has no effect"),
        ("actor_rollout_ref.actor.clip_ratio_high=0.28", "clip_ratio_high: got 0.28, which has no effect"),
        ("actor_rollout_ref.ref.ulysses_sequence_parallel_size=2", "ref.fsdp_config.ulysses_sequence_parallel_size: got 2, expected 1"),
        ("actor_rollout_ref.model.enable_activation_offload=true", "enable_activation_offload: got true"),
        ("trainer.use_v1=false", "trainer.use_v1: got false"),
        ("~onpolicy.rewards", "every answer would get 0"),
        ("reward.custom_reward_function.path=mine.py", "custom_reward_function.path: got 'mine.py', which has no effect"),
        ("reward.reward_model.enable=true", "reward_model.enable: got True, which has no effect"),
        ("algorithm.use_kl_in_reward=true", "algorithm.use_kl_in_reward: got true"),
        ("distillation.enabled=true", "distillation.teacher_models: got [None], expected one with the model of onpolicy.teacher"),
        ("reward.reward_manager.name=naive", "reward.reward_manager.name: got 'naive', expected 'onpolicy'"),
        ("+onpolicy.generator.max_tokens=3", "onpolicy.generator: verl has keys of its own for this: actor_rollout_ref.rollout"),
        ("+onpolicy.rendering.thinking=true", "enable_thinking=None"),
        ("+onpolicy.objektive=[]", "objektive: unknown key"),
        ("onpolicy.teacher.ema_decay=2", "ema_decay: got 2"),
        ("actor_rollout_ref.model.lora_rank=8", "onpolicy.teacher: 'ema' does not go with adapters"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(given: list[str], override: str, expected: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=re.escape(expected)):
        method(composed(given, override))


def test_another_model_may_teach(given: list[str]) -> None:
    """As a model of its own beside the student, with adapters too; not beside the reference model."""
    for more in ([], ["actor_rollout_ref.model.lora_rank=8"]):
        config = composed(given, *more)
        with open_dict(config):
            config.onpolicy.teacher = {"name": "model", "path": "another/model"}
        assert needs_reference(config, method(config))
        with open_dict(config):
            config.onpolicy.objective.append("ref_kl")
        with pytest.raises(ConfigError, match="a third one in memory"):
            method(config)


def test_a_trainer_with_rollouts_elsewhere_is_told_what_verl_would_assert(given: list[str]) -> None:
    """Before any process is there; with these it stops on a CPU where NCCL is wanted."""
    mode = "trainer.v1.trainer_mode=onpolicy_separate_async"
    with pytest.raises(ConfigError) as caught:
        method(composed(given, mode))
    for expected in (
        "trainer.v1.separate_async.parameter_sync_step (4) ×",
        "backend: got 'naive'",
        "rollout.nnodes: got 0",
    ):
        assert expected in str(caught.value)
    method(composed(given, mode, *ROLLOUTS_ELSEWHERE))


def test_all_problems_of_a_config_are_one_answer(given: list[str]) -> None:
    """Of the files, of our section (its keys, values and plug-ins), of both together; verl's defaults name no files here."""
    mistakes = [
        "data.val_files=nowhere.parquet", "+onpolicy.objektive=[]", "+onpolicy.generator.max_tokens=3", "+onpolicy.rendering.thinking=true",
        "onpolicy.teacher.ema_decay=2", "onpolicy.rewards=[nope]", "actor_rollout_ref.actor.entropy_coeff=0.1",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        check(ROOT / "configs" / "verl" / "sdpo.yaml", [*given, *mistakes])
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        "data.val_files", "onpolicy.generator", "onpolicy.rendering.thinking", "objektive", "rewards[0]", "teacher.ema_decay",
        "actor_rollout_ref.actor.entropy_coeff",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("teacher", {"name": "trust_region_weights"}, "onpolicy.teacher: 'trust_region_weights' needs reference model"),
        ("objective", [{"name": "distill", "divergence": "forward_kl"}, "ref_kl"], "that would be a third copy"),
        ("contexts", {"teacher": {"name": "regenerated"}}, "onpolicy.contexts.teacher: 'regenerated' asks the model"),
        (
            "objective[0].temperature",
            1.1,
            r"objective\[0\].importance_cap: got 2.0 with objective\[0\].temperature = 1.1",
        ),
    ],
)
def test_methods_that_verl_has_no_place_for(given: list[str], key: str, value: Any, expected: str) -> None:
    config = composed(given)
    OmegaConf.update(config, f"onpolicy.{key}", value, merge=False, force_add=True)
    with pytest.raises(ConfigError, match=expected):
        method(config)


def test_what_is_not_at_temperature_1_takes_one_update_a_step(given: list[str]) -> None:
    """The counterpart of trainer.updates_per_step, which the embedded trainer's check names."""
    config = composed(given)
    term = {"name": "teacher_advantage", "temperature": 1.1, "importance_cap": None}
    OmegaConf.update(config, "onpolicy.objective", [term], merge=False)
    method(config)
    for key, value in (("ppo_mini_batch_size", 16), ("ppo_epochs", 2)):
        changed = config.copy()
        OmegaConf.update(changed, f"actor_rollout_ref.actor.{key}", value)
        with pytest.raises(
            ConfigError, match=r"2 updates a step, but onpolicy\.objective\[0\] reads log-probabilities"
        ):
            method(changed)
        OmegaConf.update(changed, "onpolicy.objective[0].temperature", 1.0)
        method(changed)


def test_the_teacher_alone_may_think(given: list[str]) -> None:
    hot = ["+onpolicy.rendering.teacher_thinking=true", "+data.apply_chat_template_kwargs.enable_thinking=false"]
    rendering = method(composed(given, *hot)).config.rendering
    assert (rendering.thinking, rendering.teacher_thinking) == (False, True)


def test_a_temperature_wants_raw_log_probs(given: list[str]) -> None:
    hot = ["actor_rollout_ref.rollout.temperature=1.1"]
    method(composed(given, *hot))
    with pytest.raises(ConfigError, match=r"logprobs_mode: got 'processed_logprobs' with temperature 1.1"):
        method(composed(given, *hot, "actor_rollout_ref.rollout.logprobs_mode=processed_logprobs"))


def test_sglang_has_no_raw_log_probs(given: list[str]) -> None:
    method(composed(given, "actor_rollout_ref.rollout.name=sglang"))
    with pytest.raises(ConfigError, match=r"rollout.name: got 'sglang' with top_p 0.9"):
        method(composed(given, "actor_rollout_ref.rollout.name=sglang", "actor_rollout_ref.rollout.top_p=0.9"))


def test_missing_files_are_named(given: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"actor_rollout_ref.model.path: there is no '~/models"):
        check(ROOT / "configs" / "verl" / "sdpo.yaml", given[:2])
    with pytest.raises(ConfigError, match=r"'nowhere.yaml' does not exist"):
        check(Path("nowhere.yaml"), [])


def test_the_method_travels_to_the_workers_as_it_is(given: list[str]) -> None:
    config = composed(given)
    resolved = method(config)
    prepare(config, resolved, "sync")
    assert config.trainer.v1.trainer_mode == "sync"
    assert unpack_config(config.actor_rollout_ref.onpolicy).config == resolved.config
    agent = config.actor_rollout_ref.rollout.agent
    assert agent.agent_loop_manager_class == READING
    agent.agent_loop_manager_class = "mine.Manager"
    prepare(config, resolved, "sync")
    assert agent.agent_loop_manager_class == "mine.Manager"


def test_a_served_teacher_takes_one_view_and_nothing_else(given: list[str]) -> None:
    path = ROOT / "configs" / "verl" / "served_teacher.yaml"
    assert list(served(compose(path, given)).contexts) == ["teacher"]
    with pytest.raises(ConfigError, match="agent_loop_manager_class: got None"):
        served(compose(path, [*given, "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null"]))
    with pytest.raises(ConfigError, match=r"onpolicy\.rewards: a served teacher has verl's own loss"):
        served(compose(path, [*given, "+onpolicy.rewards=[math_answer]"]))
    with pytest.raises(ConfigError, match=r"onpolicy\.contexts: got \['teacher', 'more'\]"):
        served(compose(path, [*given, "+onpolicy.contexts.more={name: none}"]))


def test_the_page_of_keys_names_verls_own(given: list[str]) -> None:
    """docs/keys.md: each key of verl is in its config, and each of ours in the section."""
    config, absent = composed(given), object()
    named = {key for row in keys_of_the_page() for key in (*row.ours_on_verl, *row.verl)}
    for key in named - {"reward_model"}:  # of verl's older configs
        section, _, name = key.partition(".")
        if section == SECTION:
            assert name in OURS, key
        else:
            assert OmegaConf.select(config, key, default=absent, throw_on_missing=False) is not absent, key


def test_our_names_are_in_verls_registries() -> None:
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn
    from verl.trainer.ppo.v1 import get_trainer_cls
    from verl.workers.engine.base import EngineRegistry

    assert get_trainer_cls("onpolicy").__name__ == "SyncTrainer"
    assert get_reward_manager_cls("onpolicy").__name__ == "OnpolicyRewardManager"
    assert ("cuda", "onpolicy") in EngineRegistry._engines["language_model"]["fsdp2"]
    with pytest.raises(ValueError, match="trainer_mode=onpolicy"):
        get_adv_estimator_fn("onpolicy")()


@pytest.mark.parametrize("mode", ["onpolicy", "onpolicy_colocate_async", "onpolicy_separate_async"])
def test_every_trainer_of_verls_takes_the_mixin(given: list[str], mode: str) -> None:
    """Its worker is ours, with a reference engine where the teacher needs one."""
    from verl.trainer.ppo.utils import Role

    from onpolicy.integrations.verl.trainer import TRAINERS, TeachingTrainerMixin

    config = composed(given, f"trainer.v1.trainer_mode={mode}", *(ROLLOUTS_ELSEWHERE if "separate" in mode else ()))
    kind: Any = TRAINERS[mode]
    trainer = kind.__new__(kind)
    trainer.resolved, trainer.config = method(config), config
    assert issubclass(kind, TeachingTrainerMixin)
    trainer._init_resource_pool_mgr()
    assert list(trainer.role_worker_mapping) == [Role.ActorRolloutRef]
    assert trainer.mapping[Role.ActorRolloutRef] == "global_pool" and Role.ActorRollout not in trainer.mapping
    made = trainer.role_worker_mapping[Role.ActorRolloutRef].__ray_metadata__.modified_class
    assert made.__name__ == kind.worker.__name__
