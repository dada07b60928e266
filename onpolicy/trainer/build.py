"""From a checked plan to what learns: the objective, the teacher's rule, the trainer. Every rank of a trainer does this for itself."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from typing import Any

from onpolicy.config.resolve import ResolvedConfig, Section, contexts_of, plug_ins_in
from onpolicy.epistemic.ids import LexiconError, class_names, marker_ids, span_names
from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.losses.comparison import Comparison
from onpolicy.losses.objective import Objective, Term
from onpolicy.losses.supports import full
from onpolicy.losses.targets import identity
from onpolicy.losses.terms.base import spec_of
from onpolicy.models import ModelHandle, load_teacher, load_weights
from onpolicy.trainer.teacher_rules import WeightRule
from onpolicy.trainer.trainer import LocalTrainer
from onpolicy.utils.timer import PhaseTimer


def build_objective(resolved: ResolvedConfig) -> Objective:
    """The loss, with what each term needs compared over the vocabulary."""
    max_tokens = resolved.generator.settings.max_tokens
    return Objective(
        tuple(
            _term(name, section, max_tokens)
            for name, section in zip(resolved.term_names, resolved.objective, strict=True)
        )
    )


def _term(name: str, section: Section, max_tokens: int) -> Term:
    plugin, facts = section.plugin, spec_of(section.plugin.function)
    options, contexts = plugin.options, tuple(contexts_of(plugin))
    comparison = None
    if "divergence" in options:  # a term with this option reads LossInputs.divergences
        comparison = Comparison(
            context=options.get("context", "teacher"),
            support=options.get("support", full),
            target=options.get("target", identity),
            divergence=options["divergence"],
        )
    reads_ref = any(getattr(f, "reads_ref", False) for f in plug_ins_in(plugin.function, options))
    return Term(
        name=name,
        weight=section.settings.weight,
        normalize=section.settings.normalize,
        max_tokens=max_tokens,
        function=plugin.bind(),
        facts=dataclasses.replace(facts, needs_ref=facts.needs_ref or reads_ref),
        contexts=contexts,
        comparison=comparison,
    )


def teacher_rule(resolved: ResolvedConfig) -> WeightRule:
    """The rule, whose options, where they are scheduled, are read again at each update."""
    make = resolved.teacher.bind()
    rule: WeightRule = make()
    if rule.update is None:
        return rule
    return dataclasses.replace(rule, update=lambda *tensors_and_step: make().update(*tensors_and_step))


def local_trainer(resolved: ResolvedConfig, model: ModelHandle, clock: PhaseTimer) -> LocalTrainer:
    """The trainer in this process; one rank of it where there are several."""
    rule = teacher_rule(resolved)
    trainer: LocalTrainer = resolved.trainer.plugin.bind()(
        model=load_weights(resolved, model.path),
        objective=build_objective(resolved),
        teacher=rule,
        settings=resolved.trainer.settings,
        total_steps=resolved.config.steps,
        contexts=tuple(resolved.contexts),
        clock=clock,
        spans=span_names(resolved),
        marker_ids=lexicon_ids(resolved, model.tokenizer),
        telemetry=TokenTelemetry(resolved.config.epistemic.lexicon, class_names(resolved))
        if resolved.config.epistemic.lexicons
        else None,
        teacher_model=None if rule.path is None else load_teacher(resolved, model, rule.path),
    )
    return trainer


def lexicon_ids(resolved: ResolvedConfig, tokenizer: Any) -> dict[str, list[int]]:
    """Of every lexicon the objective reads, and of the one that telemetry follows, if its markers are tokens."""
    followed = (resolved.config.epistemic.lexicon,) if resolved.config.epistemic.lexicons else ()
    return tokens_of(tokenizer, followed) | {name: marker_ids(tokenizer, name) for name in resolved.lexicons}


def tokens_of(tokenizer: Any, lexicons: Iterable[str]) -> dict[str, list[int]]:
    """The ids of those lexicons that have a marker which is one token."""
    ids = {}
    for name in lexicons:
        with contextlib.suppress(LexiconError):
            ids[name] = marker_ids(tokenizer, name)
    return ids
