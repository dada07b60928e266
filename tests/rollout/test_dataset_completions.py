"""Training on answers that a dataset holds.

1. the term by hand; 2. text and token ids become the same rollout; 3. a step's update equals one written out with torch;
4. a whole run learns its answers, and goes on after an interruption as if there had been none; 5. what makes no sense is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy as torch_cross_entropy
from transformers import AutoModelForCausalLM

from onpolicy.cli import main
from onpolicy.data import DataError, load_prompts
from onpolicy.data.rendering import Renderer
from onpolicy.losses.terms.cross_entropy import cross_entropy
from onpolicy.rollout.dataset_completions import DatasetCompletions
from onpolicy.types import LossInputs, Prompt
from tests.runs import metrics, row, run_here, write_config
from tests.tiny import CHATML, byte_tokenizer

RENDERER = Renderer(byte_tokenizer())


class Version3:
    policy_version = 3


def recorded(column: str, max_tokens: int = 50) -> DatasetCompletions:
    generator: Any = Version3()
    return DatasetCompletions(generator, RENDERER, column, max_tokens, range(264))


def sft_config(folder: Path, **changes: Any) -> Path:
    terms = {"contexts": {}, "teacher": {"name": "live"}, "objective": [{"name": "cross_entropy"}]}
    config = write_config(folder, **{**terms, **changes})
    rows = [row(a, b) | {"worked": f"{a} + {b} = {a + b}"} for a in range(3) for b in range(4)]
    (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return config


def test_the_term_by_hand() -> None:
    logprobs, mask = torch.tensor([[-0.5, -2.0, -9.0]]), torch.tensor([[True, True, False]])
    given = LossInputs(
        logprobs=logprobs, entropy=logprobs * 0, old_logprobs=logprobs, rollout_logprobs=logprobs, ref_logprobs=None,
        advantages=logprobs * 0, sampled_mask=mask, divergences={}, teacher={},
    )  # fmt: skip
    assert cross_entropy(given).per_token[0, :2].tolist() == [0.5, 2.0]
    double = cross_entropy(given, token_weights=lambda inputs, mask: 2.0 * mask.float())
    assert double.per_token[0, :2].tolist() == [1.0, 4.0]


def test_text_and_ids(tmp_path: Path) -> None:
    ids = [*RENDERER.tokenizer.encode("2 + 2 = 4"), *RENDERER.eos_ids[-1:]]
    rows = [
        {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4", "text": "2 + 2 = 4", "ids": ids, "none": []}
    ]
    (tmp_path / "d.jsonl").write_text(json.dumps(rows[0]) + "\n")
    prompts = load_prompts(tmp_path / "d.jsonl")
    ((from_text,), (from_ids,)) = (recorded(c).generate(prompts, seed=0) for c in ("text", "ids"))
    assert from_text == from_ids
    (rollout,) = from_text.rollouts
    assert (rollout.text, rollout.finish_reason, rollout.policy_version) == ("2 + 2 = 4", "stop", 3)
    assert rollout.completion_ids == tuple(ids) and rollout.prompt_ids == RENDERER.prompt_ids(prompts[0].messages)
    ((cut,),) = (g.rollouts for g in recorded("ids", max_tokens=4).generate(prompts, seed=0))
    assert cut.completion_ids == tuple(ids[:4]) and cut.finish_reason == "length"
    for column in ("none", "missing"):
        with pytest.raises(DataError, match=f"data.completions_column: '{column}' of prompt"):
            recorded(column).generate(prompts, seed=0)


(FOUR,) = RENDERER.tokenizer.encode("4")
OPENS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
OVER = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
TAGS = ("<think>", "</think>")


def completion(answer: object, template: str = CHATML, added: tuple[str, ...] = TAGS, **ends: Any) -> str:
    """What is trained for a recorded answer, with special tokens."""
    renderer, generator = Renderer(byte_tokenizer(template, added), **ends), Version3()
    source = DatasetCompletions(generator, renderer, "c", 50, range(264))  # type: ignore[arg-type]
    prompt = Prompt(id="1", messages=({"role": "user", "content": "2 + 2?"},), fields={"c": answer})
    ((rollout,),) = (group.rollouts for group in source.generate([prompt], seed=0))
    return renderer.decode(rollout.completion_ids)


@pytest.mark.parametrize(
    ("answer", "template", "trained"),
    [
        ("4", CHATML, "4<|im_end|>"),
        ("4<|im_end|>", CHATML, "4<|im_end|>"),
        ("4<|im_end|>\n", CHATML, "4<|im_end|>"),
        ("4<|im_end|> <|im_end|>\n", CHATML, "4<|im_end|>"),
        ("<think>\nhm</think>4", CHATML, "<think>\nhm</think>4<|im_end|>"),
        ("<think>\nhm</think>4", OPENS, "hm</think>4<|im_end|>"),
        (" <think>hm</think>4<|im_end|>\n", OPENS, "hm</think>4<|im_end|>"),
        ("<think>\n\n  hm</think>4", OPENS, "\n  hm</think>4<|im_end|>"),
        ("hm</think>4", OPENS, "hm</think>4<|im_end|>"),
        ("<think></think>\n\n4", OVER, "4<|im_end|>"),
        ("4", OVER, "4<|im_end|>"),
        ([FOUR, 2, 2], CHATML, "4<|im_end|>"),
    ],
)
def test_ends_and_tags_are_written_once(answer: object, template: str, trained: str) -> None:
    assert completion(answer, template) == trained


def test_a_recorded_answer_ends_as_the_template_ends_a_turn() -> None:
    turns = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    template = turns + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    added = ("<|user|>", "<|assistant|>", "<|observation|>")
    assert completion("4", template, added, eos_ids=[0, 259, 261]) == "4<|user|>"
    assert completion("4<|observation|>", template, added, eos_ids=[0, 259, 261]) == "4<|observation|>"


@pytest.mark.parametrize(
    ("answer", "template", "said"),
    [
        ("4<|im_end|>\n<|im_start|>user\nand 5?", CHATML, "goes on after its end"),
        ("<think>hm</think>4", OVER, "the thinking is over.*rendering.thinking=true"),
        ([259, 77], OPENS, "which its prompt has already"),
        ([77, 264], CHATML, "the token id 264, expected ids below 264"),
    ],
)
def test_what_no_model_writes_is_refused(answer: object, template: str, said: str) -> None:
    with pytest.raises(DataError, match=f"data.completions_column: 'c' of prompt '1'.*{said}"):
        completion(answer, template)


def test_a_step_equals_one_written_out(tmp_path: Path) -> None:
    """Adam's first step on the mean over all tokens of the batch."""
    config = sft_config(tmp_path, trainer={"lr": 1e-3, "micro_batch_tokens": 30})
    own = ["steps=1", "data.completions_column=worked", "data.shuffle=false", "data.prompts_per_step=12"]
    assert run_here(config, *own, "generator.max_tokens=40", f"run_dir={tmp_path / 'run'}") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    losses = []
    for prompt in load_prompts(tmp_path / "data.jsonl"):
        before = RENDERER.prompt_ids(prompt.messages)
        after = [*RENDERER.tokenizer.encode(prompt.fields["worked"]), *RENDERER.eos_ids[-1:]]
        logits = model(torch.tensor([[*before, *after]])).logits[0, len(before) - 1 : -1]
        losses.append(torch_cross_entropy(logits, torch.tensor(after), reduction="none"))
    loss = torch.cat(losses).mean()
    (first,) = metrics(tmp_path / "run")
    assert first["train/loss"] == pytest.approx(loss.item(), abs=1e-5)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0).step()
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run/checkpoints/step-000001")
    for (name, ours), theirs in zip(trained.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5), name


