"""Preflight: what it says, and what it samples.

1. the passes that its checks ran (stand-ins take the place of the trainer); 2. it samples eight problems at most and cuts their rollouts
short, 3. takes what was cut for not graded, 4. fails for want of a signal only where it has seen the whole first step, and 5. leaves the
run as it was.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.data.rendering import Renderer
from onpolicy.rollout.build import prompt_cursor
from onpolicy.rollout.hf_generator import HFGenerator
from onpolicy.run import preflight
from onpolicy.run.assemble import assemble
from onpolicy.run.display import Display
from onpolicy.run.preflight import Preflight, PreflightError, few_rollouts
from onpolicy.types import Message, Prompt, RolloutGroup, Sampling
from tests.runs import metrics, run_here, write_config
from tests.tiny import byte_tokenizer, example

STEP = {"data.prompts_per_step": 12, "generator.group_size": 2, "generator.max_tokens": 8}
DATA = [f"{key}={value}" for key, value in STEP.items()]
POLICY_GRADIENT = ["objective=[{name: policy_gradient}]", "rewards=[{name: tests.run.test_preflight:nothing}]"]


def nothing(completion: str) -> float:
    """No rollout is better than another."""
    return 0.0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int, int]]:
    """What the generator has been asked for: the prompts, the most tokens of a rollout, and how many it sampled in all."""
    calls: list[tuple[list[str], int, int]] = []
    generate = HFGenerator.generate

    def recorded(
        self: HFGenerator, prompts: Sequence[Prompt], *, seed: int, sampling: Sampling | None = None
    ) -> list[RolloutGroup]:
        groups = generate(self, prompts, seed=seed, sampling=sampling)
        tokens = sum(len(rollout.completion_ids) for group in groups for rollout in group.rollouts)
        calls.append(([p.id for p in prompts], (sampling or self.sampling).max_tokens, tokens))
        return groups

    monkeypatch.setattr(HFGenerator, "generate", recorded)
    return calls


@pytest.mark.parametrize(
    ("computed", "said"),
    [({}, ""), ({1: "bfloat16", 2: "bfloat16"}, "✓ forward passes run as they should (bfloat16 on cpu)\n")],
)
def test_the_dtype_of_passes_is_said_where_there_were_some(computed: dict[int, str], said: str) -> None:
    out, trainer = io.StringIO(), SimpleNamespace(engine=SimpleNamespace(computed=computed), device="cpu")
    nothing: Any = None
    Preflight(trainer, nothing, nothing, (), None, Console(file=out, width=200)).show_dtype()  # type: ignore[arg-type]
    assert out.getvalue() == said


def test_eight_problems_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[list[str], int, int]]
) -> None:
    monkeypatch.setattr(preflight, "TOKENS", 4)
    resolved = resolve(load(write_config(tmp_path), DATA))
    run = assemble(resolved, tmp_path / "run", Display(1))
    try:
        few = few_rollouts(run, resolved)
        prompts = prompt_cursor(resolved, run.sampler.rollouts.prompts.prompts).next()
        assert run.sampler.rollouts.prompts.position == 0
    finally:
        run.close()
    ((ids, most, tokens),) = asked
    assert ids == [p.id for p in prompts[:8]] and most == 4 and tokens <= 8 * 2 * 4 and len(few.examples) == 16
    cut = [e for e in few.examples if e.rollout.finish_reason == "length"]
    assert cut and few.cut == len(cut) and not few.is_whole_step
    assert all(e.reward is None and e.reward_breakdown == {} and e.advantage == 0.0 for e in cut)
    assert all(e.reward is not None for e in few.examples if e not in cut)


def test_rollouts_that_the_run_would_cut_too_are_graded(
    tmp_path: Path, asked: list[tuple[list[str], int, int]]
) -> None:
    resolved = resolve(load(write_config(tmp_path), ["data.prompts_per_step=2"]))
    run = assemble(resolved, tmp_path / "run", Display(1))
    try:
        few = few_rollouts(run, resolved)
    finally:
        run.close()
    assert len(asked[0][0]) == 2 and asked[0][1] == 8 and few.cut == 0 and few.is_whole_step
    assert any(e.rollout.finish_reason == "length" for e in few.examples)
    assert not any(e.reward is None or math.isnan(e.reward) for e in few.examples)


@pytest.mark.parametrize(
    ("tokens", "prompts", "code", "said"),
    [
        (4, 2, 0, "? whether there is a signal (policy_gradient 0 of 4; "),
        (8, 12, 0, "? whether there is a signal (policy_gradient 0 of 16; train/empty_updates tells"),
        (8, 8, 1, "no rollout carries a signal (policy_gradient 0 of 16): 0 have a teacher context"),
    ],
    ids=["cut short", "some of the problems", "all of the first step"],
)
def test_a_signal_that_cannot_be_known_yet(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tokens: int,
    prompts: int,
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(preflight, "TOKENS", tokens)
    config = write_config(tmp_path, contexts={}, teacher={"name": "live"}, checkpoint={"every": 0})
    options = ["steps=1", *DATA, *POLICY_GRADIENT, f"data.prompts_per_step={prompts}", f"run_dir={tmp_path / 'run'}"]
    assert (run_here(config, *options) != 0) == bool(code)
    captured = capsys.readouterr()
    assert said in " ".join((captured.out + captured.err).split())


def test_the_teachers_template_is_checked_before_any_sibling_has_ended() -> None:
    """Where no rollout has a context yet, a prompt of the teacher's renderer shows whether the completion would go on from its end."""
    student: Any = Renderer(byte_tokenizer())
    teacher: Any = SimpleNamespace(
        prompt_ids=student.prompt_ids,
        in_open_turn=lambda ids: False,
        decode=student.decode,
        generation_suffix=student.generation_suffix,
    )
    messages: tuple[Message, ...] = ({"role": "user", "content": "q"},)
    sampled = example(student.prompt_ids(messages), [7, 8])
    sampled = replace(sampled, prompt=Prompt(id="p", messages=messages))
    nothing: Any = None
    Preflight(nothing, student, student, ("teacher",), None, Console(quiet=True)).check_alignment([sampled])
    Preflight(nothing, student, teacher, (), None, Console(quiet=True)).check_alignment([sampled])
    with pytest.raises(PreflightError, match="the prompt of 'teacher' ends with"):
        Preflight(nothing, student, teacher, ("teacher",), None, Console(quiet=True)).check_alignment([sampled])


def test_a_run_is_the_same_with_and_without_what_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "TOKENS", 4)
    config = write_config(tmp_path)
    assert run_here(config, f"run_dir={tmp_path / 'with'}", "steps=2", *DATA) == 0
    assert run_here(config, f"run_dir={tmp_path / 'without'}", "steps=2", "preflight.enabled=false", *DATA) == 0
    assert metrics(tmp_path / "with") == metrics(tmp_path / "without")
