"""What is measured, a function for each part; each returns plain values."""

from __future__ import annotations

import gc
import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.shapes import (
    GIB,
    WORKLOADS,
    Workload,
    device,
    model_folder,
    random_model,
    resolved_config,
    rollouts,
    trainer_of,
)
from benchmarks.gpu.trl import trl_update
from onpolicy.experiments.forecast.activations import DeviceKind
from onpolicy.experiments.forecast.hardware import GPUS
from onpolicy.experiments.forecast.passes import Load
from onpolicy.experiments.forecast.shape import shape_of
from onpolicy.experiments.forecast.trainer_memory import trainer_bytes
from onpolicy.trainer.build import build_objective
from onpolicy.trainer.chunked_head import token_stats
from onpolicy.trainer.forward import completion_states
from onpolicy.trainer.head import Head, HiddenStates
from onpolicy.trainer.prefix_sharing import enable_prefix_sharing, supports_prefix_sharing
from onpolicy.types import Example
from onpolicy.utils.device import empty_cache, synchronize

Facts = dict[str, Any]
SYNCS = 5
"""Weight syncs after which memory is compared with that after one."""
NOISE = 0.05
"""Standard deviation of what is added to weights, so that old and new ones can be told apart."""


def kernels(workload: Workload) -> Facts:
    """Packed attention with a shared prompt: the numbers of rows that run alone, in bfloat16, and through which kernel."""
    model = random_model(workload, torch.bfloat16, num_hidden_layers=min(4, workload.model["num_hidden_layers"]))
    fit = supports_prefix_sharing(model) and enable_prefix_sharing(model)
    rows = [(e.rollout.prompt_ids, e.rollout.completion_ids) for e in rollouts(workload)[: workload.group_size]]
    with torch.no_grad():
        packed = completion_states(model, rows, layout="packed").hidden.float()
        alone = torch.cat([completion_states(model, [row], layout="padded").hidden.float() for row in rows])
        names = _kernels(lambda: completion_states(model, rows, layout="packed"))
    return {
        "prefix_sharing": fit,
        "largest_difference": float((packed - alone).abs().max()),
        "size": float(alone.abs().mean()),
        "attention": [name for name in names if any(kind in name.lower() for kind in ("flash", "fmha", "softmax"))],
    }


def _kernels(work: Callable[[], object]) -> list[str]:
    if device().type == "cpu":
        work()
        return []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
    return sorted({event.key.split("<")[0] for event in profile.key_averages()})


def head(workload: Workload) -> Facts:
    """The chunked head, forward and backward, by tokens in a chunk: seconds and GiB above what was there."""
    hidden, vocabulary = workload.model["hidden_size"], workload.model["vocab_size"]
    tokens = min(8192, workload.groups * workload.group_size * workload.completion)
    comparisons = build_objective(resolved_config("lab-reasoner")).comparisons
    weight = (torch.randn(vocabulary, hidden, device=device()) / hidden**0.5).requires_grad_()
    student, teacher = (torch.randn(tokens, hidden, device=device(), requires_grad=True) for _ in range(2))
    ids = torch.randint(vocabulary, (tokens,), device=device())

    def once(chunk: int) -> None:
        with torch.autocast(device().type, torch.bfloat16):
            states = {"teacher": HiddenStates(teacher.detach(), Head(weight.detach()))}
            stats = token_stats(HiddenStates(student, Head(weight)), states, ids, comparisons, chunk=chunk)
        sum(d.sum() for d in stats.divergences.values()).backward()  # type: ignore[union-attr]
        weight.grad = student.grad = None

    found = {}
    for chunk in (256, 1024, 2048, 4096):
        with _peak() as peak:
            found[str(chunk)] = {"seconds": _seconds(lambda chunk=chunk: once(chunk))}  # type: ignore[misc]
        found[str(chunk)] |= peak
    return {"tokens": tokens, "chunks": found}


UPDATES: Mapping[str, tuple[str, ...]] = {
    "live teacher": ("teacher=live",),
    "frozen teacher": (),
    "frozen teacher, 8-bit moments": ("trainer.moments=8bit",),
    "frozen teacher, moments on the host": ("trainer.moments=host",),
    "LoRA": ("trainer.lora_rank=64",),
}
"""What is trained with which overrides."""


def update(workload: Workload) -> Facts:
    """Whole updates by the trainer, scored and learned: seconds, tokens a second, share of the peak, GiB, and what the forecast says."""
    found: Facts = {}
    examples = rollouts(workload)
    for name, overrides in UPDATES.items():
        try:
            found[name] = _update(workload, examples, overrides)
        except torch.OutOfMemoryError as error:
            found[name] = {"out_of_memory": str(error).splitlines()[0]}
        gc.collect()  # a trainer holds itself
        empty_cache()
    return found


