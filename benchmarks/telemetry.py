"""What telemetry costs: a training step with and without it, in alternation.

    python -m benchmarks.telemetry

One process, a Qwen3 of 25 M parameters with SmolLM2's tokenizer (49k entries), eight rollouts of 256 tokens that are full of markers,
full-vocabulary forward KL to a frozen teacher. Counts everything that is read off texts (rates, audit, calibration, suppression against
a baseline), the marking of tokens, and the observation of every micro-batch. Sampling, which a real step adds to both sides, is left out.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from onpolicy.annotation.spans import markers, pattern
from onpolicy.config.schedules import Bound
from onpolicy.config.schema import TrainerSettings
from onpolicy.data.alignment import TokenAlignment
from onpolicy.data.rendering import Renderer
from onpolicy.epistemic.ids import CLASSES, span_name
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.losses.comparison import Comparison
from onpolicy.losses.divergences import forward_kl
from onpolicy.losses.objective import Objective, Term
from onpolicy.losses.supports import full
from onpolicy.losses.targets import identity
from onpolicy.losses.terms.base import spec_of
from onpolicy.losses.terms.distill import distill
from onpolicy.models import load_tokenizer, resolve_model
from onpolicy.rewards.uncertainty import SPACING
from onpolicy.trainer.teacher_rules import frozen
from onpolicy.trainer.trainer import TrainerSetup, local
from onpolicy.types import Example, LossInputs, Prompt, Rollout, RolloutGroup, RolloutReward, ScoredGroup
from onpolicy.utils.bundled_model import BUNDLED
from onpolicy.utils.timer import PhaseTimer

LEXICONS = ("paper10", "self_doubt", "hedges", "alternatives", "boosters", "neutral")
TEXT = "We have 12 + 7 = 19, so then wait, maybe I should check that. Hmm, alternatively $x^2 = 4$ gives 2. "
ROLLOUTS, TOKENS, REPEATS = 8, 256, 6


class Timed(TokenTelemetry):
    """Knows how long it took."""

    seconds = 0.0

    def observe(self, inputs: LossInputs) -> None:
        start = time.perf_counter()
        super().observe(inputs)
        self.seconds += time.perf_counter() - start


def measure() -> dict[str, list[float]]:
    """Seconds of steps with and without it, and the share of a step that is spent in it; the first pair warms up."""
    path = resolve_model(BUNDLED)
    renderer = Renderer(load_tokenizer(path, chat_template=None, trust_remote_code=False, revision=None))
    shape = {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=49152, head_dim=64, tie_word_embeddings=True, **shape))  # type: ignore[arg-type]
    rollouts = [_rollout(renderer, i) for i in range(ROLLOUTS)]
    finders = {span_name(n): Bound(markers, lexicon=n) for n in LEXICONS}
    finders |= {span_name(n): Bound(pattern, regex=regex) for n, regex in CLASSES.items()}
    comparison = Comparison("teacher", full, identity, forward_kl)
    term = Term(
        "distill", 1.0, Bound(distill, divergence=forward_kl), spec_of(distill), ("teacher",), comparison=comparison
    )
    setup = TrainerSetup(
        student=model, objective=Objective((term,)), rule=frozen(), settings=TrainerSettings(micro_batch_tokens=3000), total_steps=100,
        contexts=("teacher",), clock=PhaseTimer(),
    )  # fmt: skip
    trainer = local(setup=setup)
    groups = [_scored(r, i) for i, r in enumerate(rollouts)]
    plain = TextTelemetry(LEXICONS, "self_doubt", renderer.split_thinking)
    text = replace(plain, baseline=plain.build_baseline(groups, SPACING))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    own: list[float] = []
    marking = [0.0, 0.0]
    for watched in [False, True] * REPEATS:
        watch = Timed("self_doubt", (*LEXICONS, *CLASSES))
        trainer.telemetry = watch if watched else None
        trainer.batching.spans = tuple(finders) if watched else ()
        start = time.perf_counter()
        examples = [_example(r, i, renderer, finders if watched else {}) for i, r in enumerate(rollouts)]
        if watched:
            text.measure(groups)
        marking[watched] = time.perf_counter() - start
        trainer.step(examples)
        seconds[watched].append(time.perf_counter() - start)
        if watched:
            own.append((marking[True] - marking[False] + watch.seconds) / seconds[True][-1])
    return {"seconds_without": seconds[False][1:], "seconds_with": seconds[True][1:], "share_of_step": own[1:]}


def main() -> None:
    found = measure()
    ratios = [a / b for a, b in zip(found["seconds_with"], found["seconds_without"], strict=True)]
    print(f"step without {statistics.median(found['seconds_without']):.2f} s, with {statistics.median(found['seconds_with']):.2f} s; "
          f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} pairs); "
          f"time spent in telemetry {statistics.median(found['share_of_step']):.2%} of the step "
          f"(at most {max(found['share_of_step']):.2%})")  # fmt: skip


def _rollout(renderer: Renderer, index: int) -> Rollout:
    ids = tuple(renderer.tokenizer.encode(TEXT * 60, add_special_tokens=False))[index : index + TOKENS]
    return Rollout(
        prompt_ids=ids[:40], completion_ids=ids, rollout_logprobs=(-1.0,) * len(ids), text=renderer.completion_text(ids),
        finish_reason="stop", policy_version=0,
    )  # fmt: skip


def _scored(rollout: Rollout, index: int) -> ScoredGroup:
    prompt = Prompt(id=str(index), messages=({"role": "user", "content": "What is 12 + 7?"},))
    return ScoredGroup(RolloutGroup(prompt=prompt, rollouts=(rollout,)), (RolloutReward(1.0, 0.0, {}),), (1.0,))


def _example(rollout: Rollout, index: int, renderer: Renderer, finders: dict[str, Bound]) -> Example:
    group = _scored(rollout, index).group
    prompt = group.prompt
    return Example(
        rollout=rollout, prompt=prompt, group_id=index, reward=1.0, reward_breakdown={}, advantage=0.0,
        teacher_prompt_ids={"teacher": rollout.prompt_ids * 2},
        spans={name: TokenAlignment(renderer).mark(rollout.completion_ids, find(group, 0, [1.0])) for name, find in finders.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
