"""verl's workers, with a teacher next to the student."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.device import get_device_name
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from onpolicy.config.schedules import Coefficients
from onpolicy.epistemic.ids import class_names, lexicon_ids, markers_not_read, span_names
from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.integrations.verl.bridge import Bridge
from onpolicy.integrations.verl.names import COEFFICIENTS, SECTION, VENDOR
from onpolicy.integrations.verl.settings import unpack_config
from onpolicy.integrations.verl.teachers import Teachers
from onpolicy.integrations.verl.update_sizes import cut_into_updates
from onpolicy.models import resolve_model
from onpolicy.trainer.build import build_objective, teacher_rule
from onpolicy.trainer.collectives import ProcessGroup


class TeachingWorkerMixin:
    """For any of verl's workers that trains an actor."""

    _teachers: Teachers
    _bridge: Bridge

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[untyped-decorator]
    def init_model(self) -> None:
        """Loads verl's models, then gives its engine our loss and the teachers."""
        from onpolicy.integrations.verl.engine import TeachingEngine

        os.environ["VERL_ENGINE_VENDOR"] = VENDOR  # by which verl's registry picks our engine
        resolved = unpack_config(self.config[SECTION])  # type: ignore[attr-defined]
        served = bool(getattr(self, "distillation_enabled", False))
        if (path := teacher_rule(resolved).path) is not None and not served:
            self.ref_worker_cls = partial(self._teacher_worker, resolve_model(path))
        super().init_model()  # type: ignore[misc]
        worker, reference = self.actor, self.ref  # type: ignore[attr-defined]
        if not isinstance(worker.engine, TeachingEngine):
            raise TypeError(
                f"verl made a {type(worker.engine).__name__} where onpolicy's engine was registered; run: onpolicy doctor verl"
            )
        objective, engine = build_objective(resolved), worker.engine
        for read in (worker, reference):
            if read is not None:
                read.engine.check_head()
                if (why := read.engine.share_prompts()) is not None and torch.distributed.get_rank() == 0:
                    print(f"onpolicy: each row reads its own prompt, also where rows share one: {why}.")
        ranks = ProcessGroup(torch.distributed.get_rank(), torch.distributed.get_world_size())
        epistemic, tokenizer = resolved.config.epistemic, worker.model_config.tokenizer
        known = lexicon_ids(resolved, tokenizer)
        for sentence in markers_not_read(resolved.lexicons, known, tokenizer) if ranks.rank == 0 else ():
            print(f"onpolicy: {sentence}.")
        self._coefficients = Coefficients(resolved.coefficients)
        self._teachers = Teachers(
            engine,
            reference.engine if reference is not None else None,
            teacher_rule(resolved),
            contexts=tuple(resolved.contexts),
            needs_ref=objective.needs_ref,
            together=ranks,
            served=served,
        )
        self._bridge = Bridge(
            objective,
            contexts=tuple(resolved.contexts),
            spans=span_names(resolved),
            marker_ids={
                name: torch.tensor(ids, device=get_device_name())
                for name, ids in known.items()
                if not served or name in resolved.lexicons  # of markers a served teacher's probability is not known
            },
            unknown=[f"teacher/{context}/entropy" for context in resolved.contexts if served],
            telemetry=TokenTelemetry(epistemic.lexicon, class_names(resolved)) if epistemic.lexicons else None,
            together=with_own_rollouts(engine),
            sequence_parallel=engine.ulysses_sequence_parallel_size,
        )
        engine.learn(self._bridge, self._teachers)
        worker.set_loss_fn(self._bridge.loss)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[untyped-decorator]
    def keeps_prompts_together(self) -> bool:
        """Whether rows of one prompt cost less on one rank than on several."""
        return bool(self.actor.engine.shares and self.config.actor.use_dynamic_bsz)  # type: ignore[attr-defined]

    def _teacher_worker(self, path: str, config: TrainingWorkerConfig) -> TrainingWorker:
        """verl's worker for the reference model, with another model than the actor's."""
        own = {"path": path, "hf_config_path": None, "tokenizer_path": None, "lora_rank": 0, "lora_adapter_path": None}
        given = OmegaConf.merge(self.config.model, own)  # type: ignore[attr-defined]
        return TrainingWorker(replace(config, model_config=omega_conf_to_dataclass(given)))

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))  # type: ignore[untyped-decorator]
    def update_actor(self, data: TensorDict) -> Any:
        """verl's updates, then the teacher's."""
        self._coefficients.load_values(tu.pop(data, COEFFICIENTS, default={}))
        cut_into_updates(data)
        output = super().update_actor(data)  # type: ignore[misc]
        self._teachers.update()
        return output

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[untyped-decorator]
    def save_checkpoint(self, local_path: str, *arguments: Any, **named: Any) -> None:
        super().save_checkpoint(local_path, *arguments, **named)  # type: ignore[misc]
        telemetry = self._bridge.telemetry
        self._teachers.save(Path(local_path), {"telemetry": telemetry.state() if telemetry else {}})

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[untyped-decorator]
    def load_checkpoint(self, local_path: str, *arguments: Any, **named: Any) -> None:
        state = self._teachers.load(Path(local_path))  # before verl, which may delete the folder
        super().load_checkpoint(local_path, *arguments, **named)  # type: ignore[misc]
        if self._bridge.telemetry and state.get("telemetry"):
            self._bridge.telemetry.load_state(state["telemetry"])


def with_own_rollouts(engine: Any) -> ProcessGroup:
    """One rank of each group that shares its rollouts, with this rank among them."""
    return ProcessGroup(
        engine.get_data_parallel_rank(), engine.get_data_parallel_size(), engine.get_data_parallel_group()
    )


class TeachingActorRolloutRefWorker(TeachingWorkerMixin, ActorRolloutRefWorker):  # type: ignore[misc]
    """For trainer and rollout on the same devices."""


class TeachingDetachActorWorker(TeachingWorkerMixin, DetachActorWorker):  # type: ignore[misc]
    """For a trainer whose rollouts are elsewhere."""
