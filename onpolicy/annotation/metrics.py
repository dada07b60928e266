"""What a step logs about its rollouts and examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev

from onpolicy.annotation.leakage import repeated_share
from onpolicy.types import Example, Metrics, ScoredGroup


def staleness_metrics(groups: Sequence[ScoredGroup], version: int) -> Metrics:
    """Age of the sampled tokens in weight versions, and the share of rollouts that went on under new weights."""
    rollouts = [segment for scored in groups for r in scored.group.rollouts if not r.failed for segment in r.segments]
    ages = [
        version - sampled
        for r in rollouts
        for sampled in r.select_sampled(r.token_versions) or (r.policy_version,) * r.num_sampled
    ]
    return {
        "rollout/staleness/mean": sum(ages) / max(len(ages), 1),
        "rollout/staleness/max": float(max(ages, default=0)),
        "rollout/resumed": fmean(len(set(r.token_versions)) > 1 for r in rollouts),
    }


def rollout_metrics(groups: Sequence[ScoredGroup]) -> Metrics:
    """Lengths, finish reasons and pass rates of rollouts; sampled tokens alone are counted, of all turns. Without a graded rollout no
    pass rate."""
    rollouts = [r for scored in groups for r in scored.group.rollouts]
    lengths = [r.num_written for r in rollouts]
    pass_rates = [scored.pass_rate for scored in groups if any(scored.graded)]
    metrics = {
        "rollout/completion_length/mean": fmean(lengths),
        "rollout/completion_length/max": float(max(lengths)),
        "rollout/truncated": fmean(r.finish_reason == "length" for r in rollouts),
        "rollout/aborted": fmean(r.finish_reason == "abort" for r in rollouts),
        "rollout/not_graded": fmean(not is_graded for scored in groups for is_graded in scored.graded),
        "group/any_correct": fmean(any(scored.correct) for scored in groups),
        "group/mixed": fmean(scored.mixed for scored in groups),
    }
    return metrics | ({"group/pass_rate": fmean(pass_rates)} if pass_rates else {})


def environment_metrics(groups: Sequence[ScoredGroup]) -> Metrics:
    """Of rollouts that an environment took part in: how many of them failed, and of the others turns, segments, observed tokens, and what
    the environment measured. Nothing without one."""
    held = [(r, r.outcome) for scored in groups for r in scored.group.rollouts if r.outcome is not None]
    fine = [(r, outcome) for r, outcome in held if not r.failed]
    if not held:
        return {}
    metrics = {"environment/failed": 1 - len(fine) / len(held)}
    if fine:
        observed = [sum(len(s.completion_ids) for s in r.segments) - r.num_written for r, _ in fine]
        metrics |= {
            "environment/turns": fmean(outcome.turns for _, outcome in fine),
            "environment/segments": fmean(len(r.segments) for r, _ in fine),
            "environment/observed_tokens": fmean(observed),
        }
    for name in dict.fromkeys(name for _, outcome in fine for name in outcome.metrics):
        values = [outcome.metrics[name] for _, outcome in fine if name in outcome.metrics]
        metrics[f"environment/metrics/{name}"] = fmean(values)
    return metrics


def example_metrics(
    examples: Sequence[Example], dropped: Mapping[str, int], contexts: Iterable[str], spans: Iterable[str]
) -> Metrics:
    """Rewards, advantages, contexts, routes and spans of a step's examples; rewards are those of graded rollouts.

    Args:
        examples: at least one
        dropped: by context, how many of its prompts were left out as too long
        contexts: their names
        spans: the names of the spans of the config
    """
    tokens = sum(e.rollout.num_sampled for e in examples)
    rewards = [e.reward for e in examples if e.reward is not None and e.reward_breakdown]
    metrics = {"rollout/tokens": float(tokens), "credit/nonzero": fmean(e.advantage != 0.0 for e in examples)}
    if rewards:
        metrics |= {"reward/mean": fmean(rewards), "reward/std": pstdev(rewards)}
    for name in dict.fromkeys(part for e in examples for part in e.reward_breakdown):
        metrics[f"reward/{name}"] = fmean(e.reward_breakdown[name] for e in examples if name in e.reward_breakdown)
    for context in contexts:
        metrics |= {f"context/{context}/{what}": value for what, value in _context_metrics(examples, context).items()}
        metrics[f"context/{context}/dropped"] = float(dropped.get(context, 0))
    for term in examples[0].routes:
        metrics[f"route/{term}"] = fmean(e.routes[term] for e in examples)
    for name in spans:
        metrics[f"spans/{name}"] = sum(sum(e.spans[name]) for e in examples) / max(tokens, 1)
    return metrics


def _context_metrics(examples: Sequence[Example], context: str) -> Metrics:
    seen = [(e, e.teacher_prompt_ids[context]) for e in examples if context in e.teacher_prompt_ids]
    metrics = {"share": len(seen) / len(examples), "tokens": fmean(len(ids) for _, ids in seen) if seen else 0.0}
    repeated = [repeated_share(ids, e.rollout.prompt_ids, e.rollout.sampled_ids) for e, ids in seen]
    known = [share for share in repeated if share is not None]
    return metrics | ({"repeated": fmean(known)} if known else {})
