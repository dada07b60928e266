"""The alignment rule: index t is about completion token t, whoever sits beside the row and however it is laid out.

For two model families: 1. log-probs of a padded batch, of a packed one and of single rows are the same, and equal the
model's own logits on the row alone; 2. so are the teacher's, under a prompt of another length; 3. a teacher with the
student's prompt gives loss 0 and gradient 0; 4. rows without a context are off in the mask and get no loss.
"""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from onpolicy.config.schema import TrainerSettings
from onpolicy.trainer import prefix_sharing
from onpolicy.trainer.chunked_head import token_stats
from onpolicy.trainer.collate import collate
from onpolicy.trainer.engine import TorchEngine
from onpolicy.trainer.forward import completion_states
from onpolicy.trainer.head import head_error
from onpolicy.trainer.micro_batches import Row
from onpolicy.trainer.teacher import TeacherScorer
from onpolicy.trainer.teacher_rules import live
from tests.tiny import example, random_examples, tiny_model

FAMILIES = ("qwen3", "llama")


def model_for(family: str, layout: str) -> PreTrainedModel:
    model = tiny_model(family)
    if layout == "packed":
        prefix_sharing.enable_prefix_sharing(model)
    return model


def alone(model: PreTrainedModel, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """[T] by the model's own logits on the one sequence: the log-prob of token t comes from the position before it."""
    ids = torch.tensor([[*prompt, *completion]])
    logp = model(input_ids=ids).logits[0].float().log_softmax(-1)
    return torch.stack([logp[len(prompt) + t - 1, token] for t, token in enumerate(completion)])


def scored(model: PreTrainedModel, rows: list[Row], layout: str) -> list[torch.Tensor]:
    states = completion_states(model, rows, layout=layout)  # type: ignore[arg-type]
    flat = token_stats(states, {}, torch.tensor([token for _, completion in rows for token in completion])).logprobs
    return list(flat.split([len(completion) for _, completion in rows]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["padded", "packed"])
@torch.no_grad()
def test_every_layout_gives_the_row_its_own_numbers(family: str, layout: str) -> None:
    model, examples = model_for(family, layout), random_examples(6)
    rows = [(e.rollout.prompt_ids, e.rollout.completion_ids) for e in examples]
    rows += [(rows[0][0], rows[i][1]) for i in (1, 2)]  # several completions of one prompt
    for found, row in zip(scored(model, rows, layout), rows, strict=True):
        torch.testing.assert_close(found, alone(model, *row), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found, scored(model, [row], layout)[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["padded", "packed"])
@torch.no_grad()
def test_the_teacher_scores_the_same_tokens_under_its_own_prompt(family: str, layout: str) -> None:
    model, examples = model_for(family, layout), random_examples(6, seed=3, with_teacher=0.5)
    with_view = [e for e in examples if "teacher" in e.teacher_prompt_ids]
    assert 0 < len(with_view) < len(examples), "the example set must hold both kinds of rows"
    engine = TorchEngine(TrainerSettings(), "cpu")
    engine.prepare_student(model)
    scorer = TeacherScorer(model, live(), engine, needs_ref=False, layout=layout)  # type: ignore[arg-type]
    batch = collate(examples, contexts=["teacher"])
    states = scorer.states(batch, scorer.score(examples, budget=60, with_ref=False))["teacher"]
    flat = token_stats(states, {}, batch.completion_ids[batch.sampled_mask]).logprobs
    for found, one in zip(flat.split([len(e.rollout.completion_ids) for e in examples]), examples, strict=True):
        if one in with_view:
            expected = alone(model, one.teacher_prompt_ids["teacher"], one.rollout.completion_ids)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_columns_by_hand() -> None:
    """Column t is completion token t, whatever the prompt."""
    batch = collate([example([5, 6], [7, 8, 2], teacher=[9, 5, 6]), example([4], [3])], contexts=["teacher"])
    assert batch.completion_ids.tolist() == [[7, 8, 2], [3, 0, 0]]
    assert batch.sampled_mask.tolist() == [[True] * 3, [True, False, False]]
    assert batch.context_masks["teacher"].tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_the_models_own(family: str) -> None:
    assert max(head_error(tiny_model(family), torch.tensor([[5, 6, 7]]))) < 1e-5


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere"])
def test_scaled_and_capped_heads_are_understood(kind: str) -> None:
    import transformers as t

    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    torch.manual_seed(0)
    model = {
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**shape, final_logit_softcapping=0.5)),
        "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**shape, logits_scaling=4.0)),
        "cohere": lambda: t.CohereForCausalLM(t.CohereConfig(**shape, logit_scale=0.0625)),
    }[kind]().eval()
    assert max(head_error(model, torch.tensor([[5, 6, 7]]))) < 1e-5
