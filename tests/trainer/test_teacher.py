"""Who teaches: trust regions, another model, adapters; on real small models.

1. a trust region of weights lies where its formula says, of logits too; both ends are frozen and live; 2. another model
scores with its own weights and width; 3. under LoRA the frozen teacher is the reference model at no cost, merged weights compute what
the adapted model does, only adapters learn, an EMA is one of the weights, and the state comes back to the last bit; 4. zero at
equality for all of them;
5. the reference model's marker mass reaches token weights and targets; 6. the teacher's states are aligned with the examples.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from onpolicy.config.schema import TrainerSettings
from onpolicy.losses.comparison import Comparison
from onpolicy.losses.divergences import forward_kl
from onpolicy.losses.objective import Objective, Term
from onpolicy.losses.supports import full
from onpolicy.losses.targets import identity, marker_mass_floor
from onpolicy.losses.terms.base import TermSpec, spec_of
from onpolicy.losses.terms.distill import distill
from onpolicy.losses.terms.ref_kl import ref_kl
from onpolicy.losses.token_weights import protect_markers
from onpolicy.trainer.lora import adapter_off, merged_weights
from onpolicy.trainer.teacher_rules import (
    WeightRule,
    ema,
    frozen,
    live,
    model,
    snapshot,
    trust_region_logits,
    trust_region_weights,
)
from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup, local
from onpolicy.types import REF, STUDENT, Example
from onpolicy.utils.timer import PhaseTimer
from tests.runs import metrics, run_here, write_config
from tests.tiny import byte_tokenizer, random_examples, tiny_model, tiny_model_dir


def distill_term(target: Any = identity, **options: Any) -> Term:
    bound = partial(distill, divergence=forward_kl, target=target, **options)
    comparison = Comparison("teacher", full, target, forward_kl)
    return Term("distill", 1.0, bound, TermSpec("teacher_mask", needs_ref=True), ("teacher",), comparison=comparison)


def trainer(rule: WeightRule, *terms: Term, **options: Any) -> PolicyTrainer:
    settings = TrainerSettings(lr=options.pop("lr", 1e-2), micro_batch_tokens=100)
    given = {
        name: options.pop(name) for name in ("teacher_model", "marker_ids", "spans", "telemetry") if name in options
    }
    setup = TrainerSetup(
        student=tiny_model(), objective=Objective(terms or (distill_term(),)), rule=rule, settings=settings, total_steps=10,
        contexts=("teacher",), clock=PhaseTimer(), **given,
    )  # fmt: skip
    return local(setup=setup, **options)


def twins() -> list[Example]:
    """Rollouts whose teacher reads the student's own prompt."""
    return [replace(e, teacher_prompt_ids={"teacher": e.rollout.prompt_ids}) for e in random_examples(4)]


def teacher_logprobs(one: PolicyTrainer, examples: list[Example]) -> torch.Tensor:
    return one.inputs(one.batching.batch(examples)).teacher["teacher"].logprobs


