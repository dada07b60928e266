"""Engines and rollout servers for the CPU, and the one call of torch that verl makes in a way the CPU does not bear."""

from __future__ import annotations

from typing import Any

import torch
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplicaRegistry

from onpolicy.integrations.verl.engine import TeachingEngine
from onpolicy.integrations.verl.names import VENDOR
from tests.integrations.verl.rig.engine import register


def load_replica() -> type:
    from tests.integrations.verl.rig.rollout import Replica

    return Replica


def init_process_group(backend: str, **named: Any) -> Any:
    """verl asks for ``cpu:gloo,<device>:<backend>``, which names the CPU twice here."""
    return torchs_own(backend=backend.replace("cpu:gloo,cpu:gloo", "gloo"), **named)


register(FSDPEngineWithLMHead)
register(TeachingEngine, VENDOR)
for name in ("transformers", "vllm"):  # verl knows a teacher with top-k log-probabilities only by vLLM's name
    RolloutReplicaRegistry.register(name, load_replica)
    base._ROLLOUT_REGISTRY[(name, "async")] = "tests.integrations.verl.rig.rollout.Adapter"
torchs_own = torch.distributed.init_process_group
torch.distributed.init_process_group = init_process_group  # type: ignore[assignment]
