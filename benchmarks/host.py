"""What a step's rollouts cost the host's CPU: judging and annotation, in microseconds per sampled token, by part.

    python -m benchmarks run host

Four groups of eight rollouts of about 2,000 tokens with SmolLM2's tokenizer, thinking included, by ``configs/sdpo.yaml``: its grader, its
context, the default lexicons and token classes, and a baseline. ``prose`` reasons with a few words of doubt per thousand tokens, ``dense``
doubts in nearly every sentence. Every repeat has texts of its own; one more before them fills the caches that a run keeps. Times are the
processor's. ``judging by two more`` is not in the total: ``math_answer`` on a fraction, and ``saturating_floor``, which seeks markers.
``driver`` is the same step with a process that annotates: the time of the driver's process, with what hands groups over and takes results
back; ``all processes`` adds the other's.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

import psutil

from onpolicy.annotation.annotate import Annotator
from onpolicy.annotation.build import build_annotator, local_scorer, text_telemetry
from onpolicy.annotation.pooled_scorer import PooledScorer
from onpolicy.annotation.scoring import Reward, Scorer
from onpolicy.config.resolve import load_resolved
from onpolicy.config.schedules import Bound
from onpolicy.data.rendering import Renderer
from onpolicy.models import load_tokenizer, resolve_model
from onpolicy.rewards.answer import math_answer
from onpolicy.rewards.uncertainty import SPACING, saturating_floor
from onpolicy.run.placement import pooled_scorer
from onpolicy.types import Prompt, Rollout, RolloutGroup
from onpolicy.utils.bundled_model import BUNDLED

GROUPS, SIZE, TOKENS = 4, 8, 2000
STEPS = (
    "We need to find the number of ways in which {a} people can sit around a table with {b} seats.",
    "Let $x = {a}$ and $y = {b}$, so that $x + y = {c}$ and the first equation becomes $x^2 - {b}x + {a} = 0$.",
    "Then the sum of the first {a} terms is \\(\\frac{{{a}({a}+1)}}{{2}}\\), and this is equal to {c}.",
    "The triangle has sides {a}, {b} and {c}, therefore its area follows from Heron's formula.",
    "Now multiply both sides by {b}: {a} * {b} = {c}, which is what the problem asks for in the second case.",
    "Since {a} and {b} are coprime, there is exactly one residue modulo {c} that satisfies both congruences.",
    "Substituting back gives\n\\[ f({a}) = {b} \\cdot {c} - 1, \\]\nand the same holds for every larger value.",
    "Here the probability is {a}/{c}, because the draws are independent and the order does not matter.",
    "Next, consider the remaining {b} cards; each of them can be placed in one of {a} boxes.",
    "This means that the answer is {c}, provided that no term has been counted twice.",
)
DOUBTS = (
    "Wait, maybe I should check that again, because {a} + {b} might not be {c}.",
    "Hmm, let me double-check: perhaps the condition is about {a} and not about {b}.",
    "Hold on, that's not right. Alternatively, what if the value seems to be {c}?",
    "Actually, I'm not sure; it is likely {a}, or maybe {b}, but I think I made a mistake somewhere.",
)
ANSWERS = (r"\frac{12}{13}", "12/13", "13/12")
KINDS = {"prose": 0.06, "dense": 0.9}
"""Kind of text -> share of its sentences that doubt."""


def measure(repeats: int) -> dict[str, dict[str, list[float]]]:
    """Kind of text -> part -> microseconds of CPU per token, one for each repeat.

    ``token classes`` and ``text telemetry`` are what annotation takes less without them; ``other`` is annotation without both.
    """
    resolved = load_resolved("sdpo", [f"model.path={BUNDLED}", "data.path=unread"])
    renderer = Renderer(
        load_tokenizer(resolve_model(BUNDLED), chat_template=None, trust_remote_code=False, revision=None)
    )
    scorer, telemetry = local_scorer(resolved, renderer), text_telemetry(resolved, renderer)
    others = [
        Reward("math_answer", 1.0, math_answer),
        Reward("floor", 0.1, Bound(saturating_floor, floor=4.4), bonus=True),
    ]
    more = replace(scorer, rewards=others, correctness="math_answer")
    found: dict[str, dict[str, list[float]]] = {}
    for kind in KINDS:
        draw = random.Random(kind)
        problems = [problem(draw, i) for i in range(GROUPS)]
        first = scorer.score([_group(draw, kind, prompt, renderer) for prompt in problems])
        baseline = None if telemetry is None else telemetry.build_baseline(first, SPACING)
        annotator = build_annotator(resolved, renderer, max_teacher_prompt_tokens=8192, queries=None, baseline=baseline)
        variants = {
            "annotation": annotator,
            "without classes": replace(annotator, classes={}),
            "without telemetry": replace(annotator, telemetry=None),
            "without both": replace(annotator, classes={}, telemetry=None),
        }
        with closing(pooled_scorer(scorer, resolved, renderer, 1, print)) as pooled:
            steps = [[_group(draw, kind, p, renderer) for p in problems] for _ in range(repeats + 1)]
            runs = [
                _repeat(groups, (scorer, more), variants) | _with_processes(groups, pooled, annotator)
                for groups in steps
            ]
        found[kind] = {part: [run[part] for run in runs[1:]] for part in runs[0]}
    return found


def _repeat(
    groups: Sequence[RolloutGroup], scorers: tuple[Scorer, Scorer], variants: dict[str, Annotator]
) -> dict[str, float]:
    tokens = sum(r.num_sampled for group in groups for r in group.rollouts)

    def cost(work: Callable[[], object]) -> float:
        gc.collect()  # what earlier work has left is none of this work's
        start = time.process_time()
        work()
        return 1e6 * (time.process_time() - start) / tokens

    judging, judging_more = (cost(lambda s=scorer: s.score(groups)) for scorer in scorers)  # type: ignore[misc]
    scored = scorers[0].score(groups)
    took = {name: cost(lambda a=annotator: a.annotate(scored, version=0)) for name, annotator in variants.items()}  # type: ignore[misc]
    return {
        "total": judging + took["annotation"],
        "judging": judging,
        "token classes": took["annotation"] - took["without classes"],
        "text telemetry": took["annotation"] - took["without telemetry"],
        "other": took["without both"],
        "judging by two more": judging_more,
    }


def _with_processes(groups: Sequence[RolloutGroup], scorer: Scorer, annotator: Annotator) -> dict[str, float]:
    assert isinstance(scorer, PooledScorer)
    tokens = sum(r.num_sampled for group in groups for r in group.rollouts)
    workers = [psutil.Process(pid) for pid in scorer.processes.pids()]

    def theirs() -> float:
        return sum(sum(worker.cpu_times()[:2]) for worker in workers)

    gc.collect()
    start, before = time.process_time(), theirs()
    begun = {place: scorer.begin(group) for place, group in enumerate(groups)}
    annotator.annotate(scorer.score(groups, begun), version=0)
    driver = time.process_time() - start
    return {"driver": 1e6 * driver / tokens, "all processes": 1e6 * (driver + theirs() - before) / tokens}


def text_of(draw: random.Random, kind: str, length: int) -> str:
    """Thinking and an answer of at least so many characters, a paragraph of four sentences each."""
    sentences: list[str] = []
    while sum(map(len, sentences)) < length:
        a, b = draw.randrange(2, 90), draw.randrange(2, 90)
        sentences.append(draw.choice(DOUBTS if draw.random() < KINDS[kind] else STEPS).format(a=a, b=b, c=a + b))
    paragraphs = [" ".join(sentences[i : i + 4]) for i in range(0, len(sentences), 4)]
    answer = f"So the answer is $\\boxed{{{draw.choice(ANSWERS)}}}$."
    return "<think>\n" + "\n\n".join(paragraphs) + f"\n</think>\n\n{answer}"


def problem(draw: random.Random, index: int) -> Prompt:
    question = " ".join(draw.choice(STEPS).format(a=3, b=4, c=7) for _ in range(3)) + " What is the answer?"
    return Prompt(
        id=f"problem {index}", messages=({"role": "user", "content": question},), fields={"answer": r"\frac{12}{13}"}
    )


def _group(draw: random.Random, kind: str, prompt: Prompt, renderer: Renderer) -> RolloutGroup:
    asked = renderer.prompt_ids(prompt.messages)
    rollouts = []
    for _ in range(SIZE):
        ids = tuple(renderer.tokenizer.encode(text_of(draw, kind, 3 * TOKENS), add_special_tokens=False))
        rollouts.append(
            Rollout(
                prompt_ids=asked, completion_ids=ids, rollout_logprobs=(-0.5,) * len(ids), text=renderer.completion_text(ids),
                finish_reason="stop", policy_version=0,
            )
        )  # fmt: skip
    return RolloutGroup(prompt=prompt, rollouts=tuple(rollouts))
