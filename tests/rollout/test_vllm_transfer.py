"""The trainer's end of vLLM's weight transfer, with vLLM's own classes on a CPU (``tests/store_nccl.py`` has what stands in for a GPU).

1. through vLLM's NCCL classes an engine gets the weights, in the dtype that was said: log-probs are the new model's; again, and with a new
trainer; 2. of the tensors at most two are alive; 3. an engine that fails within a transfer is reported at once, ends what is queued
for it, and the pass is finished for the other ranks' sake; 4. with CUDA IPC there is one buffer, of the largest tensor; 5. every call
and argument is one of the installed vLLM's.
"""

from __future__ import annotations

import inspect
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from onpolicy.distributed.weight_receiver import WeightReceiver
from onpolicy.distributed.weight_sender import _free_port
from onpolicy.rollout.vllm_engine import SharedEngine
from onpolicy.rollout.vllm_generator import VLLMGenerator
from onpolicy.rollout.vllm_transfer import TensorSpec, TransferFailed, WeightSender, WeightStream, why_no_transfer
from tests.rollout.test_generators import PROMPTS, arguments, largest_gap

CPU = torch.device("cpu")
TENSORS = {"a": torch.randn(3, 5), "b": torch.arange(4.0).reshape(2, 2).T, "c": torch.randn(7)}


def specs(tensors: dict[str, torch.Tensor], dtype: str = "float32") -> list[TensorSpec]:
    return [TensorSpec(name, dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.store_nccl import STAND_INS

    for name, stand_in in STAND_INS.items():
        monkeypatch.setattr(name, stand_in)


class DirectClient:
    """Calls a generator of this process as a replica's actor would."""

    def __init__(self, generator: VLLMGenerator) -> None:
        self.generator, self.version = generator, 0
        self.receiver = WeightReceiver(lambda parts, version: generator.receive_weights(parts, version=version))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.generator.open_transfer(init_info)

    def start_weight_update(self) -> None:
        self.receiver.begin(self.version)

    def update_weights(self, update_info: Any) -> None:
        self.receiver.take(update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.receiver.end()


@pytest.mark.vllm
def test_an_engine_gets_the_weights_of_a_trainer(model_dir: Path, stand_ins: None) -> None:
    generator = VLLMGenerator(**arguments(model_dir), transfer_backend="nccl")
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model_dir).eval()
        client = DirectClient(generator)
        for trainer in range(2):
            sender = sender_of(model, client)
            for client.version in range(2 * trainer + 1, 2 * trainer + 3):
                changed(model)
                stale = generator.generate(PROMPTS, seed=client.version)
                assert largest_gap(model, stale) > 1e-3, "before it the engine has the old weights"
                sender.send()
                groups = generator.generate(PROMPTS, seed=client.version)
                assert largest_gap(model, groups) < 1e-5
                assert {r.policy_version for g in groups for r in g.rollouts} == {client.version}
            sender.close()
        changed(model)
        generator.update_weights(model.state_dict().items(), version=5)
        assert largest_gap(model, generator.generate(PROMPTS, seed=5)) < 1e-5, "and from an iterator as before"
    finally:
        generator.close()


def sender_of(model: PreTrainedModel, client: Any) -> WeightSender:
    weights = model.state_dict()
    stream = WeightStream(specs(weights), lambda: model.state_dict().items(), CPU)
    return WeightSender("nccl", client, stream, address=("127.0.0.1", _free_port("127.0.0.1")))


@torch.no_grad()
def changed(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))


def until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.001)


