"""From a resolved config to the objective, the teacher's rule and the trainer. Every rank of a trainer builds its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from onpolicy.config.resolved import ResolvedConfig, Section, contexts_of, plug_ins_in, term_plugins
from onpolicy.epistemic.ids import class_names, lexicon_ids, span_names
from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.losses.comparison import Comparison
from onpolicy.losses.objective import Objective, Term
from onpolicy.losses.supports import full
from onpolicy.losses.targets import identity
from onpolicy.losses.terms.base import spec_of
from onpolicy.models import ModelHandle, load_teacher, load_weights
from onpolicy.trainer.export import ModelExport, student_export
from onpolicy.trainer.loaded_once import loaded_once
from onpolicy.trainer.teacher_rules import WeightRule
from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.timer import PhaseTimer


def build_objective(resolved: ResolvedConfig) -> Objective:
    """The loss, and for each term the comparison over the vocabulary that it reads."""
    max_tokens = resolved.generator.settings.max_tokens
    return Objective(
        tuple(
            _term(name, section, max_tokens)
            for name, section in zip(resolved.term_names, resolved.objective, strict=True)
        )
    )


def _term(name: str, section: Section, max_tokens: int) -> Term:
    plugin, spec = section.plugin, spec_of(section.plugin.function)
    options, plugins = plugin.options, term_plugins(section)
    contexts = tuple(dict.fromkeys(context for p in plugins for context in contexts_of(p)))
    comparison = None
    if "divergence" in options:  # a term with this option reads LossInputs.divergences
        comparison = Comparison(
            context=options.get("context", "teacher"),
            support=options.get("support", full),
            target=options.get("target", identity),
            divergence=options["divergence"],
            temperature=options.get("temperature", 1.0),
        )
    functions = [function for p in plugins for function in plug_ins_in(p.function, p.options)]
    reads_ref = any(getattr(f, "reads_ref", False) for f in functions)
    unrewarded = any(getattr(f, "needs_no_reward", False) for f in functions)
    return Term(
        name=name,
        weight=section.settings.weight,
        normalize=section.settings.normalize,
        max_tokens=max_tokens,
        function=plugin.bind(),
        spec=dataclasses.replace(spec, needs_ref=spec.needs_ref or reads_ref, unrewarded=spec.unrewarded or unrewarded),
        contexts=contexts,
        comparison=comparison,
        temperature=options.get("temperature", 1.0),
        select=None if section.settings.select is None else section.settings.select.bind(),
        reads_update=any(getattr(f, "reads_update", False) for f in functions),
    )


def teacher_rule(resolved: ResolvedConfig) -> WeightRule:
    """The teacher's rule; scheduled options are read again at each update."""
    make = resolved.teacher.bind()
    rule: WeightRule = make()
    if rule.update is None:
        return rule
    return dataclasses.replace(rule, update=lambda *tensors_and_step: make().update(*tensors_and_step))


def _refuse_quantized(path: str, export: ModelExport) -> None:
    """Raises ConfigError: adapters over a quantized base (QLoRA) would be trained on other numbers than vLLM samples with. Its kernels
    read 4-bit weights in their own way, and merged adapters are not those of the quantized matrix."""
    settings = getattr(export.skeleton.config, "quantization_config", None)
    if settings is not None:
        method = (
            settings.get("quant_method") if isinstance(settings, Mapping) else getattr(settings, "quant_method", None)
        )
        raise ConfigError(
            f"model.path: {path!r} has weights quantized with {method or 'an unnamed method'}, which cannot be trained here, nor can "
            "adapters over them (QLoRA); expected the model that it was made from, whose weights trainer.lora_rank leaves as they are"
        )


def local_trainer(resolved: ResolvedConfig, model: ModelHandle, clock: PhaseTimer) -> PolicyTrainer:
    """The trainer in this process, which is one rank if there are several.

    Raises:
        ConfigError: the student's weights are quantized.
    """
    rule, epistemic = teacher_rule(resolved), resolved.config.epistemic
    path, export = rule.path, student_export(resolved, model)
    _refuse_quantized(resolved.config.model.path, export)
    setup = TrainerSetup(
        student=loaded_once(lambda: load_weights(resolved, model.path)),
        objective=build_objective(resolved),
        rule=rule,
        settings=resolved.trainer.settings,
        total_steps=resolved.config.steps,
        contexts=tuple(resolved.contexts),
        clock=clock,
        spans=span_names(resolved),
        marker_ids=lexicon_ids(resolved, model.tokenizer),
        telemetry=TokenTelemetry(epistemic.lexicon, class_names(resolved)) if epistemic.lexicons else None,
        teacher_model=None if path is None else loaded_once(lambda: load_teacher(resolved, model, path)),
        seed=resolved.config.seed,
        export=export,
    )
    trainer: PolicyTrainer = resolved.trainer.plugin.bind()(setup=setup)
    return trainer