def test_a_run_learns_its_answers_and_resumes(tmp_path: Path) -> None:
    config = sft_config(tmp_path, eval={"every": 6, "samples_per_problem": 1, "pass_at": [1], "sets": {"same": {
        "name": "file", "path": str(tmp_path / "data.jsonl"), "problems": 2}}})  # fmt: skip
    own = ["data.completions_column=worked", "generator.max_tokens=30", "data.prompts_per_step=6", "trainer.lr=3e-3"]
    assert run_here(config, *own, "steps=12", f"run_dir={tmp_path / 'whole'}") == 0
    rows = metrics(tmp_path / "whole")
    losses = [r["train/loss"] for r in rows if "train/loss" in r]
    assert losses[-1] < 0.6 * losses[0] and "eval/same/avg@1" in rows[-1]
    assert run_here(config, *own, "steps=5", f"run_dir={tmp_path / 'cut'}") == 0
    assert run_here(config, *own, "steps=12", f"run_dir={tmp_path / 'cut'}") == 0
    assert [r for r in metrics(tmp_path / "cut") if r["step"] > 6] == [r for r in rows if r["step"] > 6]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.completions_column=missing"], "data.completions_column: 'missing' of prompt"),
        (["data.completions_column=worked", "generator.max_staleness=1"], "generator.max_staleness has no meaning"),
        (["data.completions_column=worked", "data.dynamic_sampling=2"], "no groups for data.dynamic_sampling"),
        (
            ["data.completions_column=worked", "objective=[{name: policy_gradient}]"],
            "importance_cap = 2.0; set it to null",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert main(["train", str(sft_config(tmp_path)), *overrides, f"run_dir={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err
