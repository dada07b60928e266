"""What grading and annotating cost the host: microseconds of one thread's CPU time per sampled token.

    python -m benchmarks.host

Groups of configs/sdpo.yaml as training gets them: no two answers alike, sentences of ordinary reasoning in random order, half of them with
the right number in the box, tokens of SmolLM2's tokenizer (49k entries). Sampling and training are not in it.
"""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path

from onpolicy.annotation.build import build_annotator, local_scorer
from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.data.rendering import Renderer
from onpolicy.models import load_tokenizer, resolve_model
from onpolicy.types import Prompt, Rollout, RolloutGroup
from onpolicy.utils.bundled_model import BUNDLED

SENTENCES = (
    "We are given that the sum of the two numbers is {a}, and that their difference is {b}.",
    "Let me write $x + y = {a}$ and $x - y = {b}$.",
    "Adding both equations gives $2x = {c}$, so $x = {c}/2$.", "Wait, let me check this step again before going on.",
    "The remainder on division by {b} has to be smaller than {b}.", "Substituting back, we find \\( y = {a} - x \\), which is positive.",
    "Therefore the number of ways is $\\binom{{{a}}}{{2}} = {c}$.", "Hmm, perhaps there is an easier way to see this.",
    "By symmetry it is enough to count the cases in which the first digit is {b}.", "So the area of the triangle is half of {a} times {b}.",
    "In each of the {b} rows there are {a} squares, and every second one is black.", "This is consistent with what we found for {c}.",
)  # fmt: skip
GROUPS, GROUP, TOKENS, REPEATS = 8, 8, 1024, 7


def measure() -> dict[str, list[float]]:
    """Microseconds per token, by part and repetition; the first repetition warms up."""
    resolved = resolve(load(Path("configs/sdpo.yaml"), ["model.path=x", "data.path=x"]))
    renderer = Renderer(load_tokenizer(resolve_model(BUNDLED)))
    scorer = local_scorer(resolved, renderer)
    annotator = build_annotator(resolved, renderer, max_teacher_prompt_tokens=22528, queries=None)
    found: dict[str, list[float]] = {"grade": [], "annotate": []}
    for repeat in range(REPEATS):
        groups = [_group(renderer, random.Random(GROUPS * repeat + i), i) for i in range(GROUPS)]
        tokens = sum(len(rollout.completion_ids) for group in groups for rollout in group.rollouts)
        start = time.thread_time()
        scored = scorer.score(groups)
        middle = time.thread_time()
        annotator.annotate(scored, version=0)
        seconds = {"grade": middle - start, "annotate": time.thread_time() - middle}
        for part, taken in seconds.items():
            found[part].append(1e6 * taken / tokens)
    return {part: values[1:] for part, values in found.items()}


def main() -> None:
    found = measure()
    both = [sum(pair) for pair in zip(*found.values(), strict=True)]
    for part, values in {**found, "both": both}.items():
        print(f"{part:10s}{statistics.median(values):6.1f} us a token   {min(values):.1f} to {max(values):.1f}")


def _group(renderer: Renderer, draw: random.Random, index: int) -> RolloutGroup:
    answer = str(draw.randrange(1000))
    prompt = Prompt(
        id=str(index), messages=({"role": "user", "content": f"What is {answer} + 0?"},), fields={"answer": answer}
    )
    return RolloutGroup(prompt=prompt, rollouts=tuple(_rollout(renderer, draw, answer, j) for j in range(GROUP)))


def _rollout(renderer: Renderer, draw: random.Random, answer: str, index: int) -> Rollout:
    box = f" The answer is \\boxed{{{answer if index % 2 else 'n + 1'}}}."
    text, ids = "", list[int]()
    while len(ids) < TOKENS:
        a, b, c = (draw.randrange(2, 500) for _ in range(3))
        text += " ".join(draw.choice(SENTENCES).format(a=a, b=b, c=c) for _ in range(8)) + "\n\n"
        ids = renderer.tokenizer.encode(text + box, add_special_tokens=False)
    return Rollout(
        prompt_ids=(1, 2, 3), completion_ids=tuple(ids), rollout_logprobs=(-1.0,) * len(ids), text=renderer.completion_text(ids),
        finish_reason="stop", policy_version=0,
    )  # fmt: skip


if __name__ == "__main__":
    main()
