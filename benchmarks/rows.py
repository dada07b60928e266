"""The rows of the table: what is measured against what. Each writes its numbers to docs/results/benchmarks/<row>.json."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import host, telemetry, verl_driver
from benchmarks.workers import SHAPES, Measured, alternate, model_folder, ratios
from onpolicy.annotation.contexts.template import SOLUTION

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
GROUP, CONTEXT, COMPLETION = 8, 64, 256


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    what: str
    ratio: tuple[float, float, float]
    """Median, least, most."""
    bar: str
    met: bool | None
    """None: nothing was asked."""
    detail: str = ""


Row = Callable[[Path, int], tuple[list[Line], dict[str, Any]]]
"""(folder for models, repeats) -> lines of the table, and the numbers behind them."""


def spec(folder: Path, model: str, what: str, *, prompts: int, context: int = CONTEXT, tokens: int = COMPLETION, group: int = GROUP,
         ) -> dict[str, Any]:  # fmt: skip
    """A step's work: ``prompts`` problems x ``group`` rollouts x ``tokens``, under a solution of ``context`` tokens."""
    draw = random.Random(0)
    sums = "What is the sum of these numbers? "
    problems = [
        {"question": sums + " ".join(draw.choices(WORDS, k=20)), "solution": " ".join(draw.choices(WORDS, k=context))}
        for _ in range(4 * prompts)
    ]
    columns = {
        "trainer": "sdpo", "what": what, "model": model_folder(model, folder / model), "problems": problems, "group": group,
        "prompts_per_step": prompts, "max_tokens": tokens, "micro_batch": GROUP, "threads": 2, "lr": 1e-5, "teacher_template": SOLUTION,
    }  # fmt: skip
    if what == "update":
        columns["completions"] = [
            [[draw.randrange(100, 40_000) for _ in range(tokens)] for _ in range(group)] for _ in problems
        ]
    return columns


OURS, TRL, BARE = "step_worker.py", "peers/trl_worker.py", "bare_worker.py"
OUR_LOSS, PEER_LOSS = "loss_worker.py", "peers/loss_worker.py"


def step(folder: Path, repeats: int) -> tuple[list[Line], dict[str, Any]]:
    """Whole step, sampling included, against TRL's SDPOTrainer and SDFTTrainer."""
    lines, numbers = [], {}
    for model, prompts, tokens in (("10m", 4, 256), ("smollm2-135m", 1, 256)):
        work = spec(folder, model, "step", prompts=prompts, tokens=tokens)
        found = alternate(
            {"onpolicy": (OURS, work), "sdpo": (TRL, work), "sdft": (TRL, work | {"trainer": "sdft"})}, repeats=repeats
        )
        name = f"{model}, {prompts * GROUP} rollouts x {tokens}"
        numbers[name] = dump(found)
        for peer, bar in (("sdpo", 1.5), ("sdft", None)):
            lines.append(faster(f"whole step, {name}, TRL {peer.upper()}", found[peer], found["onpolicy"], bar))
    return lines, numbers


def update(folder: Path, repeats: int) -> tuple[list[Line], dict[str, Any]]:
    """Scoring and update alone, on the same completions."""
    lines, numbers = [], {}
    sizes = [("10m", 64, 256), ("10m", 1024, 256), ("10m", 1024, 64)]
    sizes += [("smollm2-135m", 64, 256), ("smollm2-135m", 1024, 256), ("smollm2-135m", 1024, 64)]
    for model, context, tokens in sizes:
        work = spec(folder, model, "update", prompts=2 if model == "10m" else 1, context=context, tokens=tokens)
        found = alternate({"onpolicy": (OURS, work), "sdpo": (TRL, work)}, repeats=repeats)
        name = f"{model}, context {context} x {GROUP}, completion {tokens}"
        numbers[name] = dump(found)
        lines.append(
            faster(f"scoring + update, {name}", found["sdpo"], found["onpolicy"], 2.5 if context > 64 else 1.2)
        )
        lines.append(smaller(f"its memory, {name}", found["onpolicy"], found["sdpo"], 0.5))
    return lines, numbers


