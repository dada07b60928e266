"""What passes hold: 1. live bytes by hand; 2. on fake tensors as on real ones, of models of several families; 3. the head's passes too;
4. a formula where a model does not run on fake tensors, and the forecast says so."""

from __future__ import annotations

import copy
import itertools
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, PreTrainedModel

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.experiments.forecast.activations import (
    NotMeasurable,
    PassSettings,
    TeacherHeads,
    head_pass,
    learning_pass,
    rows_of,
    scoring_pass,
)
from onpolicy.experiments.forecast.forecast import Assumptions, forecast
from onpolicy.experiments.forecast.shape import ModelShape, ModelSource
from onpolicy.trainer.build import build_objective
from onpolicy.trainer.chunked_head import token_stats
from onpolicy.trainer.forward import completion_hidden, completion_states
from onpolicy.trainer.head import Head, HiddenStates
from onpolicy.trainer.recompute import recompute_layers
from onpolicy.utils.live_bytes import LiveBytes
from tests.runs import write_config
from tests.tiny import tiny_model

LENGTHS = ((20, 30), (20, 40))
ROWS = [(tuple(range(3, 23)), tuple(range(5, 35))), (tuple(range(3, 23)), tuple(range(7, 47)))]


def test_live_bytes_by_hand() -> None:
    before = torch.zeros(1000)
    with LiveBytes([before]) as live:
        one = before + 1  # 4,000 bytes
        view = one[:10]
        assert (live.now, live.peak) == (4000, 4000)
        two = one.double()  # 8,000 more
        del one
        assert live.now == 12_000, "a view keeps all of its storage"
        del view, two
        before.add_(1.0)
    assert (live.now, live.peak) == (0, 12_000)


def test_rows_fill_a_micro_batch() -> None:
    assert rows_of(1000, 100, 400) == ((100, 400), (100, 400), (100, 100))
    assert rows_of(300, 100, 400) == ((100, 200),), "an answer is no longer than the budget"
    assert len(rows_of(100_000, 100, 2)) <= 8


@pytest.mark.parametrize("recomputed", [True, False])
@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt_neox", "mixtral"])
def test_fake_tensors_hold_what_real_ones_do(family: str, recomputed: bool, tmp_path: Path) -> None:
    """Rows with padding; torch cannot make the bias of packed ones while bytes are counted (``test_forecast_peak.py`` has those)."""
    model = tiny_model(family)
    model.config.save_pretrained(tmp_path)
    settings = PassSettings(ModelSource(str(tmp_path)), "cpu", "float32", recomputed, packed=False)
    found = learning_pass(settings, LENGTHS)
    assert found.trained == sum(p.numel() for p in model.parameters())
    scoring = real_scoring(model)
    if recomputed:
        recompute_layers(model)
    kept, most = real_pass(model)
    assert found.kept == pytest.approx(kept, rel=0.03) and found.most == pytest.approx(most, rel=0.05)
    assert scoring_pass(settings, LENGTHS) == pytest.approx(scoring, rel=0.02)


@pytest.mark.parametrize("recomputed", [True, False])
def test_parameters_as_fsdp2_gathers_them(recomputed: bool, tmp_path: Path) -> None:
    """All in bfloat16: then the states between layers are too, where they are float32 if the embedding is."""
    model = tiny_model("qwen3")
    model.config.save_pretrained(tmp_path)
    if recomputed:
        recompute_layers(model)
    settings = PassSettings(ModelSource(str(tmp_path)), "cpu", "bfloat16", recomputed, packed=False, all_rounded=True)
    found = learning_pass(replace(settings, rounded=True), LENGTHS)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        kept, most = real_pass(model.bfloat16())
    assert found.kept == pytest.approx(kept, rel=0.03) and found.most == pytest.approx(most, rel=0.05)
    assert found.kept < 0.85 * learning_pass(replace(settings, rounded=True, all_rounded=False), LENGTHS).kept


def test_layers_that_are_left_out_count(tmp_path: Path) -> None:
    """Seven layers, of which every third has no window: two of each kind are run, and the others hold what those do."""
    config = copy.deepcopy(tiny_model("qwen3").config)
    config.num_hidden_layers, config.sliding_window, config.use_sliding_window = 7, 8, True
    config.layer_types = ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
    config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config).eval()
    for recomputed in (False, True):
        if recomputed:
            recompute_layers(model)
        found = learning_pass(PassSettings(ModelSource(str(tmp_path)), "cpu", "float32", recomputed, False), LENGTHS)
        kept, most = real_pass(model)
        assert found.kept == pytest.approx(kept, rel=0.02) and found.most == pytest.approx(most, rel=0.03)
        assert found.trained == sum(p.numel() for p in model.parameters())


