"""Sequences in one row give what they give alone, in value and in gradient, and a prompt that several share is run once.

1. packing, worked by hand; 2. the attention equals a dense one whose mask is written out, in float64; 3. for many
families hidden states and gradients are those of the padded layout: shared prompts, prompts that begin alike, sliding
windows, completions of one token; in float64 to 1e-10, and with gradient checkpointing; 4. a shared prompt enters the
model once, a completion without its last token; 5. a prepared model reads and generates as ever, is saved as ever, and
its copies run packed; 6. what is not plain attention is not packed: refused by the name of the setting, or run padded;
7. a model that loses the packed trees on the way says so, and none gives wrong numbers silently.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention

from onpolicy.config.schema import TrainerSettings
from onpolicy.losses.objective import Objective
from onpolicy.trainer import prefix_sharing
from onpolicy.trainer.forward import Layout, completion_states
from onpolicy.trainer.micro_batches import Row
from onpolicy.trainer.prefix_sharing import PackedTrees, PrefixTree, pack
from onpolicy.trainer.recompute import recompute_layers
from onpolicy.trainer.teacher_rules import live
from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup, local
from onpolicy.utils.timer import PhaseTimer
from tests.tiny import random_examples, tiny_model
from tests.trainer.test_trainer import distill_term

SHAPE: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW, MIXED = {"sliding_window": 4}, {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
          "v_head_dim": 12, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, **EXPERTS}  # fmt: skip
NO_ROPE = {"no_rope_layers": [1, 0], "no_rope_layer_interval": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", {}),
    "qwen2": ("Qwen2", {}),
    "qwen2, a layer with a window": ("Qwen2", {**WINDOW, **MIXED, "use_sliding_window": True}),
    "llama": ("Llama", {}),
    "mistral": ("Mistral", WINDOW),
    "ministral": ("Ministral", {**WINDOW, **MIXED}),
    "gemma": ("Gemma", {}),
    "gemma3": ("Gemma3", {**WINDOW, **MIXED, "query_pre_attn_scalar": 5}),
    "granite": ("Granite", {"attention_multiplier": 0.7, "residual_multiplier": 0.5}),
    "cohere": ("Cohere", {}),
    "cohere2": ("Cohere2", {**WINDOW, **MIXED}),
    "smollm3": ("SmolLM3", NO_ROPE),
    "phi3": ("Phi3", WINDOW),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {**WINDOW, **MIXED}),
    "glm4": ("Glm4", {}),
    "starcoder2": ("Starcoder2", WINDOW),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, **EXPERTS}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, **EXPERTS, **WINDOW}),
    "deepseek_v3, heads of two widths": ("DeepseekV3", LATENT),
    "gpt2, learned positions": ("GPT2", GPT),
}
PREFIX, OTHER = (5, 6, 7, 8, 9, 10, 11, 12, 13), (40, 41, 42, 43, 44, 45)
ROWS: list[Row] = [
    (PREFIX, (20, 21, 22, 23, 24, 25, 26)),
    (OTHER, (3, 4, 5)),
    (PREFIX, (30,)),
    (PREFIX[:-2], (12, 13, 20)),  # begins alike but is another prompt
    (PREFIX, (20, 21, 60, 61, 62)),
    ((7,), (8, 9)),
    (OTHER, (3, 4, 5)),  # the same row twice
    ((50, 51, 52), (2,)),
]  # fmt: skip


def model_of(kind: str, **options: Any) -> PreTrainedModel:
    """A random model that pays attention to every token it may see."""
    config = getattr(transformers, f"{kind}TextConfig", None) or getattr(transformers, f"{kind}Config")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(**{**SHAPE, **options})).eval()  # type: ignore[no-any-return]


def family(name: str) -> PreTrainedModel:
    kind, options = FAMILIES[name]
    return model_of(kind, **options)


def prepared(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that runs packed."""
    twin = copy.deepcopy(model)
    prefix_sharing.enable_prefix_sharing(twin)
    return twin


