"""verl's trainers with contexts, group rewards, credit and telemetry, which are added to a batch between sampling and the update."""

from __future__ import annotations

import json
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import ray
import torch
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from onpolicy.config.schedules import Coefficients
from onpolicy.data.rendering import Renderer
from onpolicy.epistemic.ids import span_names
from onpolicy.integrations.verl import refusals, settings, store
from onpolicy.integrations.verl.bridge import PREFIX
from onpolicy.integrations.verl.group_order import best_order, readers_of
from onpolicy.integrations.verl.names import COEFFICIENTS, ESTIMATOR, MODE, SEPARATE_MODE, STOP_FILE
from onpolicy.integrations.verl.row_annotator import RowAnnotator
from onpolicy.integrations.verl.rows import FIELDS, columns
from onpolicy.integrations.verl.shared_prompts import teacher_passes
from onpolicy.integrations.verl.update_sizes import UpdatesOfPrompts
from onpolicy.integrations.verl.worker import TeachingActorRolloutRefWorker, TeachingDetachActorWorker
from onpolicy.models import refuse_other_vocabulary, resolve_model, student_renderer
from onpolicy.trainer.build import build_objective, teacher_rule
from onpolicy.types import Example, Metrics
from onpolicy.utils.errors import CheckpointError, ConfigError

STATE = "onpolicy.json"
"""File in a checkpoint's folder with the driver's state."""


