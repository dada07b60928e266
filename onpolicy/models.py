"""The models of a run: finding one (a folder, a hub id, or one that ships as a package), loading it, and writing it."""

from __future__ import annotations

import contextlib
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy.config.registry import defaults_and
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schema import ModelSettings
from onpolicy.data.chat_template import read_chat_template
from onpolicy.data.rendering import Renderer
from onpolicy.utils.bundled_model import BUNDLED, bundled_model
from onpolicy.utils.errors import ConfigError, ModelError, first_line
from onpolicy.utils.model_folders import why_no_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REASONER, PARTIAL_REASONER = "lab-reasoner", "lab-partial-reasoner"
"""The lab's own models (``onpolicy.experiments.lab``), which ship with the package; the second has learned part of two more tasks."""
LAB_MODELS = {REASONER: "reasoner", PARTIAL_REASONER: "partial_reasoner"}


def resolve_model(path: str) -> str:
    """A folder or hub id that transformers and vLLM load; the bundled model is converted at its first use.

    Raises:
        ModelError: a folder without a model, a path that does not exist, or the bundled model's package is missing.
    """
    if path == BUNDLED:
        return str(bundled_model())
    if path in LAB_MODELS:
        return str(Path(__file__).parent / "experiments" / "lab" / LAB_MODELS[path])
    folder = Path(path).expanduser()
    if problem := why_no_model(path):
        raise ModelError(f"model.path: {problem}")
    return str(folder) if folder.is_dir() else path


def load_tokenizer(
    path: str, *, chat_template: str | None = None, trust_remote_code: bool = False, revision: str | None = None
) -> Any:
    """The tokenizer of a model; ``chat_template`` names a file with what to use in place of its own template.

    Raises:
        ModelError: there is no tokenizer, no such file, or it holds no template.
    """
    from transformers import AutoTokenizer

    if Path(path).is_dir() and not any(Path(path).glob("tokenizer*")):
        raise ModelError(
            f"model.path: folder {path!r} has no tokenizer (tokenizer.json); copy it from the model it was trained from"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except Exception as error:  # the tokenizers library raises nothing more special
        raise ModelError(f"model.path: no tokenizer can be loaded from {path!r}: {first_line(error)}") from error
    if chat_template is not None:
        tokenizer.chat_template = read_chat_template(chat_template)
    return tokenizer


def end_ids(path: str, *, trust_remote_code: bool = False, revision: str | None = None) -> tuple[int, ...]:
    """Token ids at which a model's own generation config ends a completion, in its order; its config's where it has none."""
    from transformers import GenerationConfig

    found = None
    try:
        found = GenerationConfig.from_pretrained(path, revision=revision).eos_token_id
    except (OSError, ValueError):
        with contextlib.suppress(ModelError):
            found = getattr(_config(path, trust_remote_code, revision).get_text_config(), "eos_token_id", None)
    return tuple(i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int))


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
        ModelError: there are no such weights, some are missing, or the files hold something else.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model: PreTrainedModel
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            revision=revision,
            weights_only=True,
            output_loading_info=True,
        )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"model.path: {path!r} cannot be loaded: its weights are a pickle that holds more than tensors, which could run code; "
            "expected model.safetensors"
        ) from error
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise ModelError(f"model.path: {path!r} cannot be loaded: {first_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"model.path: {path!r} lacks {len(missing)} tensors of {type(model).__name__}, e.g. {missing[0]!r}; they would be random"
        )
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


def hub_commit(path: str, *, trust_remote_code: bool = False, revision: str | None = None) -> str | None:
    """The commit of a model on the hub that is loaded; None where it is not known."""
    return getattr(_config(path, trust_remote_code, revision), "_commit_hash", None)


def _config(path: str, trust_remote_code: bool, revision: str | None) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        elsewhere = (
            ""
            if Path(path).is_dir()
            else " Or give a folder on this disk, or lab-reasoner, which ships with the package."
        )
        raise ModelError(f"model.path: {path!r} has no usable config: {first_line(error)}{elsewhere}") from error