def states_and_gradients(
    model: PreTrainedModel, layout: Layout, rows: Sequence[Row] = ROWS
) -> tuple[Tensor, dict[str, Tensor]]:
    """Of a sum with a weight of its own for every number: no normalisation makes it constant."""
    model.zero_grad()
    hidden = completion_states(model, rows, layout=layout).hidden
    weights = torch.sin(torch.arange(hidden.numel(), dtype=hidden.dtype)).view_as(hidden)
    ((hidden * weights).sum() / hidden.numel() ** 0.5).backward()
    return hidden.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_alike(
    found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]], atol: float = 1e-5
) -> None:
    rtol = 10 * atol
    torch.testing.assert_close(found[0], expected[0], atol=atol, rtol=rtol)
    assert found[1].keys() == expected[1].keys()
    largest = 0.0
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=atol, rtol=rtol, msg=partial("{}: {}".format, name))
        largest = max(largest, float(gradient.abs().max()))
    assert largest > 0.1, "a gradient that is nothing but rounding proves nothing"


def test_packing_by_hand() -> None:
    rows: list[Row] = [((5, 6), (7, 8, 9)), ((4,), (3,)), ((5, 6), (1, 2)), ((4,), (7, 7, 7))]
    packed, ids, positions, columns = pack(rows)
    assert packed == PackedTrees((PrefixTree(2, (2, 1)), PrefixTree(1, (0, 2))))
    assert [tree.size for tree in packed.trees] == [5, 3]
    #               prompt |7 8 |1 | prompt |7 7
    assert ids == [5, 6, 7, 8, 1, 4, 7, 7]
    assert positions == [0, 1, 2, 3, 2, 0, 1, 2]
    # what predicts the first token of a completion is its prompt's last
    assert [column.tolist() for column in columns] == [[1, 2, 3], [5], [1, 4], [5, 6, 7]]


EMPTY: list[Row] = [(PREFIX, ()), *ROWS[:3], (OTHER, ()), ((8, 9), ()), (PREFIX, ()), ((60,), (61,))]
"""With rows whose completion is empty: first, last of a prompt, alone under a prompt."""


def test_an_empty_completion_has_no_place() -> None:
    packed, ids, _, columns = pack([((5, 6), ()), ((4,), ()), ((5, 6), (7, 8))])
    assert packed == PackedTrees((PrefixTree(2, (0, 1)), PrefixTree(1, (0,)))) and ids == [5, 6, 7, 4]
    assert [column.tolist() for column in columns] == [[], [], [1, 2]]
    model = family("qwen3")
    one, other = states_and_gradients(prepared(model), "packed", EMPTY), states_and_gradients(model, "padded", EMPTY)
    assert len(one[0]) == sum(len(completion) for _, completion in EMPTY)
    assert_alike(one, other)


def test_packing_keeps_the_rows_order_whatever_order_they_come_in() -> None:
    for rows in (ROWS, ROWS[::-1]):
        _, ids, positions, columns = pack(rows)
        for (prompt, completion), own in zip(rows, columns, strict=True):
            assert len(own) == len(completion)
            assert [ids[p] for p in own[1:]] == list(completion[:-1]) and ids[own[0]] == prompt[-1]
            assert [positions[p] for p in own] == list(range(len(prompt) - 1, len(prompt) + len(completion) - 1))


def dense(trees: Sequence[PrefixTree], qkv: Sequence[Tensor], scale: float | None, window: int | None) -> Tensor:
    """Softmax over a mask written out token by token."""
    where = [  # tree, completion (-1: the prefix), position
        (t, b, p)
        for t, tree in enumerate(trees)
        for b, p in [(-1, p) for p in range(tree.prefix)]
        + [(b, tree.prefix + p) for b, length in enumerate(tree.completions) for p in range(length)]
    ]
    seen = [
        [t == u and c in (-1, b) and o <= p and (window is None or p - o < window) for u, c, o in where]
        for t, b, p in where
    ]
    q, k, v = qkv
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.masked_fill(~torch.tensor(seen), -torch.inf).softmax(-1) @ v


