"""Numbers that no run can mean are refused by `check`, with their key, under both trainers; metrics and layers that are not there, too."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Annotated, Any

import pytest

from onpolicy.cli import main
from onpolicy.config.bounds import FINITE, Bounds
from onpolicy.config.load import load
from onpolicy.config.options import options
from onpolicy.config.resolve import load_resolved
from onpolicy.config.schema import SHARED_FIELDS, Config
from onpolicy.utils.errors import ConfigError
from tests.runs import metrics, run_here, write_config, write_here

pytestmark = pytest.mark.omegaconf

SOUND: dict[str, Any] = {
    "model": {"path": "m"},
    "data": {"name": "file", "path": "d.jsonl"},
    "generator": {"name": "transformers"},
    "rewards": ["math_answer", {"name": "tests.config.test_bounds:bounded"}],
    "contexts": {"teacher": "reference_solution"},
    "objective": [{"name": "distill", "divergence": "forward_kl"}],
    "eval": {"every": 5, "sets": {"ood": {"name": "gym"}}, "samples_per_problem": 4, "pass_at": [1, 4]},
}


def bounded(completion: str, *, share: Annotated[float, Bounds(above=0, most=1)] = 0.5) -> float:
    """A user's reward whose option has bounds.

    Args:
        share: of something
    """
    return 0.0


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_here(tmp_path, monkeypatch, SOUND)


REFUSED = [
    "trainer.max_grad_norm=-1", "trainer.max_grad_norm=.nan", "trainer.max_grad_norm=0", "trainer.max_grad_norm=nan",
    "trainer.max_grad_norm=-inf", "trainer.betas=[1.0,2.0]", "trainer.betas=[0.9, 1]",
    "trainer.betas=[-0.1, 0.9]", "trainer.betas=[nan, 0.9]", "trainer.betas=0.9", "trainer.betas=[0.9]", "trainer.betas=null",
    "trainer.weight_decay=-1", "trainer.weight_decay=nan", "trainer.weight_decay=.inf", "trainer.warmup_steps=-3", "trainer.lora_rank=-2",
    "trainer.lora_alpha=0", "trainer.lora_alpha=-1", "trainer.lr=nan", "trainer.lr=.nan", "trainer.lr=inf", "trainer.lr=-.inf",
    "trainer.lr=-1e-6", "trainer.updates_per_step=0", "rewards[0].weight=nan", "rewards[1].weight=.inf", "rewards[1].share=0",
    "rewards[1].share=1.5", "rewards[1].share=nan", "objective[0].weight=nan", "objective[0].weight=inf",
    "objective[0].weight={name: constant, value: .inf}", "objective[0].weight={name: linear, initial: nan, final: 0, end: 3}",
    "generator.temperature=inf", "generator.temperature=nan", "generator.top_p=nan", "eval.temperature=nan", "eval.temperature=-1",
    "eval.top_p=0", "eval.max_tokens=0", "eval.sets.ood.problems=0", "guards[0].below_fraction=nan", "guards[0].scale=nan",
    "guards[0].scale=-1", "preflight.logprob_tolerance=nan", "preflight.logprob_tolerance=0", "preflight.logprob_tolerance=inf",
    "data.coverage.problems=-5", "data.coverage.repeats=0", "data.dynamic_sampling=-1", "distributed.num_trainers=-1",
    "distributed.heartbeat_timeout_s=nan", "distributed.heartbeat_timeout_s=0", "logging.samples=-1", "logging.tokens_every=-2",
    "checkpoint.keep_last=0", "steps=0", "steps=-5", "epistemic.baseline=-1", "teacher={name: ema, ema_decay: 2}",
    "teacher={name: snapshot, every: 0}", "teacher={name: trust_region_logits, student_share: -0.1}",
]  # fmt: skip


@pytest.mark.parametrize("trainer", ["local", "deepspeed"])
@pytest.mark.parametrize("override", REFUSED)
def test_no_run_can_mean_it(override: str, trainer: str, config: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_resolved(config, [f"trainer.name={trainer}", override])
    key = override.partition("=")[0]
    assert all(problem.startswith(key) for problem in caught.value.problems), caught.value
    assert "expected" in str(caught.value) or "null" in override


@pytest.mark.parametrize(
    "override",
    ["trainer.max_grad_norm=.inf", "trainer.max_grad_norm=null", "trainer.max_grad_norm=1e-3", "trainer.betas=[0, 0.999]",
     "trainer.weight_decay=0", "trainer.lr=0", "trainer.lora_rank=0", "rewards[1].share=1", "objective[0].weight=-1",
     "objective[0].importance_cap=.inf", "guards=[]",
     "objective[0].weight={name: dual_ascent, metric: train/loss, rate: 0.1, level: 1.0, maximum: .inf}", "trainer.warmup_steps=9",
     "generator.temperature=0", "steps=" + "9" * 400, "trainer.micro_batch_tokens=null"],
)  # fmt: skip
def test_what_a_run_can_mean(override: str, config: Path) -> None:
    load_resolved(config, [override])


def test_check_refuses_on_the_command_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["check", str(config), "trainer.max_grad_norm=0", "trainer.betas=[1.0,2.0]", "rewards[0].weight=nan"]) == 2
    )
    assert capsys.readouterr().err.splitlines() == [
        "onpolicy check: 4 problems:",
        "  1. trainer.betas[0]: got 1.0, expected 0 or more and below 1.",
        "  2. trainer.betas[1]: got 2.0, expected 0 or more and below 1.",
        "  3. trainer.max_grad_norm: got 0.0, expected above 0, or .inf.",
        "  4. rewards[0].weight: got nan, expected a finite number.",
    ]


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "text"),
    [
        (FINITE, [0, -1.5, 10**400], [math.nan, math.inf], "a finite number"),
        (Bounds(least=0), [0, 3], [-1e-9, math.nan, math.inf], "0 or more"),
        (Bounds(least=2, most=4), [2, 4], [1.9, 4.1], "at least 2 and at most 4"),
        (Bounds(above=0, below=1), [0.5], [0, 1], "above 0 and below 1"),
        (Bounds(above=0, infinite=True), [1, math.inf], [0, -math.inf, math.nan], "above 0, or .inf"),
    ],
)
def test_bounds(bounds: Bounds, inside: list[float], outside: list[float], text: str) -> None:
    assert all(map(bounds.hold, inside)) and not any(map(bounds.hold, outside)) and str(bounds) == text
    assert len(list(bounds.problems("x", [*inside, *outside, "text", None]))) == len(outside)


def test_the_documentation_names_the_bounds() -> None:
    meanings = {option.key: option.meaning for option in options()}
    assert meanings["trainer.betas"] == "betas of AdamW (0 or more and below 1)"
    for trainer in ("local", "deepspeed"):
        assert meanings[f"trainer.lora_rank ({trainer})"].endswith("(0 or more)")


def test_every_number_of_the_schema_has_bounds() -> None:
    """A number that may be anything says so here."""
    free = {"seed", "coverage.seed"}

    def numbers(settings: type, prefix: str = "") -> Any:
        for field in dataclasses.fields(settings):
            if isinstance(field.default_factory, type) and dataclasses.is_dataclass(field.default_factory):
                yield from numbers(field.default_factory, f"{prefix}{field.name}.")
            elif re.match(r"(int|float|list\[float\])\b", str(field.type)) and field.metadata.get("bounds") is None:
                yield f"{prefix}{field.name}"

    kinds = [kind for name, kind in SHARED_FIELDS.items() if name != "generator"]  # which checks its own
    assert {name for settings in (Config, *kinds) for name in numbers(settings)} == free


# ---- what is there: metrics, layers, windows, templates


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "eval/none/avg@4",
            ["no metric will be called 'eval/none/avg@4'", "eval/ood/avg@4", "Did you mean 'eval/ood/avg@4'?"],
        ),
        ("eval/ood/avg@8", ["Did you mean 'eval/ood/avg@4'?"]),
        ("eval/ood/accuracy", ["eval/ood/pass@1", "eval/ood/maj@4", "eval/<set>/{epistemic,audit,calibration}/..."]),
        ("accuracy", ["no metric will be called 'accuracy'", "Metrics begin with", "e.g. reward/mean"]),
        ("rewards/mean", ["Did you mean 'reward'?"]),
    ],
)
def test_the_best_checkpoint_needs_a_metric(name: str, words: list[str], config: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_resolved(config, [f"checkpoint.best_metric={name}"])
    assert str(caught.value).startswith("checkpoint.best_metric: ") and not [
        w for w in words if w not in str(caught.value)
    ], caught.value


@pytest.mark.parametrize("overrides", [["eval.every=0"], ["eval.sets={}"]])
def test_nothing_is_best_where_nothing_is_evaluated(overrides: list[str], config: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.best_metric: .*nothing is evaluated.*give (eval\.every|sets)"):
        load_resolved(config, ["checkpoint.best_metric=eval/ood/avg@4", *overrides])


@pytest.mark.parametrize(
    "name",
    ["eval/ood/avg@4", "eval/ood/avg@4/low", "eval/ood/pass@1", "eval/ood/maj@4", "eval/ood/truncated", "reward/mean", "distill/divergence",
     "eval/ood/epistemic/self_doubt/rate_per_1k", "eval/ood/calibration/self_doubt/ece", "train/loss", "epistemic/hedges/rate_per_1k"],
)  # fmt: skip
def test_metrics_that_there_will_be(name: str, config: Path) -> None:
    load_resolved(config, [f"checkpoint.best_metric={name}"])


@pytest.mark.parametrize("data", ["data", "eval.sets.ood"])
def test_a_template_has_a_place_for_the_problem(data: str, config: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"{data}\.prompt_template: got 'Solve it\.', expected a text with {{problem}}"
    ):
        load_resolved(config, [f"{data}.prompt_template=Solve it."])
    load_resolved(config, [f"{data}.prompt_template=Solve {{problem}}."])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learning_rate=1e-5", "learning_rate: unknown key. Here this is trainer.lr."),
        ("trainer.learning_rate=1e-5", "trainer.learning_rate: 'local' has no such option. Here this is trainer.lr."),
        ("trainer.beta=0.1", "Here this is objective: [..., {name: ref_kl, weight: 0.04}], a term of its own."),
        ("objective[0].beta=0.1", "{name: ref_kl, weight: 0.04}"),
        ("batch_size=8", "Here this is data.prompts_per_step."),
        ("num_train_epochs=3", "Here this is steps, each with data.prompts_per_step problems"),
        ("mask_truncated_completions=true", "Here this is route: finished of a term."),
        ("scale_rewards=false", "Here this is credit (group_std as GRPO"),
        ("loss_type=dr_grpo", "Here this is the terms under objective"),
        ("epsilon=0.2", "Here this is the options clip_low and clip_high of the term policy_gradient."),
        ("temperature=0.7", "Here this is generator.temperature."),
        (
            "actor_rollout_ref.rollout.n=8",
            "Here actor_rollout_ref.rollout.n is generator.group_size; or this is a config of verl's",
        ),
        ("actor_rollout_ref.actor.optim.lr=1e-6", "Here actor_rollout_ref.actor.optim.lr is trainer.lr"),
        ("data.train_batch_size=64", "'file' has no such option. Here this is data.prompts_per_step."),
        ("algorithm.adv_estimator=grpo", "Here algorithm.adv_estimator is credit (group_std as GRPO"),
        ("trainer.total_epochs=3", "Here this is steps, each with"),
        ("reward_model.enable=true", "In full this is a config of verl's: `onpolicy verl train` runs those"),
        ("generator.num_generations=8", "Here this is generator.group_size."),
        (
            "objective=[{name: distill}]",
            "missing; 'distill' needs it (one of forward_kl, jsd, reverse_kl, skew_forward_kl",
        ),
        ("trainer.betas=0.9", "trainer.betas: got 0.9, expected a list, e.g. [0.9, 0.999]."),
        ("data.coverage=8", "data.coverage: got 8, expected keys and values, e.g. data.coverage.problems=8."),
    ],
)
def test_messages_lead_to_the_key(override: str, words: str, config: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_resolved(config, [override])
    with pytest.raises(ConfigError) as caught:  # an option of another plug-in has that name
        load_resolved(config, ["objective[0].divergence={name: forward_kl, beta: 0.1}"])
    assert "ref_kl" not in str(caught.value)


def test_a_default_list_can_be_reached_into(config: Path) -> None:
    given = load(config, ["guards[1].below_fraction=5e-1", "logging.trackers=[jsonl]"]).guards
    assert len(given) == len(Config.__dataclass_fields__["guards"].default_factory()) > 1  # type: ignore[operator, misc]
    resolved = load_resolved(config, ["guards[1].below_fraction=5e-1"])
    assert [g.plugin.options.get("below_fraction") for g in resolved.guards[:2]] == [0.4, 0.5]
    assert [g.plugin.options.get("below_fraction") for g in load_resolved(config).guards[:2]] == [0.4, 0.3]


def test_the_models_window_names_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, run_dir=str(tmp_path / "run"))
    for key in ("eval", "generator"):
        assert run_here(config, f"{key}.max_tokens=500000") == 2
        assert (
            f"onpolicy train: {key}.max_tokens: 500000 tokens leave no tokens for a prompt" in capsys.readouterr().err
        )


def test_infinity_is_no_clipping(tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=2)
    for name, norm in (("off", ".inf"), ("none", "null"), ("far", "1e30"), ("on", "1e-3")):
        assert (
            run_here(config, f"run_dir={tmp_path / name}", f"trainer.max_grad_norm={norm}", "trainer.weight_decay=0.5")
            == 0
        )
    off, none, far, on = (metrics(tmp_path / name) for name in ("off", "none", "far", "on"))
    assert off == none == far != on


def test_lora_targets_that_no_layer_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    config = write_config(tmp_path, run_dir=str(tmp_path / "run"), teacher={"name": "live"})
    assert run_here(config, "trainer.lora_rank=4", "trainer.lora_targets=[query]") == 2
    assert "trainer.lora_targets: got 'query', but no layer" in (shown := capsys.readouterr().err) and "q_proj" in shown


def test_a_metric_that_is_never_logged_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, run_dir=str(tmp_path / "run"), steps=1, checkpoint={"best_metric": "train/los"})
    assert run_here(config) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "no step has logged 'train/los', so no checkpoint is the best. Did you mean 'train/loss'?" in shown


def test_no_reward_is_shown_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objective = [{"name": "distill", "divergence": "forward_kl"}]
    config = write_config(tmp_path, run_dir=str(tmp_path / "run"), steps=1, rewards=[], objective=objective)
    assert run_here(config) == 0
    shown = capsys.readouterr().out
    assert "(no reward, " in shown and "reward 0" not in shown and "reward/mean" not in shown
