"""``generator.engine_args``: what a config hands to ``vllm.LLM`` as it is. vLLM itself is not imported here: that takes half a minute where
the machine is busy, and a config has to be checked in seconds."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onpolicy.utils.errors import ConfigError, suggest

KEY = "generator.engine_args"
OPTIONS = {
    "model": "model.path",
    "revision": "model.revision",
    "trust_remote_code": "model.trust_remote_code",
    "max_model_len": "generator.max_tokens and rendering.max_prompt_tokens",
    "seed": "seed",
    "dtype": "generator.dtype",
    "enforce_eager": "generator.enforce_eager",
    "gpu_memory_utilization": "generator.gpu_memory_utilization",
    "tensor_parallel_size": "generator.tensor_parallel_size",
    "max_num_seqs": "generator.max_num_seqs",
}
"""vLLM's argument -> the option that decides it."""
LORA = "where trainer.lora_rank has it take the adapters alone"
REASONS = {
    "enable_sleep_mode": "on a GPU that the engine shares with the trainer, where generator.max_staleness is 0",
    "enable_lora": LORA,
    "max_lora_rank": LORA,
    "max_loras": LORA,
    "max_cpu_loras": LORA,
    "lora_target_modules": LORA,
    "weight_transfer_config": "where the trainer sends weights from its GPU to that of a generator",
    "enable_prefix_caching": "rollouts of one prompt share its keys and values",
    "logprobs_mode": "rollout_logprobs are compared with the trainer's, which are raw",
    "disable_log_stats": "nothing reads them",
    "use_tqdm_on_load": "the run has a display of its own",
}
"""vLLM's argument, which onpolicy alone decides -> when, or why."""


class EngineArgs:
    """Marks the option that holds them: every name is held to vLLM's signature and to what onpolicy sets itself."""

    def problems(self, key: str, value: Any) -> Iterator[str]:
        """One for each name that cannot stand there; where vLLM is not installed, only onpolicy's own are known."""
        known = engine_arguments()
        for name in value if isinstance(value, Mapping) else ():
            if name in OPTIONS:
                yield f"{key}.{name}: {OPTIONS[name]} decides it; expected it there."
            elif name in REASONS:
                yield f"{key}.{name}: onpolicy sets it itself ({REASONS[name]}); expected the other arguments alone."
            elif known and name not in known:
                yield f"{key}.{name}: unknown argument of vllm.LLM.{suggest(name, known)}"


@functools.cache
def engine_arguments() -> frozenset[str]:
    """Names that ``vllm.LLM`` takes: its own parameters and the fields of ``EngineArgs``, read off vLLM's source. Empty where vLLM is not
    installed or its source does not have them where it had them; vLLM then refuses them itself when it starts."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return frozenset()
    folder = Path(found.origin).parent
    fields = [
        node.target
        for node in _body(folder / "engine" / "arg_utils.py", "EngineArgs")
        if isinstance(node, ast.AnnAssign)
    ]
    made = [node.args for node in _body(folder / "entrypoints" / "llm.py", "LLM") if _is_init(node)]
    names = {field.id for field in fields if isinstance(field, ast.Name)}
    names |= {parameter.arg for given in made for parameter in (*given.args[1:], *given.kwonlyargs)}
    return frozenset(name for name in names if not name.startswith("_"))


def _body(file: Path, name: str) -> list[Any]:
    """The statements of a class; none where the file or the class is not there."""
    try:
        classes = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    except (OSError, SyntaxError):
        return []
    return [statement for node in classes if node.name == name for statement in node.body]


def _is_init(node: Any) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == "__init__"


def combined(ours: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What onpolicy hands to vLLM on this machine, and what the config does.

    Raises:
        ConfigError: both name the same argument.
    """
    both = [name for name in given if name in ours]
    if both:
        raise ConfigError(
            *(f"{KEY}.{n}: got {given[n]!r}, but onpolicy sets it to {ours[n]!r} here; leave it out" for n in both)
        )
    return {**ours, **given}


@contextmanager
def blamed_on(given: Mapping[str, Any]) -> Iterator[None]:
    """Around the start of an engine: raises ConfigError with the config's arguments where vLLM refuses what it is given."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not given:
            raise
        raise ConfigError(f"{KEY}: vLLM does not start with {dict(given)!r}: {error}") from error
