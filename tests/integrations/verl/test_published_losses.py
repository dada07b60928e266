"""Level 2: a method's config on verl equals the published code whose name it carries, through the bridge.

tests/experiments/test_published_losses.py does the same with the embedded trainer's configs.

1. every golden case of a method that has a config in configs/verl: loss and gradient to its tolerance, and those of the embedded
trainer's config to 1e-12; 2. methods that need the whole update read first, whose config the embedded trainer has; each in micro-batches of
one row and of all rows, with rows that verl made up; 3. an error in a method turns its case red.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import verl  # noqa: F401 first, as it imports the rig and our plug-in in its own order
import yaml
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schedules import Coefficients
from onpolicy.experiments.parity.compare import compare_update, relative
from onpolicy.experiments.parity.fixtures import GOLDEN, Case, accepted_differences, golden_folder, loss_cases
from onpolicy.experiments.parity.update import (
    METRICS,
    Update,
    compute,
    config_of,
    examples_of,
    name_in_case,
    objective_of,
    scale_of,
)
from onpolicy.integrations.verl.bridge import Bridge
from onpolicy.integrations.verl.command import compose
from onpolicy.integrations.verl.rows import columns
from onpolicy.integrations.verl.settings import method
from onpolicy.trainer.build import build_objective
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.trainer.head import Head, HiddenStates
from onpolicy.types import REF, Example
from tests.integrations.verl.runs import ROOT

pytestmark = pytest.mark.verl

ACCEPTED = accepted_differences()
PAPER = ("qwen3_8b", "qwen3_1.7b", "r1_distill_7b", "olmo3_7b")
ON_VERL = {
    "sdpo": [f"sdpo_{model}" for model in PAPER],
    "sdpo_ema": ["sdpo_qwen3_8b"],
    "sdpo_no_think": ["sdpo"],
    "grpo_paper": [f"grpo_{model}" for model in PAPER],
    "opsd": ["opsd"],
    "opd": ["opd", "opd_served"],
    "minillm": ["minillm"],
    "gkd": ["gkd"],
    "eopd": ["eopd"],
    "reopold": ["reopold"],
}
"""Golden method -> configs in configs/verl that have to compute it."""
SURVEYED = ("srpo",)
"""Methods without a config there that need the whole update read before the first gradient."""
CASES = {
    case.name: case for case in loss_cases() if case.meta["kind"] == "loss" and case.meta["compare"] != ["advantages"]
}
PAIRS = [(case, config) for case in CASES.values() for config in ON_VERL.get(case.method, ())]
CUTS = {"one row": (1, 2), "all rows": (99, 2), "three rows": (3, 0)}
"""Rows that are read at once, and how many of verl's own stand before and after the case's."""
MADE_UP = None
"""In the place of an example: a row that verl made up to fill the batch."""
Row = tuple[int, Example | None]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> object:
    """The cases are small: threads cost more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def composed(name: str) -> Any:
    given = ["data.train_files=x", "data.val_files=x", "actor_rollout_ref.model.path=some/model"]
    path = ROOT / "configs" / "verl" / f"{name}.yaml"
    if 'name: model, path: "???"' in path.read_text():
        given.append("onpolicy.teacher.path=another/model")
    # verl looks for vLLM as soon as there are adapters, and there is none here
    return compose(path, [*given, "actor_rollout_ref.model.lora_rank=0"])


