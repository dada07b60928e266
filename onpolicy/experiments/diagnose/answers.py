"""What one model answers, kept in a folder; one that was cut off goes on there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from onpolicy.annotation.build import build_rewards
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.epistemic.ids import LexiconError
from onpolicy.experiments.analysis.probes import MARGIN, Probe, Prober
from onpolicy.models import ModelHandle, open_model
from onpolicy.protocols import Generator
from onpolicy.rollout.build import with_environment
from onpolicy.run.display import Display
from onpolicy.run.evaluate import build_evaluator
from onpolicy.run.evaluation_files import ProblemResult, read_results
from onpolicy.run.placement import build_generator, build_scorer
from onpolicy.run.run_dir import begin_evaluation
from onpolicy.types import Prompt
from onpolicy.utils.disk import atomic_write, waiting_for_disk_space
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.faults import Faults
from onpolicy.utils.stats import Estimate
from onpolicy.utils.terminal import plain

PROBED = 16
"""Problems, at most, whose answers are changed."""
CONTINUATIONS = 2
"""Completions after each change."""


@dataclass(frozen=True)
class Asked:
    """One model, and what it is asked."""

    resolved: ResolvedConfig
    model: ModelHandle
    sets: Mapping[str, Sequence[Prompt]]
    folder: Path
    """Where its answers are kept."""

    @property
    def path(self) -> str:
        """The model as it was given."""
        return self.resolved.config.model.path

    def results(self) -> dict[str, list[ProblemResult]]:
        """Set -> the answers to its problems, in order."""
        kept = {name: read_results(self.folder / f"{name}.jsonl") for name in self.sets}
        return {name: [kept[name][p.id] for p in prompts] for name, prompts in self.sets.items()}


@dataclass(frozen=True)
class Probed:
    """What changing a model's answers did; or why they were not changed."""

    probes: Sequence[Probe] = ()
    why_not: str = ""


def opened(resolved: ResolvedConfig) -> ModelHandle:
    """The model's tokenizer and limits, with room for answers that probes continue."""
    return open_model(resolved, extra_tokens=resolved.generator.settings.max_tokens + MARGIN)


def answer(asked: Asked, name: str, console: Console, *, probes: bool) -> Probed:
    """Samples every set and grades it, then probes some of the answers; what the folder has already is not sampled again.

    Args:
        asked: the model and its problems
        name: base or trained, for the terminal
        console: where progress is shown
        probes: whether to probe

    Raises:
        ConfigError: the folder holds answers of another model, or with other settings.
    """
    try:
        begin_evaluation(asked.folder, asked.resolved)
    except ConfigError as error:
        raise ConfigError(str(error).replace("run_dir", "--output")) from error
    console.print(f"[bold]{plain(name)}[/bold] {plain(asked.path)}", highlight=False, soft_wrap=True)
    most = asked.resolved.config.eval.max_tokens or asked.resolved.generator.settings.max_tokens
    display = Display(0, console, most_tokens=most)
    with display.never_silent():
        generator = build_generator(asked.resolved, asked.model, Faults(display.note))
        generator = with_environment(asked.resolved, asked.model, generator, display.note)
        generator.on_progress = display.progress
        try:
            display.phase("evaluate")
            with display, waiting_for_disk_space(display.note):
                _evaluate(asked, generator)
                return _probe(asked, generator) if probes else Probed(why_not="left out (--no-probes)")
        finally:
            generator.close()


def _evaluate(asked: Asked, generator: Generator) -> None:
    """With the rewards of weight 0, which only measure, as further graders."""
    evaluator = build_evaluator(asked.resolved, asked.model, generator, asked.sets)
    assert evaluator is not None
    known = {evaluator.reward.name, *(g.name for g in evaluator.graders)}
    measuring = [r for r in build_rewards(asked.resolved) if r.weight == 0 and r.name not in known]
    graders = [*evaluator.graders, *measuring]
    replace(evaluator, graders=graders, telemetry=None).evaluate(asked.folder, resume=True)


def _probe(asked: Asked, generator: Generator) -> Probed:
    prompts = _in_turn(list(asked.sets.values()))[:PROBED]
    path, ids = asked.folder / "probes.json", [p.id for p in prompts]
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if kept.get("problems") != ids:
        found = _probed(asked, generator, prompts)
        kept = {"problems": ids} | asdict(found)
        atomic_write(path, json.dumps(kept, indent=1) + "\n")
    return Probed([_read_probe(p) for p in kept["probes"]], kept["why_not"])


def _probed(asked: Asked, generator: Generator, prompts: Sequence[Prompt]) -> Probed:
    prober = Prober(
        generator=generator,
        scorer=build_scorer(asked.resolved, asked.model, Faults(lambda text: None)),
        renderer=asked.model.renderer,
        lexicon=asked.resolved.config.epistemic.lexicon,
        window=asked.model.max_model_len,
        continuations=CONTINUATIONS,
        seed=asked.resolved.config.seed,
    )
    try:
        return Probed(prober.probe(prompts, injected=False))
    except (LexiconError, ConfigError) as error:  # no marker is one token, or answers fill the window
        return Probed(why_not=str(error))


def _in_turn(sets: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    """The first problem of each set, then the second ones ..."""
    longest = max(map(len, sets))
    return [prompts[i] for i in range(longest) for prompts in sets if i < len(prompts)]


def _read_probe(row: Mapping[str, object]) -> Probe:
    values = {name: Estimate(**value) if isinstance(value, dict) else value for name, value in row.items()}
    return Probe(**values)  # type: ignore[arg-type]
