"""A prompt that several rows of a batch share is read once: which rows run together, and what the model is given of them.

verl puts rows into micro-batches by the length of each, so that the rows of a group meet by chance. Here rows of one prompt stay
together as far as a micro-batch's tokens reach, and a micro-batch is as large as what is computed of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from onpolicy.integrations.verl.rows import sampled
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.trainer.micro_batches import AnyRow, Row, Tokens, micro_batches
from onpolicy.trainer.prefix_sharing import (
    FLASH_ATTENTIONS,
    SHARING_ATTENTIONS,
    PackedTrees,
    pack,
    packed_inputs,
    supports_prefix_sharing,
)
from onpolicy.trainer.teacher_rules import WeightRule
from onpolicy.types import REF

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROW_COST = 64
"""Tokens: so much computing has to be saved for each row of a pass before prompts are shared. The packed attention is called for every
completion by itself, where verl's is called once: in each layer some 3 launches of 5 µs, in which a GPU with 400 TFLOPS computes 15 tokens
of an 8B model and 60 of a 1.7B one (24 × width² operations for each token and layer)."""
SPREAD = 4
"""Times the budget, most tokens of a micro-batch if each row read its own prompt: a prompt's keys and values are laid beside those of each
of its completions, and in a layer that waits for its gradient that is 4 × width bytes for each such token, in bfloat16, next to 34 × width
and more of activations for each token that is computed."""
BUDGET = "onpolicy_budget"
"""Key of a micro-batch that was made here: the tokens that may be computed at once."""


@dataclass(frozen=True)
class Stretch:
    """Stands for token ids of which only the number counts, and whether two of them are the same."""

    name: Hashable
    tokens: int

    def __len__(self) -> int:
        return self.tokens


@dataclass(frozen=True)
class Count:
    """Tokens of some passes."""

    computed: int = 0
    apart: int = 0
    """What it would be if each row read its own prompt."""
    rows: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.computed + other.computed, self.apart + other.apart, self.rows + other.rows)

    @property
    def pays(self) -> bool:
        """Whether sharing saves more than it costs."""
        return self.apart - self.computed > ROW_COST * self.rows


def count(rows: Iterable[AnyRow]) -> Count:
    """Of one pass."""
    prompts: set[Tokens] = set()
    completions = apart = number = 0
    for prompt, completion in rows:
        prompts.add(prompt)
        completions += len(completion)
        apart += len(prompt) + len(completion)
        number += 1
    return Count(sum(map(len, prompts)) + completions, apart, number)


def count_apart(data: TensorDict) -> Count:
    """Of one pass in which each row reads its own prompt."""
    tokens = len(data["input_ids"].values())
    return Count(tokens, tokens, len(data))


def in_passes(rows: Sequence[AnyRow], budget: int) -> list[list[int]]:
    """Numbers of rows that a teacher reads together; one over the budget alone.

    Where all fit they stay as they are: a teacher with the student's prompts then computes exactly the student's numbers.
    """
    if count(rows).computed <= budget:
        return [list(range(len(rows)))] if rows else []
    return list(micro_batches(rows, budget, packed=True, together=True))


@dataclass(frozen=True)
class Readers:
    """What student and teachers read of some rows."""

    student: Sequence[AnyRow]
    teachers: Sequence[Sequence[AnyRow | None]] = ()
    """By context; None: the row has none."""

    def of(self, rows: Sequence[int]) -> Readers:
        """Of some of the rows."""
        return Readers([self.student[i] for i in rows], [[context[i] for i in rows] for context in self.teachers])

    def cut(self, budget: int) -> list[list[int]]:
        """The rows by micro-batch, those with most to compute first, as all ranks wait for the slowest in each.

        The rows of a prompt are one piece, or as few as the budget allows, and pieces go where there is room.
        """
        by_prompt: dict[Tokens, list[int]] = {}
        for number in sorted(range(len(self.student)), key=lambda i: -len(self.student[i][1])):
            by_prompt.setdefault(self.student[number][0], []).append(number)
        pieces: list[list[int]] = []
        for rows in by_prompt.values():
            pieces.append([])
            for number in rows:
                if pieces[-1] and not self._fit([*pieces[-1], number], budget):
                    pieces.append([])
                pieces[-1].append(number)
        found: list[list[int]] = []
        for piece in sorted(pieces, key=self.size, reverse=True):
            place = next((batch for batch in found if self._fit([*batch, *piece], budget)), None)
            if place is None:
                found.append(piece)
            else:
                place += piece
        return sorted(found, key=self.size, reverse=True)

    def _fit(self, rows: Iterable[int], budget: int) -> bool:
        tokens = count(self.student[i] for i in rows)
        return tokens.computed <= budget and tokens.apart <= SPREAD * budget

    def size(self, rows: Iterable[int]) -> int:
        """Tokens that the student computes of them together."""
        return count(self.student[i] for i in rows).computed

    def passes(self, rows: Sequence[int], budget: int) -> Iterator[list[list[AnyRow]]]:
        """What each reader reads of a micro-batch, by pass: the student, then the teacher in each context."""
        yield [[self.student[i] for i in rows]]
        for context in self.teachers:
            read = [row for i in rows if (row := context[i]) is not None]
            yield [[read[i] for i in own] for own in in_passes(read, budget)]

    def tokens(self, cut: Iterable[Sequence[int]], budget: int) -> Count:
        """Of all readers and micro-batches."""
        passes = (own for rows in cut for reader in self.passes(rows, budget) for own in reader)
        return sum(map(count, passes), Count())

    def halves(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """A micro-batch of at least two rows in two, where the larger one has least to compute."""

        def largest(place: int) -> int:
            return max(map(self.size, (rows[:place], rows[place:])))

        best = min(range(1, len(rows)), key=largest)
        return list(rows[:best]), list(rows[best:])


def teacher_passes(rule: WeightRule, contexts: Sequence[str], *, needs_ref: bool, served: bool) -> tuple[str, ...]:
    """The context of each pass that is made over a micro-batch for the teacher, or REF.

    Args:
        served: whether verl's teacher servers have made the teacher's
    """
    readers = rule.copies + (not rule.copies or bool(rule.student_share))
    return (() if served else tuple(contexts) * readers) + (REF,) * needs_ref


def why_apart(model: PreTrainedModel, sequence_parallel: int) -> str | None:
    """Why a model's rows each read their own prompt, as far as that is known without running it.

    Args:
        sequence_parallel: ranks that share a batch
    """
    attention = model.config.get_text_config()._attn_implementation
    if sequence_parallel > 1:
        return f"ulysses_sequence_parallel_size: got {sequence_parallel}, expected 1"
    if not supports_prefix_sharing(model, (*SHARING_ATTENTIONS, *FLASH_ATTENTIONS)):
        return f"{type(model).__name__} with attention {attention!r} has layers that cannot be told which tokens to see"
    return None


def as_readers(data: TensorDict, columns: Sequence[str]) -> Readers:
    """What is read of rows as verl's workers have them.

    Args:
        columns: that hold the teachers' prompts (``rows.prompt_column``)
    """
    lengths = data["responses"].offsets().diff().tolist()
    answers = [Stretch(i, length) for i, length in enumerate(lengths)]
    student, *teachers = ([tuple(ids.tolist()) for ids in data[name].unbind()] for name in ("prompts", *columns))
    return Readers(
        [(_stretch(ids), answer) for ids, answer in zip(student, answers, strict=True)],
        [
            [None if ids[0] < 0 else (_stretch(ids), answer) for ids, answer in zip(prompts, answers, strict=True)]
            for prompts in teachers
        ],
    )


def _stretch(ids: tuple[int, ...]) -> Stretch:
    """Long prompts are compared many times, by a number instead of by their tokens."""
    return Stretch(hash(ids), len(ids))


def cut(data: TensorDict, columns: Sequence[str], together: SingleProcess) -> list[TensorDict] | None:
    """The micro-batches of an update, or None where it does not pay to keep prompts together and verl makes its own.

    All ranks get the same number and the same answer.

    Args:
        together: the ranks that train on rows of their own
    """
    if not tu.get_non_tensor_data(data=data, key="use_dynamic_bsz", default=True):
        return None
    budget = int(data["max_token_len_per_gpu"])
    readers = as_readers(data, columns)
    found = readers.cut(budget)
    ranks = together.all_gather((len(found), readers.tokens(found, budget)))
    if not sum((own for _, own in ranks), Count()).pays:
        return None
    while len(found) < max(number for number, _ in ranks):
        rows = next(rows for rows in found if len(rows) > 1)  # ranks have as many rows as each other
        found.remove(rows)
        found += readers.halves(rows)
        found.sort(key=readers.size, reverse=True)
    return [_micro_batch(data, rows, budget) for rows in found]


def _micro_batch(data: TensorDict, rows: Sequence[int], budget: int) -> TensorDict:
    """Some rows, which verl does not cut again."""
    found: TensorDict = tu.index_select_tensor_dict(data, list(rows))
    tu.assign_non_tensor(found, use_dynamic_bsz=False, micro_batch_size_per_gpu=len(rows), **{BUDGET: budget})
    return found


@dataclass(frozen=True)
class Shared:
    """A batch whose equal prompts are read once."""

    inputs: dict[str, Any]
    """What the model is called with."""
    rows: Tensor
    """[N] where the states that predict the batch's sampled tokens stand."""


