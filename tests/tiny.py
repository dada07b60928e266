"""Small real things for tests: tokenizers made on the spot, random models of two families, rollouts by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    OPTConfig,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from onpolicy.types import Example, Prompt, Rollout

SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str | None = CHATML, added: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """One token a byte, three special tokens, and whatever is to be added."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens(list(added))
    tokenizer.chat_template = template
    return tokenizer


EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
LINEAR_ATTENTION = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
                    "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "qwen3_moe": (Qwen3MoeConfig, {"num_experts": 4, **EXPERTS}),
    "mixtral": (MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.1}),
    "phimoe": (PhimoeConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),  # with jitter of its own
    "qwen3_next": (Qwen3NextConfig, {"num_experts": 4, **EXPERTS, **LINEAR_ATTENTION}),
    "gpt_neox": (GPTNeoXConfig, {}),
    "opt": (OPTConfig, {"ffn_dim": 128, "word_embed_proj_dim": 64, "layerdrop": 0.5}),
}
"""Families whose files have other names than their parameters, or whose training mode is random."""


def tiny_model(family: str = "qwen3", *, seed: int = 0, vocab_size: int = 264, width: int = 64) -> PreTrainedModel:
    """A random model of about 0.1 M parameters, in float32, of Qwen3, Llama or one of ``FAMILIES``."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.15,  # large enough that distributions differ visibly from uniform
    }
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False)).eval()
    if family in FAMILIES:
        config, own = FAMILIES[family]
        if family == "gpt_neox":
            del shape["head_dim"], shape["num_key_value_heads"]
        return AutoModelForCausalLM.from_config(config(**shape, **own)).eval()  # type: ignore[no-any-return]
    return Qwen3ForCausalLM(Qwen3Config(**shape, tie_word_embeddings=True)).eval()


def tiny_model_dir(path: Path, family: str = "qwen3", **shape: int) -> Path:
    """The model of ``tiny_model`` and its tokenizer as a Hugging Face folder."""
    tiny_model(family, **shape).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def example(
    prompt: list[int],
    completion: list[int],
    *,
    teacher: list[int] | None = None,
    advantage: float = 1.0,
    context: str = "teacher",
) -> Example:
    """An example with given tokens; log-probs of the generator are 0."""
    rollout = Rollout(
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        rollout_logprobs=(0.0,) * len(completion),
        text="",
        finish_reason="stop",
        policy_version=0,
    )
    return Example(
        rollout=rollout,
        prompt=Prompt(id="p", messages=({"role": "user", "content": "q"},)),
        group_id=0,
        reward=0.0,
        reward_breakdown={},
        advantage=advantage,
        teacher_prompt_ids={} if teacher is None else {context: tuple(teacher)},
    )


def random_examples(n: int, *, seed: int = 0, with_teacher: float = 0.7) -> list[Example]:
    """Rows of different lengths, most of them with a longer privileged prompt."""
    random = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=random))
        return torch.randint(3, 250, (length,), generator=random).tolist()

    rows = []
    for _ in range(n):
        prompt, completion, hint = tokens(3, 9), tokens(1, 12), tokens(5, 20)
        taught = float(torch.rand(1, generator=random)) < with_teacher
        advantage = float(torch.randn(1, generator=random))
        rows.append(example(prompt, completion, teacher=hint + prompt if taught else None, advantage=advantage))
    return rows
