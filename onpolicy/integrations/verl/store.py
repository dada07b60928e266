"""The only file that uses verl's data plane, TransferQueue. A batch is a list of keys; its columns are fetched and put by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tensordict import NonTensorData, TensorDict
from torch import Tensor

if TYPE_CHECKING:
    from transfer_queue import KVBatchMeta


def fetch(batch: KVBatchMeta, names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows, in the batch's order: tensors of their own length, other values as they were put; absent columns are left out."""
    import transfer_queue as tq

    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(names))
    columns = {name: _column(data[name]) for name in names if name in data.keys()}  # noqa: SIM118 a TensorDict iterates over rows
    return [{name: column[i] for name, column in columns.items()} for i in range(len(batch.keys))]


def put(batch: KVBatchMeta, columns: Mapping[str, Sequence[Tensor]]) -> None:
    """Adds columns, one tensor per row; rows may differ in length."""
    import transfer_queue as tq

    fields = TensorDict({name: _joined(rows) for name, rows in columns.items()}, batch_size=len(batch.keys))
    tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


def tags(batch: KVBatchMeta) -> list[Mapping[str, Any]]:
    """verl's metadata of each row."""
    return list(batch.tags)


def synthetic(tag: Mapping[str, Any]) -> bool:
    """Whether this is a padding row, with which verl fills a batch."""
    return bool(tag.get("is_padding", False))


def _column(values: Any) -> list[Any]:
    if isinstance(values, Tensor):
        return list(values.unbind())
    return [value.data if isinstance(value, NonTensorData) else value for value in values]


def _joined(rows: Sequence[Tensor]) -> Tensor:
    """Rows are jagged even where they happen to be equally long: workers index them so."""
    if rows[0].dim() == 0:
        return torch.stack(list(rows))
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)
