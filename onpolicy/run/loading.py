"""What a run reads: models, tokenizers, problems, each held to what the config and the model's window allow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onpolicy.config.resolved import ResolvedConfig, Section
from onpolicy.data import DataError
from onpolicy.data.rendering import PromptTooLong, Renderer
from onpolicy.data.subset import coverage
from onpolicy.models import context_window, load_causal_lm, load_tokenizer, resolve_model, skeleton, tied
from onpolicy.types import Prompt
from onpolicy.utils.errors import ConfigError


@dataclass(frozen=True)
class Model:
    """The student before training, and what renders its prompts."""

    path: str
    tokenizer: Any
    renderer: Renderer
    max_teacher_prompt_tokens: int
    max_model_len: int
    """Tokens of the longest prompt and completion together that the generator sees; contexts may ask it longer questions."""


def open_model(resolved: ResolvedConfig, *, room: int = 0, guided: bool = False) -> Model:
    """Finds the model and loads its tokenizer; the weights come later.

    Prompts are held to the configured limits and to what the model's window leaves beside the completion.

    Args:
        plan: the config
        room: tokens that the generator takes beyond prompt and completion, the window permitting
        guided: the generator answers what teachers read, too
    """
    config = resolved.config
    path = resolve_model(config.model.path)
    source = {"trust_remote_code": config.model.trust_remote_code, "revision": config.model.revision}
    window = context_window(path, **source) or sys.maxsize  # type: ignore[arg-type]
    longest = max(resolved.generator.settings.max_tokens, config.eval.max_tokens or 0)
    if window <= longest:
        raise ConfigError(
            f"generator.max_tokens: {longest} tokens leave no room for a prompt; {config.model.path!r} has a window of {window}"
        )
    longest_prompt = min(config.rendering.max_prompt_tokens, window - longest)
    informed = config.rendering.max_teacher_prompt_tokens + resolved.generator.settings.max_tokens
    tokenizer = load_tokenizer(path, chat_template=config.rendering.chat_template, **source)  # type: ignore[arg-type]
    return Model(
        path=path,
        tokenizer=tokenizer,
        renderer=Renderer(tokenizer, thinking=config.rendering.thinking, max_prompt_tokens=longest_prompt),
        max_teacher_prompt_tokens=min(
            config.rendering.max_teacher_prompt_tokens, window - resolved.generator.settings.max_tokens
        ),
        max_model_len=min(
            window, max(longest_prompt + longest + room, informed if resolved.querying_plugins or guided else 0)
        ),
    )


def read_prompts(section: Section, key: str) -> list[Prompt]:
    """The problems of a data section.

    Raises:
        DataError: no problem at all, or one that cannot be read.
    """
    prompts: list[Prompt] = section.plugin.bind()()
    if not prompts:
        raise DataError(f"{key}: {section.plugin.name!r} gave no problems")
    return prompts


def training_prompts(resolved: ResolvedConfig, renderer: Renderer) -> list[Prompt]:
    """The problems to train on, covered as configured; those too long to render are refused or dropped."""
    chosen = resolved.data.settings.coverage
    prompts = coverage(
        read_prompts(resolved.data, "data"), problems=chosen.problems, repeats=chosen.repeats, seed=chosen.seed
    )
    return drop_overlong(prompts, renderer, drop=resolved.config.rendering.too_long == "drop")


def drop_overlong(prompts: Sequence[Prompt], renderer: Renderer, *, drop: bool) -> list[Prompt]:
    """Prompts within ``rendering.max_prompt_tokens``; rendering them all once finds every bad one before the first step."""
    kept = []
    for prompt in prompts:
        try:
            renderer.prompt_ids(prompt.messages)
        except PromptTooLong as error:
            if not drop:
                raise PromptTooLong(
                    error.num_tokens, error.limit, f"prompt {prompt.id!r} (rendering.max_prompt_tokens)"
                ) from error
            continue
        kept.append(prompt)
    if not kept:
        raise DataError("data: every prompt is longer than rendering.max_prompt_tokens")
    return kept


def load_weights(resolved: ResolvedConfig, path: str) -> Any:
    settings = resolved.config.model
    return load_causal_lm(
        path,
        dtype="float32",
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.trust_remote_code,
        revision=settings.revision if path == resolve_model(settings.path) else None,
    )


def model_skeleton(resolved: ResolvedConfig, path: str) -> Any:
    """The student's class and config, without weights."""
    settings = resolved.config.model
    revision = settings.revision if path == resolve_model(settings.path) else None
    return skeleton(path, trust_remote_code=settings.trust_remote_code, revision=revision)


def load_teacher(resolved: ResolvedConfig, model: Model, path: str) -> Any:
    """Another model as the teacher.

    Raises:
        ConfigError: it does not read the student's tokens.
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
    """Copies the student; what comes back writes the copy: weights, config, tokenizer with its chat template.

    Args:
        weights: gives the student's full tensors by name
        skeleton: a model of its class whose own weights do not matter
        tokenizer: the student's
    """
    copy = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights()}
    for name, source in tied(skeleton).items():  # one tensor, which is written once
        copy[name] = copy[source]

    def write(folder: Path) -> None:
        skeleton.save_pretrained(folder, state_dict=copy)
        tokenizer.save_pretrained(folder)

    return write
