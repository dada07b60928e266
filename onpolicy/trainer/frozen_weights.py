"""Weights that never change, in bfloat16 where nothing that the model says depends on it.

Under autocast a linear layer rounds its matrix at every use. One that holds bfloat16 numbers, as those of a checkpoint in bfloat16 do, is
the same numbers in either dtype, at half the bytes. So is an embedding, as long as what it returns is raised to float32: its dtype is that
of the residual stream. Other parameters (norms, experts, those of a layer that does something else with them) stay float32, because
autocast does not round them, or not everywhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from onpolicy.trainer.forward import Layout, completion_hidden
from onpolicy.trainer.micro_batches import Row
from onpolicy.trainer.zero3 import sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRIED_ON: tuple[Row, ...] = (((1, 2, 3), (4, 5, 6)), ((1, 2, 3), (6, 4)), ((2,), (3, 5, 4, 6)))
"""Rows on which a model has to compute the same in both dtypes."""
PLAIN = (nn.Linear, nn.Embedding)
"""Layers whose own parameters may be rounded; a class derived from one may do something else with them."""


def roundable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of linear layers and embeddings that no other kind of layer shares, each once."""
    owners: dict[nn.Parameter, set[type[nn.Module]]] = defaultdict(set)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[parameter].add(type(module))
    return [parameter for parameter, kinds in owners.items() if kinds <= {*PLAIN}]


@torch.no_grad()
def keep_in_bfloat16(model: PreTrainedModel, body: Callable[..., Any], *, layout: Layout) -> bool:
    """Puts the ``roundable`` parameters of a model that never changes in bfloat16, if that changes no bit of what it computes.

    Tried on a few tokens of the actual model, because a model may read the dtype of its weights.

    Args:
        model: where it runs, in float32
        body: runs it without its head, under autocast to bfloat16
        layout: how its rows run together

    Returns:
        whether they are in bfloat16. If not, the model is as it was: its weights hold more than bfloat16 does, or are sharded, or the
        results differ
    """
    parameters = roundable(model)
    if not parameters or any(map(sharded, model.parameters())) or not all(map(_holds_bfloat16, parameters)):
        return False
    expected = completion_hidden(model, TRIED_ON, layout=layout, body=body)
    hooks = [m.register_forward_hook(_raised) for m in model.modules() if type(m) is nn.Embedding]
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.bfloat16)
    try:
        same = torch.equal(completion_hidden(model, TRIED_ON, layout=layout, body=body), expected)
    except (RuntimeError, TypeError, ValueError):  # a layer that takes no mixture of dtypes may fail anywhere
        same = False
    if not same:
        for hook in hooks:
            hook.remove()
        for parameter in parameters:
            parameter.data = parameter.data.float()
    return same


def _holds_bfloat16(parameter: Tensor) -> bool:
    """Whether each of its numbers is one of bfloat16."""
    return torch.equal(parameter, parameter.to(torch.bfloat16).to(parameter.dtype))


def _raised(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()
