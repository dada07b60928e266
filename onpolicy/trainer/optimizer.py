"""AdamW over the parameters that are trained, and its state by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as apply_adamw

from onpolicy.config.schema import TrainerSettings
from onpolicy.trainer import moments as kept
from onpolicy.trainer.moments import EIGHT_BIT, IN_PLACE, MOMENTS, ON_HOST, InPlace, Moments
from onpolicy.utils.device import synchronize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ParameterState = Mapping[str, Tensor]
"""Name of the optimizer's tensor -> the full tensor; ``onpolicy.trainer.moments`` has the names."""
OptimizerState = Mapping[str, ParameterState]
"""By name of the parameter."""


FUSED_ON = ("cuda",)
"""Devices on which AdamW runs fused. A CPU keeps the loop that its committed numbers come from; they differ in rounding."""


class PiecewiseAdamW(torch.optim.AdamW):
    """AdamW whose moments are kept elsewhere, or in another form, than an update needs them.

    A parameter is updated piece by piece by torch's own arithmetic, so a step holds the moments of ``AT_ONCE`` numbers in float32.
    """

    def __init__(self, stores: Mapping[nn.Parameter, InPlace], **options: Any) -> None:
        """
        Args:
            stores: the parameters that are trained, and what keeps the moments of each
            options: of ``torch.optim.AdamW``
        """
        self.stores = dict(stores)
        super().__init__([*stores], **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> None:
        store, state = self.stores[parameter], self._started(parameter, group)
        weights, gradient = parameter.view(-1), parameter.grad.reshape(-1)  # type: ignore[union-attr]
        for piece in kept.pieces(parameter):
            self._update_piece(weights[piece], gradient[piece], store, state, piece, group)
        state["step"] += 1

    def _started(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """The parameter's state, made before its first update."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device if group["fused"] else "cpu")
            state |= self.stores[parameter].zeros(parameter)
        return state

    def _update_piece(
        self,
        weights: Tensor,
        gradient: Tensor,
        store: InPlace,
        state: ParameterState,
        piece: slice,
        group: Mapping[str, Any],
    ) -> None:
        first, second = (store.read(state, key, piece, weights.device) for key in MOMENTS)
        apply_adamw(
            [weights],
            [gradient],
            [first],
            [second],
            [],
            [state["step"].clone()],
            foreach=False,
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for key, moment in zip(MOMENTS, (first, second), strict=True):
            store.write(state, key, piece, moment)


def adamw(
    model: PreTrainedModel, settings: TrainerSettings, device: torch.device, moments: Moments = "float32"
) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained, updated on ``device``, with its moments kept as ``moments`` says."""
    trained = [p for p in model.parameters() if p.requires_grad]
    options: dict[str, Any] = {
        "lr": settings.lr,
        "betas": (settings.betas[0], settings.betas[1]),
        "weight_decay": settings.weight_decay,
    }
    optimizer: torch.optim.AdamW
    if moments == "float32":
        optimizer = torch.optim.AdamW(trained, **options)
    elif moments == "host":
        optimizer = PiecewiseAdamW(dict.fromkeys(trained, ON_HOST), **options)
    else:
        exempt = set(embeddings_and_head(model))
        fits = {p: p not in exempt and kept.can_be_quantized(p) for p in trained}
        optimizer = PiecewiseAdamW({p: EIGHT_BIT if fits[p] else IN_PLACE for p in trained}, **options)
    if device.type in FUSED_ON:
        fuse(optimizer)
    return optimizer


def embeddings_and_head(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """Their parameters, adapters included, which keep float32 moments: the gradients of rare tokens differ too much from the others' in
    their block (arXiv 2110.02861)."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in model.modules():
        if isinstance(module, nn.Embedding) or module in ends:
            yield from module.parameters()


def fuse(optimizer: torch.optim.AdamW) -> None:
    """One pass over each tensor, without temporaries; the default on a GPU makes one as large as the model."""
    for group in (optimizer.defaults, *optimizer.param_groups):
        group["fused"], group["foreach"] = True, False


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def parameter_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimizer's own tensors of one parameter; none before its first update."""
    synchronize()  # copies to the host may be on their way
    return dict(optimizer.state[parameter]) if parameter in optimizer.state else {}


def load_parameter_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, state: ParameterState) -> None:
    """Puts back copies of what ``parameter_state`` returned, whatever kind of moments it came from; what is kept in the same form comes
    back to the last bit. The step counter goes where AdamW keeps it."""
    store = optimizer.stores[parameter] if isinstance(optimizer, PiecewiseAdamW) else IN_PLACE
    where = parameter.device if optimizer.param_groups[0].get("fused") else "cpu"
    optimizer.state[parameter] = {
        "step": state["step"].to(where, copy=True),
        **kept.restored_moments(store, parameter.detach(), state),
    }


def state_by_name(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, ParameterState]]:
    """The state of an optimizer whose tensors are whole, by name of the parameter."""
    for name, parameter in model.named_parameters():
        if state := parameter_state(optimizer, parameter):
            yield name, state


def moment_bytes(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the moments that an optimizer has, or will have after its first step; those that ZeRO shards count as the whole."""
    trained = [p for p in model.parameters() if p.requires_grad]
    stores = optimizer.stores if isinstance(optimizer, PiecewiseAdamW) else dict.fromkeys(trained, IN_PLACE)
    return sum(stores[p].num_bytes(int(getattr(p, "ds_numel", p.numel()))) for p in trained)


def load_state_by_name(model: PreTrainedModel, optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Puts back what ``state_by_name`` returned."""
    for name, parameter in model.named_parameters():
        if name in state:
            load_parameter_state(optimizer, parameter, state[name])
