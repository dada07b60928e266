"""Telemetry of the text of a step's rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onpolicy.epistemic.audit import audit
from onpolicy.epistemic.baseline import Baseline, problem_baselines
from onpolicy.epistemic.calibration import scoreboard
from onpolicy.epistemic.marked import MarkedRollout, locate_markers
from onpolicy.epistemic.suppression import suppression
from onpolicy.epistemic.text import marker_rates, pooled_rate
from onpolicy.epistemic.text_facts import Split, TextFacts, text_facts
from onpolicy.rewards.uncertainty import prompt_text
from onpolicy.types import Metrics, Prompt, Rollout, ScoredGroup


@dataclass(frozen=True)
class TextTelemetry:
    """Rates, signs of gaming, calibration, and where the reference model is known, suppression."""

    lexicons: Sequence[str]
    """Whose markers are counted."""
    followed: str
    """Whose use is audited."""
    split: Split
    """Text -> thinking and answer."""
    baseline: Baseline | None = None

    def measure(self, groups: Sequence[ScoredGroup]) -> Metrics:
        return self.metrics(self._marked(groups))

    def facts(self, rollout: Rollout, prompt: Prompt) -> TextFacts:
        """What a rollout's text says; what the lexicons hold of the last text is known."""
        return text_facts(rollout, prompt_text(prompt.messages), self._all, self.split, [self.followed])

    def metrics(self, marked: Sequence[MarkedRollout]) -> Metrics:
        """Of a step's rollouts, in the order of the groups."""
        metrics = marker_rates(marked, self.lexicons) | audit(marked, self.followed) | scoreboard(marked, self.followed)
        if self.baseline is not None:
            metrics |= suppression(marked, self.baseline.problem_baselines, self._all, self.followed)
        return metrics

    def summarise(self, groups: Sequence[ScoredGroup]) -> Metrics:
        """The pooled rates and the calibration alone: what an evaluation logs."""
        marked = self._marked(groups)
        rates = {f"epistemic/{name}/rate_per_1k": pooled_rate(marked, name) for name in self.lexicons}
        return {n: rate for n, rate in rates.items() if rate is not None} | scoreboard(marked, self.followed)

    def build_baseline(self, groups: Sequence[ScoredGroup], spacing: int) -> Baseline:
        """The baseline that these rollouts of the reference model make, for rewards with that spacing."""
        return Baseline(
            problem_baselines(self._marked(groups), self.followed, spacing),
            self.measure(groups),
        )

    def _marked(self, groups: Sequence[ScoredGroup]) -> list[MarkedRollout]:
        return locate_markers(groups, self._all, self.split, [self.followed])

    @property
    def _all(self) -> list[str]:
        return list(dict.fromkeys((*self.lexicons, self.followed)))