def shared(data: TensorDict, budget: int, trees: type[PackedTrees] = PackedTrees) -> tuple[Shared | None, Count]:
    """A batch as one row of prefix trees, or None where that does not pay; and the tokens that are computed.

    Args:
        data: as verl's engine reads it
        budget: of what is computed at once; a batch that holds more with every prompt by itself is shared in any case
        trees: their class
    """
    rows = list(_ids(data))
    tokens = count(rows)
    if not tokens.pays and tokens.apart <= budget:
        return None, count_apart(data)
    packed, ids, positions, columns = pack(rows)
    device = data["input_ids"].device
    mask = sampled(data)
    found = Shared(
        packed_inputs(trees(packed.trees), torch.tensor(ids, device=device), torch.tensor(positions, device=device)),
        torch.cat(columns).to(device)[mask],
    )
    return found, tokens


def _ids(data: TensorDict) -> Iterator[Row]:
    """Prompts and responses, in one copy from the device."""
    ids = data["input_ids"].values().tolist()
    prompts, rows = (data[name].offsets().diff().tolist() for name in ("prompts", "input_ids"))
    start = 0
    for prompt, length in zip(prompts, rows, strict=True):
        yield tuple(ids[start : start + prompt]), tuple(ids[start + prompt : start + length])
        start += length
