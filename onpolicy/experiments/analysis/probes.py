"""Does expressed doubt do anything? The model's own answers, changed at one place and continued, with nothing trained.

Three interventions, each as a difference between two arms on the same problems, with a bootstrap interval over problems:

- **marker kept or left out** (forced continuation): an answer is cut at a marker of its own; one arm goes on behind the marker, the
  other goes on before it with every marker banned for one token
- **doubt injected**: an answer is cut at the end of a sentence and goes on behind words of doubt, behind as many neutral words (the
  control: any interruption may help), or as it is; apart for answers that were right and wrong by themselves, which are regressions to
  the mean where nothing is injected
- **markers banned** throughout, against as many answers without a ban; banning neutral words is the control

Where doubt has a function, leaving it out costs accuracy, injecting it mends wrong answers more than it harms right ones and more than
neutral words do, and banning it costs more than banning neutral words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from onpolicy.annotation.scoring import Scorer
from onpolicy.config.registry import ConfigError
from onpolicy.data.alignment import TokenAlignment
from onpolicy.data.rendering import Renderer
from onpolicy.epistemic.ids import marker_ids
from onpolicy.epistemic.marked import MarkedRollout, locate_markers
from onpolicy.protocols import Generator
from onpolicy.types import CORRECT_THRESHOLD, Prompt, Rollout, RolloutGroup, ScoredGroup
from onpolicy.utils.stats import Measured, measured

DOUBT = " Wait, maybe that is wrong. Let me double-check."
NEUTRAL = " So, then that is done. Let me continue."
PLACES = (0.25, 0.5, 0.75)
"""Where doubt is injected, as a share of the text before the final answer."""
CONTROL = "F"
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
    score: Measured
    """Share right in the arm, mean over problems."""
    difference: Measured
    """Less the share right in the other, problem by problem."""
    tokens: Measured
    """Difference of the answers' lengths, in tokens."""


@dataclass(frozen=True)
class Answer:
    """How one answer of an arm came out."""

    problem: str
    right: bool
    tokens: int


@dataclass(frozen=True)
class Begun:
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
    """Whose markers are left out and banned."""
    window: int
    """Tokens of prompt and answer together that the generator takes."""
    continuations: int
    """Answers sampled behind each beginning."""
    seed: int

    def __call__(self, prompts: Sequence[Prompt]) -> list[Probe]:
        """All probes; one for which the model's answers offer no place is absent.

        Raises:
            LexiconError: the lexicon, or the control, has no marker that is one token of the tokenizer.
            ConfigError: answers fill the window.
        """
        judged = self.scorer.score(self.generator.generate(prompts, seed=self.seed))
        answers = locate_markers(judged, [self.lexicon], self.renderer.split_thinking)
        return [*self.kept_or_left_out(answers), *self.injected(answers), *self.banned(prompts, answers)]

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
                kept.append(Begun(m.prompt, ids[:end]))
                left_out.append(Begun(m.prompt, ids[:start], (*self._ids(self.lexicon), ids[start])))
        if kept:
            arms = self._continued({"kept": kept, "left out": left_out})
            yield compared(f"{self.lexicon} kept", arms["kept"], f"{self.lexicon} left out", arms["left out"])

    def injected(self, answers: Sequence[MarkedRollout]) -> Iterable[Probe]:
        """Behind the sentence that ends nearest to each place."""
        for was_right, fate in ((False, "wrong answers"), (True, "right answers")):
            chosen = [m for m in answers if m.correct == was_right]
            for place in PLACES:
                cuts = [(m, cut) for m in chosen if (cut := self._sentence_end(m, place)) is not None]
                if not cuts:
                    continue
                arms = self._continued({
                    name: [Begun(m.prompt, (*m.rollout.completion_ids[:cut], *self._encoded(words))) for m, cut in cuts]
                    for name, words in (("doubt", DOUBT), ("neutral words", NEUTRAL), ("nothing", ""))
                })  # fmt: skip
                where = f"at {place:.0%} of {fate}"
                for other in ("neutral words", "nothing"):
                    yield compared(f"doubt {where}", arms["doubt"], other, arms[other])

    def banned(self, prompts: Sequence[Prompt], answers: Sequence[MarkedRollout]) -> Iterable[Probe]:
        """With the same seeds as the answers without a ban."""
        free = [Answer(m.prompt.id, m.correct, m.tokens) for m in answers]
        for lexicon in (self.lexicon, CONTROL):
            ids = self._ids(lexicon)
            held = self.generator.generate([replace(p, banned_token_ids=ids) for p in prompts], seed=self.seed)
            yield compared(f"{lexicon} banned", _answers_of(self.scorer.score(held)), "nothing banned", free)

    def _continued(self, arms: Mapping[str, Sequence[Begun]]) -> dict[str, list[Answer]]:
        """Every beginning of every arm, continued so many times and judged whole; the same room for all."""
        everything = [b for begun in arms.values() for b in begun]
        taken = max(len(self.renderer.prompt_ids(b.prompt.messages)) + len(b.ids) for b in everything)
        room = min(self.generator.sampling.max_tokens, self.window - taken)
        if room < 2:
            raise ConfigError(
                f"generator.max_tokens: {self.generator.sampling.max_tokens} leaves no room to go on behind an answer: prompt and answer "
                f"take {taken} tokens of a window of {self.window}; lower it"
            )
        return {name: self._answers(begun, room) for name, begun in arms.items()}

    def _answers(self, begun: Sequence[Begun], room: int) -> list[Answer]:
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
        """A beginning and what was sampled behind it, as one answer."""
        whole = ids + tuple(i for part in parts for i in part.completion_ids)
        return replace(
            parts[-1],
            completion_ids=whole,
            rollout_logprobs=(0.0,) * len(whole),
            text=self.renderer.completion_text(whole),
        )

    def _sentence_end(self, m: MarkedRollout, place: float) -> int | None:
        """Tokens up to the end of the sentence that ends nearest to a share of the text before the final answer."""
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


def compared(arm: str, answers: Sequence[Answer], against: str, others: Sequence[Answer]) -> Probe:
    """Means over problems; both arms have answers to the same ones."""
    one, other = _by_problem(answers), _by_problem(others)
    assert one.keys() == other.keys()
    score = {p: fmean(a.right for a in found) for p, found in one.items()}
    length = {p: fmean(a.tokens for a in found) for p, found in one.items()}
    return Probe(
        arm=arm,
        against=against,
        problems=len(one),
        answers=len(answers) + len(others),
        score=measured(list(score.values())),
        difference=measured([score[p] - fmean(a.right for a in found) for p, found in other.items()]),
        tokens=measured([length[p] - fmean(a.tokens for a in found) for p, found in other.items()]),
    )


def _answers_of(judged: Sequence[ScoredGroup]) -> list[Answer]:
    return [
        Answer(g.group.prompt.id, score >= CORRECT_THRESHOLD, r.num_sampled)
        for g in judged
        for r, score in zip(g.group.rollouts, g.scores, strict=True)
    ]


def _by_problem(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.problem, []).append(answer)
    return found
