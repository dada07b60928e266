"""Names that a config can no longer use, and their new names. An old name is refused with the new one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

RENAMED: dict[str, str] = {
    "*.view": "context",
    "*.reference_view": "reference_context",
    "*.contrast_views": "contrast_contexts",
    "roles": "distributed",
    "roles.generators": "distributed.num_generators",
    "roles.trainers": "distributed.num_trainers",
    "roles.rewards": "distributed.num_reward_workers",
    "roles.patience": "distributed.heartbeat_timeout_s",
    "roles.restarts": "distributed.max_restarts",
    "roles.address": "distributed.address",
    "generator.staleness": "generator.max_staleness",
    "data.completions": "data.completions_column",
    "rendering.too_long": "rendering.overlong",
    "lexicons": "custom_lexicons",
    "eval.k": "eval.pass_at",
    "eval.samples": "eval.samples_per_problem",
    "checkpoint.best": "checkpoint.best_metric",
    "guards[].lowers": "guards[].target",
    "guards[].factor": "guards[].scale",
    "guards[].share": "guards[].below_fraction",
    "guards[].over": "guards[].above",
    "term start_kl": "ref_kl",
    "advantage gap": "teacher_logratio",
    "advantage future_gap": "future_logratio",
    "advantage rebellious": "inverse_teacher",
    "advantage surprise": "hedging_bonus",
    "token_weights gap": "teacher_logratio",
    "token_weights gap_above": "logratio_above",
    "token_weights opportunity": "protect_markers",
    "lexicon A": "self_doubt",
    "lexicon B": "hedges",
    "lexicon C": "alternatives",
    "lexicon D": "boosters",
    "lexicon F": "neutral",
    "lexicon seed10": "paper10",
    "config grpo_seed": "grpo_paper",
    "reward onpolicy.experiments.lab.grading:doubt_precision": "onpolicy.experiments.lab.grading:self_doubt_precision",
    "reward onpolicy.experiments.lab.grading:doubt_recall": "onpolicy.experiments.lab.grading:self_doubt_recall",
}
"""Old name -> new name, one line each:

    "roles"                  a section
    "generator.staleness"    a key, with its section; list items are written ``objective[]``
    "*.view"                 an option, wherever it stands; the new name is that of the option alone
    "term start_kl"          a plug-in, after its kind; in the same way "lexicon A"

A ``*`` in the new name stands for what the ``*`` in the old one stood for.
"""

RENAMED_METRICS: dict[str, str] = {
    "rate_per_1k/wrong": "rate_per_1k/incorrect",
    "rate_per_1k/by_response": "rate_per_1k/by_completion",
    "mass/start": "mass/ref",
    "group/right": "group/pass_rate",
    "group/any_right": "group/any_correct",
    "calibration/silence": "calibration/no_hedging",
    "{followed}": "{lexicon}",
}
"""Old -> new parts of metric names, whatever stands before and after them; lexicons are in ``RENAMED``."""


def renamed_key(key: str, value: Any = None) -> str | None:
    """What to say about a key that was renamed, or None.

    Args:
        value: what the config gives there; of a section, the keys in it that were renamed as well are named
    """
    section, _, last = key.rpartition(".")
    new = _new_name(re.sub(r"\[\d+\]", "[]", key)) or _new_name(f"*.{last}")
    if new is None:
        return None
    if f"*.{last}" in RENAMED and section:
        new = f"{section}.{new}"
    inner = {f"{key}.{name}": _new_name(f"{key}.{name}") for name in value} if isinstance(value, Mapping) else {}
    also = ", ".join(f"{old} is {now}" for old, now in inner.items() if now)
    return f"{key}: unknown key. It is called {new} now{f' ({also})' if also else ''}."


def renamed_name(kind: str, name: str) -> str:
    """`` It is called 'x' now.`` for a plug-in or a lexicon that was renamed, or nothing."""
    new = _new_name(f"{kind} {name}")
    return f" It is called {new!r} now." if new else ""


def renamed_metric(name: str, own_lexicons: Collection[str] = ()) -> str:
    """`` It is called 'x' now.`` for a metric that was renamed, or nothing.

    Args:
        own_lexicons: names that the config gives to lists of markers, even where they are old names of others
    """
    new = f"/{name}/"
    for old, now in RENAMED_METRICS.items():
        new = new.replace(f"/{old}/", f"/{now}/")
    for key, now in RENAMED.items():
        kind, _, lexicon = key.partition(" ")
        if kind == "lexicon" and lexicon not in own_lexicons:
            new = re.sub(rf"/(epistemic|audit)/{re.escape(lexicon)}/", rf"/\1/{now}/", new)
    return f" It is called {new[1:-1]!r} now." if new[1:-1] != name else ""


def _new_name(old: str) -> str | None:
    if old in RENAMED:
        return RENAMED[old]
    for pattern, new in RENAMED.items():
        if "*" in pattern and not pattern.startswith("*.") and fnmatchcase(old, pattern):
            before, _, after = pattern.partition("*")
            return new.replace("*", old[len(before) : len(old) - len(after)])
    return None