class Worker:
    """An engine's end: vLLM's ``NCCLWeightTransferEngine``, for a model that keeps what it is given."""

    def __init__(self) -> None:
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
        config: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
        self.calls, self.loaded = list[str](), dict[str, torch.Tensor]()
        self.fails_at = ""
        model: Any = SimpleNamespace(load_weights=self.load)
        self.engine = NCCLWeightTransferEngine(WeightTransferConfig(backend="nccl"), config, CPU, model)

    def load(self, pairs: Any) -> None:
        for name, tensor in pairs:
            if name == self.fails_at:
                raise RuntimeError(f"no room for {name}")
            self.loaded[name] = tensor

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.calls.append("init")
        self.engine.init_transfer_engine(self.engine.parse_init_info(init_info))

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, update_info: Any) -> None:
        self.calls.append("update")
        self.engine.update_weights(update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.calls.append("finish")


@pytest.mark.vllm
def test_of_the_tensors_at_most_two_are_alive_and_they_are_in_the_engines_dtype(stand_ins: None) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = [0]

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in TENSORS.items():
            made = tensor.clone()
            alive.add(made)
            most.append(len(alive))
            yield name, made
            del made

    worker = Worker()
    stream = WeightStream(specs(TENSORS, "bfloat16"), weights, CPU)
    sender = WeightSender("nccl", worker, stream, address=("127.0.0.1", _free_port("127.0.0.1")))
    sender.send()
    assert worker.calls == ["init", "start", "update", "finish"]
    assert all(torch.equal(worker.loaded[name], tensor.bfloat16()) for name, tensor in TENSORS.items())
    assert max(most) <= 2 and not alive


@pytest.mark.vllm
@pytest.mark.parametrize("where", ["loading", "receiving"])
def test_an_engine_that_fails_ends_the_pass_and_nothing_hangs(
    where: str, stand_ins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def refuse(update_info: Any) -> None:
        until(lambda: bool(made))
        raise RuntimeError("no room for b")

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in TENSORS.items():
            made.append(name)
            yield name, tensor

    worker = Worker()
    sender = WeightSender(
        "nccl", worker, WeightStream(specs(TENSORS), weights, CPU), address=("127.0.0.1", _free_port("127.0.0.1"))
    )
    if where == "loading":
        worker.fails_at = "b"
    else:  # the trainer's end waits for the engine to take the tensor
        monkeypatch.setattr(worker.engine, "receive_weights", refuse)
    with pytest.raises(TransferFailed, match="RuntimeError: no room for b"):
        sender.send()
    assert made == list(TENSORS), "the other ranks gather every tensor"
    sender.close()


@pytest.mark.vllm
def test_an_engine_that_refuses_to_join_is_known_at_once(stand_ins: None) -> None:
    """vLLM itself would wait five minutes for it."""
    worker = Worker()

    def refuse(init_info: Any) -> None:
        raise ValueError("not configured")

    worker.init_weight_transfer_engine = refuse  # type: ignore[method-assign]
    with pytest.raises(TransferFailed, match="ValueError: not configured"):
        WeightSender(
            "nccl",
            worker,
            WeightStream(specs(TENSORS), TENSORS.items, CPU),
            address=("127.0.0.1", _free_port("127.0.0.1")),
        )


@pytest.mark.vllm
def test_cuda_ipc_has_one_buffer_of_the_largest_tensor(stand_ins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own class sends; what shares a GPU's memory is recorded."""
    calls: list[Any] = []
    client = SimpleNamespace(
        init_weight_transfer_engine=lambda info: calls.append(info),
        start_weight_update=lambda: calls.append("start"),
        update_weights=lambda info: calls.append(info["names"]),
        finish_weight_update=lambda: calls.append("finish"),
    )

    def producer(*, iterator: Any, gpu_uuid: str, post_iter_func: Any, buffer_size_bytes: int) -> Iterator[Any]:
        calls.append(buffer_size_bytes)
        for item in iterator:
            flat = post_iter_func(item)
            shapes, dtypes, sizes = [list(flat.shape)], ["bfloat16"], [flat.numel() * 2]
            yield SimpleNamespace(
                names=[item[0]], shapes=shapes, dtype_names=dtypes, tensor_sizes=sizes, ipc_handle={gpu_uuid: ()}
            )

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="GPU-1"))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr("vllm.distributed.weight_transfer.ipc_engine.packed_ipc_producer", producer)
    stream = WeightStream(specs(TENSORS, "bfloat16"), TENSORS.items, CPU)
    WeightSender("ipc", client, stream, address=("", 0)).send()
    assert calls == [{"packed": True}, "start", 30, ["a"], ["b"], ["c"], "finish"]


# --- what is vLLM's --------------------------------------------------------------------------------------------------


@pytest.mark.vllm
def test_every_call_is_one_of_the_installed_vllms() -> None:
    from vllm import LLM
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.weight_transfer import base, factory, ipc_engine, nccl_engine, packed_tensor
    from vllm.v1.worker.gpu_worker import Worker as GPUWorker

    assert why_no_transfer() == ""
    bound = lambda function, *given, **named: inspect.signature(function).bind(*given, **named)  # noqa: E731
    calls_of_an_engine: dict[str, tuple[Any, ...]] = {
        "init_weight_transfer_engine": ({"init_info": {}},),
        "start_weight_update": (),
        "update_weights": ({"update_info": {}},),
        "finish_weight_update": (),
        "shutdown_weight_transfer_engine": (),
    }
    for name, given in calls_of_an_engine.items():
        bound(getattr(LLM, name), None, *given)
        assert callable(getattr(GPUWorker, name))
    assert {"init_info", "update_info"} <= {"init_info", *inspect.signature(GPUWorker.update_weights).parameters}
    assert [WeightTransferConfig(backend=name).backend for name in ("nccl", "ipc")] == ["nccl", "ipc"]
    assert {"nccl", "ipc"} <= set(factory.WeightTransferEngineFactory._registry)
    assert {"nccl", "ipc"} <= set(factory.WeightTransferTrainerFactory._registry)
    bound(factory.WeightTransferTrainerFactory.trainer_init, None, client=None, source=None)
    bound(nccl_engine.NCCLTrainerInitInfo, master_address="", master_port=1, world_size=2, packed=False, rank=0)
    bound(ipc_engine.IPCTrainerInitInfo, packed=True, packed_buffer_size_bytes=1, rank=0)
    bound(base.ParamMeta, "a", torch.float32, (1,))
    bound(packed_tensor.packed_ipc_producer, iterator=None, gpu_uuid="", post_iter_func=None, buffer_size_bytes=1)
    bound(PyNcclCommunicator.broadcast, None, torch.empty(0), src=0, stream=None)
    for engine in (nccl_engine.NCCLTrainerWeightTransferEngine, ipc_engine.IPCTrainerWeightTransferEngine):
        bound(engine.send_weights, None)
        bound(engine.shutdown, None)
    assert "self.model_update_group" in inspect.getsource(nccl_engine.NCCLTrainerWeightTransferEngine.__init__)
    calls = {name for name, value in vars(base.VLLMWeightSyncClient).items() if inspect.isfunction(value)} - {
        "__init__"
    }
    ours = {"init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"}
    assert {name for name in calls if not name.startswith("_")} == ours


# --- an engine in this process, without vLLM -------------------------------------------------------------------------


class RecordingLLM:
    def __init__(self) -> None:
        self.calls, self.llm_engine = list[Any](), None

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: self.calls.append((name, *given, *named.items()))


def test_an_engine_takes_all_parts_in_one_turn() -> None:
    llm = RecordingLLM()
    engine = SharedEngine(llm)
    engine._sleeps, engine._asleep = True, {"weights", "kv_cache"}
    receiver = WeightReceiver(lambda parts, version: engine.receive(parts, version=version))
    receiver.begin(3)
    receiver.take({"names": ["a"]})
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(engine.open_transfer, {"packed": True})
        receiver.take({"names": ["b"]})
        assert not waiting.done()
        receiver.end()
        waiting.result()
    update = "update_weights"
    assert llm.calls == [
        ("wake_up", ("tags", ["weights"])),
        ("start_weight_update",),
        (update, {"update_info": {"names": ["a"]}}),
        (update, {"update_info": {"names": ["b"]}}),
        ("finish_weight_update",),
        ("reset_prefix_cache", ("reset_running_requests", True)),
        ("wake_up", ("tags", ["kv_cache"])),
        ("shutdown_weight_transfer_engine",),
        ("init_weight_transfer_engine", {"init_info": {"packed": True}}),
    ]


def test_what_an_engine_raises_reaches_the_call_that_caused_it() -> None:
    def receive(parts: Iterator[dict[str, Any]], version: int) -> None:
        for part in parts:
            if part["names"] == ["bad"]:
                raise RuntimeError("no such tensor")

    receiver = WeightReceiver(receive)
    receiver.begin(1)
    receiver.take({"names": ["good"]})
    with pytest.raises(RuntimeError, match="no such tensor"):
        receiver.take({"names": ["bad"]})
    receiver.begin(2)
    receiver.take({"names": ["good"]})
    receiver.end()
