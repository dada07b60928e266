"""A model that is asked, without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from onpolicy.annotation.scoring import Scorer
from onpolicy.config.resolve import ResolvedConfig
from onpolicy.models import ModelHandle, open_model
from onpolicy.protocols import Generator
from onpolicy.run.display import Display
from onpolicy.run.loading import training_prompts
from onpolicy.run.placement import build_generator, build_scorer
from onpolicy.types import Prompt
from onpolicy.utils.faults import Faults


@dataclass(frozen=True)
class Session:
    """A model that answers the config's problems, and a scorer of its answers."""

    resolved: ResolvedConfig
    model: ModelHandle
    prompts: Sequence[Prompt]
    generator: Generator
    scorer: Scorer
    display: Display


@contextmanager
def session(resolved: ResolvedConfig, *, room: int = 0, guided: bool = False) -> Iterator[Session]:
    """With a progress bar, until the block ends.

    Args:
        checked: the config
        room: tokens by which answers may exceed ``generator.max_tokens``, the model's window permitting
        guided: it answers under the config's contexts too
    """
    model = open_model(resolved, extra_tokens=room, guided=guided)
    prompts = training_prompts(resolved, model.renderer)
    display = Display(1)
    faults = Faults(display.note)
    generator = build_generator(resolved, model, faults)
    generator.on_progress = display.progress
    scorer = build_scorer(resolved, model, faults)
    try:
        with display:
            yield Session(resolved, model, prompts, generator, scorer, display)
    finally:
        generator.close()
        scorer.close()