@given(
    trees=st.lists(
        st.builds(PrefixTree, st.integers(1, 6), st.lists(st.integers(0, 5), max_size=3).map(tuple)),
        min_size=1,
        max_size=3,
    ),
    window=st.none() | st.integers(1, 12),
    scale=st.sampled_from([None, 0.3]),
)
@settings(max_examples=60, deadline=None)
def test_the_attention_is_a_dense_one_with_the_mask_written_out(
    trees: list[PrefixTree], window: int | None, scale: float | None
) -> None:
    length, random = sum(tree.size for tree in trees), torch.Generator().manual_seed(0)
    shapes = [(1, 2, length, width) for width in (4, 4, 3)]
    one, other = (
        [torch.randn(s, generator=random.manual_seed(i), dtype=torch.double).requires_grad_() for i, s in enumerate(shapes)]
        for _ in range(2)
    )  # fmt: skip
    found = PackedTrees(tuple(trees)).attend(one[0], one[1], one[2], scale=scale, window=window)
    expected = dense(trees, other, scale, window)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weights = torch.randn(expected.shape, generator=random, dtype=torch.double)
    found.backward(weights)
    expected.backward(weights)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_is_padded_in_value_and_gradient(name: str) -> None:
    model = family(name)
    assert prefix_sharing.supports_prefix_sharing(model)
    assert_alike(states_and_gradients(prepared(model), "packed"), states_and_gradients(model, "padded"))


@pytest.mark.parametrize("window", [1, 2, 5, 6, 7, 9, 10, 15, 16, 17])  # around the lengths of prompts and rows
def test_every_window_is_the_models_own(window: int) -> None:
    model = model_of("Mistral", sliding_window=window)
    assert_alike(states_and_gradients(prepared(model), "packed"), states_and_gradients(model, "padded"))


