"""A real engine that sleeps, on a GPU: nothing that a reload makes stays outside of the memory that sleeps.

1. asleep after five syncs the GPU has as much free memory as asleep after one; 2. awake again, with old weights and with new ones, the
engine's log-probs are the model's.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onpolicy.rollout.vllm_generator import VLLMGenerator
from tests.rollout.test_generators import PROMPTS, arguments, fresh, largest_gap

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="only an engine on a GPU sleeps"),
]


def free_asleep(generator: VLLMGenerator) -> int:
    """Bytes."""
    generator.rest()
    torch.cuda.synchronize()
    return int(torch.cuda.mem_get_info()[0])


def test_asleep_it_holds_as_much_after_five_syncs_as_after_one(model_dir: Path) -> None:
    generator = VLLMGenerator(**arguments(model_dir), dtype="float32", beside_trainer=True)
    try:
        awake = torch.cuda.mem_get_info()[0]
        assert free_asleep(generator) > awake + 2**30, "keys and values alone are larger than that"
        model, free = fresh(model_dir), []
        for version in range(1, 6):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            generator.update_weights(model.cuda().state_dict().items(), version=version)
            model.cpu()
            assert largest_gap(model, generator.generate(PROMPTS, seed=0)) < 1e-3
            free.append(free_asleep(generator))
            assert largest_gap(model, generator.generate(PROMPTS, seed=1)) < 1e-3, "woken without new weights"
            generator.rest()
        assert abs(free[4] - free[0]) <= 2**21, free
    finally:
        generator.close()
