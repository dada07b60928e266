"""The plug-in of kind ``environment`` that runs an environment of verifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onpolicy.data.rendering import Renderer
from onpolicy.integrations.verifiers.loading import load_environment, needs_verifiers
from onpolicy.protocols import Environment, Student
from onpolicy.types import EnvironmentOutcome, Prompt
from onpolicy.utils.errors import ConfigError, first_line
from onpolicy.utils.ready import ready_if

INPUT = "verifiers_input"
"""Field of a prompt with the row of the environment's dataset."""


@ready_if(needs_verifiers)
def verifiers(
    *, id: str, renderer: Renderer, args: dict[str, Any] | None = None, tool_parser: str | None = None
) -> Environment:
    """An environment of the library verifiers (single turn, several turns, tools); the reward `environment` is its rubric's.

    How the student samples is up to `generator`: sampling arguments of the environment are not read.

    Args:
        id: name of an installed environment package, or `module:callable`
        args: what its `load_environment`, or the callable, is called with
        tool_parser: how calls of tools are found in a reply: `qwen3`, `qwen3.5`, `glm` or `deepseek-v3`; null: as the library renderers
            knows it for the model's name
    """
    environment = load_environment(id, args, to_run=True)
    read = _reader(renderer, tool_parser) if environment.tool_defs else None
    return VerifiersEnvironment(environment, read)


class VerifiersEnvironment:
    """Runs one rollout after verifiers' own rules, and grades it by the environment's rubric."""

    def __init__(self, environment: Any, read: Any) -> None:
        self._environment, self._read = environment, read

    async def run(self, prompt: Prompt, student: Student) -> EnvironmentOutcome:
        from onpolicy.integrations.verifiers.client import StudentClient

        given = dict(prompt.fields[INPUT])
        state: Mapping[str, Any] = await self._environment.run_rollout(
            given, StudentClient(student, self._read), "student", {}, state_columns=["feedback"]
        )
        error = state.get("error")
        return EnvironmentOutcome(
            reward=state.get("reward"),
            metrics={name: float(value) for name, value in (state.get("metrics") or {}).items() if value is not None},
            feedback=str(state.get("feedback") or ""),
            failure="" if error is None else _reason(error),
        )


def _reason(error: Any) -> str:
    """Of an error as verifiers writes it: ``ModelError() -> EpisodeError('...')``, of which the last one was first."""
    return str(error["error_chain_repr"]).rpartition(" -> ")[2]


def _reader(renderer: Renderer, tool_parser: str | None) -> Any:
    """What finds calls of tools in sampled tokens."""
    from renderers import DefaultRendererConfig, create_renderer

    tokenizer = renderer.tokenizer
    try:
        config = None if tool_parser is None else DefaultRendererConfig(tool_parser=tool_parser)
        parser = create_renderer(tokenizer, config)
    except ValueError as error:
        raise ConfigError(f"environment.tool_parser: got {tool_parser!r}: {first_line(error)}") from error
    if not getattr(parser, "supports_tools", False):
        raise ConfigError(
            f"environment.tool_parser: the environment offers tools, and how {tokenizer.name_or_path!r} calls them is not known by its "
            "name; expected qwen3, qwen3.5, glm or deepseek-v3"
        )
    return parser.parse_response