def loss(folder: Path, repeats: int) -> tuple[list[Line], dict[str, Any]]:
    """The loss alone at a vocabulary of 152k, from hidden states of 1,024 and the gradient of states and head."""
    work = {"hidden": 1024, "vocabulary": 151_936, "threads": 2, "tokens": 1024}
    lines: list[Line] = []
    numbers: dict[str, Any] = {}
    for support in ("full", "top20"):
        rivals: dict[str, dict[str, Any]] = {"plain": {}, "trl_chunked": {}} | (
            {"liger": {"compiled": True}} if support == "full" else {}
        )
        found = alternate(
            {"onpolicy": (OUR_LOSS, work | {"support": support})}
            | {name: (PEER_LOSS, work | {"support": support, "loss": name} | more) for name, more in rivals.items()},
            repeats=repeats,
        )
        numbers[f"{support}, 1024 tokens"] = dump(found)
        for peer in rivals:
            ratio = ratios(found["onpolicy"].seconds, found[peer].seconds)
            met = ratio[0] <= 1.2 if peer == "plain" else None
            bar = "<= 1.2" if peer == "plain" else ""
            lines.append(
                Line(
                    f"time of the loss / {peer}, {support}, 1k tokens",
                    ratio,
                    bar,
                    met,
                    seconds(found["onpolicy"], found[peer]),
                )
            )
        if support == "full":
            whole = alternate({"onpolicy": (OUR_LOSS, work | {"tokens": 4096})}, repeats=1, warmup=0)
            numbers["full, 4096 tokens"] = dump(whole)
            needed = 4 * found["plain"].memory_mib  # 31 GB do not fit; what the formula holds grows with the tokens
            share = whole["onpolicy"].memory_mib / needed
            detail = f"{whole['onpolicy'].memory_mib:,.0f} of {needed:,.0f} MiB; plain measured at 1k tokens, times 4"
            lines.append(
                Line("memory of the loss / plain, full, 4k tokens", (share,) * 3, "<= 0.1", share <= 0.1, detail)
            )
    return lines, numbers


def limit(folder: Path, repeats: int) -> tuple[list[Line], dict[str, Any]]:
    """Step time over a bare vLLM generate, a bare teacher forward and a bare student forward and backward on the same tokens."""
    lines, numbers = [], {}
    for model, prompts in (("10m", 4), ("smollm2-135m", 1)):
        work = spec(folder, model, "step", prompts=prompts)
        found = alternate({"onpolicy": (OURS, work), "bare": (BARE, work)}, repeats=repeats)
        numbers[model] = dump(found)
        ratio = ratios(found["onpolicy"].seconds, found["bare"].seconds)
        ours, bare = ({n: one.phase(n) for n in one.phases[0]} for one in (found["onpolicy"], found["bare"]))
        detail = f"ours {phases(ours)}; bare {phases(bare)}"
        lines.append(
            Line(
                f"step / its limit, {model}, {prompts * GROUP} x {COMPLETION}", ratio, "<= 1.1", ratio[0] <= 1.1, detail
            )
        )
    return lines, numbers


def growth(folder: Path, repeats: int) -> tuple[list[Line], dict[str, Any]]:
    """Time and memory of scoring and update as the work grows; exponents fitted over the points, on a log scale."""
    sizes: dict[str, Iterable[tuple[float, dict[str, Any]]]] = {
        "completion length": [(t, {"tokens": t}) for t in (128, 256, 512, 1024)],
        "context length": [(c, {"context": c}) for c in (256, 512, 1024, 2048)],
        "group size": [(g, {"group": g}) for g in (2, 4, 8, 16)],
        "model size": [(parameters(m), {"model": m}) for m in ("3m", "10m", "25m", "60m")],
    }
    lines, numbers = [], {}
    for name, points in sizes.items():
        found = {}
        for size, change in points:
            options: dict[str, Any] = {"model": "10m", "prompts": 1} | change
            work = spec(folder, options.pop("model"), "update", **options)
            found[size] = alternate({"onpolicy": (OURS, work)}, repeats=repeats)["onpolicy"]
        numbers[name] = {str(size): one.as_dict() for size, one in found.items()}
        lines.append(grown(f"time and memory by {name}", found))
    words: dict[float, Measured] = {}
    for size in (19_000, 38_000, 76_000, 152_000):
        work = {"hidden": 256, "tokens": 1024, "vocabulary": size, "threads": 2, "support": "top20"}
        words[size] = alternate({"onpolicy": (OUR_LOSS, work)}, repeats=repeats)["onpolicy"]
    numbers["vocabulary"] = {str(size): one.as_dict() for size, one in words.items()}
    lines.append(grown("time and memory of the loss by vocabulary", words))
    return lines, numbers


def telemetry_cost(folder: Path, repeats: int) -> tuple[list[Line], dict[str, Any]]:
    """What measuring uncertainty adds to a step."""
    costs = telemetry.measure()
    shares = costs["share_of_step"]
    ratio = (median(shares), min(shares), max(shares))
    return [
        Line("time spent in telemetry / step", ratio, "", None, f"step {median(costs['seconds_with']):.2f} s")
    ], costs


