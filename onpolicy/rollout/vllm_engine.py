"""One vLLM engine for many threads: all their requests are in one batch, and whoever has the turn makes the next step."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onpolicy.rollout.fair_lock import FairLock
from onpolicy.rollout.vllm_lora import LoadedAdapters
from onpolicy.utils.device import empty_cache, synchronize

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput

    from onpolicy.protocols import Weights


PARTS = ("weights", "kv_cache")
"""What of an engine's memory sleeps, under vLLM's names, in the order in which it wakes: new weights are loaded between the two, so that
what loading needs is free again when keys and values take their memory."""


@dataclass(frozen=True)
class Policy:
    """What requests are sampled with: the engine's weights, or an adapter that is added to them."""

    version: int = 0
    adapter: LoRARequest | None = None


@dataclass
class Request:
    """A request to the engine and what it has sampled so far."""

    policy: Policy
    """What samples its next token."""
    output: RequestOutput | None = None
    """The engine's latest output."""
    versions: list[int] = field(default_factory=list)
    """By token, the version of the weights that sampled it."""

    @property
    def done(self) -> bool:
        return self.output is not None and self.output.finished


class SharedEngine:
    """Requests outlive new weights: they keep their tokens, are read again by the new weights and go on. Those that are sampled with an
    adapter end with it, and new ones get the newest.

    It never samples asleep: whoever asks wakes it, within the turn in which the requests are added, and it falls asleep only in a turn in
    which no request is left.
    """

    def __init__(self, llm: Any, *, sleeps: bool = False, adapters: LoadedAdapters | None = None) -> None:
        """
        Args:
            llm: the engine, a ``vllm.LLM``
            sleeps: it was made with vLLM's sleep mode
            adapters: it was made for adapters, which these are
        """
        self._llm, self._sleeps, self._adapters = llm, sleeps, adapters
        self._policy = Policy()
        self._asleep: set[str] = set()
        """The parts that sleep; one alone after loading weights has failed in between."""
        self._turns, self._numbers = FairLock(), itertools.count()
        self._running: dict[str, Request] = {}
        """Requests of all threads, by name; a thread takes its own away outside of its turn, so others go through a copy."""

    def run(
        self,
        asked: Sequence[tuple[Sequence[int], SamplingParams]],
        on_progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
        on_finished: Callable[[int, Request], None] = lambda number, request: None,
    ) -> list[Request]:
        """Finished requests, in the order given; ``on_finished`` is told of each, with its place, as soon as it is finished."""
        requests: dict[str, Request] = {}
        try:
            with self._turn() as engine:
                self._wake(*PARTS)
                for ids, params in asked:
                    name = str(next(self._numbers))
                    prompt, policy = {"prompt_token_ids": list(ids)}, self._policy
                    engine.add_request(name, prompt, params, lora_request=policy.adapter)
                    requests[name] = self._running[name] = Request(policy)
            self._finish(list(requests.values()), on_progress, on_finished)
        except BaseException:
            self._abandon(requests)
            raise
        finally:
            for name in requests:
                del self._running[name]
        return list(requests.values())

    def update(self, weights: Iterable[tuple[str, Tensor]] | Weights, *, version: int) -> None:
        """Between two steps: the adapters alone, if it was made for them and they are a trainer's, or else all weights."""
        adapter = getattr(weights, "adapter", None)
        if self._adapters is not None and adapter is not None:
            self._add_adapter(self._adapters, adapter(), version)
        else:
            self._reload(iter(weights), version)

    def _add_adapter(self, adapters: LoadedAdapters, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Requests that are under way go on with the adapter that they began with. One that no request uses any more is dropped.

        An engine that sleeps is awake afterwards: an adapter lies in vLLM's pool of weights.
        """
        held = {name: tensor.cpu() for name, tensor in tensors}
        with self._turn() as engine:
            self._wake("weights")
            self._drop_adapters(engine, adapters)
            while adapters.full:
                self._step(engine)
                self._drop_adapters(engine, adapters)
            self._policy = Policy(version, adapters.load(engine, held))
            self._drop_adapters(engine, adapters)
            self._wake("kv_cache")

    def _drop_adapters(self, engine: Any, adapters: LoadedAdapters) -> None:
        running = (request.policy.adapter for request in list(self._running.values()) if not request.done)
        adapters.drop_all_but(engine, [self._policy.adapter, *running])

    def _reload(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Every key and value that the old weights made is dropped, those of running requests too.

        Tensors are made one at a time, while vLLM copies them: with adapters merged in, all of them are a model of their own. If one cannot
        be made the engine has some of the new weights, so it wants all of them again before it samples.

        An engine that sleeps is awake afterwards. vLLM copies each layer into the memory that it had when the engine was made; the layer
        as it was read lies outside of that memory, in torch's, and is free when the next part wakes.
        """
        with self._turn():
            self._wake("weights")
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": _one_at_a_time(weights)})
            self._now_at(version)

    def open_transfer(self, init_info: dict[str, Any]) -> None:
        """Joins a trainer for vLLM's weight transfer, and leaves the one before."""
        with self._turn():
            self._llm.shutdown_weight_transfer_engine()
            self._llm.init_weight_transfer_engine({"init_info": init_info})

    def receive(self, updates: Iterable[Mapping[str, Any]], *, version: int) -> None:
        """As ``_reload``, with what vLLM fetches from the trainer itself; nothing is sampled from the first part to the last.

        Args:
            updates: what the trainer says of each part as it sends it
            version: of the weights
        """
        with self._turn():
            self._wake("weights")
            synchronize()
            self._llm.start_weight_update()
            for update in updates:
                self._llm.update_weights({"update_info": update})
            self._llm.finish_weight_update()
            synchronize()
            self._now_at(version)

    def _now_at(self, version: int) -> None:
        """All weights are new: nothing that the old ones made is used again."""
        self._llm.reset_prefix_cache(reset_running_requests=True)
        self._wake("kv_cache")
        self._policy = Policy(version)
        for request in list(self._running.values()):
            request.policy = self._policy

    def rest(self) -> None:
        """Sleeps, where it can: weights go to the host's memory, keys and values are dropped. Not while another thread samples."""
        if not self._sleeps:
            return
        with self._turn():
            if self._asleep != set(PARTS) and all(request.done for request in list(self._running.values())):
                self._llm.sleep(level=1)
                self._asleep.update(PARTS)

    def close(self) -> None:
        """Frees the engine and its memory; whoever is sampling gets an error."""
        self._turns.close()
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()

    def _wake(self, *parts: str) -> None:
        """To be called within a turn."""
        for part in parts:
            if part in self._asleep:
                empty_cache()  # memory that the trainer does not use any more is torch's until then
                self._llm.wake_up(tags=[part])
                self._asleep.remove(part)

    def _finish(
        self,
        requests: Sequence[Request],
        on_progress: Callable[[int, int, int], None],
        on_finished: Callable[[int, Request], None],
    ) -> None:
        running = dict(enumerate(requests))
        while running:
            with self._turn() as engine:
                # another thread's step may have been the last that was needed
                if not all(r.done for r in running.values()):
                    self._step(engine)
            for number in [number for number, r in running.items() if r.done]:
                on_finished(number, running.pop(number))
            on_progress(len(requests) - len(running), len(requests), sum(len(r.versions) for r in requests))

    def _step(self, engine: Any) -> None:
        for output in engine.step():
            request = self._running.get(output.request_id.partition("-")[0])
            if request is not None:
                request.output = output
                request.versions += [request.policy.version] * (
                    len(output.outputs[0].token_ids) - len(request.versions)
                )

    def _abandon(self, requests: dict[str, Request]) -> None:
        if not self._turns.closed:
            with self._turn() as engine:
                engine.abort_request([name for name, request in requests.items() if not request.done])

    @contextmanager
    def _turn(self) -> Iterator[Any]:
        with self._turns.hold(), undisturbed_threads():
            yield self._llm.llm_engine


@contextmanager
def undisturbed_threads() -> Iterator[None]:
    """vLLM binds threads to cores and may lower torch's thread count; the trainer in this process gets its own back."""
    threads = torch.get_num_threads()
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        yield
    finally:
        if affinity is not None and os.sched_getaffinity(0) != affinity:
            os.sched_setaffinity(0, affinity)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _one_at_a_time(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Waits for the device before vLLM copies a tensor, and once it has copied it.

    vLLM has a CUDA stream for each thread, so nothing but waiting orders a copy after what made the tensor and after the last step, before
    the next step, which another thread may make, and before the tensor's memory is given to another one.
    """
    for item in weights:
        synchronize()
        yield item
    synchronize()