@pytest.mark.parametrize(
    ("prefix", "completion", "window"), [(300, 500, 130), (40, 700, 256), (900, 3, 200), (0, 400, 129)]
)
def test_a_long_window_runs_in_blocks_with_the_gradients_of_one_mask(prefix: int, completion: int, window: int) -> None:
    tree = PackedTrees((PrefixTree(prefix, (completion, 7)),))
    torch.manual_seed(0)
    one = [torch.randn(1, 2, tree.trees[0].size, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    other = [x.detach().clone().requires_grad_() for x in one]
    found = tree.attend(one[0], one[1], one[2], scale=None, window=window)
    expected = dense(tree.trees, other, None, window)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x.grad, y.grad, atol=1e-12, rtol=0)


class LargestMade(TorchDispatchMode):
    """Numbers in the largest tensor that any operation has made."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        made = function(*arguments, **(options or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_no_tensor_has_a_number_for_every_query_and_key() -> None:
    """Counted in forward and backward pass, without computing."""
    window, length = 256, 8192
    with FakeTensorMode(), LargestMade() as made:
        query, key, value = (torch.empty(1, 1, length, 8, requires_grad=True) for _ in range(3))
        PackedTrees((PrefixTree(length, ()),)).attend(query, key, value, scale=None, window=window).sum().backward()
    assert made.numbers <= max(length * 8, 2 * window * 2 * window) < length * length / 100


def test_in_float64_to_the_last_digits() -> None:
    model = family("starcoder2").double()  # its norms do not fall back to float32
    packed, padded = states_and_gradients(prepared(model), "packed"), states_and_gradients(model, "padded")
    assert packed[0].dtype == torch.float64
    assert_alike(packed, padded, atol=1e-10)


def test_in_half_precision_to_its_rounding() -> None:
    """As a trainer on a GPU runs it: weights in float32, matrices in bfloat16."""
    for name in ("qwen3", "mistral"):
        model = family(name)
        exact, scale = states_and_gradients(model, "padded")[0], 0.02
        with torch.autocast("cpu", torch.bfloat16):
            found = completion_states(prepared(model), ROWS, layout="packed").hidden
            other = completion_states(model, ROWS, layout="padded").hidden
        assert (found - exact).abs().mean() < 1.2 * (other - exact).abs().mean() < scale


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "deepseek_v3, heads of two widths"])
def test_gradient_checkpointing_changes_nothing(name: str, layout: Layout) -> None:
    model = family(name)
    expected = states_and_gradients(model, "padded")
    runs: list[None] = []
    twin = prepared(model)
    recompute_layers(twin)
    twin.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(None))
    assert_alike(states_and_gradients(twin, layout), expected)
    assert len(runs) == 2, "the layer runs again in the backward pass"


def tokens_entering(model: PreTrainedModel, run: Callable[[], object]) -> list[int]:
    counted: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, args, __: counted.append(args[0].numel()))
    run()
    hook.remove()
    return counted


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
@torch.no_grad()
def test_a_shared_prompt_is_run_once_and_the_last_token_never(name: str) -> None:
    model = prepared(family(name))
    # 9 + 6 + 0 + 4 after the prefix, 6 + 2 + 2, 7 + 2, 1 + 1, 3 + 0
    assert tokens_entering(model, lambda: completion_states(model, ROWS, layout="packed")) == [19 + 10 + 9 + 2 + 3]
    assert tokens_entering(model, lambda: completion_states(model, ROWS, layout="padded")) == [len(ROWS) * (9 + 7)]


def test_the_gradient_of_a_shared_prompt_is_the_sum_over_its_completions() -> None:
    """A prompt run once learns from all that follow it."""
    model = prepared(family("llama"))

    def gradient(rows: list[Row], wanted: slice) -> Tensor:
        model.zero_grad()
        completion_states(model, rows, layout="packed").hidden[wanted].sin().sum().backward()  # type: ignore[no-untyped-call]
        found = model.get_input_embeddings().weight.grad
        assert found is not None
        return found.clone()

    one: Row = (PREFIX, (20, 21, 22))
    other: Row = (PREFIX, (30, 31))
    both = gradient([one, other], slice(None))
    torch.testing.assert_close(
        both, gradient([one], slice(None)) + gradient([other], slice(None)), atol=1e-4, rtol=1e-4
    )
    # a completion that is not asked for leaves no trace, nor does it see its sibling
    torch.testing.assert_close(gradient([one, other], slice(3)), gradient([one], slice(None)), atol=1e-4, rtol=1e-4)
    assert not gradient([one, other], slice(3))[[30, 31]].any()


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma3", "smollm3"])
@torch.no_grad()
def test_a_prepared_model_reads_and_generates_as_ever(name: str) -> None:
    model = family(name)
    twin = prepared(model)
    completion_states(twin, ROWS, layout="packed")  # leaves nothing behind
    ids = torch.tensor([[0, 0, 0, *OTHER], PREFIX])
    mask = (ids != 0).long()
    for options in ({}, {"attention_mask": mask}):
        expected = model(input_ids=ids, **options).logits[mask.bool()]
        torch.testing.assert_close(twin(input_ids=ids, **options).logits[mask.bool()], expected, atol=1e-6, rtol=1e-5)
    said = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    assert torch.equal(twin.generate(ids, **said), model.generate(ids, **said))
    for layout in ("padded", "packed"):
        states = completion_states(twin, ROWS, layout=layout).hidden  # type: ignore[arg-type]
        torch.testing.assert_close(states, completion_states(model, ROWS).hidden, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_prepared_model_is_saved_as_ever(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = prepared(family("qwen3"))
    model.save_pretrained(tmp_path)
    assert not [path for path in tmp_path.glob("*.json") if prefix_sharing.ATTENTION_NAME in path.read_text()]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen3"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa" and prefix_sharing.supports_prefix_sharing(loaded)
    ids = torch.tensor([PREFIX])
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_copy_of_a_prepared_model_runs_packed() -> None:
    model = family("gemma3")
    twin = copy.deepcopy(prepared(model))
    assert prefix_sharing.supports_prefix_sharing(twin)
    assert_alike(states_and_gradients(twin, "packed"), states_and_gradients(model, "padded"))
    prefix_sharing.enable_prefix_sharing(twin)  # twice is once
    assert_alike(states_and_gradients(twin, "packed"), states_and_gradients(model, "padded"))


MAMBA = {"state_size": 4, "conv_kernel": 2}
LINEAR = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
          "num_experts": 4, "shared_expert_intermediate_size": 16, **EXPERTS}  # fmt: skip
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "a soft cap on the scores": ("Gemma2", {}),
    "a state space": ("Mamba", MAMBA),
    "linear attention beside full": ("Qwen3Next", {**LINEAR, "layer_types": ["linear_attention", "full_attention"]}),
    "convolutions beside attention": ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
    "attention in chunks": ("Llama4", {"attention_chunk_size": 4, "num_local_experts": 2}),
    "learned sinks": ("GptOss", {**WINDOW, "num_local_experts": 2}),
    "biases on the scores": ("Bloom", {"n_layer": 2, "n_head": 4}),
    "attention past the interface": ("StableLm", {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_plain_attention_is_not_packed(name: str) -> None:
    kind, options = OTHERS[name]
    assert not prefix_sharing.supports_prefix_sharing(model_of(kind, **options))


def test_another_implementation_of_attention_is_not_packed() -> None:
    model = family("qwen3")
    assert prefix_sharing.supports_prefix_sharing(model)
    for implementation in ("eager", "flex_attention"):
        model.set_attn_implementation(implementation)
        assert not prefix_sharing.supports_prefix_sharing(model)
    model.config._attn_implementation = "flash_attention_2"  # which is not installed here
    assert not prefix_sharing.supports_prefix_sharing(model)
    model.set_attn_implementation("sdpa")
    assert prefix_sharing.supports_prefix_sharing(model)


def trainer_of(
    model: PreTrainedModel, layout: Layout | None, teacher_model: PreTrainedModel | None = None
) -> PolicyTrainer:
    setup = TrainerSetup(
        student=model, objective=Objective((distill_term(),)), rule=live(), total_steps=10, contexts=("teacher",), clock=PhaseTimer(),
        settings=TrainerSettings(lr=1e-3, micro_batch_tokens=100), teacher_model=teacher_model,
    )  # fmt: skip
    return local(setup=setup, layout=layout)


@pytest.mark.parametrize("unfit", ["student", "teacher"])
def test_a_model_that_cannot_be_packed_is_refused_or_run_padded(unfit: str) -> None:
    models = [tiny_model(), tiny_model(seed=1)]
    models[unfit == "teacher"].set_attn_implementation("eager")
    with pytest.raises(ValueError, match=r"trainer\.layout: Qwen3ForCausalLM .* padded"):
        trainer_of(models[0], "packed", models[1])
    for layout in (None, "padded"):
        one = trainer_of(models[0], layout, models[1])  # type: ignore[arg-type]
        assert one.layout == "padded"
        assert all(m.config._attn_implementation in ("eager", "sdpa") for m in models), "left as they were"
    assert one.step(random_examples(4))["train/grad_norm"] > 0.0


def test_what_can_be_packed_is_packed_unless_told_otherwise() -> None:
    for wanted, layout in ((None, "packed"), ("packed", "packed"), ("padded", "padded")):
        one = trainer_of(tiny_model(), wanted, tiny_model(seed=1))  # type: ignore[arg-type]
        assert one.layout == layout
        assert one.step(random_examples(4))["train/grad_norm"] > 0.0


class Forgetful(LlamaAttention):
    """Hands no options on."""

    def forward(self, *args: Any, **options: Any) -> Any:
        options.pop("packed_trees", None)
        return super().forward(*args, **options)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_model_that_loses_the_packed_trees_says_so(layer: int) -> None:
    model = prepared(family("llama"))
    attention = model.base_model.layers[layer].self_attn
    attention.__class__ = Forgetful
    with pytest.raises(NotImplementedError, match=r"Forgetful .* trainer\.layout=padded"):
        completion_states(model, ROWS, layout="packed")
    completion_states(model, ROWS, layout="padded")


def test_what_is_not_supported_is_left_alone() -> None:
    model = model_of("Gemma2")
    assert not prefix_sharing.enable_prefix_sharing(model) and model.config._attn_implementation == "sdpa"
    completion_states(model, ROWS)


AWKWARD: dict[str, tuple[str, dict[str, Any]]] = {
    "options lost": ("Nemotron", {}),
    "recurrent layers": ("RecurrentGemma", {"num_hidden_layers": 3, "lru_width": 32}),
    "a window that only the mask knows": ("Phimoe", {**WINDOW, "num_local_experts": 4, **EXPERTS}),
    "a window in some layers that only the mask knows": (
        "Qwen2Moe", {**WINDOW, **MIXED, **EXPERTS, "use_sliding_window": True, "num_experts": 4, "shared_expert_intermediate_size": 16},
    ),
    "a mask of its own": ("Doge", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD)
def test_no_model_gives_wrong_numbers(name: str) -> None:
    """One that would is not made ready, and stays as it was."""
    kind, options = AWKWARD[name]
    model = model_of(kind, **options)
    before = completion_states(model, ROWS).hidden
    assert not (prefix_sharing.supports_prefix_sharing(model) and prefix_sharing.enable_prefix_sharing(model))
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(completion_states(model, ROWS).hidden, before)