def host_cost(folder: Path, repeats: int) -> tuple[list[Line], dict[str, Any]]:
    """CPU time of judging and annotation, in microseconds per sampled token."""
    costs = host.measure(repeats)
    lines = []
    for kind, parts in costs.items():
        detail = ", ".join(
            f"{p} {median(parts[p]):.2f}" for p in parts if p not in ("total", "driver", "all processes")
        )
        for part, what, bar, said in (
            ("total", "judging + annotation", 5.0, detail),
            ("all processes", "the same with a process for it, both", 5.0, ""),
            ("driver", "the same with a process for it, driver", 2.0, "5 % of a step at 25,000 tokens/s"),
        ):
            ratio = (median(parts[part]), min(parts[part]), max(parts[part]))
            lines.append(Line(f"{what}, {kind}, us of CPU / token", ratio, f"<= {bar:g}", ratio[0] <= bar, said))
    return lines, costs


def verl_cost(folder: Path, repeats: int) -> tuple[list[Line], dict[str, Any]]:
    """CPU time of verl's driver at a million tokens a step, in microseconds per sampled token."""
    costs = verl_driver.measure(repeats)
    lines = []
    for kind, parts in costs.items():
        for part, what, bar in (
            ("joined", "driver, texts read by workers", verl_driver.BAR),
            ("alone", "driver, texts read there", None),
            ("workers", "workers, reading", None),
        ):
            ratio = (median(parts[part]), min(parts[part]), max(parts[part]))
            shares = ", ".join(f"{speed * ratio[0] / 1e4:.1f} % at {speed:,}" for speed in verl_driver.SPEEDS)
            detail = f"of a step: {shares} tokens/s" if part != "workers" else ""
            met = None if bar is None else ratio[0] <= bar
            asked = "" if bar is None else f"<= {bar:.1f}"
            lines.append(Line(f"verl, {what}, {kind}, us of CPU / token", ratio, asked, met, detail))
    return lines, costs


def generators(folder: Path, repeats: int) -> tuple[list[Line], dict[str, Any]]:
    """Sampling with vLLM against transformers: a step's rollouts of two shipped configs."""
    lines, numbers = [], {}
    for config in ("quickstart", "smollm2"):
        names = ("vllm", "transformers")
        found = alternate(
            {name: ("generator_worker.py", {"config": config, "generator": name, "threads": 2}) for name in names},
            repeats=repeats,
        )
        numbers[config] = dump(found)
        vllm, plain = (found[name] for name in names)
        rates = [f"{one.tokens / one.median:,.0f}" for one in (vllm, plain)]
        line = faster(f"sampling, {config}, {vllm.tokens:,} tokens, transformers", plain, vllm, None)
        lines.append(replace(line, detail=f"{' against '.join(rates)} tokens/s"))
    return lines, numbers


ROWS: dict[str, Row] = {
    "step": step,
    "update": update,
    "loss": loss,
    "limit": limit,
    "growth": growth,
    "telemetry": telemetry_cost,
    "host": host_cost,
    "verl_driver": verl_cost,
    "generators": generators,
}


def faster(what: str, peer: Measured, ours: Measured, bar: float | None) -> Line:
    ratio = ratios(peer.seconds, ours.seconds)
    return Line(what, ratio, f">= {bar}" if bar else "", None if bar is None else ratio[0] >= bar, seconds(ours, peer))


def smaller(what: str, ours: Measured, peer: Measured, bar: float) -> Line:
    """Gradients and the optimizer's moments, the same on both sides, are in it."""
    ratio = ours.memory_mib / peer.memory_mib
    sizes = f"{ours.memory_mib:,.0f} against {peer.memory_mib:,.0f} MiB"
    return Line(what, (ratio,) * 3, f"<= {bar}", ratio <= bar, sizes)


def grown(what: str, found: Mapping[float, Measured]) -> Line:
    """The exponent of time; that of memory beside it."""
    sizes = np.log(list(found))
    times = np.polyfit(sizes, np.log([one.median for one in found.values()]), 1)[0]
    memory = np.polyfit(sizes, np.log([one.memory_mib for one in found.values()]), 1)[0]
    points = ", ".join(f"{size:,.0f}: {one.median:.2f} s, {one.memory_mib:,.0f} MiB" for size, one in found.items())
    return Line(what, (float(times),) * 3, "", None, f"memory ^{memory:.2f}; {points}")


def seconds(ours: Measured, peer: Measured) -> str:
    return f"{ours.median:.2f} s against {peer.median:.2f} s"


def phases(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in shares.items() if value >= 0.005)


def dump(found: Mapping[str, Measured]) -> dict[str, Any]:
    return {name: one.as_dict() for name, one in found.items()}


def parameters(model: str) -> float:
    """Beside the embeddings, roughly."""
    shape = SHAPES[model]
    heads = shape["head_dim"] * (2 * shape["num_attention_heads"] + 2 * shape["num_key_value_heads"])
    return float(shape["num_hidden_layers"] * shape["hidden_size"] * (heads + 3 * shape["intermediate_size"]))
