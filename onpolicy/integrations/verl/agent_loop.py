"""verl's agent loops with a worker that reads each trajectory's text as soon as it is sampled, while others still are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import ray
import torch
from verl.experimental.agent_loop import AgentLoopManager, AgentLoopOutput, AgentLoopWorker
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from onpolicy.integrations.verl.conversation_rows import has_failed
from onpolicy.integrations.verl.environment_agent import conversations
from onpolicy.integrations.verl.names import SECTION
from onpolicy.integrations.verl.response_reader import READ, ResponseReader
from onpolicy.integrations.verl.settings import unpack_config
from onpolicy.models import student_renderer

_of_verl = AgentLoopWorkerTQ.__ray_metadata__.modified_class
"""A Ray actor cannot be inherited from; its functions can be used."""


class ReadingWorker(AgentLoopWorker):  # type: ignore[misc]
    """Runs verl's agent loops; a row of a training step takes with it what its text says."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        import transfer_queue as tq

        tq.init()
        self.background_tasks: set[Any] = set()
        self.reader: ResponseReader | None = None
        if (packed := self.config.actor_rollout_ref.get(SECTION)) is not None:
            resolved = unpack_config(packed)
            self.reader = ResponseReader(
                resolved, student_renderer(resolved, self.tokenizer, resolved.config.model.path)
            )
            if resolved.environment is not None:
                conversations(self.config, self.tokenizer)  # what cannot be made ends the run before it begins
        # one: what is known of the last text is kept between the functions that read it
        self._thread = ThreadPoolExecutor(1)

    generate_sequences = _of_verl.generate_sequences
    _run_prompt = _of_verl._run_prompt

    async def _agent_loop_postprocess(
        self, output: AgentLoopOutput | list[AgentLoopOutput], validate: bool, **kwargs: Any
    ) -> None:
        if self.reader is not None and not validate:
            for one in output if isinstance(output, list) else [output]:
                if has_failed({"extra_fields": one.extra_fields}):
                    continue
                await asyncio.get_running_loop().run_in_executor(self._thread, add_read, one, kwargs, self.reader)
        await _of_verl._agent_loop_postprocess(self, output, validate, **kwargs)


def add_read(output: AgentLoopOutput, columns: Mapping[str, Any], reader: ResponseReader) -> None:
    """Adds what a trajectory's text says to its extra fields; a row that cannot be read is left to the driver, whose error ends the run.

    Args:
        output: the trajectory
        columns: of its prompt
        reader: of the run's method
    """
    row = {
        **columns,
        "prompts": torch.tensor(output.prompt_ids),
        "responses": torch.tensor(output.response_ids),
        "response_mask": torch.tensor(output.response_mask),
        "extra_fields": output.extra_fields,
    }
    if output.response_logprobs is not None:
        row["rollout_log_probs"] = torch.tensor(output.response_logprobs, dtype=torch.float32)
    with suppress(ValueError):
        output.extra_fields[READ] = reader.pack(row)


class ReadingAgentLoop(AgentLoopManagerTQ):  # type: ignore[misc]
    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.agent_loop_workers_class = ray.remote(ReadingWorker)
        AgentLoopManager.__init__(self, *arguments, **named)
