"""The guards of a run whose config names none."""

from __future__ import annotations

GUARDS = [
    {"name": "falls", "metric": "rollout/completion_length/mean", "below_fraction": 0.4},
    {"name": "falls", "metric": "policy/entropy", "below_fraction": 0.3},
    {"name": "falls", "metric": "epistemic/{lexicon}/rate_per_1k", "below_fraction": 0.3},
    {"name": "falls", "metric": "epistemic/{lexicon}/entropy_at", "below_fraction": 0.3},
    {"name": "falls", "metric": "credit/nonzero", "below_fraction": 0.3},
    {"name": "falls", "metric": "group/mixed", "below_fraction": 0.3},
    {"name": "falls", "metric": "group/any_correct", "below_fraction": 0.5},
    {"name": "rises", "metric": "rollout/truncated", "by": 0.3},
    {"name": "rises", "metric": "audit/repetition", "by": 0.2},
    {"name": "falls", "metric": "audit/compression", "below_fraction": 0.7},
    {"name": "rises", "metric": "audit/{lexicon}/first_word", "by": 0.3},
    {"name": "rises", "metric": "audit/{lexicon}/vacuous", "by": 0.3},
    {"name": "rises", "metric": "audit/{lexicon}/after_answer", "by": 0.2},
    {"name": "rises", "metric": "audit/{lexicon}/crowded", "by": 0.3},
    {"name": "rises", "metric": "audit/{lexicon}/carrier", "by": 0.3},
    {"name": "rises", "metric": "audit/{lexicon}/lead", "by": 0.7},
    {"name": "rises", "metric": "epistemic/{lexicon}/probability", "by": 0.25},
    {"name": "stays", "metric": "train/skipped_updates", "steps": 5, "action": "stop"},
]
"""The guards of every run by default: collapse, markers without meaning, gradients that are not finite. ``{lexicon}`` in a guard's
metric stands for ``epistemic.lexicon``."""