def _update(workload: Workload, examples: list[Example], overrides: tuple[str, ...]) -> Facts:
    with tempfile.TemporaryDirectory() as folder:
        path = model_folder(workload, Path(folder))
        trainer, shape = trainer_of(workload, path, *overrides), shape_of(path)
        kind: DeviceKind = "cuda" if device().type == "cuda" else "cpu"
        load = Load(workload.prompt, workload.completion, workload.prompt + workload.completion, device=kind)
        resolved = resolved_config(
            path, *overrides, f"data.prompts_per_step={workload.groups}", f"generator.group_size={workload.group_size}"
        )
        foreseen = sum(trainer_bytes(resolved, shape, load).values()) / GIB
        trainer.step(examples)  # moments are made here
        with _peak() as peak:
            synchronize()
            start = time.perf_counter()
            metrics = trainer.step(examples)
            synchronize()
            seconds = time.perf_counter() - start
    sampled = sum(len(e.rollout.completion_ids) for e in examples)
    read = [len(e.rollout.prompt_ids) + len(e.rollout.completion_ids) for e in examples]
    taught = [len(ids) + len(e.rollout.completion_ids) for e in examples for ids in e.teacher_prompt_ids.values()]
    passes = 4 if trainer.forward_report.settings.gradient_checkpointing else 3
    operations = passes * sum(shape.flops(n, n) for n in read) + sum(shape.flops(n, n) for n in taught)
    return {
        "computes_in": sorted({*trainer.engine.computed.values()}),
        "seconds": seconds,
        "sampled_tokens_per_second": sampled / seconds,
        "share_of_peak": operations / seconds / gpu.flops if (gpu := this_gpu()) else None,
        "loss": metrics["train/loss"],
        "forecast_gib": foreseen,
        **peak,
    }


def this_gpu() -> Any:
    """The data sheet of the GPU of this machine; None without one, or for one that is not known."""
    if device().type == "cpu":
        return None
    name = torch.cuda.get_device_name().lower().replace(" ", "")
    return next((gpu for known, gpu in GPUS.items() if known in name), None)


def engine(workload: Workload) -> Facts:
    """vLLM beside a trainer, over several weight syncs: seconds, log-prob gap after each, memory asleep, and tokens a second."""
    if importlib.util.find_spec("vllm") is None:
        return {"not_run": "vllm is not installed"}
    from onpolicy.models import open_model
    from onpolicy.rollout.build import local_generator, prompt_cursor
    from onpolicy.run.loading import training_prompts

    tokens = min(workload.completion, 512)
    with tempfile.TemporaryDirectory() as folder:
        path = model_folder(workload, Path(folder))
        dummy = "generator.engine_args={load_format: dummy}"
        overrides = [
            "generator.name=vllm",
            f"generator.max_tokens={tokens}",
            f"generator.group_size={workload.group_size}",
            dummy,
        ]
        trainer = trainer_of(workload, path, *overrides)
        resolved = resolved_config(path, *overrides, f"data.prompts_per_step={workload.groups}")
        model = open_model(resolved)
        prompts = prompt_cursor(resolved, training_prompts(resolved, model.renderer)).next()
        generator = local_generator(resolved, model, beside_trainer=True)
        try:
            seconds, asleep, gaps = [], [], []
            for version in range(1, SYNCS + 1):
                for parameter in trainer.student.parameters():
                    with torch.no_grad():
                        parameter.add_(torch.randn_like(parameter) * NOISE)
                start = time.perf_counter()
                generator.update_weights(trainer.weights(), version=version)
                synchronize()
                seconds.append(time.perf_counter() - start)
                start = time.perf_counter()
                groups = generator.generate(prompts, seed=version)
                sampling = time.perf_counter() - start
                generator.rest()
                asleep.append(_free())
                gaps.append(_gap(trainer, [r for group in groups for r in group.rollouts]))
            sampled = sum(r.num_sampled for group in groups for r in group.rollouts)
        finally:
            generator.close()
    return {
        "sync_seconds": seconds, "logprob_gap_after_each_sync": gaps, "free_gib_asleep_after_each_sync": asleep,
        "sampled_tokens_per_second": sampled / sampling,
    }  # fmt: skip


def _gap(trainer: Any, sampled: list[Any]) -> float:
    from onpolicy.types import Prompt

    examples = [
        Example(
            rollout=rollout, prompt=Prompt(id="", messages=()), group_id=0, reward=None, reward_breakdown={}, advantage=0.0,
            teacher_prompt_ids={},
        )
        for rollout in sampled
    ]  # fmt: skip
    theirs = torch.tensor([p for e in examples for p in e.rollout.rollout_logprobs])
    own = torch.cat([row.cpu() for row in trainer.logprobs(examples)])
    return float((own - theirs).abs().mean())


def deepspeed(workload: Workload) -> Facts:
    """What passes through DeepSpeed compute in where precision is bfloat16, ZeRO-3 on one rank."""
    if importlib.util.find_spec("deepspeed") is None:
        return {"not_run": "deepspeed is not installed"}
    options = "trainer={name: deepspeed, config: deepspeed/zero3, precision: bfloat16, updates_per_step: 1}"
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(WORKLOADS["tiny"], model_folder(WORKLOADS["tiny"], Path(folder)), options)
        trainer.step(rollouts(WORKLOADS["tiny"]))
    return {"computes_in": sorted({*trainer.engine.computed.values()})}


PARTS: Mapping[str, Callable[[Workload], Facts]] = {
    "kernels": kernels, "head": head, "update": update, "trl": trl_update, "deepspeed": deepspeed, "engine": engine,
}  # fmt: skip
"""What needs torch alone comes first."""


class _peak:
    """Inside, collects ``peak_gib`` of a GPU, and ``before_gib``; nothing without one."""

    def __enter__(self) -> Facts:
        self._found: Facts = {}
        if device().type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._found["before_gib"] = torch.cuda.memory_allocated() / GIB
        return self._found

    def __exit__(self, *_: object) -> None:
        if device().type == "cuda":
            self._found["peak_gib"] = torch.cuda.max_memory_allocated() / GIB


def _free() -> float | None:
    return torch.cuda.mem_get_info()[0] / GIB if device().type == "cuda" else None


def _seconds(work: Callable[[], None], times: int = 3) -> float:
    work()
    synchronize()
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronize()
    return (time.perf_counter() - start) / times
