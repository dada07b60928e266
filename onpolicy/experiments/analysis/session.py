"""A model that answers questions without being trained, and the file that its answers go to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onpolicy.annotation.scoring import Scorer
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.models import ModelHandle, open_model
from onpolicy.protocols import Generator
from onpolicy.rollout.build import with_environment
from onpolicy.run.display import Display
from onpolicy.run.loading import training_prompts
from onpolicy.run.placement import build_generator, build_scorer
from onpolicy.types import Prompt
from onpolicy.utils.faults import Faults


@dataclass(frozen=True)
class Session:
    """A model that answers the config's problems, and what scores its answers."""

    resolved: ResolvedConfig
    model: ModelHandle
    prompts: Sequence[Prompt]
    generator: Generator
    scorer: Scorer
    display: Display


@contextmanager
def session(resolved: ResolvedConfig, *, room: int = 0, with_contexts: bool = False) -> Iterator[Session]:
    """With a progress bar, until the block ends.

    Args:
        resolved: the config
        room: tokens by which answers may exceed ``generator.max_tokens``, the model's window permitting
        with_contexts: whether it also answers under the config's contexts
    """
    display = Display(1, most_tokens=resolved.generator.settings.max_tokens + room)
    with display.never_silent():
        model = open_model(resolved, extra_tokens=room, guided=with_contexts)
        prompts = training_prompts(resolved, model.renderer)
        faults = Faults(display.note)
        generator = with_environment(resolved, model, build_generator(resolved, model, faults), display.note)
        generator.on_progress = display.progress
        scorer = build_scorer(resolved, model, faults)
        display.phase("generate")
        try:
            with display:
                yield Session(resolved, model, prompts, generator, scorer, display)
        finally:
            generator.close()
            scorer.close()


def write_findings(output: Path | None, config_path: Path, overrides: Sequence[str], **found: Any) -> None:
    """Writes what was measured, and for which config, as JSON; nothing without a file."""
    if output is not None:
        report = {"config": str(config_path), "overrides": list(overrides)} | found
        output.write_text(json.dumps(report, indent=1) + "\n")