@dataclass(frozen=True)
class TeacherSize:
    """What another model can read."""

    path: str
    window: int | None
    """Its context window, in tokens; None where its config does not say."""
    vocabulary: int
    """Number of its embeddings."""


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
    vocabulary: range = range(sys.maxsize)
    """Ids that the student has embeddings for."""
    teacher: TeacherSize | None = None
    """What another model as the teacher allows; None where the student is the teacher."""

    window: int | None = None
    """The student's context window, in tokens; None where its config does not say."""

    @property
    def limits_of_teacher(self) -> str:
        """In what the teacher can read less than the student, for the user; empty where it is nothing."""
        teacher, found = self.teacher, list[str]()
        if teacher is not None and teacher.window is not None and teacher.window < (self.window or sys.maxsize):
            found.append(
                f"a context window of {teacher.window} tokens (the student {self.window or 'no limit'}), so its prompts have at most "
                f"{self.max_teacher_prompt_tokens}"
            )
        if teacher is not None and self.banned_token_ids:
            found.append(f"{teacher.vocabulary} embeddings, so the ids from there on are not sampled")
        return f"teacher.path: {teacher.path!r} has {'; and '.join(found)}" if teacher is not None and found else ""

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        """Ids that the student could sample and the teacher could not read."""
        return () if self.teacher is None else tuple(self.vocabulary[self.teacher.vocabulary :])


def open_model(resolved: ResolvedConfig, *, extra_tokens: int = 0, guided: bool = False) -> ModelHandle:
    """Finds the model and loads its tokenizer; the weights are loaded later.

    Prompts are limited as configured, and to what the model's context window leaves for them after the completion.

    Args:
        resolved: the config
        extra_tokens: what the generator takes in addition to prompt and completion, as far as the window allows
        guided: whether the generator also answers what teachers read

    Raises:
        ConfigError: the window is no longer than the completion.
        ModelError: there is no such model, or it has no embeddings for tokens of its tokenizer.
    """
    config = resolved.config
    path = resolve_model(config.model.path)
    source = {"trust_remote_code": config.model.trust_remote_code, "revision": config.model.revision}
    window = context_window(path, **source) or sys.maxsize  # type: ignore[arg-type]
    limits = {
        "generator.max_tokens": resolved.generator.settings.max_tokens,
        "eval.max_tokens": config.eval.max_tokens or 0,
    }
    if problems := [
        f"{key}: {limit} tokens leave no tokens for a prompt; {config.model.path!r} has a context window of {window}"
        for key, limit in limits.items()
        if window <= limit
    ]:
        raise ConfigError(*problems)
    longest = max(limits.values())
    longest_prompt = min(config.rendering.max_prompt_tokens, window - longest)
    informed = config.rendering.max_teacher_prompt_tokens + resolved.generator.settings.max_tokens
    tokenizer = load_tokenizer(path, chat_template=config.rendering.chat_template, **source)  # type: ignore[arg-type]
    vocabulary = vocabulary_size(path, **source)  # type: ignore[arg-type]
    _refuse_unknown_tokens("model.path", path, tokenizer, vocabulary)
    renderer = student_renderer(resolved, tokenizer, path, max_prompt_tokens=longest_prompt)
    teacher = _teacher_size(resolved)
    return ModelHandle(
        path=path,
        tokenizer=tokenizer,
        renderer=renderer,
        teacher_renderer=teacher_renderer(resolved, renderer),
        max_teacher_prompt_tokens=teacher_prompt_limit(
            resolved, min(window, (teacher and teacher.window) or sys.maxsize)
        ),
        max_model_len=min(
            window, max(longest_prompt + longest + extra_tokens, informed if resolved.querying_plugins or guided else 0)
        ),
        vocabulary=range(vocabulary),
        window=None if window == sys.maxsize else window,
        teacher=teacher,
    )


