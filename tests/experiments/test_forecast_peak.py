"""The forecast of a trainer's memory against the allocator: a real step of a model of 135 M parameters on the CPU, by torch's profiler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoModelForCausalLM, LlamaConfig

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.experiments.forecast.passes import Load
from onpolicy.experiments.forecast.shape import shape_of
from onpolicy.experiments.forecast.trainer_memory import trainer_bytes
from onpolicy.trainer.build import build_objective, teacher_rule
from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup
from onpolicy.types import Example
from onpolicy.utils.timer import PhaseTimer
from tests.runs import write_config
from tests.tiny import example

SMOLLM2_135M = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    tie_word_embeddings=True, max_position_embeddings=8192, architectures=["LlamaForCausalLM"],
)  # fmt: skip
STAYING = ("weights", "gradients", "moments", "teacher and reference model")


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "recomputed"), [("frozen", "true"), ("live", "false")])
def test_the_peak_of_a_step(rule: str, recomputed: str, tmp_path: Path) -> None:
    """Within 15 %, of all of it, and of what comes on top of weights, gradients, moments and the teacher."""
    SMOLLM2_135M.save_pretrained(tmp_path / "model")
    own = [
        f"teacher={{name: {rule}}}", f"trainer.gradient_checkpointing={recomputed}", "trainer.micro_batch_tokens=400",
        "data.prompts_per_step=1", "generator.group_size=2",
    ]  # fmt: skip
    resolved = resolve(load(write_config(tmp_path), own))
    foreseen = trainer_bytes(
        resolved, shape_of(str(tmp_path / "model")), Load(prompt=100, completion=300, device="cpu")
    )
    draw = torch.Generator().manual_seed(0)

    def tokens(number: int) -> list[int]:
        return torch.randint(3, 49000, (number,), generator=draw).tolist()

    prompt = tokens(100)
    # two micro-batches: the second finds the gradients of the first
    examples = [example(prompt, tokens(300), teacher=tokens(300) + prompt) for _ in range(2)]
    measured = peak(resolved, [example(tokens(4), tokens(4), teacher=tokens(9))], examples)
    assert sum(foreseen.values()) == pytest.approx(measured, rel=0.15)
    stays = sum(foreseen[part] for part in STAYING)
    assert sum(foreseen.values()) - stays == pytest.approx(measured - stays, rel=0.15)


def peak(resolved: ResolvedConfig, first: list[Example], examples: list[Example]) -> int:
    """Most bytes that the allocator has given out at any time of a step, after a first one that makes the optimizer's moments."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        trainer = new_trainer(resolved)
        trainer.step(first)
        with record_function("measured step"):
            trainer.step(examples)
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    (step,) = [event for event in events if event.name() == "measured step"]
    now, most = 0, 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        if step.start_ns() <= event.start_ns() <= step.end_ns():
            most = max(most, now)
    return most


def new_trainer(resolved: ResolvedConfig) -> PolicyTrainer:
    config = LlamaConfig.from_pretrained(resolved.config.model.path, attn_implementation="sdpa")
    setup = TrainerSetup(
        student=AutoModelForCausalLM.from_config(config), objective=build_objective(resolved), rule=teacher_rule(resolved),
        settings=resolved.trainer.settings, total_steps=10, contexts=tuple(resolved.contexts), clock=PhaseTimer(),
    )  # fmt: skip
    trainer: PolicyTrainer = resolved.trainer.plugin.bind()(setup=setup)
    return trainer
