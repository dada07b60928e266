"""Runs our code where a model of verl's would make its logits.

FSDP2 holds a weight whole only inside of the forward and backward passes of the module that it belongs to, and averages its gradient over
the ranks in that module's hooks: the model's for a head that is tied to the embedding, the head's own for one that is not. So the head is
called as it always is, within the model's forward, and only what it does is replaced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from onpolicy.trainer.head import Head, head_of
from onpolicy.trainer.lora import adapter_of_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Use = Callable[[Tensor, Head], Any]
"""(hidden states ``[N, H]``, the model's head) -> what the model returns; FSDP finds the tensors in its dictionaries and lists."""


class OwnHead:
    """Belongs to one model, before it is sharded; as long as nothing is replaced, the model does what it always did."""

    _rows: Tensor | None = None
    _use: Use | None = None
    _inputs: Mapping[str, Any] | None = None

    def __init__(self, module: nn.Module) -> None:
        """``module``: the model, or peft's around it, whose layers have their adapters already."""
        model: PreTrainedModel = getattr(module, "get_base_model", lambda: module)()
        self.model = model
        layer = model.get_output_embeddings()
        self.adapted = adapter_of_head(model) is not None
        """Whether an adapter is added to the head's weight."""
        for owner, ours in ((model, self._run_model), (layer, self._run_head)):
            owner.forward = _replaced(owner.forward, ours, self._is_replaced)

    @contextmanager
    def replaced(self, rows: Tensor, use: Use, inputs: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Inside, the model returns what ``use`` makes of its hidden states at some positions.

        Args:
            rows: [N] numbers of positions in the batch, row after row
            use: called once a forward pass
            inputs: in the place of those that the model is called with; None: those
        """
        self._rows, self._use, self._inputs = rows, use, inputs
        try:
            yield
        finally:
            self._rows = self._use = self._inputs = None

    def _is_replaced(self) -> bool:
        return self._use is not None

    def _run_model(self, **inputs: Any) -> Any:
        hidden = self.model.base_model(**(self._inputs or inputs)).last_hidden_state.flatten(0, -2)
        return self.model.get_output_embeddings()(hidden[self._rows])

    def _run_head(self, hidden: Tensor) -> Any:
        assert self._use is not None
        return self._use(hidden, head_of(self.model))


def _replaced(own: Callable[..., Any], ours: Callable[..., Any], active: Callable[[], bool]) -> Callable[..., Any]:
    @functools.wraps(own)
    def forward(*arguments: Any, **named: Any) -> Any:
        return (ours if active() else own)(*arguments, **named)

    return forward
