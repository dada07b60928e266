"""AdamW's moments: in 8 bits, and on the host.

1. the tables and a block, worked out by hand; 2. the update is AdamW's: the first to the last bit, later ones as a float64 oracle that
rounds moments as the paper says, and near one that rounds nothing; 3. a second moment is never rounded to 0; 4. which parameters keep
float32; 5. on the host every number is as beside the parameter; 6. a state is plain tensors, comes back to the last bit, and goes from
one kind to another; 7. bytes, and what a step holds beside them; 8. training goes as with float32; 9. who has no such option says what
to use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from onpolicy.config.resolve import load_resolved
from onpolicy.trainer import moments as kept
from onpolicy.trainer import optimizer
from onpolicy.trainer.eight_bit import BLOCK, dequantized, dynamic_map, quantized
from onpolicy.trainer.moments import AT_ONCE, EIGHT_BIT, IN_PLACE, LEAST_QUANTIZED, MOMENTS, ON_HOST, InPlace
from onpolicy.trainer.optimizer import PiecewiseAdamW, embeddings_and_head, parameter_state
from onpolicy.trainer.saved_state import SavedTensors, moments_by_parameter
from onpolicy.trainer.teacher_rules import frozen
from onpolicy.trainer.trainer import PolicyTrainer
from onpolicy.utils.errors import ConfigError
from tests.tiny import random_examples, tiny_model
from tests.trainer.test_on_device import trainer
from tests.trainer.test_trainer import distill_term, optimizer_of
from tests.trainer.test_trainer import trainer as plain_trainer

LR, BETAS, EPS, DECAY = 1e-2, (0.9, 0.999), 1e-8, 0.1
CLIPPED: dict[str, Any] = {"max_grad_norm": 0.05, "weight_decay": 0.1, "warmup_steps": 3}
ADAPTERS: dict[str, Any] = {"lora_rank": 64}  # of 64 × 64 numbers and more


def test_the_tables_by_hand() -> None:
    signed, positive = dynamic_map(signed=True), dynamic_map(signed=False)
    assert len(signed) == 256 and len(positive) == 255 and {0.0, 1.0} < set(signed.tolist())
    assert positive.min() == pytest.approx(1e-6 * (0.1 + 0.45 / 2)), "two intervals in the last decade"
    assert signed[signed > 0].min() == pytest.approx(1e-6 * (0.1 + 0.9 / 2)), "and one for each sign"
    assert signed[-2] == pytest.approx(1 - 0.9 / 64 / 2) and positive[-2] == pytest.approx(1 - 0.9 / 128 / 2)
    assert torch.equal(signed[:127].flip(0), -signed[128:255]), "the same on both sides, but for 1"


def test_a_block_by_hand() -> None:
    """-.5 lies in interval 28 of 64 from .1 to 1, whose middle is .1 + 28.5 · .9 / 64; 5e-7 is nearer to 5.5e-7 than to 0."""
    values = torch.zeros(2 * BLOCK)
    values[:4] = torch.tensor([-2.0, 1.0, 2 * 5e-7, 2 * 2e-7])
    codes, scale = quantized(values, signed=True)
    found = dequantized(codes, scale, signed=True)
    assert codes.dtype == torch.uint8 and scale.tolist() == [-2.0, 0.0]
    assert found[0] == -2.0 and found[1] == pytest.approx(2 * (0.1 + 28.5 * 0.9 / 64))
    assert found[2] == pytest.approx(2 * 5.5e-7) and found[3] == 0.0
    assert not found[4:].any()


@pytest.mark.parametrize("signed", [True, False])
def test_a_number_is_off_by_half_an_interval_at_most(signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** -torch.randint(0, 7, (64 * BLOCK,), generator=generator) * torch.rand(
        64 * BLOCK, generator=generator
    )
    values = sizes * (torch.randint(0, 2, sizes.shape, generator=generator) * 2 - 1 if signed else 1)
    codes, scale = quantized(values, signed=signed)
    shares = (values.view(-1, BLOCK) / scale.unsqueeze(1)).view(-1).double().abs()
    error = ((dequantized(codes, scale, signed=signed) - values).view(-1, BLOCK) / scale.unsqueeze(1)).view(-1).abs()
    decade = (-shares.log10()).floor().clamp(0, 6)
    interval = 0.9 * 10.0**-decade / 2.0 ** (6 - decade + (not signed))
    lowest = torch.where(shares < 1e-6, 1e-6, interval / 2)  # below the last decade: 0, or the smallest entry
    assert (error <= lowest * 1.001 + 1e-7).all()
    biggest = values.view(-1, BLOCK).abs().argmax(dim=1, keepdim=True)
    assert not error.view(-1, BLOCK).gather(1, biggest).any(), "the scale's own number has no error, whatever its sign"


def nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """A moment in 8 bits and back, in float64, by comparison with every entry."""
    out = np.empty_like(values)
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        scale = block[np.abs(block).argmax()]
        out[start : start + BLOCK] = (
            0.0 if scale == 0 else scale * table[np.abs(block / (scale or 1.0) - table[:, None]).argmin(axis=0)]
        )
    return out


def oracle(weights: Tensor, gradients: list[Tensor], rounded: Callable[[np.ndarray, str], np.ndarray]) -> np.ndarray:
    """AdamW in float64 (arXiv 1711.05101, algorithm 2), its moments rounded after each update."""
    w, m, v = weights.double().numpy().copy(), np.zeros(weights.numel()), np.zeros(weights.numel())
    for t, gradient in enumerate(gradients, 1):
        g = gradient.double().numpy()
        m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g**2
        w -= LR * DECAY * w + LR * (m / (1 - BETAS[0] ** t)) / (np.sqrt(v / (1 - BETAS[1] ** t)) + EPS)
        m, v = rounded(m, "exp_avg"), rounded(v, "exp_avg_sq")
    return w


def stepped(store: InPlace, weights: Tensor, gradients: list[Tensor]) -> Tensor:
    parameter = nn.Parameter(weights.clone())
    one = PiecewiseAdamW({parameter: store}, lr=LR, betas=BETAS, weight_decay=DECAY)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        one.step()
    return parameter.detach()


def numbers(steps: int, n: int = 16 * BLOCK) -> tuple[Tensor, list[Tensor]]:
    """Weights, and gradients with a part that stays and sizes over four decades."""
    generator = torch.Generator().manual_seed(1)
    size = 10.0 ** (-4 * torch.rand(n, generator=generator))
    stays = torch.randn(n, generator=generator)
    return torch.randn(n, generator=generator), [
        size * (stays + torch.randn(n, generator=generator)) for _ in range(steps)
    ]


def test_the_first_update_in_8_bits_is_that_of_float32_to_the_last_bit() -> None:
    weights, gradients = numbers(1)
    parameter = nn.Parameter(weights.clone())
    parameter.grad = gradients[0].clone()
    torch.optim.AdamW([parameter], lr=LR, betas=BETAS, weight_decay=DECAY).step()
    assert torch.equal(stepped(EIGHT_BIT, weights, gradients), parameter)


def test_updates_in_8_bits_are_those_of_an_oracle_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "AT_ONCE", 3 * BLOCK)
    tables = {key: dynamic_map(signed=kept.SIGNED[key]).double().numpy() for key in MOMENTS}
    weights, gradients = numbers(6)
    found = stepped(EIGHT_BIT, weights, gradients).double().numpy()
    rounding = oracle(weights, gradients, lambda x, key: nearest(x, tables[key]))
    np.testing.assert_allclose(found, rounding, rtol=0, atol=2e-6)  # 0.02 percent of one update
    exact = oracle(weights, gradients, lambda x, key: x)
    apart = np.abs(found - exact) / np.abs(exact - weights.double().numpy())
    assert 0.01 < np.median(apart) < 0.05, (
        "of the way that a weight has gone, where gradients differ by four decades in a block"
    )


def test_a_second_moment_is_not_rounded_to_zero() -> None:
    """One number of a block has a gradient 10^5 times the others', whose gradient then ends: divided by epsilon alone, they would move by
    100 times the learning rate."""
    weights, first = torch.zeros(16 * BLOCK), torch.full((16 * BLOCK,), 1e-5)
    first[::BLOCK] = 1.0
    later = torch.zeros_like(first)
    later[::BLOCK] = 1.0
    found, exact = (stepped(store, weights, [first, later, later]) for store in (EIGHT_BIT, IN_PLACE))
    assert (found.abs() <= 1.05 * exact.abs()).all() and (found != 0).all()


@pytest.mark.parametrize("family", ["qwen3", "llama", "opt"])
def test_embeddings_head_and_small_parameters_keep_float32(family: str) -> None:
    """Tied, apart, and with positions that are embedded."""
    one = trainer(family=family, moments="8bit")
    one.step(random_examples(4))
    found = dict(one.engine.optimizer_state())
    shapes = {name: p.numel() for name, p in one.student.named_parameters()}
    inside = ("embed", "lm_head")
    quantised = {
        name for name, n in shapes.items() if n >= LEAST_QUANTIZED and not any(part in name for part in inside)
    }
    assert {name for name, state in found.items() if "exp_avg.codes" in state} == quantised and len(quantised) > 6
    assert {name for name in shapes if any(part in name for part in inside)}, "named as this test looks for them"
    assert all(state["exp_avg"].dtype == torch.float32 for name, state in found.items() if name not in quantised)
    assert not any("norm" in name for name in quantised)


@pytest.mark.parametrize(("family", "names"), [
    ("qwen3", {"model.embed_tokens.weight"}),
    ("llama", {"model.embed_tokens.weight", "lm_head.weight"}),
    ("gpt_neox", {"gpt_neox.embed_in.weight", "lm_head.weight"}),
    ("opt", {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"}),
])  # fmt: skip
def test_what_counts_as_embeddings_and_head(family: str, names: set[str]) -> None:
    model = tiny_model(family)
    found = set(embeddings_and_head(model))
    assert {name for name, parameter in model.named_parameters() if parameter in found} == names


def test_adapters_of_embeddings_keep_float32_and_others_do_not() -> None:
    one = trainer(moments="8bit", lora_targets=["embed_tokens", "q_proj"], **ADAPTERS)
    one.step(random_examples(4))
    found = dict(one.engine.optimizer_state())
    kinds = {("embed" in name, "exp_avg.codes" in state) for name, state in found.items()}
    assert len(found) == 6 and kinds == {(True, False), (False, True)}
    assert len(set(embeddings_and_head(one.student))) == 3, "the matrix and its adapter"


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("options", [{}, ADAPTERS], ids=["all", "adapters"])
def test_on_the_host_every_number_is_that_of_float32(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], fused: bool
) -> None:
    monkeypatch.setattr(kept, "AT_ONCE", 1024)  # several pieces of a parameter
    monkeypatch.setattr(optimizer, "FUSED_ON", ("cpu",) if fused else ())
    one, other = (trainer(moments=kind, settings=CLIPPED, **options) for kind in ("float32", "host"))
    assert optimizer_of(other).param_groups[0]["fused"] == optimizer_of(one).param_groups[0]["fused"]
    for seed in range(4):
        found = one.step(random_examples(4, seed=seed))
        assert found == other.step(random_examples(4, seed=seed)) and found["train/grad_norm"] > 0.05, "it is clipped"
    for (name, a), (_, b) in zip(one.weights(), other.weights(), strict=True):
        assert torch.equal(a, b), name
    assert_same(dict(one.engine.optimizer_state()), dict(other.engine.optimizer_state()))


def assert_same(one: Mapping[str, Mapping[str, Tensor]], other: Mapping[str, Mapping[str, Tensor]]) -> None:
    assert one.keys() == other.keys()
    for name, state in one.items():
        assert state.keys() == other[name].keys()
        assert all(torch.equal(state[key], other[name][key]) for key in state), name


class Recorded(InPlace):
    """``OnHost``, and what it was asked for."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def read(self, state: Mapping[str, Tensor], key: str, piece: slice, device: torch.device) -> Tensor:
        self.said.append(f"read {key} {piece.start}-{piece.stop}")
        return ON_HOST.read(state, key, piece, device)

    def write(self, state: Mapping[str, Tensor], key: str, piece: slice, moment: Tensor) -> None:
        self.said.append(f"write {key} {piece.start}-{piece.stop}")
        ON_HOST.write(state, key, piece, moment)


