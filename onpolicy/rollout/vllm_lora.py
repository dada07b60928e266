"""The student's adapters in a vLLM engine, apart from the weights that they are added to: what vLLM can take, and how it gets them.

vLLM 0.32 loads adapters from a folder alone, so they lie in one in the host's memory for as long as that takes. Every load is an adapter of
its own to vLLM, which keys cached prefixes by its name: nothing that an older one computed is found by a request with a newer one.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from onpolicy.protocols import AdapterShape
from onpolicy.types import Sampling
from onpolicy.utils.device import synchronize
from onpolicy.utils.disk import free_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from vllm.lora.request import LoRARequest

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's ``max_lora_rank`` may be (``vllm.config.lora.MaxLoRARanks``)."""
MEMORY = Path("/dev/shm")
"""Where a folder lies in the host's memory."""


def why_no_adapter(architecture: str, shape: AdapterShape, *, dtype: str, on_gpu: bool) -> str:
    """Why an engine cannot have the adapters apart from the weights; empty where it can.

    Args:
        architecture: the model's, as its config names it
        shape: the adapters
        dtype: what the engine computes in
        on_gpu: whether it runs on one
    """
    if shape.rank > RANKS[-1]:
        return f"vLLM takes adapters of rank {RANKS[-1]} at most"
    if on_gpu and dtype == "float32":
        return "vLLM's kernels for adapters do not compute in float32 on a GPU"
    if not takes_adapters(architecture):
        return f"vLLM's {architecture} takes no adapters"
    return ""


def adapter_arguments(shape: AdapterShape, sampling: Sampling) -> dict[str, Any]:
    """Arguments of an engine that takes them. Requests of ``max_staleness + 1`` versions are under way at the same time at most
    (``rollout.prefetch``), and another version is loaded before an old one goes."""
    return {
        "enable_lora": True,
        "max_lora_rank": next(rank for rank in RANKS if rank >= shape.rank),
        "max_loras": sampling.max_staleness + 1,
        "max_cpu_loras": sampling.max_staleness + 2,
        "lora_target_modules": list(shape.targets),
    }


class LoadedAdapters:
    """Those that an engine holds. One at a time may call."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._numbers = capacity, itertools.count(1)
        self._loaded: set[int] = set()

    @property
    def full(self) -> bool:
        """Whether vLLM would drop one for the next."""
        return len(self._loaded) >= self._capacity

    def load(self, engine: Any, tensors: Mapping[str, Tensor]) -> LoRARequest:
        """
        Args:
            engine: an ``LLMEngine`` that is awake
            tensors: A and B by name, B scaled (``onpolicy.protocols.Weights.adapter``), in the host's memory
        """
        from vllm.lora.request import LoRARequest

        number = next(self._numbers)
        with adapter_folder(tensors) as folder:
            request = LoRARequest(str(number), number, str(folder))
            # vLLM has a CUDA stream for each thread: the last step may still read the memory that this one gets, the next one reads it
            synchronize()
            engine.add_lora(request)
            synchronize()
        self._loaded.add(number)
        return request

    def drop_all_but(self, engine: Any, used: Iterable[LoRARequest | None]) -> None:
        numbers = {request.lora_int_id for request in used if request is not None}
        for number in self._loaded - numbers:
            engine.remove_lora(number)
        self._loaded &= numbers


@contextmanager
def adapter_folder(tensors: Mapping[str, Tensor]) -> Iterator[Path]:
    """Inside, adapters lie in a folder as peft writes them; in memory, where there is room."""
    from safetensors.torch import save_file

    size = sum(tensor.nbytes for tensor in tensors.values())
    memory = os.access(MEMORY, os.W_OK) and free_bytes(MEMORY) > 2 * size
    with TemporaryDirectory(prefix="onpolicy-adapter-", dir=MEMORY if memory else None) as name:
        rank = next(tensor.shape[0] for key, tensor in tensors.items() if key.endswith(".lora_A.weight"))
        targets = sorted({key.split(".")[-3] for key in tensors})
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
        Path(name, "adapter_config.json").write_text(json.dumps(settings))
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()}, Path(name, "adapter_model.safetensors")
        )
        yield Path(name)


@functools.cache
def takes_adapters(architecture: str) -> bool:
    """Whether vLLM's class for an architecture takes adapters, read off vLLM's sources: vLLM itself takes half a minute to import, and
    changes the process that it is in. False where they do not say so."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return False
    folder = Path(found.origin).parent / "model_executor" / "models"
    return any(_supports(_file_of(folder, module), name) for module, name in _classes_of(folder, architecture))


def _classes_of(folder: Path, architecture: str) -> Iterator[tuple[str, str]]:
    """Module and class that vLLM's registry has for an architecture."""
    for node in ast.walk(_parsed(folder / "registry.py")):
        for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
            if isinstance(key, ast.Constant) and key.value == architecture and isinstance(value, ast.Tuple):
                module, name = (part.value for part in value.elts if isinstance(part, ast.Constant))
                yield str(module), str(name)


def _file_of(folder: Path, module: str) -> Path:
    package = folder / module / "__init__.py"
    return package if package.exists() else folder / f"{module}.py"


def _supports(file: Path, name: str) -> bool:
    """Whether a class, or one that it is made from, is a ``SupportsLoRA``."""
    tree = _parsed(file)
    own = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if own is None:
        imports = (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module)
        sources = (node.module for node in imports if any((a.asname or a.name) == name for a in node.names))
        return any(_supports(_file_of(file.parent, str(source).rpartition(".")[2]), name) for source in sources)
    bases = [base.id for base in own.bases if isinstance(base, ast.Name)]
    return "SupportsLoRA" in bases or any(_supports(file, base) for base in bases)


def _parsed(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text())
    except (OSError, SyntaxError):
        return ast.Module([], [])
