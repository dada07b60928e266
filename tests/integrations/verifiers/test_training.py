"""A tiny model that calls a tool learns to call it rightly: examples/lookup.yaml, thirty steps.

The model is first shown conversations in which half of the calls ask for a wrong key; what they answer is what the tool said.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from onpolicy.data.next_turn import observed_ids
from onpolicy.data.rendering import Renderer
from onpolicy.integrations.verifiers.data import verifiers as problems
from onpolicy.types import Message
from tests.integrations.verifiers.test_environments import TOKENIZER
from tests.runs import ROOT, metrics, run_here
from tests.tiny import tiny_model

ID = "examples.lookup:lookup"


def conversation(own: Renderer, prompt: Any, draw: random.Random) -> tuple[list[int], list[bool]]:
    """Token ids, and which of them the model is to say."""
    key = prompt.fields["verifiers_input"]["info"]["key"] if draw.random() < 0.5 else draw.choice("abcdefghijklmnop")
    value = str(draw.randrange(10))
    call = f'<tool_call>\n{{"name": "get", "arguments": {{"key": "{key}"}}}}\n</tool_call>'
    reply: Message = {"role": "assistant", "content": call}
    observed: Message = {"role": "tool", "content": value, "tool_call_id": "call_0"}
    ids, said = list(own.prompt_ids(prompt.messages)), [False] * len(own.prompt_ids(prompt.messages))
    between = observed_ids(own, prompt.messages, [(reply, [observed])])
    assert between is not None
    first, second = (own.tokenizer.encode(text, add_special_tokens=False) for text in (call, value))
    for part, is_said in (([*first, 2], True), (list(between), False), ([*second, 2], True)):
        ids, said = ids + part, said + [is_said] * len(part)
    return ids, said


def warmed_up(folder: Path, *, steps: int, seed: int = 0) -> Path:
    """The model, which calls the tool as often for another key as for the right one."""
    own, draw, prompts = Renderer(TOKENIZER), random.Random(seed), problems(id=ID)
    model = tiny_model(seed=seed, width=96)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(steps):
        rows = [conversation(own, draw.choice(prompts), draw) for _ in range(32)]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([i + [0] * (width - len(i)) for i, _ in rows])
        said = torch.tensor([s + [False] * (width - len(s)) for _, s in rows])
        logits = model(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits[said[:, 1:]], ids[:, 1:][said[:, 1:]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.mark.nightly
def test_thirty_steps_with_a_tool_are_a_visible_gain(tmp_path: Path) -> None:
    model, run = warmed_up(tmp_path / "model", steps=350), tmp_path / "run"
    done = run_here(
        ROOT / "examples" / "lookup.yaml", f"run_dir={run}", f"model.path={model}", "generator.name=transformers",
        "generator.max_tokens=120", "trainer.lr=1e-3", "epistemic.lexicons=[]", "logging.trackers=[jsonl]",
    )  # fmt: skip
    assert done == 0
    rows = metrics(run)
    accuracy = [row["reward/environment"] for row in rows if "reward/environment" in row]
    print(json.dumps(accuracy), file=sys.stderr)
    assert fmean(row["environment/turns"] for row in rows if "environment/turns" in row) > 1.8
    assert len(accuracy) == 30 and fmean(accuracy[-5:]) > fmean(accuracy[:5]) + 0.2
