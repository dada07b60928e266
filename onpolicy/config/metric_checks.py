"""Metrics that a config names for checkpoints, guards and schedules: none has an old name, and the best checkpoint's is logged."""

from __future__ import annotations

from collections.abc import Iterator

from onpolicy.config.problems import Problems
from onpolicy.config.renamed import renamed_metric
from onpolicy.config.resolved import ResolvedConfig, unbound
from onpolicy.utils.errors import suggest

BEST = "checkpoint.best_metric"
MEASURED = ("epistemic", "audit", "calibration")
"""Beginnings of what is measured on the answers themselves, in training and in every evaluation."""
LOGGED = (
    "audit", "calibration", "checkpoint", "context", "credit", "epistemic", "group", "memory", "pipeline", "policy", "privileged",
    "reward", "rollout", "route", "schedule", "spans", "teacher", "time", "train",
)  # fmt: skip
"""Beginnings of what a step logs, besides the names of the terms."""


def metrics(resolved: ResolvedConfig, problems: Problems) -> Iterator[str]:
    """Metrics that guards, schedules and checkpoints read were not renamed; that of the best checkpoint will be logged."""
    config = resolved.config
    own = {*config.custom_lexicons, config.epistemic.lexicon}  # whose old name is a problem of its own
    named = [(f"{guard.plugin.key}.metric", guard.plugin.options.get("metric")) for guard in resolved.guards]
    named += [(f"{c.key}.metric", unbound(c.schedule)[1].get("metric")) for c in resolved.coefficients]
    best = config.checkpoint.best_metric
    for key, name in (*named, (BEST, best)):
        if name and (hint := renamed_metric(str(name), own)):
            yield f"{key}: no metric is called {name!r}.{hint}"
    if best and not renamed_metric(best, own) and problems.sound("eval", "objective"):
        yield from (f"{BEST}: {problem}" for problem in _never_logged(best, resolved))


def _never_logged(name: str, resolved: ResolvedConfig) -> Iterator[str]:
    kind, _, rest = name.partition("/")
    if kind == "eval":
        yield from _never_evaluated(name, rest, resolved)
        return
    known = sorted({*LOGGED, *resolved.term_names})
    if kind not in known:
        some = "reward/mean, train/loss" + "".join(f", eval/{s}/{_evaluated(resolved)[0]}" for s in resolved.eval_sets)
        yield f"no metric will be called {name!r}. Metrics begin with {', '.join(known)} or eval, e.g. {some}.{suggest(kind, known)}"


def _never_evaluated(name: str, rest: str, resolved: ResolvedConfig) -> Iterator[str]:
    sets, (chosen, _, what) = resolved.eval_sets, rest.partition("/")
    if not sets or not resolved.config.eval.every:
        missing = "sets under eval.sets" if not sets else "eval.every, e.g. eval.every=10"
        yield f"got {name!r}, but nothing is evaluated during training; give {missing}."
        return
    known = _evaluated(resolved)
    if chosen not in sets or (what not in known and what.partition("/")[0] not in MEASURED):
        there = [f"eval/{s}/{end}" for s in sets for end in known]
        more = f"; and eval/<set>/{{{','.join(MEASURED)}}}/..."
        yield f"no metric will be called {name!r}. There will be {', '.join(there)}{more}.{suggest(name, there)}"


def _evaluated(resolved: ResolvedConfig) -> list[str]:
    """What is logged of each evaluated set, besides what is measured on the answers themselves."""
    settings = resolved.config.eval
    average = f"avg@{settings.samples_per_problem}"
    passed = [f"pass@{k}" for k in settings.pass_at]
    names = [average, f"{average}/low", f"{average}/high", *passed, *(f"maj@{k}" for k in settings.pass_at)]
    for grader in resolved.graders[1:]:
        names += [f"{what}/{grader.name}" for what in (average, *passed, "agrees")]
    return [*names, "truncated", "completion_length", "problems"]
