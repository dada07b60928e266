"""The method of a config in a few lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.run.axes import axes, short

AXIS_WORDS = {
    "divergence": "by",
    "support": "over",
    "target": "towards",
    "advantage": "with the advantage",
    "token_weights": "weighted by",
    "select": "on the tokens of",
    "route": "on the rollouts of",
    "normalize": "averaged over",
}
"""Option of a term -> what leads to its value in a sentence."""


def method_in_words(resolved: ResolvedConfig) -> Iterator[tuple[str, str]]:
    """What it is that a line says, and the line: the loss, what its teacher is, the rewards and advantages."""
    config = resolved.config
    yield "method", "\n+ ".join(_term(term) for term in config.objective)
    if config.contexts:
        contexts = "; ".join(f"{name}: {short(spec)}" for name, spec in config.contexts.items())
        yield "teacher", f"{short(config.teacher)}; context {contexts}"
    if config.rewards:
        names = ", ".join(short(reward) for reward in config.rewards)
        several = f"; {resolved.correctness_name} decides which answers are correct"
        yield "rewards", names + (several if len(config.rewards) > 1 else "")
    if credit := axes(config)["credit"]:
        yield "advantages", credit


def _term(term: Any) -> str:
    spec = term if isinstance(term, Mapping) else {"name": term}
    own = {name: value for name, value in spec.items() if name not in (*AXIS_WORDS, "weight")}
    weight = spec.get("weight", 1)
    how = (f"{words} {short(spec[axis])}" for axis, words in AXIS_WORDS.items() if spec.get(axis) is not None)
    return " ".join(["" if weight == 1 else f"{short(weight)} ×", short(own), *how]).strip()