def _refuse_unknown_tokens(key: str, path: str, tokenizer: Any, vocabulary: int) -> None:
    """Raises ModelError where prompts or answers could hold a token that the model has no embedding for.

    Special tokens that its template does not write are in no prompt: several models are published with some too many.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    written = str(tokenizer.chat_template)
    missing = [
        token
        for token, i in tokenizer.get_vocab().items()
        if i >= vocabulary and (i not in special or token in written)
    ]
    if missing:
        raise ModelError(
            f"{key}: the tokenizer of {path!r} has {len(tokenizer)} tokens, but the model embeddings for {vocabulary}, none e.g. for "
            f"{missing[0]!r}; expected the tokenizer that the model was trained with, or a model whose embeddings were resized to it"
        )


def _teacher_size(resolved: ResolvedConfig) -> TeacherSize | None:
    """None where the teacher is the student, or cannot be read, which ``load_teacher`` reports."""
    given = resolved.teacher.bind()().path
    if given is None:
        return None
    source = {"trust_remote_code": resolved.config.model.trust_remote_code, "revision": None}
    with contextlib.suppress(ModelError):
        path = resolve_model(given)
        return TeacherSize(given, context_window(path, **source), vocabulary_size(path, **source))  # type: ignore[arg-type]
    return None


def student_renderer(
    resolved: ResolvedConfig, tokenizer: Any, path: str, *, max_prompt_tokens: int | None = None
) -> Renderer:
    """The renderer of the student's prompts.

    Args:
        resolved: the config
        tokenizer: the student's
        path: of the student, whose generation config names further ends
        max_prompt_tokens: length that no prompt may exceed
    """
    settings, model = resolved.config.rendering, resolved.config.model
    return Renderer(
        tokenizer,
        thinking=settings.thinking,
        max_prompt_tokens=max_prompt_tokens,
        thinking_tags=settings.thinking_tags,
        date=settings.date,
        eos_ids=end_ids(path, trust_remote_code=model.trust_remote_code, revision=model.revision),
    )


def teacher_renderer(resolved: ResolvedConfig, renderer: Renderer) -> Renderer:
    """The renderer of the teacher's prompts: the student's own, unless ``rendering.teacher_thinking`` says otherwise."""
    settings = resolved.config.rendering
    if settings.teacher_thinking in (None, settings.thinking):
        return renderer
    return Renderer(
        renderer.tokenizer,
        thinking=settings.teacher_thinking,
        thinking_tags=(renderer.thinking_tags.open, renderer.thinking_tags.close),
        date=settings.date,
        eos_ids=renderer.eos_ids,
    )


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
        revision=_revision(settings, path),
    )


def model_skeleton(resolved: ResolvedConfig, path: str) -> Any:
    """A model of the student's class and config, without weights."""
    settings = resolved.config.model
    return skeleton(path, trust_remote_code=settings.trust_remote_code, revision=_revision(settings, path))


def load_teacher(resolved: ResolvedConfig, model: ModelHandle, path: str) -> Any:
    """Loads another model as the teacher.

    Raises:
        ConfigError: its vocabulary is not the student's, or its window is no longer than the completion.
        ModelError: it has no embeddings for tokens of its tokenizer.
    """
    path, given = resolve_model(path), path
    longest = resolved.generator.settings.max_tokens
    if model.teacher is not None and model.teacher.window is not None and model.teacher.window <= longest:
        raise ConfigError(
            f"generator.max_tokens: {longest} tokens leave no tokens for a prompt of the teacher; "
            f"teacher.path {given!r} has a context window of {model.teacher.window}"
        )
    refuse_other_vocabulary(resolved, model.tokenizer, path)
    if model.teacher is not None:
        _refuse_unknown_tokens("teacher.path", path, model.tokenizer, model.teacher.vocabulary)
    return load_weights(resolved, path)


def refuse_other_vocabulary(resolved: ResolvedConfig, tokenizer: Any, path: str) -> None:
    """Raises ConfigError where the teacher under ``path`` has not the student's tokens under the student's ids."""
    source = {"trust_remote_code": resolved.config.model.trust_remote_code, "revision": None}
    if load_tokenizer(path, chat_template=None, **source).get_vocab() != tokenizer.get_vocab():  # type: ignore[arg-type]
        raise ConfigError(
            f"teacher.path: {path!r} has another vocabulary than {resolved.config.model.path!r}; the teacher scores the student's "
            "own tokens and must know them all under the same ids"
        )


def engine_dtype(resolved: ResolvedConfig, path: str, *, on_gpu: bool) -> str:
    """The dtype in which the generator computes: its option ``dtype``, of which ``auto`` is the checkpoint's on a GPU.

    Args:
        resolved: the config
        path: of the student
        on_gpu: whether the generator runs on one
    """
    plugin, settings = resolved.generator.plugin, resolved.config.model
    given = dict(defaults_and(plugin.function, plugin.options)).get("dtype")
    if given != "auto" or not on_gpu:  # a user's own generator may name anything
        return given if given in ("bfloat16", "float16") else "float32"
    config = _config(path, settings.trust_remote_code, _revision(settings, path)).get_text_config()
    return str(config.dtype or "float32").removeprefix("torch.")


def _revision(settings: ModelSettings, path: str) -> str | None:
    """The config's revision is that of the student alone."""
    return settings.revision if path == resolve_model(settings.path) else None