def on_verl(name: str, settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> ResolvedConfig:
    """A config of verl at the scale of a case."""
    config = composed(name).copy()
    spec: Any = OmegaConf.to_container(config.onpolicy)
    for override in [*scale_of(spec, settings), *overrides]:
        key, _, value = override.partition("=")
        if key.startswith("objective"):
            OmegaConf.update(config, f"onpolicy.{key}", yaml.safe_load(value), force_add=True)
    return method(config)


class Batch:
    """A case's rows as verl's worker gets them, and the models' logits there."""

    def __init__(self, case: Case, resolved: ResolvedConfig) -> None:
        self.case, self.resolved = case, resolved
        self.objective = objective_of(case, resolved)
        coefficients = Coefficients(resolved.coefficients)
        for step in range(1, case.settings.get("step", 1) + 1):
            coefficients.set(step, METRICS)
        self.examples, self.notes = examples_of(case, resolved)
        if case.settings.get("advantages") == "given":
            given = case.arrays["out_advantages"]
            self.examples = {i: replace(e, advantage=float(given[i])) for i, e in self.examples.items()}
        self.student = case.tensor("student_logits").requires_grad_()
        self.bridge = Bridge(
            self.objective, contexts=tuple(resolved.contexts), spans=(), marker_ids={}, telemetry=None,
            together=SingleProcess(),
        )  # fmt: skip

    def update(self, rows_per_micro_batch: int, made_up: int) -> Update:
        """The update as ``TeachingEngine`` drives the bridge.

        Args:
            rows_per_micro_batch: rows read at once
            made_up: rows of verl's among them, the first and the last ones
        """
        rows: list[Row] = list(self.examples.items())
        rows = [(0, MADE_UP)] * made_up + rows + [(0, MADE_UP)] * made_up
        cut = [rows[i : i + rows_per_micro_batch] for i in range(0, len(rows), rows_per_micro_batch)]
        self.bridge.begin(self.data(rows))
        if self.bridge.needs_survey:
            with torch.no_grad():
                for micro_batch in cut:
                    self.bridge.survey(self.outputs(micro_batch), self.data(micro_batch))
            self.bridge.end_survey()
        loss = sum(self.bridge.loss(self.outputs(part), self.data(part))[0] for part in cut)
        assert isinstance(loss, Tensor)
        (gradient,) = torch.autograd.grad(loss, self.student)
        advantages = torch.tensor([e.advantage for e in self.examples.values()], dtype=torch.float64)
        return Update(list(self.examples), advantages, self.notes, loss.detach(), gradient)

    def data(self, rows: Sequence[Row]) -> TensorDict:
        examples = [example for _, example in rows]
        lengths = [len(e.rollout.completion_ids) if e else 1 for e in examples]
        masks = [torch.full((n,), int(e is not None)) for e, n in zip(examples, lengths, strict=True)]
        given = {
            "responses": [torch.tensor(e.rollout.completion_ids if e else (2,), dtype=torch.long) for e in examples],
            "response_mask": masks,
            "advantages": [m.double() * (e.advantage if e else 0.0) for e, m in zip(examples, masks, strict=True)],
            "rollout_log_probs": self.numbers("rollout_logprobs", rows, lengths),
            **columns(
                examples, lengths, contexts=self.bridge.contexts, terms=self.objective.routes, spans=self.bridge.spans
            ),
        }
        if not self.case.settings["first_update"]:
            given["old_log_probs"] = self.numbers("old_logprobs", rows, lengths)
        return TensorDict(
            {name: torch.nested.as_nested_tensor(own, layout=torch.jagged) for name, own in given.items()},
            batch_size=len(rows),
        )

    def numbers(self, name: str, rows: Sequence[Row], lengths: Sequence[int]) -> list[Tensor]:
        """Rows that verl made up have numbers too, which nothing may read."""
        values = self.case.tensor(name)
        return [
            torch.full((n,), -9.0, dtype=values.dtype) if example is None else values[i, :n]
            for (i, example), n in zip(rows, lengths, strict=True)
        ]

    def outputs(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What the engine hands over, here from logits at sampled tokens, row after row; zeros where a row has no context."""
        teachers = {
            context: self.at_tokens(self.logits(context), [r for r in rows if r[1]], context)
            for context in self.resolved.contexts
        }
        if self.objective.needs_ref:
            teachers[REF] = self.at_tokens(self.case.tensor("ref_logits"), rows)
        return {"stats": self.bridge.stats(self.at_tokens(self.student, rows), teachers, self.data(rows))}

    def logits(self, context: str) -> Tensor:
        name = f"{name_in_case(self.resolved, context)}_logits"
        return self.case.tensor(name) if name in self.case.arrays else torch.zeros_like(self.student.detach())

    def at_tokens(self, logits: Tensor, rows: Sequence[Row], context: str | None = None) -> HiddenStates:
        found = [logits[:0, 0]]
        for i, example in rows:
            if example is not None:
                own = logits[i, : len(example.rollout.completion_ids)]
                found.append(own if context is None or context in example.teacher_prompt_ids else torch.zeros_like(own))
        return HiddenStates(torch.cat(found), Head())


def without_empty(case: Case, resolved: ResolvedConfig, found: Update) -> Update:
    """verl's responses have at least one token, so a mean over all sequences counts an empty one only in the case."""
    empty = int((case.arrays["lengths"] == 0).sum())
    if not empty:
        return found
    assert found.loss is not None and found.gradient is not None
    assert all(term.normalize == "all_sequences" for term in build_objective(resolved).terms)
    share = (case.rows - empty) / case.rows
    return replace(found, loss=found.loss * share, gradient=found.gradient * share)


@pytest.mark.parametrize(("case", "name"), PAIRS, ids=[f"{case.name}-{name}" for case, name in PAIRS])
def test_a_config_on_verl_equals_the_published_code(case: Case, name: str) -> None:
    resolved, embedded, accepted = on_verl(name, case.settings), compute(case), ACCEPTED.get(case.name)
    batch = Batch(case, resolved)
    for what, cut in CUTS.items():
        own = without_empty(case, resolved, batch.update(*cut))
        assert largest(own, embedded) < 1e-12, f"{what}: the embedded trainer's config has another loss"
        found = compare_update(case, own)
        assert found.verdict in (("equal", "not expressible") if accepted is None else ("differs",)), (what, found)
    if accepted is not None:
        explained = Batch(case, on_verl(name, case.settings, accepted.overrides))
        assert compare_update(case, explained.update(*CUTS["all rows"])).verdict == "equal", accepted


@pytest.mark.parametrize("name", [case.name for case in CASES.values() if case.method in SURVEYED])
def test_a_method_that_reads_the_update_first(name: str) -> None:
    case = CASES[name]
    batch, embedded = Batch(case, config_of(case.config, case.settings)), compute(case)
    for what, cut in CUTS.items():
        own = batch.update(*cut)
        assert batch.bridge.needs_survey and largest(own, embedded) < 1e-12, what
        assert compare_update(case, own).verdict in ("equal", "not expressible"), what


@pytest.mark.skipif(golden_folder() != GOLDEN, reason="another folder of cases")
def test_every_config_of_a_published_method_has_cases() -> None:
    assert {case.method for case, _ in PAIRS} == set(ON_VERL)
    without = {"grpo_distill_floor", "served_teacher"}  # this project's own
    assert {path.stem for path in (ROOT / "configs" / "verl").glob("*.yaml")} - without == {name for _, name in PAIRS}


def largest(one: Update, other: Update) -> float:
    assert one.rows == other.rows and one.notes == other.notes
    assert one.loss is not None and other.loss is not None and one.gradient is not None and other.gradient is not None
    return max(float((one.loss - other.loss).abs()), relative(one.gradient, other.gradient))


# ---- 3. config on verl -> (override, a case that has to differ)
ERRORS = {
    "sdpo": ("objective[0].normalize=sequences", "sdpo_no_think/ordinary"),
    "sdpo_qwen3_8b": ("objective[0].importance_cap=null", "sdpo/ordinary"),
    "grpo_qwen3_8b": ("objective[0].dual_clip=null", "grpo_paper/large_ratios"),
    "opsd": ("objective[0].temperature=1.0", "opsd/as_trained_micro_batch_1"),
}


@pytest.mark.skipif(golden_folder() != GOLDEN, reason="another folder of cases")
@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_noticed(name: str) -> None:
    override, case = ERRORS[name][0], CASES[ERRORS[name][1]]
    assert compare_update(case, Batch(case, on_verl(name, case.settings, [override])).update(1, 1)).verdict == "differs"
