"""The student as a Hugging Face folder, which `from_pretrained` and vLLM load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.models import ModelHandle, engine_dtype, model_skeleton, tied

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ModelExport:
    """Writes a student as a Hugging Face folder: weights, config, tokenizer with its chat template."""

    skeleton: Any
    """A model of its class; its own weights are not used."""
    tokenizer: Any
    dtype: str = "float32"
    """What floating-point weights are rounded to."""

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return int(getattr(torch, self.dtype).itemsize)

    @property
    def tied(self) -> Mapping[str, str]:
        """Names of tensors that are written under another name alone."""
        return tied(self.skeleton)

    def rounded(self, tensor: Tensor) -> Tensor:
        """A copy in the host's memory, in ``dtype``."""
        dtype = getattr(torch, self.dtype) if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to("cpu", dtype, copy=True)

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """
        Args:
            folder: exists
            weights: the student's full tensors by name, without the names in ``tied`` or with them; they are not changed
        """
        dtype = getattr(torch, self.dtype)
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in weights.items()}
        for name, source in self.tied.items():  # one tensor, which is written once
            state[name] = state[source]
        self.skeleton.to(dtype).save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)


def student_export(resolved: ResolvedConfig, model: ModelHandle) -> ModelExport:
    """Writes the student of a run, in the dtype in which its generator computes."""
    dtype = engine_dtype(resolved, model.path, on_gpu=torch.cuda.is_available())
    return ModelExport(model_skeleton(resolved, model.path), model.tokenizer, dtype)
