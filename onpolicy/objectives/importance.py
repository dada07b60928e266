"""The correction for sampling from an engine whose numbers differ from the trainer's."""

from __future__ import annotations

import torch
from torch import Tensor

from onpolicy.types import LossInputs


def truncated_importance(inputs: LossInputs, cap: float | None) -> Tensor:
    """min(pi_old / pi_rollout, cap) per token ``[B, T]``, without gradient; ones where ``cap`` is None.

    Truncated importance sampling as in TRL and verl, and SDPO's ``is_clip`` (2 by default there).
    """
    if cap is None:
        return torch.ones_like(inputs.old_logprobs)
    return (inputs.old_logprobs - inputs.rollout_logprobs).exp().clamp(max=cap).detach()
