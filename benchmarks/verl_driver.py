"""What verl's driver spends on a step's rows while all GPUs wait, in microseconds of CPU per sampled token. Needs neither verl nor Ray.

    python -m benchmarks run verl_driver

62 groups of eight rows with answers of about 2,000 tokens, a million in all, by ``configs/sdpo.yaml`` with the texts of ``host``: what
``TeachingTrainer._teach`` does between fetching the rows and storing its columns. ``joined`` is with texts that agent-loop workers have
read, ``alone`` without; ``workers`` is what reading costs those. Every repeat has texts of its own; a small step before them fills the
caches that a run keeps.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.host import KINDS, SIZE, TOKENS, problem, text_of
from onpolicy.config.resolve import load_resolved
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.rendering import Renderer
from onpolicy.epistemic.ids import span_names
from onpolicy.integrations.verl.response_reader import READ, ResponseReader
from onpolicy.integrations.verl.row_annotator import RowAnnotator
from onpolicy.integrations.verl.rows import columns
from onpolicy.models import load_tokenizer, resolve_model
from onpolicy.utils.bundled_model import BUNDLED

GROUPS, WARMUP = 62, 2
LIMIT = 8192
SPEEDS = (15_000, 100_000)
"""Tokens per second of a whole step, for the driver's share of it."""
BAR = 0.05 * 1e6 / SPEEDS[0]
"""Microseconds a token that are 5 % of a step at the lower speed."""


def measure(repeats: int) -> dict[str, dict[str, list[float]]]:
    """Kind of text -> part -> microseconds of CPU per token, one for each repeat."""
    resolved = load_resolved("sdpo", [f"model.path={BUNDLED}", "data.path=unread"])
    renderer = Renderer(
        load_tokenizer(resolve_model(BUNDLED), chat_template=None, trust_remote_code=False, revision=None)
    )
    annotator, reader = (
        RowAnnotator(resolved, renderer, max_teacher_prompt_tokens=LIMIT),
        ResponseReader(resolved, renderer),
    )
    found: dict[str, dict[str, list[float]]] = {}
    for kind in KINDS:
        draw = random.Random(kind)
        for groups in [WARMUP, *[GROUPS] * repeats]:
            parts = _costs(_rows(draw, kind, groups, resolved, renderer), resolved, annotator, reader)
            if groups == GROUPS:
                for part, cost in parts.items():
                    found.setdefault(kind, {}).setdefault(part, []).append(cost)
    return found


def _costs(
    rows: Sequence[dict[str, Any]], resolved: ResolvedConfig, annotator: RowAnnotator, reader: ResponseReader
) -> dict[str, float]:
    tokens = sum(len(row["responses"]) for row in rows)

    def cost(work: Callable[[], object]) -> float:
        gc.collect()  # what earlier work has left is none of this work's
        start = time.process_time()
        work()
        return 1e6 * (time.process_time() - start) / tokens

    def driver() -> None:
        examples, _ = annotator.annotate(rows)
        lengths = [len(row["responses"]) for row in rows]
        contexts, terms, spans = tuple(resolved.contexts), resolved.term_names, span_names(resolved)
        columns(examples, lengths, contexts=contexts, terms=terms, spans=spans)

    def workers() -> None:
        for row in rows:
            row["extra_fields"][READ] = reader.pack(row)

    return {"alone": cost(driver), "workers": cost(workers), "joined": cost(driver)}


def _rows(
    draw: random.Random, kind: str, groups: int, resolved: ResolvedConfig, renderer: Renderer
) -> list[dict[str, Any]]:
    rows = []
    for number in range(groups):
        prompt = problem(draw, number)
        asked = torch.tensor(renderer.prompt_ids(prompt.messages))
        for _ in range(SIZE):
            ids = renderer.tokenizer.encode(text_of(draw, kind, 3 * TOKENS), add_special_tokens=False)
            score = float(draw.random() < 0.5)
            rows.append(
                {
                    "uid": prompt.id,
                    "raw_prompt": list(prompt.messages),
                    "prompts": asked,
                    "responses": torch.tensor(ids),
                    "response_mask": torch.ones(len(ids), dtype=torch.int64),
                    "rollout_log_probs": torch.full((len(ids),), -0.5),
                    "rm_scores": torch.zeros(len(ids)),
                    "reward_model": {"ground_truth": prompt.fields["answer"]},
                    "extra_fields": {"reward_extra_info": {resolved.correctness_name: score}},
                }
            )
    return rows
