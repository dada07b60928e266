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

from onpolicy.integrations.verl.rows import NOTHING, prompt_column
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.trainer.head import Head, HiddenStates
from onpolicy.trainer.teacher_rules import WeightRule
from onpolicy.types import REF
from onpolicy.utils.errors import CheckpointError

if TYPE_CHECKING:
    from onpolicy.integrations.verl.engine import TeachingEngine


class Teachers:
    """Scores the student's responses in every context, and updates the teacher's weights where its rule says so."""

    def __init__(
        self,
        student: TeachingEngine,
        reference: TeachingEngine | None,
        rule: WeightRule,
        *,
        contexts: Sequence[str],
        needs_ref: bool,
        together: SingleProcess,
    ) -> None:
        """
        Args:
            reference: the engine with weights of its own; None where there is none: without its adapters the student is the reference model
        """
        self.student, self.reference, self.rule = student, reference, rule
        self.contexts, self.needs_ref, self.together = tuple(contexts), needs_ref, together
        self.steps = 0

    def read(self, data: TensorDict) -> dict[str, HiddenStates]:
        """Logits at all sampled tokens by context, and under REF if a loss needs it; zeros, which the mask hides, without a context."""
        responses, masks = list(data["responses"].unbind()), [m.bool() for m in data["response_mask"].unbind()]
        found = {}
        for context in self.contexts:
            prompts = list(data[prompt_column(context)].unbind())
            rows = [i for i, ids in enumerate(prompts) if int(ids[0]) != NOTHING and bool(masks[i].any())]
            logits = self._logits([prompts[i] for i in rows], [responses[i] for i in rows], data)
            found[context] = _laid_out(dict(zip(rows, logits, strict=True)), masks, *self._like)
        if self.needs_ref:
            logits = self._copied_logits(list(data["prompts"].unbind()), responses, data)
            found[REF] = _laid_out(dict(enumerate(logits)), masks, *self._like)
        return {name: HiddenStates(logits, Head()) for name, logits in found.items()}

    def _logits(self, prompts: Sequence[Tensor], responses: Sequence[Tensor], data: TensorDict) -> list[Tensor]:
        if not self.rule.copies:
            return self.student.response_logits(prompts, responses, data, rounds=self.together.max_passes)
        theirs = self._copied_logits(prompts, responses, data)
        if not (share := self.rule.student_share):
            return theirs
        own = self.student.response_logits(prompts, responses, data, rounds=self.together.max_passes)
        return [(1.0 - share) * one + share * other for one, other in zip(theirs, own, strict=True)]

    def _copied_logits(self, prompts: Sequence[Tensor], responses: Sequence[Tensor], data: TensorDict) -> list[Tensor]:
        """Logits of the reference engine: the reference model, or a teacher that has moved since."""
        reader = self.reference or self.student
        return reader.response_logits(
            prompts, responses, data, rounds=self.together.max_passes, plain=self.reference is None
        )

    @property
    def _like(self) -> tuple[int, torch.dtype]:
        """Width and type of logits."""
        width = int(self.student.module.config.get_text_config().vocab_size)
        return width, getattr(self.student, "_autocast_dtype", torch.float32)

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


def _shard(parameter: Tensor) -> Tensor:
    """What this rank holds of it."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _laid_out(known: dict[int, Tensor], masks: Sequence[Tensor], width: int, dtype: torch.dtype) -> Tensor:
    """[N, V] at the sampled tokens of all rows; each row is let go once it is in its place."""
    laid = torch.zeros(sum(int(mask.sum()) for mask in masks), width, dtype=dtype, device=masks[0].device)
    place = 0
    for i, mask in enumerate(masks):
        tokens = int(mask.sum())
        if i in known:
            laid[place : place + tokens] = known.pop(i)[mask]
        place += tokens
    return laid
