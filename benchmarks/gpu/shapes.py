"""Models of known shapes with random weights, made on the device, and rollouts of given lengths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.models import REASONER, load_tokenizer, resolve_model
from onpolicy.trainer.build import build_objective, teacher_rule
from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup
from onpolicy.types import Example, Prompt, Rollout
from onpolicy.utils.device import synchronize
from onpolicy.utils.timer import PhaseTimer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Qwen3Config

GIB = 2.0**30


@dataclass(frozen=True)
class Workload:
    """A model's shape, and what it is trained on."""

    name: str
    model: dict[str, Any]
    """Of Qwen3's config."""
    groups: int
    group_size: int
    prompt: int
    """Tokens."""
    completion: int
    """Tokens; a teacher's prompt is longer by so many."""


def _qwen3(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, *, size: int, vocabulary: int = 151_936
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "max_position_embeddings": 40_960,
    }


WORKLOADS = {
    "tiny": Workload("tiny", _qwen3(64, 128, 2, 2, 1, size=32, vocabulary=512), 2, 4, 24, 32),
    "0.6b": Workload("0.6b", _qwen3(1024, 3072, 28, 16, 8, size=128), 4, 8, 256, 2000),
    "8b": Workload("8b", _qwen3(4096, 12_288, 36, 32, 8, size=128), 4, 8, 256, 2000),
}
"""The two others are those of Qwen3-0.6B and Qwen3-8B."""


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def config_of(workload: Workload, **changes: Any) -> Qwen3Config:
    from transformers import Qwen3Config

    tied = workload.model["hidden_size"] < 4096
    return Qwen3Config(
        **{**workload.model, "tie_word_embeddings": tied, "dtype": "bfloat16", **changes}, attn_implementation="sdpa"
    )


def random_model(workload: Workload, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config_of(workload, **changes)).eval()
    finally:
        torch.set_default_dtype(before)
    return model.to(dtype)


def model_folder(workload: Workload, folder: Path) -> str:
    """A folder with the shape's config and a tokenizer, but without weights."""
    config_of(workload, architectures=["Qwen3ForCausalLM"]).save_pretrained(folder)
    load_tokenizer(resolve_model(REASONER)).save_pretrained(folder)
    return str(folder)


def resolved_config(model: str, *overrides: str) -> ResolvedConfig:
    """configs/sdpo.yaml with one update a step."""
    given = [f"model.path={model}", "data={name: lab}", "trainer.updates_per_step=1"]
    return resolve(load("sdpo", [*given, *overrides]))


def trainer_of(workload: Workload, model: str, *overrides: str) -> PolicyTrainer:
    """The trainer of that config over random weights."""
    resolved = resolved_config(model, *overrides)
    setup = TrainerSetup(
        student=random_model(workload), objective=build_objective(resolved), rule=teacher_rule(resolved),
        settings=resolved.trainer.settings, total_steps=10, contexts=tuple(resolved.contexts), clock=PhaseTimer(synchronize),
    )  # fmt: skip
    made: PolicyTrainer = resolved.trainer.plugin.bind()(setup=setup)
    return made


def rollouts(workload: Workload, seed: int = 0) -> list[Example]:
    """Groups of answers as long as the workload says; the teacher reads one of them before its prompt, as with a successful sibling."""
    random = torch.Generator().manual_seed(seed)

    def ids(number: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, workload.model["vocab_size"], (number,), generator=random).tolist())

    found = []
    for group in range(workload.groups):
        prompt, completions = ids(workload.prompt), [ids(workload.completion) for _ in range(workload.group_size)]
        for completion in completions:
            rollout = Rollout(
                prompt_ids=prompt,
                completion_ids=completion,
                rollout_logprobs=(-1.0,) * len(completion),
                text="",
                finish_reason="stop",
                policy_version=0,
            )
            found.append(
                Example(
                    rollout=rollout,
                    prompt=Prompt(id=str(group), messages=()),
                    group_id=group,
                    reward=1.0,
                    reward_breakdown={},
                    advantage=0.5,
                    teacher_prompt_ids={"teacher": prompt + completions[0]},
                )
            )
    return found
