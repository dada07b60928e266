"""Weights as bytes.

1. what is unpacked is what was packed, bit by bit: names, order, dtypes, shapes, also empty tensors, single numbers and
ones that are not contiguous; 2. no bucket is larger than the limit unless one tensor is; 3. tensors that share one buffer,
as gathered shards do, arrive as they were when they were handed over; 4. unpacking copies nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.distributed.weight_transfer import ALIGNED, pack_weights, unpack_weights
from onpolicy.models import engine_dtype
from tests.runs import write_config

TENSORS = {
    "float32": torch.randn(3, 5),
    "bfloat16": torch.randn(7, 3).bfloat16(),
    "number": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
    "turned": torch.arange(12.0).reshape(3, 4).T,
    "int64": torch.arange(5),
    "bool": torch.tensor([True, False, True]),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
}


def back(tensors: dict[str, Tensor], limit: int) -> list[tuple[str, Tensor]]:
    return [pair for bucket in pack_weights(tensors.items(), limit) for pair in unpack_weights(bucket)]


@pytest.mark.parametrize("limit", [1, 64, 100, 2**20])
def test_what_was_packed_comes_back(limit: int) -> None:
    found = back(TENSORS, limit)
    assert [name for name, _ in found] == list(TENSORS)
    for name, tensor in found:
        assert tensor.dtype == TENSORS[name].dtype and tensor.shape == TENSORS[name].shape
        assert torch.equal(tensor, TENSORS[name].detach())


@given(sizes=st.lists(st.integers(0, 300), max_size=12), limit=st.integers(1, 1000))
@settings(max_examples=60, deadline=None)
def test_buckets_keep_to_the_limit(sizes: list[int], limit: int) -> None:
    tensors = {str(i): torch.randint(0, 255, (n,), dtype=torch.uint8) for i, n in enumerate(sizes)}
    buckets = list(pack_weights(tensors.items(), limit))
    assert all(bucket.data.size <= max(limit, *sizes) for bucket in buckets)
    assert all(len(bucket.entries) == 1 for bucket in buckets if bucket.data.size > limit)
    assert all(entry.start % ALIGNED == 0 for bucket in buckets for entry in bucket.entries if entry.shape != (0,))
    found = [pair for bucket in buckets for pair in unpack_weights(bucket)]
    assert [name for name, _ in found] == list(tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found)


def test_one_buffer_for_all_tensors() -> None:
    def gathered() -> Iterator[tuple[str, Tensor]]:
        buffer = torch.empty(4)
        for i in range(3):
            yield str(i), buffer.fill_(float(i))

    found = [pair for bucket in pack_weights(gathered(), 2**10) for pair in unpack_weights(bucket)]
    assert [tensor.tolist() for _, tensor in found] == [[0.0] * 4, [1.0] * 4, [2.0] * 4]


def test_unpacking_copies_nothing_and_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    (bucket,) = pack_weights(TENSORS.items(), 2**20)
    bucket.data.flags.writeable = False  # as in the object store
    start, end = bucket.data.ctypes.data, bucket.data.ctypes.data + bucket.data.size
    assert all(start <= tensor.data_ptr() < end for _, tensor in unpack_weights(bucket) if tensor.numel())
    assert not recwarn


def test_float32_travels_in_what_engines_compute_in() -> None:
    """Rounded as an engine would round it; what has another dtype stays."""
    weights = {"a": torch.randn(1000, requires_grad=True), "b": torch.arange(5), "c": torch.randn(4).double()}
    (bucket,) = pack_weights(weights.items(), dtype="bfloat16")
    found = dict(unpack_weights(bucket))
    assert found["a"].dtype == torch.bfloat16 and torch.equal(found["a"], weights["a"].detach().bfloat16())
    assert torch.equal(found["b"], weights["b"]) and torch.equal(found["c"], weights["c"])
    assert found["a"].data_ptr() % ALIGNED == bucket.data.ctypes.data % ALIGNED
    assert bucket.entries[1].start - bucket.entries[0].start < 2 * 1000 + ALIGNED, "half the bytes"


@pytest.mark.parametrize(
    ("given", "on_gpu", "expected"),
    [
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        ("float16", False, "float16"),
        ("float32", True, "float32"),
    ],
)
def test_what_engines_compute_in(tmp_path: Path, given: str, on_gpu: bool, expected: str) -> None:
    config = write_config(tmp_path, generator={"name": "vllm", "group_size": 3, "max_tokens": 8, "dtype": given})
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(saved | {"dtype": "bfloat16"}))
    resolved = resolve(load(config))
    assert engine_dtype(resolved, str(tmp_path / "model"), on_gpu=on_gpu) == expected
    other = resolve(load(config, ["generator.name=transformers", "generator.dtype=float32"]))
    assert engine_dtype(other, str(tmp_path / "model"), on_gpu=True) == "float32"
