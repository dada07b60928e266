"""A model is loaded by one rank of a machine and mapped by the others, on two real ranks.

1. every family is the same model, tied weights once, and is loaded once; 2. a rank that has mapped it takes none of its memory, and what it
writes is its own; 3. what cannot be handed on is loaded by each; 4. copies share weights before they are placed, and only then.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from onpolicy.trainer.engine import TorchEngine
from onpolicy.trainer.loaded_once import loaded_once
from onpolicy.trainer.teacher_rules import frozen
from tests.runs import on_ranks
from tests.tiny import FAMILIES, random_examples, tiny_model
from tests.trainer.test_trainer import trainer


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("loading")
    done = on_ranks(2, "tests.ranks.loading", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.process
def test_it_is_the_same_model_and_is_loaded_once(found: list[dict[str, Any]]) -> None:
    families = ["qwen3", "llama", *FAMILIES]
    assert [one[family] for one in found for family in families] == [True] * 2 * len(families)
    assert found[0]["loads"] == families and found[1]["loads"] == []


@pytest.mark.process
def test_a_rank_that_maps_it_takes_no_memory_and_writes_for_itself(found: list[dict[str, Any]]) -> None:
    for rank, one in enumerate(found):
        assert one["size"] > 40_000_000
        assert one["taken"] < 0.2 * one["size"]
        assert one["own"] == rank + 1
        assert one["freed"] > 0.9 * one["written"], "a page that was written goes with its mapping"


@pytest.mark.process
def test_what_cannot_be_handed_on_is_loaded_by_each(found: list[dict[str, Any]]) -> None:
    assert {one["unpicklable"] for one in found} == {"Qwen3ForCausalLM"}


def test_alone_a_process_loads_for_itself() -> None:
    model = tiny_model()
    assert loaded_once(lambda: model) is model


@pytest.mark.parametrize("copies", [False, True])
def test_copies_share_their_weights_only_until_they_are_placed(monkeypatch: pytest.MonkeyPatch, copies: bool) -> None:
    """Here placing copies nothing, so what would be shared stays shared."""
    monkeypatch.setattr(TorchEngine, "copies", (lambda self, parameter: True) if copies else TorchEngine.copies)
    one = trainer(rule=frozen())
    student, teacher = one.student, one.teacher_scorer.teacher.model
    pairs = list(zip(student.parameters(), teacher.parameters(), strict=True))
    assert student is not teacher and all(a is not b and not b.requires_grad for a, b in pairs)
    assert all((a.data_ptr() == b.data_ptr()) == copies for a, b in pairs)
    if not copies:
        before = [p.clone() for p in teacher.parameters()]
        one.step(random_examples(3))
        assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
