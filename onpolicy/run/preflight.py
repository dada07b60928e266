"""Checks that take seconds, before hours of training. Each fails with a reason.

They catch what usually goes wrong silently in self-distillation: misaligned prompts, a teacher that knows no more than the
student, a generator that disagrees with the trainer or does not take its weights.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.rendering import Renderer
from onpolicy.losses.objective import Term
from onpolicy.losses.targets import identity
from onpolicy.rollout.build import prompt_cursor
from onpolicy.run.run import Run
from onpolicy.run.sync_trial import SyncTrial
from onpolicy.trainer.head import HiddenStates, head_error
from onpolicy.trainer.trainer import PolicyTrainer
from onpolicy.types import Example, Rollout, RolloutReward, ScoredGroup
from onpolicy.utils.errors import UserError
from onpolicy.utils.terminal import plain, printable

PROMPTS, TOKENS = 8, 256
"""How many problems are sampled, the first of the first step, and how long a rollout may become."""
HEAD_TOLERANCE = 1e-3
ENOUGH = 8
"""Number of rollouts on which generator and trainer are compared."""


@dataclass(frozen=True)
class FewRollouts:
    """Some of the first step's problems, answered by the reference model in few tokens."""

    examples: Sequence[Example]
    cut: int
    """Rollouts that were cut short, which the run would have let go on: their rewards are unknown, and they are not graded."""
    is_whole_step: bool
    """Whether these are all problems of the first step and none was cut short, so that what they lack the first step lacks."""


class PreflightError(UserError, RuntimeError):
    """A check failed, so the run would be meaningless; says why and what to do."""


