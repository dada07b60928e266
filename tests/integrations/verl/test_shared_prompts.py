"""Level 2: which rows run together and on which rank, and what is saved by it; no process is started."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch
import verl  # noqa: F401 first, as it imports the rig and our plug-in in its own order
from omegaconf import OmegaConf
from tensordict import TensorDict
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from verl.utils import tensordict_utils as tu

from onpolicy.integrations.verl.group_order import StepLayout, best_order, readers_of, step_layout, step_work
from onpolicy.integrations.verl.shared_prompts import (
    ROW_COST,
    Count,
    Readers,
    Stretch,
    count,
    cut,
    shared,
    teacher_passes,
    why_apart,
)
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.trainer.teacher_rules import ema, frozen, live, trust_region_logits
from onpolicy.types import REF
from tests.tiny import example

pytestmark = pytest.mark.verl


def readers(groups: Sequence[tuple[int, Sequence[int]]], *, sibling: int = 0) -> Readers:
    """Groups of a prompt's tokens and its completions'; a sibling of so many tokens is what a teacher sees besides."""
    student, teacher = [], []
    for group, (prompt, completions) in enumerate(groups):
        for i, tokens in enumerate(completions):
            answer = Stretch((group, i), tokens)
            student.append((Stretch(group, prompt), answer))
            teacher.append((Stretch(group, prompt + sibling), answer))
    return Readers(student, [teacher])


def drawn(groups: int, size: int, *, seed: int, prompt: int = 300) -> Readers:
    draw = random.Random(seed)
    return readers([(prompt, [draw.randint(10, 400) for _ in range(size)]) for _ in range(groups)], sibling=100)


@pytest.mark.parametrize("seed", range(5))
def test_a_cut_has_each_row_once_within_the_budget_and_few_prompts_twice(seed: int) -> None:
    rows = drawn(9, 6, seed=seed)
    found = rows.cut(1500)
    assert sorted(itertools.chain.from_iterable(found)) == list(range(54))
    sizes = [rows.size(batch) for batch in found]
    assert max(sizes) <= 1500 and sizes == sorted(sizes, reverse=True)
    for group in range(9):
        own = range(6 * group, 6 * group + 6)
        holding = [batch for batch in found if set(batch) & set(own)]
        assert len(holding) == 1 or rows.size(own) > 1500, "a group that fits is together"


def test_a_row_over_the_budget_runs_alone() -> None:
    assert readers([(10, [500, 20, 30])]).cut(100) == [[0], [2, 1]]


def test_a_prompt_is_not_laid_beside_more_completions_than_memory_is_meant_for() -> None:
    rows = readers([(1000, [5] * 10)])
    found = rows.cut(1100)
    assert [len(batch) for batch in found] == [4, 4, 2], (
        "five would be 5,025 tokens with a prompt each, and 4,400 are allowed"
    )


def test_halves_are_cut_where_a_prompt_ends() -> None:
    rows = readers([(300, [10, 10]), (300, [10, 10])])
    assert rows.halves([0, 1, 2, 3]) == ([0, 1], [2, 3])


def test_sharing_pays_from_some_tokens_for_each_row_on() -> None:
    assert count(readers([(2 * ROW_COST, [5, 5])]).student) == Count(2 * ROW_COST + 10, 4 * ROW_COST + 10, 2)
    assert not count(readers([(2 * ROW_COST, [5, 5])]).student).pays
    assert count(readers([(2 * ROW_COST + 1, [5, 5])]).student).pays
    assert not Count().pays


def batch(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, budget: int, dynamic: bool = True
) -> TensorDict:
    nested = lambda rows: torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)  # noqa: E731
    data = TensorDict(
        {
            "input_ids": nested([[*p, *a] for p, a in zip(prompts, answers, strict=True)]),
            "prompts": nested(prompts),
            "responses": nested(answers),
            "response_mask": nested([[1] * len(a) for a in answers]),
        },
        batch_size=len(prompts),
    )
    tu.assign_non_tensor(data, use_dynamic_bsz=dynamic, max_token_len_per_gpu=budget)
    return data


class _FirstOfTwo(SingleProcess):
    """The first of two ranks, of which the other has said this."""

    def __init__(self, other: tuple[int, Count]) -> None:
        self._other = other

    def all_gather(self, value: object) -> list[object]:
        return [value, self._other]


def test_ranks_make_the_same_number_of_micro_batches() -> None:
    prompts = [[1] * 200] * 3 + [[2] * 200] * 3
    data = batch(prompts, [[5, 6, 7]] * 6, budget=1000)
    assert [len(part) for part in cut(data, (), SingleProcess()) or ()] == [6]
    parts = cut(data, (), _FirstOfTwo((4, Count(0, 0, 6))))
    assert parts is not None and sorted(len(part) for part in parts) == [1, 1, 2, 2]
    assert {int(part["prompts"].unbind()[0][0]) for part in parts} == {1, 2}


def test_verl_cuts_where_sharing_saves_nothing_on_all_ranks_or_is_told_to_cut_by_rows() -> None:
    apart = batch([[i] * 200 for i in range(4)], [[5, 6]] * 4, budget=1000)
    assert cut(apart, (), SingleProcess()) is None
    assert cut(apart, (), _FirstOfTwo((1, Count(1000, 4000, 4)))) is not None, "another rank saves enough for both"
    together = batch([[1] * 200] * 4, [[5, 6]] * 4, budget=1000)
    assert cut(together, (), SingleProcess()) is not None
    assert cut(batch([[1] * 200] * 4, [[5, 6]] * 4, budget=1000, dynamic=False), (), SingleProcess()) is None


def test_a_batch_whose_rows_do_not_fit_apart_is_shared_in_any_case() -> None:
    prompts, answers = [[1] * ROW_COST] * 2, [[5, 6], [7, 8, 9]]
    data = batch(prompts, answers, budget=1)
    apart = 2 * ROW_COST + 5
    assert shared(data, apart) == (None, Count(apart, apart, 2))
    found, tokens = shared(data, apart - 1)
    assert found is not None and tokens == Count(ROW_COST + 5, apart, 2)
    last = ROW_COST - 1
    assert found.rows.tolist() == [last, last + 1, last, last + 2, last + 3], (
        "both first tokens are predicted by the prompt's last"
    )
    assert found.inputs["position_ids"].tolist() == [[*range(ROW_COST), ROW_COST, ROW_COST, ROW_COST + 1]]


@pytest.mark.parametrize(("number", "updates"), [(1, 1), (2, 1), (4, 1), (2, 2), (3, 2)])
def test_an_order_is_one_and_keeps_groups_on_a_rank_and_in_an_update(number: int, updates: int) -> None:
    ranks = StepLayout(number, updates, budget=4000)
    rows = drawn(12, 4, seed=1, prompt=3000)
    draw = random.Random(number)
    scattered = draw.sample(range(48), 48)
    order = best_order(rows.of(scattered), [i // 4 for i in scattered], ranks)
    assert sorted(order) == list(range(48))
    parts = [part for update in ranks.parts(order) for part in update]
    assert {len(part) for part in parts} == {48 // number // updates}
    for part in parts:
        groups = [scattered[i] // 4 for i in part]
        assert all(groups.count(group) == 4 for group in groups)
    work = [step_work(rows.of(scattered), o, ranks) for o in (order, range(48))]
    assert work[0] < work[1] or number == updates == 1


def test_verls_order_stays_where_whole_groups_would_keep_a_rank_waiting() -> None:
    """Two groups of short prompts, one of which has all the long answers."""
    rows = readers([(10, [4000, 4000]), (10, [20, 20])])
    order, groups = [0, 2, 1, 3], [0, 1, 0, 1]
    assert best_order(rows.of(order), groups, StepLayout(2, 1, budget=16000)) == [0, 1, 2, 3]


def test_a_group_that_no_rank_has_room_for_is_split() -> None:
    rows = readers([(5000, [10] * 8), (5000, [10] * 4)])
    groups = [0, 0, 0, 1] * 2 + [0, 0, 1, 1]
    order = best_order(rows.of([0, 1, 2, 8, 3, 4, 5, 9, 6, 7, 10, 11]), groups, StepLayout(3, 1, budget=16000))
    assert sorted([groups[i] for i in order[at : at + 4]] for at in (0, 4, 8)) == [[0] * 4, [0] * 4, [1] * 4]


def test_what_the_driver_knows_of_a_step() -> None:
    given = [example([1, 2, 3], [4, 5], teacher=[9, 9, 1, 2, 3]), example([1, 2, 3], [4], teacher=[9, 9, 1, 2, 3])]
    rows = [{"prompts": torch.tensor([1, 2, 3]), "responses": torch.tensor(ids)} for ids in ([4, 5], [4], [2])]
    found = readers_of(rows, [*given, None], ("teacher", REF))
    assert [(len(prompt), len(answer)) for prompt, answer in found.student] == [(3, 2), (3, 1), (3, 1)]
    assert count(found.student).computed == 3 + 4
    teacher, reference = found.teachers
    assert teacher[2] is None and reference == found.student
    assert count(row for row in teacher if row is not None) == Count(5 + 3, 10 + 3, 2)


def test_updates_and_ranks_of_a_config() -> None:
    config = OmegaConf.create(
        {
            "trainer": {"nnodes": 2, "n_gpus_per_node": 4},
            "actor_rollout_ref": {
                "actor": {"ppo_mini_batch_size": 16, "ppo_max_token_len_per_gpu": 99},
                "rollout": {"n": 8},
            },
        }
    )
    assert step_layout(config, 256) == StepLayout(8, 2, 99)
    assert step_layout(config, 320) == StepLayout(8, 1, 99), (
        "verl makes up rows for whole updates; whatever else there is counts as one"
    )


def test_a_rank_has_a_stretch_of_the_step_and_each_update_the_next_part_of_it() -> None:
    ranks = StepLayout(2, 2, 99)
    assert ranks.parts(range(8)) == [[range(2), range(4, 6)], [range(2, 4), range(6, 8)]]
    assert ranks.order([[0, 1], [2, 3], [4, 5], [6, 7]]) == [0, 1, 2, 3, 6, 7, 4, 5]


@pytest.mark.parametrize(
    ("rule", "served", "expected"),
    [
        (live(), False, ("a", "b")),
        (frozen(), False, ("a", "b")),
        (ema(ema_decay=0.9), False, ("a", "b")),
        (trust_region_logits(student_share=0.3), False, ("a", "b", "a", "b")),
        (frozen(), True, ()),
    ],
)
def test_a_teacher_reads_each_context_with_each_of_its_models(
    rule: object, served: bool, expected: tuple[str, ...]
) -> None:
    for needs_ref in (False, True):
        found = teacher_passes(rule, ("a", "b"), needs_ref=needs_ref, served=served)  # type: ignore[arg-type]
        assert found == expected + (REF,) * needs_ref


def test_models_and_settings_that_keep_prompts_apart_are_named() -> None:
    small = {
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 8,
    }
    qwen = Qwen3ForCausalLM(Qwen3Config(**small, num_key_value_heads=1))
    qwen.config._attn_implementation = "sdpa"
    assert why_apart(qwen, 1) is None
    qwen.config._attn_implementation = "flash_attention_2"
    assert why_apart(qwen, 1) is None
    assert why_apart(qwen, 2) == "ulysses_sequence_parallel_size: got 2, expected 1"
    qwen.config._attn_implementation = "eager"
    assert "'eager'" in str(why_apart(qwen, 1))
    gemma = Gemma2ForCausalLM(Gemma2Config(**small, num_key_value_heads=1))
    gemma.config._attn_implementation = "sdpa"
    assert "Gemma2ForCausalLM" in str(why_apart(gemma, 1)), "its logits of attention are capped"