def test_each_piece_is_brought_updated_and_put_back_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "AT_ONCE", 2 * BLOCK)
    store = Recorded()
    monkeypatch.setattr(optimizer, "apply_adamw", lambda *_, **__: store.said.append("update"))
    stepped(store, torch.zeros(3 * BLOCK), [torch.ones(3 * BLOCK)])
    assert store.said == [
        line
        for piece in ("0-512", "512-768")
        for line in (
            *(f"read {key} {piece}" for key in MOMENTS),
            "update",
            *(f"write {key} {piece}" for key in MOMENTS),
        )
    ]


def test_the_state_waits_for_the_copies_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter, waited = nn.Parameter(torch.zeros(4)), []
    one = PiecewiseAdamW({parameter: ON_HOST})
    monkeypatch.setattr(optimizer, "synchronize", lambda: waited.append(1))
    assert parameter_state(one, parameter) == {} and waited


@pytest.mark.parametrize(("store", "where"), [(ON_HOST, "cpu"), (EIGHT_BIT, "cuda:0"), (IN_PLACE, "cuda:0")])
def test_where_the_moments_of_a_gpus_parameter_are(monkeypatch: pytest.MonkeyPatch, store: InPlace, where: str) -> None:
    """By fake tensors, of which none can be pinned."""
    pinned: list[bool] = []
    zeros = torch.zeros

    def recorded(*shape: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        pinned.append(pin_memory)
        return zeros(*shape, **options)

    monkeypatch.setattr(torch, "zeros", recorded)
    with FakeTensorMode():
        parameter = nn.Parameter(torch.empty(16 * BLOCK, device="cuda"))
        one = PiecewiseAdamW({parameter: store})
        optimizer.fuse(one)
        state = one._started(parameter, one.param_groups[0])
    assert str(state.pop("step").device) == "cuda:0", "where the fused update reads it"
    assert {str(tensor.device) for tensor in state.values()} == {where}
    assert sum(pinned) == (2 if store is ON_HOST else 0)


KINDS = ("float32", "8bit", "host")


@pytest.mark.parametrize("options", [{}, ADAPTERS], ids=["all", "adapters"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_plain_tensors_and_comes_back_to_the_last_bit(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    one, again = (trainer(moments=kind, settings=CLIPPED, **options) for _ in range(2))
    for seed in range(3):
        one.step(random_examples(4, seed=seed))
    one.save(tmp_path)()
    files = saved_moments(tmp_path)
    size = sum(t.nbytes for state in files.values() for key, t in state.items() if key != "step")
    assert size == one.engine.moment_bytes() == again.engine.moment_bytes(), "as it is said before the first step"
    assert_same(files, dict(one.engine.optimizer_state()))
    again.load_state(tmp_path, one.state())
    assert_same(dict(again.engine.optimizer_state()), files)
    for seed in range(3, 5):
        assert one.step(random_examples(4, seed=seed)) == again.step(random_examples(4, seed=seed))
    assert_same(dict(one.engine.optimizer_state()), dict(again.engine.optimizer_state()))
    assert_same(files, saved_moments(tmp_path))  # copied, not shared


def saved_moments(folder: Path) -> dict[str, dict[str, Tensor]]:
    with SavedTensors(folder) as saved:
        return {name: dict(state) for name, state in moments_by_parameter(saved.under("optimizer")).items()}


@pytest.mark.parametrize("here", KINDS)
@pytest.mark.parametrize("there", KINDS)
def test_a_state_goes_from_one_kind_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, here: str
) -> None:
    """Dequantised it is what the 8-bit optimizer read; quantised it is what it would have kept."""
    monkeypatch.setattr(kept, "AT_ONCE", 4 * BLOCK)
    one, other = trainer(moments=there), trainer(moments=here)
    one.step(random_examples(4))
    state = dict(one.engine.optimizer_state())
    one.save(tmp_path)()
    other.load_state(tmp_path, one.state())
    found = dict(other.engine.optimizer_state())
    for name, tensors in state.items():
        assert found[name]["step"] == tensors["step"]
        for key in MOMENTS:
            moment, got = kept.float32_moment(tensors, key), kept.float32_moment(found[name], key)
            if "exp_avg.codes" in found[name]:
                codes, scale = quantized(moment.reshape(-1), signed=kept.SIGNED[key])
                moment = dequantized(codes, scale, signed=kept.SIGNED[key]).view(moment.shape)
            assert torch.equal(got, moment), (name, key)
    losses = [[each.step(random_examples(4, seed=s))["train/loss"] for s in (1, 2)] for each in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(("store", "expected"), [(IN_PLACE, 8.0), (ON_HOST, 8.0), (EIGHT_BIT, 2 + 2 * 4 / 256)])
def test_bytes_of_a_trained_parameter(store: InPlace, expected: float) -> None:
    parameter = nn.Parameter(torch.zeros(64 * BLOCK))
    parameter.grad = torch.ones_like(parameter)
    one = PiecewiseAdamW({parameter: store})
    one.step()
    found = sum(t.nbytes for t in parameter_state(one, parameter).values())
    assert found == expected * parameter.numel() + 4, "and the step"


@pytest.mark.parametrize(("store", "most"), [(ON_HOST, 4), (EIGHT_BIT, 8)])
def test_a_step_holds_the_moments_of_a_piece_in_float32_and_no_more(
    monkeypatch: pytest.MonkeyPatch, store: InPlace, most: int
) -> None:
    """``most`` tensors of a piece's size, as the allocator counts them; the two moments of the whole parameter are 128."""
    monkeypatch.setattr(kept, "AT_ONCE", 64 * BLOCK)
    parameter = nn.Parameter(torch.zeros(64 * 64 * BLOCK))
    parameter.grad = torch.ones_like(parameter)
    one = PiecewiseAdamW({parameter: store})
    one.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        one.step()
    now = peak = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert 2 * 4 * kept.AT_ONCE <= peak <= most * 4 * kept.AT_ONCE + 4096
    assert AT_ONCE % BLOCK == 0


def learns(moments: str, seed: int) -> list[float]:
    one = plain_trainer(distill_term(), rule=frozen(), lr=3e-3, seed=seed, moments=moments)
    examples = random_examples(8, with_teacher=1.0, seed=seed)
    return [one.step(examples)["distill/divergence"] for _ in range(30)]


@pytest.mark.parametrize("seed", [0, 1])
def test_thirty_steps_go_as_with_float32(seed: int) -> None:
    """The divergence falls to a third; with moments in 8 bits it is never further off than 2 percent of where it began."""
    exact, found = learns("float32", seed), learns("8bit", seed)
    assert exact[-1] < 0.3 * exact[0] and exact != found
    assert max(abs(a - b) for a, b in zip(exact, found, strict=True)) < 0.02 * exact[0]


@pytest.mark.parametrize("kind", KINDS)
def test_memory_that_runs_out_leaves_the_moments_as_they_were(kind: str) -> None:
    one, untroubled = trainer(moments=kind), trainer(moments=kind)
    for each in (one, untroubled):
        each.step(random_examples(8))
    before, seen, calls = copied(one), [], [0]
    backward = one.engine.backward

    def runs_out(loss: Tensor) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise torch.OutOfMemoryError("no room")
        backward(loss)

    one.engine.backward = runs_out  # type: ignore[method-assign]
    one.on_fault = lambda role, what: seen.append(copied(one))
    found, wanted = one.step(random_examples(8, seed=1)), untroubled.step(random_examples(8, seed=1))
    assert found["train/loss"] == pytest.approx(wanted["train/loss"], rel=1e-5)
    (after,) = seen
    assert_same(before, after)
    for name, weight in dict(untroubled.weights()).items():
        torch.testing.assert_close(dict(one.weights())[name], weight, atol=1e-4, rtol=1e-4, msg=name)


def copied(one: PolicyTrainer) -> dict[str, dict[str, Tensor]]:
    return {n: {key: t.clone() for key, t in state.items()} for n, state in dict(one.engine.optimizer_state()).items()}


def test_deepspeed_says_what_to_use_instead() -> None:
    overrides = ["model.path=lab-reasoner", "data.path=/nope.jsonl", "trainer.name=deepspeed", "trainer.moments=8bit"]
    with pytest.raises(
        ConfigError, match=r"trainer\.moments: 'deepspeed' has no such option: .* expected trainer\.config=deepspeed/"
    ) as refused:
        load_resolved("grpo", overrides)
    assert "Did you mean" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"trainer\.moments: got '4bit', expected one of 'float32', '8bit', 'host'"):
        load_resolved("grpo", [*overrides[:2], "trainer.moments=4bit"])
