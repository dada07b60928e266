"""``onpolicy analyze probes``: does expressed uncertainty have a function? The model's own answers are changed at one place and continued.

Nothing is trained. Three interventions, each a difference between two arms on the same problems, with a bootstrap interval over problems:

- **marker kept or left out** (forced continuation): an answer is cut at one of its own markers; one arm continues after the marker, the
  other continues before it, with every marker banned for one token
- **self-doubt injected**: an answer is cut at the end of a sentence and continues after a phrase of self-doubt, after as many neutral words
  (the control: any interruption may help), or as it is; separately for answers that were correct and wrong by themselves, since both
  regress to the mean when nothing is injected
- **markers banned** throughout, against as many answers without a ban; banning neutral words is the control

Where expressed uncertainty has a function, leaving it out costs accuracy, injecting it corrects more wrong answers than it spoils correct
ones and more than neutral words do, and banning it costs more than banning neutral words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from onpolicy.annotation.scoring import Scorer
from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.data.alignment import TokenAlignment
from onpolicy.data.rendering import Renderer
from onpolicy.epistemic.ids import marker_ids
from onpolicy.epistemic.marked import MarkedRollout, locate_markers
from onpolicy.experiments.analysis.session import session, write_findings
from onpolicy.protocols import Generator
from onpolicy.run.check_run import training_command
from onpolicy.types import CORRECT_THRESHOLD, Prompt, Rollout, RolloutGroup, ScoredGroup
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.stats import Estimate, estimate_mean
from onpolicy.utils.tables import left, table, with_note
from onpolicy.utils.terminal import print_next

SELF_DOUBT = " Wait, maybe that is wrong. Let me double-check."
NEUTRAL = " So, then that is done. Let me continue."
PLACES = (0.25, 0.5, 0.75)
"""Where self-doubt is injected, as a fraction of the text before the final answer."""
MARGIN = 64
"""Tokens for words that are put into an answer."""
CONTROL = "neutral"
"""Lexicon of neutral words."""

_SENTENCE_END = re.compile(r"[.!?]+(?=\s)|\n+")


@dataclass(frozen=True)
class Probe:
    """One arm against another."""

    arm: str
    against: str
    problems: int
    answers: int
    """In both arms together."""
    accuracy: Estimate
    """In the arm, mean over problems."""
    difference: Estimate
    """Of accuracy, minus the other arm, problem by problem."""
    tokens: Estimate
    """Difference of the answers' lengths, in tokens."""


@dataclass(frozen=True)
class ProbedAnswer:
    """How one answer of an arm came out."""

    problem: str
    correct: bool
    tokens: int


@dataclass(frozen=True)
class PartialAnswer:
    """The beginning of an answer that is to be continued."""

    prompt: Prompt
    ids: tuple[int, ...]
    banned_first: tuple[int, ...] = ()
    """Tokens that must not come next."""