RULES = [live(), frozen(), ema(), trust_region_weights(student_share=0.3), trust_region_logits(student_share=0.3)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_zero_at_equality(rule: WeightRule, lora_rank: int) -> None:
    if lora_rank and rule.reads_ref:
        with pytest.raises(ValueError, match="does not go with adapters"):
            trainer(rule, lora_rank=lora_rank)
        return
    report = trainer(rule, lora_rank=lora_rank).step(twins())
    assert report["train/loss"] == pytest.approx(0.0, abs=1e-7) and report["train/grad_norm"] < 1e-4


def test_a_trust_region_of_weights() -> None:
    one, examples = trainer(trust_region_weights(student_share=0.3)), random_examples(6)
    start = {n: p.detach().clone() for n, p in one.student.named_parameters()}
    for _ in range(2):
        one.step(examples)
    teacher = dict(one.teacher_scorer.teacher.model.named_parameters())
    for name, student in one.student.named_parameters():
        torch.testing.assert_close(teacher[name], 0.7 * start[name] + 0.3 * student.detach())


def test_a_trust_region_of_logits() -> None:
    examples = random_examples(4, with_teacher=1.0)
    still, now = trainer(frozen()), trainer(live())
    for one in (still, now):
        one.step(examples)
    now.student.load_state_dict(still.student.state_dict())
    for share, expected in ((0.0, still), (1.0, now)):
        one = trainer(trust_region_logits(student_share=share))
        one.student.load_state_dict(still.student.state_dict())
        torch.testing.assert_close(
            teacher_logprobs(one, examples), teacher_logprobs(expected, examples), atol=1e-5, rtol=1e-4
        )
    half = trainer(trust_region_logits(student_share=0.5))
    half.student.load_state_dict(still.student.state_dict())
    # the normalised geometric mean: log q = (log q0 + log q1) / 2 + c, where c >= 0 is the same for the whole vocabulary
    mean = (teacher_logprobs(still, examples) + teacher_logprobs(now, examples)) / 2
    excess = (teacher_logprobs(half, examples) - mean)[half.batching.batch(examples).sampled_mask]
    assert (excess > -1e-5).all() and excess.max() > 1e-4


def test_another_model_teaches_with_its_own_weights_and_width() -> None:
    other = tiny_model("llama", seed=7, width=96)
    one = trainer(model(path="other"), distill_term(), teacher_model=other)
    examples = random_examples(4, with_teacher=1.0)
    (example, *_) = examples
    ids = torch.tensor([[*example.teacher_prompt_ids["teacher"], *example.rollout.completion_ids]])
    with torch.no_grad():
        logp = other(ids).logits.log_softmax(-1)[0]
    prompt = len(example.teacher_prompt_ids["teacher"])
    expected = [logp[prompt - 1 + t, token].item() for t, token in enumerate(example.rollout.completion_ids)]
    assert teacher_logprobs(one, [example])[0].tolist() == pytest.approx(expected, abs=1e-4)
    before = [p.clone() for p in other.parameters()]
    assert one.step(examples)["train/grad_norm"] > 0
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
    assert one.teacher_scorer.reference is not None and one.teacher_scorer.reference.model is not other


@pytest.mark.parametrize("rows", [240, 264, 320])
def test_a_teacher_whose_head_has_other_padding(rows: int) -> None:
    """As in one family, where small and large models pad the same tokenizer's vocabulary to different lengths."""
    one = trainer(model(path="other"), distill_term(), teacher_model=tiny_model(seed=7, vocab_size=rows))
    examples = [e for e in random_examples(6, with_teacher=1.0) if max(e.rollout.completion_ids) < 240]
    examples = [replace(e, teacher_prompt_ids={"teacher": (5, 6, 7)}) for e in examples]
    report = one.step(examples)
    assert report["train/grad_norm"] > 0 and report["train/skipped_updates"] == 0


def test_teacher_states_are_aligned_with_the_examples() -> None:
    """One entry per example, whatever its identity: the same rollout twice, and after a trip through another process."""
    one, examples = trainer(frozen(), distill_term()), random_examples(4)
    twice = [*examples, examples[0], replace(examples[1])]
    hidden = pickle.loads(pickle.dumps(one.teacher_hidden(twice)))
    assert [set(row) for row in hidden] == [{*e.teacher_prompt_ids, REF} for e in twice]
    assert all(
        states.shape == (len(e.rollout.completion_ids), 64)
        for e, row in zip(twice, hidden, strict=True)
        for states in row.values()
    )
    again = one.inputs(one.batching.batch(twice), teacher_hidden=hidden)
    direct = one.inputs(one.batching.batch(twice))
    assert torch.equal(again.teacher["teacher"].logprobs, direct.teacher["teacher"].logprobs)


def test_a_model_of_another_vocabulary_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    config = write_config(tmp_path)
    byte_tokenizer(added=("extra",)).save_pretrained(tiny_model_dir(tmp_path / "other"))
    assert run_here(config, f"teacher={{name: model, path: {tmp_path / 'other'}}}", f"run_dir={tmp_path / 'run'}") == 2
    assert "teacher.path" in (error := capsys.readouterr().err) and "another vocabulary" in error


def test_under_lora_the_frozen_teacher_and_the_reference_model_cost_nothing() -> None:
    plain, one = trainer(frozen()), trainer(frozen(), lora_rank=4)
    assert one.teacher_scorer.teacher.model is one.student and one.teacher_scorer.reference is not None
    assert one.teacher_scorer.reference.model is one.student
    examples = random_examples(6, with_teacher=1.0)
    start = teacher_logprobs(plain, examples)
    torch.testing.assert_close(teacher_logprobs(one, examples), start)
    base = {n: p.detach().clone() for n, p in one.student.named_parameters() if ".lora_" not in n}
    student = torch.cat(one.logprobs(examples))
    for _ in range(3):
        one.step(examples)
    assert (torch.cat(one.logprobs(examples)) - student).abs().max() > 1e-3, "the adapters learn"
    torch.testing.assert_close(teacher_logprobs(one, examples), start)
    assert all(torch.equal(p, base[n]) for n, p in one.student.named_parameters() if n in base)
    with adapter_off(one.student):
        torch.testing.assert_close(torch.cat(one.logprobs(examples)), student)


def test_merged_weights_compute_what_the_adapted_model_does() -> None:
    one, examples = trainer(frozen(), lora_rank=4), random_examples(4, with_teacher=1.0)
    one.step(examples)
    names = set(tiny_model().state_dict())
    weights = dict(one.weights())
    assert set(weights) == names
    merged = tiny_model(seed=9)
    merged.load_state_dict(weights)
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(merged(ids).logits, one.student(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", [frozen(), ema(ema_decay=0.5)], ids=["frozen", "ema"])
def test_the_state_with_adapters_comes_back_to_the_last_bit(tmp_path: Path, rule: WeightRule) -> None:
    examples = random_examples(6, with_teacher=1.0)
    one, other = trainer(rule, lora_rank=4), trainer(rule, lora_rank=4)
    one.step(examples)
    one.save(tmp_path)()
    other.load_state(tmp_path, one.state())
    assert one.step(examples) == other.step(examples)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one.weights(), other.weights(), strict=True))


@pytest.mark.parametrize(
    "rule", [ema(ema_decay=0.5), ema(ema_decay=0.9), snapshot(every=2)], ids=["half", "slow", "snapshot"]
)
def test_under_lora_the_rule_holds_for_the_weights_and_not_for_their_factors(rule: WeightRule) -> None:
    one, examples = trainer(rule, lora_rank=4), random_examples(6, with_teacher=1.0)
    expected = {name: weight.clone() for name, weight in one.weights()}
    start = {name: weight.clone() for name, weight in expected.items()}
    for step in range(1, 7):
        one.step(examples)
        for name, weight in one.weights():
            if not torch.equal(expected[name], weight):
                assert rule.update is not None
                rule.update(expected[name], weight, None, step)
    teacher = one.teacher_scorer.teacher.model
    found = dict(merged_weights(teacher))
    moved = [name for name in expected if not torch.equal(expected[name], start[name])]
    assert len(moved) > 5
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-7, rtol=1e-6, msg=name)
    alone = tiny_model(seed=3)
    alone.load_state_dict(expected)
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(teacher(ids).logits, alone.eval()(ids).logits, atol=1e-5, rtol=1e-4)


