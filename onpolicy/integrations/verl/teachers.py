"""The teachers on verl, with the student's weights or those of verl's reference engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.tensor import DTensor
from verl.utils.device import get_torch_device

from onpolicy.integrations.verl.rows import NOTHING, packed_places, prompt_column, sampled
from onpolicy.integrations.verl.served_head import ServedHead, states
from onpolicy.integrations.verl.shared_prompts import Count, teacher_passes
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.trainer.head import Head, HeadLike
from onpolicy.trainer.teacher import MixedHead, ResizedHead
from onpolicy.trainer.teacher_rules import WeightRule
from onpolicy.types import REF
from onpolicy.utils.errors import CheckpointError

if TYPE_CHECKING:
    from onpolicy.integrations.verl.reading_engine import ReadingEngine, Row


class Teachers:
    """Scores the student's responses in every context, and updates the teacher's weights where its rule says so."""

    def __init__(
        self,
        student: ReadingEngine,
        reference: ReadingEngine | None,
        rule: WeightRule,
        *,
        contexts: Sequence[str],
        needs_ref: bool,
        together: SingleProcess,
        served: bool = False,
    ) -> None:
        """
        Args:
            served: whether verl's teacher servers have scored the responses, in the one context that there is
            reference: the engine with weights of its own; None where there is none: without its adapters the student is the reference model
        """
        self.student, self.reference, self.rule = student, reference, rule
        self.contexts, self.needs_ref, self.together, self.served = tuple(contexts), needs_ref, together, served
        self.steps = 0

    def read(self, data: TensorDict) -> dict[str, Tensor]:
        """Hidden states at all sampled tokens by context, and under REF if a loss needs it.

        Where a row lacks a context they are zeros, which the context's mask hides.
        """
        found = {
            context: _served_states(data) if self.served else self._states(context, data) for context in self.contexts
        }
        if self.needs_ref:
            found[REF] = self._copied_states(_rows(data, data["prompts"]), data)
        return found

    def _states(self, context: str, data: TensorDict) -> Tensor:
        """Of whoever reads the context, side by side."""
        rows = [None if int(row[0][0]) == NOTHING else row for row in _rows(data, data[prompt_column(context)])]
        readers = [self._copied_states] * self.rule.copies
        if not self.rule.copies or self.rule.student_share:
            readers.append(self._student_states)
        return torch.cat([read(rows, data) for read in readers], -1)

    def heads(self, student: Head) -> dict[str, HeadLike]:
        """By context and for the reference model, what makes logits of the hidden states that ``read`` returns.

        Args:
            student: the student's head
        """
        copied = self._copied.head or student
        return dict.fromkeys(self.contexts, self._head(student, copied)) | {REF: copied}

    def _head(self, student: Head, copied: Head) -> HeadLike:
        """The teacher's."""
        assert student.weight is not None
        if self.served:
            return ServedHead(len(student.weight))
        if not self.rule.copies:
            return student
        if self.rule.student_share:
            return MixedHead(copied, student, self.rule.student_share, self.student.width)
        # models of one family pad their vocabularies differently
        return copied if self.rule.path is None else ResizedHead(copied, len(student.weight))

    def forget(self) -> None:
        """Frees the head that was kept for the micro-batches of an update."""
        self._copied.head = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """The column of the prompts that each pass over a micro-batch reads."""
        passes = teacher_passes(self.rule, self.contexts, needs_ref=self.needs_ref, served=self.served)
        return tuple("prompts" if context == REF else prompt_column(context) for context in passes)

    def tokens(self) -> Count:
        """What they have read since it was last asked."""
        found = Count()
        for engine in {self.student, self._copied}:
            found += engine.read_tokens
            engine.read_tokens = Count()
        return found

    def _student_states(self, rows: Sequence[Row | None], data: TensorDict) -> Tensor:
        return self.student.response_states(rows, data, rounds=self.together.max_passes)

    def _copied_states(self, rows: Sequence[Row | None], data: TensorDict) -> Tensor:
        """Of the reference model, or a teacher that has moved since."""
        plain = self.reference is None
        return self._copied.response_states(rows, data, rounds=self.together.max_passes, plain=plain)

    @property
    def _copied(self) -> ReadingEngine:
        """The engine with the reference model's weights."""
        return self.reference or self.student

    @torch.no_grad()
    def update(self) -> None:
        """Applies the teacher's rule after a trainer step, to this rank's shards."""
        self.steps += 1
        if self.rule.update is None:
            return
        get_torch_device().synchronize()  # the student may still be on its way to the CPU
        teacher = self._shards()
        for name, parameter in self.student.module.named_parameters():
            self.rule.update(teacher[name], _shard(parameter), None, self.steps)

    def save(self, folder: Path, more: Mapping[str, Any]) -> None:
        """This rank's part of a teacher that moves, and ``more``, which JSON can hold."""
        from safetensors.torch import save_file

        shards = self._shards() if self.rule.update is not None else {}
        tensors = {name: shard.detach().cpu().contiguous().clone() for name, shard in shards.items()}
        state = json.dumps({"steps": self.steps, **more})
        save_file(tensors, self._path(folder), metadata={"onpolicy": state})

    @torch.no_grad()
    def load(self, folder: Path) -> dict[str, Any]:
        """Puts back what ``save`` wrote and returns ``more``.

        Raises:
            CheckpointError: the checkpoint has no such teacher, or that of another number of ranks.
        """
        from safetensors import safe_open

        path = self._path(folder)
        if not path.is_file():
            if self.rule.update is None:
                return {}
            others = sorted(p.name for p in folder.glob("onpolicy_*.safetensors"))
            raise CheckpointError(
                f"{str(folder)!r} holds no {path.name}, the part of the teacher that belongs to this rank"
                + (
                    f"; there are {', '.join(others)}: resume on as many ranks"
                    if others
                    else "; it was saved without a teacher that moves"
                )
            )
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()["onpolicy"])
            for name, shard in (self._shards() if self.rule.update is not None else {}).items():
                shard.copy_(file.get_tensor(name))
        self.steps = state.pop("steps")
        return state

    def _shards(self) -> dict[str, Tensor]:
        assert self.reference is not None
        return {name: _shard(parameter) for name, parameter in self.reference.module.named_parameters()}

    def _path(self, folder: Path) -> Path:
        return folder / f"onpolicy_world_size_{self.together.size}_rank_{self.together.rank}.safetensors"


def _rows(data: TensorDict, prompts: Tensor) -> list[Row]:
    """Of a micro-batch, with these prompts."""
    masks = [mask.bool() for mask in data["response_mask"].unbind()]
    return list(zip(prompts.unbind(), data["responses"].unbind(), masks, strict=True))


def _served_states(data: TensorDict) -> Tensor:
    """``[N, 2 (1 + K)]``; verl's columns have a row for each position of prompt and response."""
    places = packed_places(data)[sampled(data)]
    return states(data["teacher_ids"].values()[places], data["teacher_logprobs"].values()[places])


def _shard(parameter: Tensor) -> Tensor:
    """What this rank holds of it."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