@dataclass(frozen=True)
class Preflight:
    """The checks of one run, on rollouts sampled before the first step."""

    trainer: PolicyTrainer
    renderer: Renderer
    teacher_renderer: Renderer
    contexts: Sequence[str]
    logprob_tolerance: float | None
    """Nats; None where nothing was sampled, so that there is nothing to compare."""
    console: Console

    def check(self, few: FewRollouts) -> None:
        """Raises PreflightError on the first check that fails."""
        examples = few.examples
        shown = next((e for e in examples if e.teacher_prompt_ids), examples[0])
        self.show(shown)
        self.show_markup()
        self.check_head(shown)
        self.check_alignment(examples)
        if self.logprob_tolerance is not None:
            self.check_logprobs(examples, self.logprob_tolerance)
        self.check_zero(shown)
        self.show_dtype()
        self.check_signal(few)

    def show(self, example: Example) -> None:
        """Prints both prompts and the completion of one rollout."""
        self._panel("the student reads", self.renderer.decode(example.rollout.prompt_ids))
        for context, ids in example.teacher_prompt_ids.items():
            self._panel(f"the teacher reads ({context})", self.renderer.decode(ids))
        graded = "no reward" if not example.reward_breakdown else f"reward {example.reward:g}"
        reward = "not graded" if example.reward is None else graded
        self._panel(f"the student answered ({reward}, {example.rollout.finish_reason})", example.rollout.text)

    def show_markup(self) -> None:
        """Prints what tells thinking from answer, and what ends a completion."""
        r = self.renderer
        begins = "completions begin inside it" if r.opens_thinking else "completions open it themselves"
        ends = " or ".join(repr(r.decode([i])) for i in r.eos_ids)
        self._passed(
            "thinking and ends are known", f"{r.thinking_tags}, from {r.tags_source}; {begins}; {ends} ends one"
        )

    def show_dtype(self) -> None:
        """Prints in which dtype the passes of the checks before ran; another one than was asked for ends the run where it occurs."""
        ran = sorted({*self.trainer.engine.computed.values()})
        if ran:  # no check before needs the trainer where nothing was sampled and another model teaches
            self._passed("forward passes run as they should", f"{' and '.join(ran)} on {self.trainer.device}")

    def check_head(self, example: Example) -> None:
        """The chunked head must compute the model's own logits."""
        ids = torch.tensor([example.rollout.prompt_ids], device=self.trainer.device)
        error, noise = head_error(self.trainer.student, ids)
        kind = type(self.trainer.student).__name__
        if noise > HEAD_TOLERANCE:
            raise PreflightError(
                f"{kind}: two passes over the same tokens give logits that differ by {noise:.3g}; something in the model is random where "
                "it should not be (dropout, router jitter), so that neither its log-probabilities nor its gradient mean anything"
            )
        if not error <= HEAD_TOLERANCE:
            raise PreflightError(
                f"{kind}: logits computed from hidden states are off by {error:.3g}; its head scales them in a way not known here"
            )
        self._passed("the model's head is understood", f"logits differ by {error:.1e}")

    def check_alignment(self, examples: Sequence[Example]) -> None:
        """The prompts of student and teacher must end inside the assistant's turn, so that the completion continues it."""
        student = self.renderer
        for example in examples:
            prompts = [("student", student, example.rollout.prompt_ids)]
            prompts += [(context, self.teacher_renderer, ids) for context, ids in example.teacher_prompt_ids.items()]
            # where no sibling has ended yet, any prompt shows how the template ends
            if self.contexts and not example.teacher_prompt_ids:
                prompts.append(
                    ("teacher", self.teacher_renderer, self.teacher_renderer.prompt_ids(example.prompt.messages))
                )
            for who, renderer, ids in prompts:
                if not renderer.in_open_turn(ids):
                    suffix = renderer.generation_suffix
                    raise PreflightError(
                        f"prompt {example.prompt.id!r}: the prompt of {who!r} ends with {renderer.decode(ids[-len(suffix) :])!r}, "
                        f"expected the generation prompt {renderer.decode(suffix)!r}; the completion would start in another place"
                    )
        ends = dict.fromkeys(r.decode(r.generation_suffix) for r in (student, self.teacher_renderer))
        self._passed(
            "first completion token lines up", f"all prompts end inside a turn begun by {' or '.join(map(repr, ends))}"
        )

    def check_logprobs(self, examples: Sequence[Example], tolerance: float) -> None:
        """Generator and trainer must give the sampled tokens the same log-probabilities."""
        examples = examples[:ENOUGH]
        ours = torch.cat(self.trainer.logprobs(examples)).float().cpu()
        theirs = torch.tensor([p for e in examples for p in e.rollout.select_sampled(e.rollout.rollout_logprobs)])
        gap = (ours - theirs).abs()
        if not gap.mean() <= tolerance:
            raise PreflightError(
                f"generator and trainer disagree on the sampled tokens by {gap.mean():.4f} nats on average (at most {gap.max():.3f}); "
                f"preflight.logprob_tolerance allows {tolerance}. Different weights, precision or chat template?"
            )
        self._passed(
            "generator and trainer agree", f"log-probs differ by {gap.mean():.1e} on average, {gap.max():.1e} at most"
        )

    def check_zero(self, example: Example) -> None:
        """A teacher with the student's own prompt and weights must give zero loss and zero gradient."""
        if (
            not self.contexts or self.trainer.rule.path is not None
        ):  # another model never agrees with the student exactly
            return
        twin = replace(example, teacher_prompt_ids=dict.fromkeys(self.contexts, example.rollout.prompt_ids))
        kept: list[HiddenStates] = []

        def keep(states: HiddenStates) -> HiddenStates:
            kept.append(states)
            states.hidden.requires_grad_()  # with adapters on the head alone nothing else does
            return states

        inputs = self.trainer.inputs(self.trainer.batching.batch([twin]), through=keep)
        gaps = [(scores.logprobs - inputs.logprobs) ** 2 for scores in inputs.teacher.values()]
        plain = [value for comparison, value in inputs.divergences.items() if comparison.target is identity]
        loss = torch.stack([*gaps, *plain]).sum() / example.rollout.num_sampled
        norm = float(
            torch.autograd.grad(loss, kept[0].hidden)[0].abs().max()
        )  # all weights but the head learn through it
        value = float(loss.detach().abs())
        if value > 1e-5 or norm > 1e-3:
            raise PreflightError(
                f"a teacher with the student's prompt and weights gives a loss of {value:.3g} per token and a gradient of "
                f"{norm:.3g}; expected 0"
            )
        self._passed("same prompt, same weights, no loss", f"{value:.1e} nats per token, largest gradient {norm:.1e}")

    def check_signal(self, few: FewRollouts) -> None:
        """At least one loss term must have a rollout that it can learn from; where few were sampled or cut short, that may be unknown."""
        examples = few.examples
        counts = {term.name: sum(has_signal(term, e) for e in examples) for term in self.trainer.objective.terms}
        each = ", ".join(f"{name} {count} of {len(examples)}" for name, count in counts.items())
        if few.cut:
            each += f"; {few.cut} were cut short at {TOKENS} tokens, so their rewards are unknown"
        if not any(counts.values()):
            if few.is_whole_step:
                with_context = sum(bool(e.teacher_prompt_ids) for e in examples)
                credited = sum(e.advantage != 0.0 for e in examples)
                raise PreflightError(
                    f"no rollout carries a signal ({each}): {with_context} have a teacher context and {credited} an advantage. "
                    "Try more rollouts (generator.group_size, data.prompts_per_step), an easier set, another context or route."
                )
            undecided(
                self.console, "whether there is a signal", f"{each}; train/empty_updates tells after the first step"
            )
            return
        teacher_prompts = [(e, ids) for e in examples for ids in e.teacher_prompt_ids.values()]
        same = all(ids == e.rollout.prompt_ids for e, ids in teacher_prompts)
        rewarded = any(
            counts[t.name] or few.cut for t in self.trainer.objective.terms if t.spec.tokens == "sampled_mask"
        )
        if teacher_prompts and same and not self.trainer.rule.copies and not rewarded:
            raise PreflightError(
                "every teacher reads exactly what the student reads, with the same weights: the loss is 0 by construction"
            )
        self._passed("there is a signal", f"rollouts by term: {each}")

    def _panel(self, title: str, text: str) -> None:
        self.console.print(Panel(Text(printable(text)), title=plain(title), title_align="left", border_style="dim"))

    def _passed(self, what: str, detail: str) -> None:
        passed(self.console, what, detail)