def test_both_summands_of_a_tied_gradient_are_there_at_once(tmp_path: Path) -> None:
    """Body and head together, of few tokens and a large vocabulary: the head's summand waits for the embedding's."""
    model = tiny_model(vocab_size=20_000)
    model.config.save_pretrained(tmp_path)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        states = completion_states(model, [((3, 4, 5), (6, 7, 8, 9))])
        token_stats(states, {}, torch.tensor([6, 7, 8, 9])).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    events = sorted(profiled.profiler.kineto_results.events(), key=lambda e: e.start_ns())  # type: ignore[union-attr]
    most = max(itertools.accumulate(e.nbytes() for e in events if e.name() == "[memory]"))
    settings = PassSettings(ModelSource(str(tmp_path)), "cpu", "float32", False, False)
    assert learning_pass(settings, ((3, 4),)).most == pytest.approx(most, rel=0.05)


def real_pass(model: PreTrainedModel) -> tuple[int, int]:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    with LiveBytes([*model.parameters(), *grads, *model.buffers()]) as live:
        hidden = completion_hidden(model, ROWS, layout="padded")
        kept = live.now
        # both summands of a tied matrix's gradient
        waits = torch.zeros_like(head) if head is table else None
        hidden.backward(torch.ones_like(hidden))  # type: ignore[no-untyped-call]
        del waits
    return kept, live.peak


@torch.no_grad()
def real_scoring(model: PreTrainedModel) -> int:
    with LiveBytes([*model.parameters(), *model.buffers()]) as live:
        completion_hidden(model, ROWS, layout="padded")
    return live.peak


@pytest.mark.parametrize("own", [[], ["teacher={name: trust_region_logits}"]])
def test_the_heads_passes_hold_what_real_ones_do(own: list[str], tmp_path: Path) -> None:
    """400 tokens of 16 numbers over 500 entries: two chunks, of which no token is skipped."""
    objective = build_objective(resolve(load(write_config(tmp_path), own)))
    draw = torch.Generator().manual_seed(0)
    weight, other = (torch.randn(500, 16, generator=draw) for _ in range(2))
    hidden, theirs = torch.randn(400, 16, generator=draw), torch.randn(400, 16, generator=draw)
    student, ids = Head(weight.requires_grad_()), torch.randint(500, (400,), generator=draw)
    with LiveBytes([weight, other, hidden, theirs, ids]) as live:
        teachers = {"teacher": HiddenStates(theirs, Head(other))}
        stats = token_stats(HiddenStates(hidden.requires_grad_(), student), teachers, ids, objective.comparisons)
        torch.stack([stats.logprobs, *stats.divergences.values()]).sum().backward()  # type: ignore[no-untyped-call]
    heads = TeacherHeads((("teacher", "float32"),))
    found = head_pass(objective, heads, (500, 16, 400), trained=True, bfloat16=False, device="cpu")
    assert found == pytest.approx(live.peak, rel=0.02)


def test_a_gpu_has_no_matrix_of_queries_and_keys(tmp_path: Path) -> None:
    """Twice the tokens keep twice the bytes on a GPU, and more on the CPU, where a completion behind a shared prompt has a mask."""
    tiny_model().config.save_pretrained(tmp_path)

    def kept(device: str, rows: tuple[tuple[int, int], ...]) -> int:
        settings = PassSettings(ModelSource(str(tmp_path)), device, "float32", False, True)  # type: ignore[arg-type]
        return learning_pass(settings, rows).kept

    once, twice = ((1000, 1000),), ((2000, 2000),)
    assert kept("cuda", twice) == pytest.approx(2 * kept("cuda", once), rel=0.01)
    assert kept("cpu", twice) > 2.2 * kept("cpu", once)


def test_adapters_alone_are_trained(tmp_path: Path) -> None:
    tiny_model().config.save_pretrained(tmp_path)
    settings = PassSettings(ModelSource(str(tmp_path)), "cuda", "bfloat16", True, True, lora_rank=4)
    shapes = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]  # of one layer's linear layers
    assert learning_pass(settings, LENGTHS).trained == 2 * sum(4 * (one + other) for one, other in shapes)


def test_a_model_that_cannot_run_gets_a_formula(tmp_path: Path) -> None:
    shape = ModelShape(parameters=1_000_000, layers=10, hidden=100, width=100, kv_width=50, vocabulary=1000)
    found = forecast(resolve(load(write_config(tmp_path), [])), shape, Assumptions(completion_tokens=50))
    said = "activations by a formula, because the model does not run without values (the model cannot be built"
    assert any(note.startswith(said) for note in found.notes)
    # positions decide this model's frequencies
    config = tiny_model("llama").config
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config.save_pretrained(tmp_path / "dynamic")
    with pytest.raises(NotMeasurable, match=r"^DataDependentOutputException: "):
        learning_pass(PassSettings(ModelSource(str(tmp_path / "dynamic")), "cuda", "bfloat16", True, True), LENGTHS)
    assert not logging.getLogger("torch._subclasses.fake_tensor").disabled