class TeachingTrainerMixin(UpdatesOfPrompts):
    """For any of verl's trainers of generation V1."""

    mode: str
    """The mode of the trainer that this is mixed into; verl compares with its own names."""
    worker: type
    """Class that replaces its actor's worker."""
    starts_at_old_policy = True
    """Whether the old log-probabilities of every batch are those of the weights that its first update begins with."""
    annotator: RowAnnotator
    renderer: Renderer

    def __init__(self, config: Any) -> None:
        """
        Raises:
            ConfigError: the section ``onpolicy`` is wrong, or does not go with verl's keys.
        """
        self.resolved = settings.method(config)
        settings.prepare(config, self.resolved, self.mode)
        super().__init__(config)  # type: ignore[call-arg]
        self.coefficients = Coefficients(self.resolved.coefficients)
        self._last: Metrics = {}
        self._saved: int | None = None
        """Step of the checkpoint written last by this process."""
        self._seen_prompt = False

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()  # type: ignore[misc]
        model = self.config.actor_rollout_ref.model  # type: ignore[attr-defined]
        self.renderer = student_renderer(self.resolved, self.tokenizer, model.path)  # type: ignore[attr-defined]
        if (other := teacher_rule(self.resolved).path) is not None:
            refuse_other_vocabulary(self.resolved, self.tokenizer, resolve_model(other))  # type: ignore[attr-defined]
        limit = settings.longest_teacher_prompt(self.resolved)
        self._teacher_passes = teacher_passes(
            teacher_rule(self.resolved),
            tuple(self.resolved.contexts),
            needs_ref=build_objective(self.resolved).needs_ref,
            served=refusals.is_served(self.config),  # type: ignore[attr-defined]
        )
        self.annotator = RowAnnotator(self.resolved, self.renderer, max_teacher_prompt_tokens=limit)

    def _init_dataloader(self) -> None:
        super()._init_dataloader()  # type: ignore[misc]
        frame = getattr(self.train_dataset, "dataframe", None)  # type: ignore[attr-defined]
        self._columns = tuple(self.train_dataset[0] if frame is None else frame.column_names)  # type: ignore[attr-defined]
        if (key := self.config.data.image_key) in self._columns:  # type: ignore[attr-defined]
            raise ConfigError(
                f"data.image_key: the data has a column {key!r}, but teachers read text; remove it, or name another column."
            )

    def _init_resource_pool_mgr(self) -> None:
        """Our worker in the place of verl's, with a reference model where the teacher has weights of its own."""
        super()._init_resource_pool_mgr()  # type: ignore[misc]
        roles: dict[Any, Any] = self.role_worker_mapping  # type: ignore[attr-defined]
        pools: dict[Any, str] = self.mapping  # type: ignore[attr-defined]
        (role,) = [r for r in (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef) if r in roles]
        ours = role
        if refusals.needs_reference(self.config, self.resolved):  # type: ignore[attr-defined]
            if role is Role.Actor:
                raise ConfigError(
                    "onpolicy.teacher: verl's separate trainer keeps the reference model apart; expected live."
                )
            ours = Role.ActorRolloutRef
        del roles[role]
        roles[ours], pools[ours] = ray.remote(self.worker), pools.pop(role)

    def on_step_begin(self) -> None:
        super().on_step_begin()  # type: ignore[misc]
        self.coefficients.set(self.global_steps, self._last)  # type: ignore[attr-defined]

    def on_step_end(self) -> None:
        """Saves and stops here if the user asked for it."""
        stop_file = Path(self.config.trainer.default_local_dir) / STOP_FILE  # type: ignore[attr-defined]
        if stop_file.exists():
            stop_file.unlink()
            if self._saved != self.global_steps:  # type: ignore[attr-defined]
                self._save_checkpoint()
            self.total_training_steps = self.global_steps  # type: ignore[attr-defined]
        super().on_step_end()  # type: ignore[misc]

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """The batch is complete here, balanced and rewarded, and nothing has been computed on it yet.

        In a batch's only update the old policy is the one that is trained, so its log-probabilities need no pass of their own.
        """
        metrics |= self._teach(batch)
        if self._has_one_update(len(batch)):
            return batch
        return super()._compute_old_log_prob(batch, metrics=metrics)  # type: ignore[misc]

    def _has_one_update(self, rows: int) -> bool:
        """Whether a batch is trained once, with the weights that its old log-probabilities would be of, and nobody else reads those."""
        config = self.config  # type: ignore[attr-defined]
        own = config.algorithm.adv_estimator == ESTIMATOR and not config.algorithm.rollout_correction.bypass_mode
        return own and self._is_one_update(rows) and self.starts_at_old_policy

    def _teach(self, batch: Any) -> Metrics:
        """Annotates the rows, whose texts agent-loop workers have read, and stores for the trainer's workers what they need."""
        rows, tags = store.fetch(batch, [*FIELDS, *self._columns]), store.tags(batch)
        real = [i for i, tag in enumerate(tags) if not store.synthetic(tag)]
        found, metrics = self.annotator.annotate([rows[i] for i in real])
        examples: list[Example | None] = [None] * len(rows)
        for i, example in zip(real, found, strict=True):
            examples[i] = example
        if all(self.actor_rollout_wg.keeps_prompts_together()):  # type: ignore[attr-defined]
            ids = [
                str(row["uid"]) if example else i for i, (row, example) in enumerate(zip(rows, examples, strict=True))
            ]
            readers = readers_of(rows, examples, self._teacher_passes)
            order = best_order(readers, ids, self._layout(len(rows)))
            batch.reorder(order)
            rows, examples = [rows[i] for i in order], [examples[i] for i in order]
        lengths = [len(row["responses"]) for row in rows]
        store.put(
            batch,
            columns(
                examples,
                lengths,
                contexts=tuple(self.resolved.contexts),
                terms=self.resolved.term_names,
                spans=span_names(self.resolved),
            ),
        )
        self._put_scores(batch, examples, lengths)
        self._check_prompts([example for example in found if example is not None])
        return metrics | self.coefficients.metrics()

    def _put_scores(self, batch: Any, examples: list[Example | None], lengths: list[int]) -> None:
        """Stores rewards, including those that compare siblings; keeps the advantages for ``_compute_advantage``."""
        if self.annotator.rewards:
            scores = [torch.zeros(n) for n in lengths]
            for score, example in zip(scores, examples, strict=True):
                score[-1] = (example.reward if example else None) or 0.0
            store.put(batch, {"rm_scores": scores})
        self._advantages = [e.advantage if e else 0.0 for e in examples]

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        if self.config.algorithm.adv_estimator != ESTIMATOR:  # type: ignore[attr-defined]
            return super()._compute_advantage(batch, metrics=metrics)  # type: ignore[misc]
        masks = [row["response_mask"] for row in store.fetch(batch, ["response_mask"])]
        spread = [advantage * mask.float() for advantage, mask in zip(self._advantages, masks, strict=True)]
        store.put(batch, {"advantages": spread, "returns": [row.clone() for row in spread]})
        return batch

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch.extra_info[COEFFICIENTS] = self.coefficients.values()
        batch = super()._update_actor(batch, metrics=metrics)
        ours = f"actor/{PREFIX}"
        for name in [n for n in metrics if n.startswith(ours)]:
            metrics[name.removeprefix(ours)] = metrics.pop(name)
        return batch

    def _compute_metrics(self, batch: Any, metrics: dict[str, Any], *arguments: Any, **named: Any) -> None:
        super()._compute_metrics(batch, metrics, *arguments, **named)  # type: ignore[misc]
        self._last = {name: float(value) for name, value in metrics.items() if isinstance(value, Real)}
        if self._saved == self.global_steps:  # type: ignore[attr-defined]
            # verl saves before it measures; the next step's schedules read these numbers
            self._write_state(self._checkpoint)

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()  # type: ignore[misc]
        self._saved = self.global_steps  # type: ignore[attr-defined]
        self._write_state(self._checkpoint)

    @property
    def _checkpoint(self) -> Path:
        """Of this step."""
        return Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"  # type: ignore[attr-defined]

    def _write_state(self, folder: Path) -> None:
        state = {"coefficients": self.coefficients.state(), "metrics": self._last}
        (folder / STATE).write_text(json.dumps(state))

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()  # type: ignore[misc]
        step = self.global_steps  # type: ignore[attr-defined]
        if not step:
            return
        trainer = self.config.trainer  # type: ignore[attr-defined]
        folder = Path(trainer.resume_from_path) if trainer.resume_mode == "resume_path" else self._checkpoint
        path = folder / STATE
        if not path.is_file():
            if self.resolved.coefficients:
                raise CheckpointError(f"{str(folder)!r} holds no {STATE}, in which scheduled numbers are kept")
            return
        state: Mapping[str, Any] = json.loads(path.read_text())
        self.coefficients.load_state(state["coefficients"])
        self._last = dict(state["metrics"])

    def _check_prompts(self, examples: list[Example]) -> None:
        """Once: warns where teacher and student prompts of the same problem differ."""
        if self._seen_prompt or not examples:
            return
        self._seen_prompt = True
        example = examples[0]
        ours = self.renderer.prompt_ids([*example.prompt.messages, *example.rollout.history])
        theirs = example.rollout.prompt_ids
        if ours != theirs:
            same = next(
                (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
                min(len(ours), len(theirs)),
            )
            print(
                f"onpolicy: the student's prompt and ours differ from token {same} on: "
                f"{self.renderer.decode(theirs[max(0, same - 5) :][:12])!r} and {self.renderer.decode(ours[max(0, same - 5) :][:12])!r}. "
                "A teacher that is shown nothing more will not agree with the student exactly."
            )


class SyncTrainer(TeachingTrainerMixin, PPOTrainerSync):  # type: ignore[misc]
    """Trainer and rollout on the same devices, one after the other."""

    mode, worker = "sync", TeachingActorRolloutRefWorker


class ColocateAsyncTrainer(TeachingTrainerMixin, PPOTrainerColocateAsync):  # type: ignore[misc]
    """The same devices, with rollouts that go on under new weights."""

    mode, worker = "colocate_async", TeachingActorRolloutRefWorker


class SeparateAsyncTrainer(TeachingTrainerMixin, PPOTrainerSeparateAsync):  # type: ignore[misc]
    """Rollouts on devices of their own."""

    mode, worker = "separate_async", TeachingDetachActorWorker
    starts_at_old_policy = False  # they are of the last weights that rollouts got, some batches ago


TRAINERS = {
    MODE: SyncTrainer,
    f"{MODE}_colocate_async": ColocateAsyncTrainer,
    SEPARATE_MODE: SeparateAsyncTrainer,
}
"""By ``trainer.v1.trainer_mode``."""