def report_of(
    trainer: PolicyTrainer,
    renderers: tuple[Renderer, Renderer],
    contexts: Sequence[str],
    logprob_tolerance: float | None,
    screen: tuple[int, bool],
    few: FewRollouts,
) -> tuple[str, PreflightError | None]:
    """All checks, for ``Trainer.apply``: what they print on a terminal of this width (and whether it is one), and the failure.

    ``renderers`` are those of the student's and the teacher's prompts.
    """
    said = io.StringIO()
    console = Console(file=said, width=screen[0], force_terminal=screen[1])
    try:
        Preflight(trainer, *renderers, contexts, logprob_tolerance, console).check(few)
    except PreflightError as error:
        return said.getvalue(), error
    return said.getvalue(), None


def first_rollouts(run: Run, resolved: ResolvedConfig) -> list[Example]:
    """Rollouts of the reference model, as the first step would have them; no prompt is used up."""
    rollouts = run.sampler.rollouts
    cursor = prompt_cursor(resolved, rollouts.prompts.prompts)
    groups, _ = replace(rollouts, prompts=cursor, batches=0).sample(0)
    examples, _ = run.annotator.annotate(groups, version=0)
    return examples


def few_rollouts(run: Run, resolved: ResolvedConfig) -> FewRollouts:
    """The first problems of the first step under its seed, cut short; no prompt is used up."""
    rollouts, sampling = run.sampler.rollouts, run.generator.sampling
    prompts = prompt_cursor(resolved, rollouts.prompts.prompts).next()
    # an environment is not told that it will be cut short, and may fail for that
    most = sampling.max_tokens if any(prompt.interactive for prompt in prompts) else TOKENS
    short = replace(sampling, max_tokens=min(most, sampling.max_tokens))
    with run.timer.phase("generate"):
        groups = rollouts.generator.generate(prompts[:PROMPTS], seed=rollouts.seed_of(0), sampling=short)
    with run.timer.phase("reward"):
        scored = [_without_cut(group, sampling.max_tokens) for group in rollouts.score(groups)]
    examples, _ = run.annotator.annotate(scored, version=0)
    cut = sum(_is_cut(rollout, sampling.max_tokens) for group in groups for rollout in group.rollouts)
    return FewRollouts(examples, cut, is_whole_step=not cut and len(prompts) <= PROMPTS)


def _is_cut(rollout: Rollout, max_tokens: int) -> bool:
    """Whether the run would have let it go on."""
    return rollout.finish_reason == "length" and len(rollout.completion_ids) < max_tokens


def _without_cut(scored: ScoredGroup, max_tokens: int) -> ScoredGroup:
    """The group in which what was cut short is not graded: that it has no answer says nothing about the run's."""
    cut = [
        _is_cut(rollout, max_tokens) and bool(reward.reward_breakdown)
        for rollout, reward in zip(scored.group.rollouts, scored.rewards, strict=True)
    ]
    return replace(
        scored,
        rewards=tuple(RolloutReward(0.0, 0.0, {}) if c else r for c, r in zip(cut, scored.rewards, strict=True)),
        scores=tuple(math.nan if c else score for c, score in zip(cut, scored.scores, strict=True)),
    )


def run_preflight(run: Run, resolved: ResolvedConfig) -> None:
    """Samples a few rollouts of the reference model and checks the result; nothing is trained and no prompt is used up.

    Raises:
        PreflightError: a check failed.
        SyncError: new weights do not reach the generator.
    """
    console = run.log.display.console
    tolerance = run.config.preflight.logprob_tolerance if resolved.data.settings.completions_column is None else None
    few = few_rollouts(run, resolved)
    said, error = run.trainer.apply(
        report_of,
        (run.log.renderer, run.annotator.teacher_renderer or run.log.renderer),
        tuple(resolved.contexts),
        tolerance,
        (console.width, console.is_terminal),
        few,
    )
    console.print(Text.from_ansi(said), end="", soft_wrap=True)
    if error is not None:
        raise error
    if tolerance is not None:
        changed, back = SyncTrial(run, few.examples, tolerance).check()
        passed(
            console,
            "changed weights reach the generator",
            f"log-probs differ by {changed:.1e}, and by {back:.1e} when they are back",
        )
    run.timer.pop()


def passed(console: Console, what: str, detail: str) -> None:
    console.print(f"[green]✓[/green] {what} [dim]({plain(detail)})[/dim]", highlight=False, soft_wrap=True)


def undecided(console: Console, what: str, detail: str) -> None:
    console.print(f"[yellow]?[/yellow] {what} [dim]({plain(detail)})[/dim]", highlight=False, soft_wrap=True)


def has_signal(term: Term, example: Example) -> bool:
    """Whether a term can learn from a rollout: it is routed there, and has the contexts or the advantage that the term reads."""
    learns = all(context in example.teacher_prompt_ids for context in term.contexts)
    if term.spec.tokens == "sampled_mask" and not term.spec.unrewarded:
        learns = example.advantage != 0.0 or (bool(term.contexts) and learns)
    return example.routes.get(term.name, 1.0) > 0 and learns