@dataclass(frozen=True)
class Prober:
    """Runs the interventions with one model."""

    generator: Generator
    scorer: Scorer
    renderer: Renderer
    lexicon: str
    """The lexicon whose markers are left out and banned."""
    window: int
    """The generator's limit on prompt and answer together, in tokens."""
    continuations: int
    """Answers sampled after each beginning."""
    seed: int

    def probe(self, prompts: Sequence[Prompt], *, injected: bool = True) -> list[Probe]:
        """All probes; one for which the model's answers offer no place is absent.

        Args:
            prompts: the problems
            injected: whether self-doubt is injected too, which takes most of the answers

        Raises:
            LexiconError: the lexicon, or the control, has no marker that is one token of the tokenizer.
            ConfigError: answers fill the window.
        """
        scored = self.scorer.score(self.generator.generate(prompts, seed=self.seed))
        answers = locate_markers(scored, [self.lexicon], self.renderer.split_thinking)
        between = self.injected(answers) if injected else ()
        return [*self.kept_or_left_out(answers), *between, *self.banned(prompts, answers)]

    def kept_or_left_out(self, answers: Sequence[MarkedRollout]) -> Iterable[Probe]:
        """At one marker of each answer, drawn at random from those before its final answer."""
        draw = random.Random(self.seed)
        kept, left_out = [], []
        for m in answers:
            spans = [s for s in m.spans[self.lexicon] if s[1] <= m.final_at]
            if spans:
                ids = m.rollout.completion_ids
                inside = TokenAlignment(self.renderer).mark(ids, [draw.choice(spans)])
                start, end = inside.index(True), len(inside) - inside[::-1].index(True)
                kept.append(PartialAnswer(m.prompt, ids[:end]))
                left_out.append(PartialAnswer(m.prompt, ids[:start], (*self._ids(self.lexicon), ids[start])))
        if kept:
            arms = self._continued({"kept": kept, "left out": left_out})
            yield compared(f"{self.lexicon} kept", arms["kept"], f"{self.lexicon} left out", arms["left out"])

    def injected(self, answers: Sequence[MarkedRollout]) -> Iterable[Probe]:
        """After the sentence that ends nearest to each place."""
        for was_correct, fate in ((False, "wrong answers"), (True, "correct answers")):
            chosen = [m for m in answers if m.correct == was_correct]
            for place in PLACES:
                cuts = [(m, cut) for m in chosen if (cut := self._sentence_end(m, place)) is not None]
                if not cuts:
                    continue
                arms = self._continued({
                    name: [PartialAnswer(m.prompt, (*m.rollout.completion_ids[:cut], *self._encoded(words))) for m, cut in cuts]
                    for name, words in (("self-doubt", SELF_DOUBT), ("neutral words", NEUTRAL), ("nothing", ""))
                })  # fmt: skip
                where = f"at {place:.0%} of {fate}"
                for other in ("neutral words", "nothing"):
                    yield compared(f"self-doubt {where}", arms["self-doubt"], other, arms[other])

    def banned(self, prompts: Sequence[Prompt], answers: Sequence[MarkedRollout]) -> Iterable[Probe]:
        """With the same seeds as the answers without a ban."""
        free = [ProbedAnswer(m.prompt.id, m.correct is True, m.tokens) for m in answers]
        for lexicon in (self.lexicon, CONTROL):
            ids = self._ids(lexicon)
            held = self.generator.generate([replace(p, banned_token_ids=ids) for p in prompts], seed=self.seed)
            yield compared(f"{lexicon} banned", _answers_of(self.scorer.score(held)), "nothing banned", free)

    def _continued(self, arms: Mapping[str, Sequence[PartialAnswer]]) -> dict[str, list[ProbedAnswer]]:
        """Every beginning of every arm, continued ``continuations`` times and scored as a whole; all with the same token limit."""
        everything = [b for begun in arms.values() for b in begun]
        taken = max(len(self.renderer.prompt_ids(b.prompt.messages)) + len(b.ids) for b in everything)
        room = min(self.generator.sampling.max_tokens, self.window - taken)
        if room < 2:
            raise ConfigError(
                f"generator.max_tokens: {self.generator.sampling.max_tokens} leaves no tokens to continue an answer: prompt and answer "
                f"take {taken} tokens of a window of {self.window}; lower it"
            )
        return {name: self._answers(begun, room) for name, begun in arms.items()}

    def _answers(self, begun: Sequence[PartialAnswer], room: int) -> list[ProbedAnswer]:
        """The first token by itself, since a ban may hold for it alone."""
        sampling = replace(self.generator.sampling, group_size=self.continuations, max_tokens=1)
        asked = [
            replace(b.prompt, id=f"{b.prompt.id}/{i}", completion_prefix_ids=b.ids, banned_token_ids=b.banned_first)
            for i, b in enumerate(begun)
        ]
        groups = self.generator.generate(asked, seed=self.seed, sampling=sampling)
        heads = [(b.prompt, b.ids, r) for b, g in zip(begun, groups, strict=True) for r in g.rollouts]
        asked = [
            replace(prompt, id=f"{prompt.id}/{i}", completion_prefix_ids=(*ids, *head.completion_ids))
            for i, (prompt, ids, head) in enumerate(heads)
            if head.finish_reason == "length"
        ]
        sampling = replace(sampling, group_size=1, max_tokens=room - 1)
        tails = iter(self.generator.generate(asked, seed=self.seed, sampling=sampling) if asked else ())
        wholes = [
            RolloutGroup(
                prompt=prompt,
                rollouts=(self._joined(ids, head, *(next(tails).rollouts if head.finish_reason == "length" else ())),),
            )
            for prompt, ids, head in heads
        ]
        return _answers_of(self.scorer.score(wholes))

    def _joined(self, ids: tuple[int, ...], *parts: Rollout) -> Rollout:
        """A beginning and what was sampled after it, as one answer."""
        whole = ids + tuple(i for part in parts for i in part.completion_ids)
        return replace(
            parts[-1],
            completion_ids=whole,
            rollout_logprobs=(0.0,) * len(whole),
            text=self.renderer.completion_text(whole),
        )

    def _sentence_end(self, m: MarkedRollout, place: float) -> int | None:
        """Tokens up to the end of the sentence that ends nearest to a fraction of the text before the final answer."""
        ends = [e.end() for e in _SENTENCE_END.finditer(m.text) if e.end() <= m.final_at]
        if not ends:
            return None
        end = min(ends, key=lambda e: abs(e - place * m.final_at))
        inside = TokenAlignment(self.renderer).mark(m.rollout.completion_ids, [(0, end)])
        return len(inside) - inside[::-1].index(True)

    def _encoded(self, text: str) -> list[int]:
        return list(self.renderer.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def _ids(self, lexicon: str) -> tuple[int, ...]:
        return tuple(marker_ids(self.renderer.tokenizer, lexicon))


def compared(arm: str, answers: Sequence[ProbedAnswer], against: str, others: Sequence[ProbedAnswer]) -> Probe:
    """Means over problems; both arms have answers to the same ones."""
    one, other = _by_problem(answers), _by_problem(others)
    assert one.keys() == other.keys()
    accuracy = {p: fmean(a.correct for a in found) for p, found in one.items()}
    length = {p: fmean(a.tokens for a in found) for p, found in one.items()}
    return Probe(
        arm=arm,
        against=against,
        problems=len(one),
        answers=len(answers) + len(others),
        accuracy=estimate_mean(list(accuracy.values())),
        difference=estimate_mean([accuracy[p] - fmean(a.correct for a in found) for p, found in other.items()]),
        tokens=estimate_mean([length[p] - fmean(a.tokens for a in found) for p, found in other.items()]),
    )


def _answers_of(scored: Sequence[ScoredGroup]) -> list[ProbedAnswer]:
    return [
        ProbedAnswer(g.group.prompt.id, score >= CORRECT_THRESHOLD, r.num_sampled)
        for g in scored
        for r, score in zip(g.group.rollouts, g.scores, strict=True)
    ]


def _by_problem(answers: Sequence[ProbedAnswer]) -> dict[str, list[ProbedAnswer]]:
    found: dict[str, list[ProbedAnswer]] = {}
    for answer in answers:
        found.setdefault(answer.problem, []).append(answer)
    return found


def analyze_probes(
    config_path: Path, overrides: Sequence[str], output: Path | None, problems: int, continuations: int
) -> int:
    """Leaves out, injects and bans markers in the model's own answers and prints what each does to accuracy.

    Raises:
        ConfigError: the config has no reward.
        LexiconError: the lexicon has no marker that is one token of the model's tokenizer.
    """
    resolved = resolve(load(config_path, overrides))
    if not resolved.rewards:
        raise ConfigError("analyze probes: expected a reward that says which answers are correct; got no rewards")
    with session(resolved, room=resolved.generator.settings.max_tokens + MARGIN) as s:
        prober = Prober(
            generator=s.generator,
            scorer=s.scorer,
            renderer=s.model.renderer,
            lexicon=resolved.config.epistemic.lexicon,
            window=s.model.max_model_len,
            continuations=continuations,
            seed=resolved.config.seed,
        )
        found = prober.probe(s.prompts[:problems])
    Console().print(probes_table(found))
    write_findings(output, config_path, overrides, probes=[asdict(p) for p in found])
    print_next(training_command(config_path, overrides))
    return 0


def probes_table(probes: Sequence[Probe]) -> Table:
    return table(
        "what epistemic markers do to the model's own answers; differences by problem, below them the 95 % bootstrap interval",
        ["arm", left("against"), "problems\nanswers", "accuracy", "difference", "tokens"],
        (
            (
                p.arm,
                p.against,
                with_note(str(p.problems), str(p.answers)),
                f"{p.accuracy.mean:.3f}",
                *(with_note(f"{d.mean:+.3g}", f"{d.low:+.2g} to {d.high:+.2g}") for d in (p.difference, p.tokens)),
            )
            for p in probes
        ),
        lines=True,
    )