def test_a_whole_run_with_adapters(tmp_path: Path) -> None:
    config = write_config(tmp_path, teacher={"name": "frozen"})
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "trainer.lora_rank=4", "trainer.lr=0.01") == 0
    assert metrics(tmp_path / "run")[-1]["rollout/logprob_gap"] < 1e-4, "the generator has the merged weights"
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "trainer.lora_rank=4", "trainer.lr=0.01", "steps=4") == 0


def test_the_reference_models_marker_mass_reaches_weights_and_targets() -> None:
    weights = partial(protect_markers, lexicon="self_doubt", minimum=0.1, saturation=0.2)
    target = partial(marker_mass_floor, lexicon="self_doubt", share=1.0)
    markers = list(range(3, 60))
    one = trainer(frozen(), distill_term(target, token_weights=weights), marker_ids={"self_doubt": markers})
    examples = random_examples(4, with_teacher=1.0)
    inputs = one.inputs(one.batching.batch(examples))
    mask = inputs.sampled_mask
    start = inputs.marker_mass[REF, "self_doubt"].exp()[mask]
    torch.testing.assert_close(inputs.marker_mass[STUDENT, "self_doubt"].exp()[mask], start)  # before the first step
    assert start.min() > 0 and start.max() < 1
    expected = 1 - 0.9 * (start / 0.2).clamp(max=1)
    torch.testing.assert_close(weights(inputs, mask)[mask], expected)
    plain = trainer(frozen(), distill_term(token_weights=weights), marker_ids={"self_doubt": markers})
    (edited,), (unedited,) = (list(t.inputs(t.batching.batch(examples)).divergences.values()) for t in (one, plain))
    gap = (inputs.marker_mass["teacher", "self_doubt"] - inputs.marker_mass[REF, "self_doubt"])[mask]
    torch.testing.assert_close(
        edited[mask][gap > 1e-4], unedited[mask][gap > 1e-4]
    )  # the teacher keeps the mass: nothing changes
    assert (edited - unedited)[mask][gap < -1e-2].abs().min() > 0
    report = one.step(examples)
    assert report["train/grad_norm"] > 0


def test_the_penalty_towards_the_reference_model_under_adapters() -> None:
    kl = Term("ref_kl", 1.0, ref_kl, spec_of(ref_kl))
    one = trainer(live(), distill_term(), kl, lora_rank=4)
    examples = random_examples(4, with_teacher=1.0)
    assert one.step(examples)["ref_kl/kl"] == pytest.approx(0.0, abs=1e-6)
    assert one.step(examples)["ref_kl/kl"] > 1e-6
