"""From a resolved config to what annotates rollouts. Loads no torch."""

from __future__ import annotations

from typing import Any

from onpolicy.annotation.spans import markers, pattern
from onpolicy.config.resolve import ResolvedConfig
from onpolicy.config.schedules import Bound
from onpolicy.epistemic.ids import CLASSES, class_names, span_name


def token_classes(resolved: ResolvedConfig) -> dict[str, Any]:
    """Name of the span -> the function that finds the tokens of this class."""
    return {
        span_name(name): Bound(pattern, regex=CLASSES[name]) if name in CLASSES else Bound(markers, lexicon=name)
        for name in class_names(resolved)
    }
