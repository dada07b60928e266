"""The nouns that flow through the loop, each made once and never changed.

Prompt -> RolloutGroup (of Rollout) -> ScoredGroup -> Example -> TrainBatch -> LossInputs -> TermOutput

Letters in shapes: B rows, R rows with a teacher, P prompt tokens, T completion tokens, S = P + T.
The alignment rule: after the forward pass every tensor is ``[B, T]`` over completion tokens, and index ``t`` is about
completion token ``t``. Prompts are padded on the left and completions on the right, so token ``t`` stands in column
``-T + t`` however long the prompt is, and the logits that predict it in column ``-T + t - 1``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from math import isnan, nan
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
FinishReason = Literal["stop", "length", "abort"]

CORRECT_THRESHOLD = 0.5
"""Score from which a rollout counts as correct."""
REF = "<reference model>"
"""In ``LossInputs.marker_mass``, in place of a context: the reference model on the student's prompt. A context has no such name."""
STUDENT = "<student>"
"""In ``LossInputs.marker_mass``, in place of a context: the student itself."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str
    tools: NotRequired[Sequence[Mapping[str, Any]]]
    """On the first message: the functions that the model is offered, as JSON schemas."""
    tool_calls: NotRequired[Sequence[Mapping[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    reasoning_content: NotRequired[str]
    prefix: NotRequired[bool]
    """On the assistant's message at the end: the completion continues it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem as it enters the loop.

    Example:
        ``Prompt(id="gsm/3", messages=({"role": "user", "content": "2 + 2?"},), fields={"answer": "4"})``
    """

    id: str
    """Unique within its dataset; stable from run to run."""
    messages: tuple[Message, ...]
    """What the student reads, before the chat template."""
    completion_prefix_ids: tuple[int, ...] = ()
    """First tokens of the completion that are given: rollouts continue them, and have them at the end of their ``prompt_ids``."""
    banned_token_ids: tuple[int, ...] = ()
    """Tokens that no rollout may have."""
    occurrence: int = 0
    """How often the problem came before within the step: part of its rollouts' seeds."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns under their usual names: ``answer``, ``solution``, ``problem`` (the text without the prompt's wording),
    ``data_source`` and whatever else the row holds."""
    ground_truth: object = None
    """The reference answer as it stands in the file, of whatever type; ``fields["answer"]`` is its text."""
    raw_columns: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the row that are text in ``fields`` and something else in the file, as they stand there."""
    max_tokens: int | None = None
    """Longest completion, in tokens, where it is less than ``generator.max_tokens``."""
    interactive: bool = False
    """Whether the configured environment answers what is sampled, turn after turn; else a rollout is one turn."""


@dataclass
class Sampling:
    """Sampling of one step; ``generator.<field>`` in the config."""

    group_size: int = field(default=8, metadata={"help": "rollouts per prompt"})
    max_tokens: int = field(default=256, metadata={"help": "longest completion, in tokens"})
    temperature: float = field(default=1.0, metadata={"help": "0: greedy"})
    top_p: float = field(default=1.0, metadata={"help": "nucleus; 1: off"})
    top_k: int = field(default=0, metadata={"help": "likeliest tokens to draw from; 0: off"})
    max_staleness: int = field(
        default=0,
        metadata={
            "help": "how many versions older than the weights being trained those may be that sampled a token: rollouts of "
            "so many steps to come are sampled while this one is trained (`importance_cap` of the terms corrects for it); "
            "pays where the generator has a device of its own; 0: on-policy"
        },
    )

    def __post_init__(self) -> None:
        checks = {
            "group_size": (self.group_size, self.group_size >= 1, "at least 1"),
            "max_tokens": (self.max_tokens, self.max_tokens >= 1, "at least 1"),
            "temperature": (self.temperature, 0 <= self.temperature < float("inf"), "a finite number, 0 or more"),
            "top_p": (self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k, self.top_k >= 0, "0 or more"),
            "max_staleness": (self.max_staleness, self.max_staleness >= 0, "0 or more"),
        }
        for name, (value, fine, expected) in checks.items():
            if not fine:
                raise ValueError(f"generator.{name}: got {value}, expected {expected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentOutcome:
    """What an environment says of a rollout at its end."""

    reward: float | None = None
    """None: it did not grade the rollout."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What else it measured, by name."""
    feedback: str = ""
    """What it has to say about the rollout, for a teacher to read."""
    failure: str = ""
    """Why the rollout is neither graded nor trained on: the environment raised, hung, or answered with no text."""
    turns: int = 1
    """How often the policy was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled answer, or one conversation with an environment.

    A conversation is one completion, in which replies are sampled and what the environment says is observed. Where the chat template
    writes the turns before in another way (without their thinking, say) a new segment begins: the rollout is the last of them.

    Example:
        prompt ``[1, 15, 9]`` and the sampled ``[7, 4, 2]`` with ``2`` the end of the turn give
        ``Rollout(prompt_ids=(1, 15, 9), completion_ids=(7, 4, 2), rollout_logprobs=(-.1, -.9, -.2), text="four",
        finish_reason="stop", policy_version=0)``: the end token is sampled, hence trained and counted.
    """

    prompt_ids: tuple[int, ...]
    """[P] what the student read."""
    completion_ids: tuple[int, ...]
    """[T] what follows the prompt: tokens that were sampled, ends of turns included, and those that an environment answered."""
    rollout_logprobs: tuple[float, ...]
    """[T] log-probabilities as the *generator* reports them, in nats, before temperature; entries of observed tokens are not read."""
    text: str
    """The sampled tokens decoded without special tokens."""
    finish_reason: FinishReason
    """``stop``: ended by itself; ``length``: cut at ``generator.max_tokens``; ``abort``: the engine gave up."""
    policy_version: int
    """Optimizer step whose weights sampled this, its oldest token if they changed meanwhile; the loop refuses any that
    is more than ``generator.max_staleness`` behind the current one."""
    token_versions: tuple[int, ...] = ()
    """[T] by token; empty: all were sampled by ``policy_version``."""
    sampled_mask: tuple[bool, ...] = ()
    """[T] which completion tokens the policy sampled; empty: all. Observed ones are context: neither trained nor counted nor scored."""
    history: tuple[Message, ...] = ()
    """What the prompt holds of the conversation besides the problem's messages: the turns of the segments before this one."""
    earlier: tuple[Rollout, ...] = ()
    """The segments before this one, in order."""
    outcome: EnvironmentOutcome | None = None
    """Of the whole conversation; None where no environment took part."""
    final: str | None = field(default=None, compare=False)
    """What follows the thinking in ``text``, or in its last turn; empty where the thinking never ended, None before it is scored."""
    feedback: str | None = field(default=None, compare=False)
    """What its rewards said besides a number, e.g. which test failed; None: nothing. ``outcome`` has the environment's."""

    def __post_init__(self) -> None:
        for name in ("rollout_logprobs", "token_versions", "sampled_mask"):
            given = len(getattr(self, name))
            if given != len(self.completion_ids) and (given or name == "rollout_logprobs"):
                raise ValueError(f"a rollout has {len(self.completion_ids)} completion tokens but {given} {name}")
        oldest = min(self.select_sampled(self.token_versions), default=self.policy_version)
        if oldest != self.policy_version:
            raise ValueError(f"a rollout's policy_version is {self.policy_version}, but its oldest token's is {oldest}")

    @property
    def segments(self) -> tuple[Rollout, ...]:
        """Those before this one, and this one; each is a row of its own in the loss."""
        return (*self.earlier, self)

    @property
    def whole_text(self) -> str:
        """What the policy wrote in all segments."""
        return "".join(segment.text for segment in self.segments)

    @property
    def num_written(self) -> int:
        """How many tokens the policy sampled in all segments."""
        return sum(segment.num_sampled for segment in self.segments)

    @property
    def failed(self) -> bool:
        """Whether its environment failed, so that it is neither graded nor trained on."""
        return self.outcome is not None and bool(self.outcome.failure)

    @property
    def sampled_ids(self) -> tuple[int, ...]:
        """The completion tokens that the policy sampled, in order; all of ``completion_ids`` where nothing was observed."""
        return self.select_sampled(self.completion_ids)

    @property
    def answer_text(self) -> str:
        """Where its answer stands: ``final``, or the whole text where nobody has told the thinking apart."""
        return self.text if self.final is None else self.final

    @property
    def num_sampled(self) -> int:
        """How many tokens the policy sampled: the length of what it wrote."""
        return sum(self.sampled_mask) if self.sampled_mask else len(self.completion_ids)

    def select_sampled(self, values: Sequence[T]) -> tuple[T, ...]:
        """The sampled tokens' entries of ``values``, which has one for each completion token."""
        return tuple(compress(values, self.sampled_mask)) if self.sampled_mask else tuple(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """All rollouts of one prompt in one step; siblings of each other."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]


RewardBreakdown = Mapping[str, float]
"""By reward, unweighted; one that does not apply to this sample is absent. What a reward logs stands under ``<reward>/<name>``."""


@dataclass(frozen=True)
class RolloutReward:
    """One rollout's rewards."""

    normalised_reward: float
    """Weighted sum of the rewards that ``credit`` normalises into advantages."""
    bonus: float
    """Weighted sum of the rewards that are added to the advantage after ``credit``."""
    reward_breakdown: RewardBreakdown
    correctness: float = 0.0
    """The part of ``normalised_reward`` that the reward which decides correctness earns."""

    @property
    def total(self) -> float:
        return self.normalised_reward + self.bonus


@dataclass(frozen=True)
class ScoredGroup:
    """A group whose rollouts have been scored."""

    group: RolloutGroup
    rewards: tuple[RolloutReward, ...]
    scores: tuple[float, ...]
    """By rollout, what decides whether it is correct: the unweighted reward named by ``correctness``, or the total without one. NaN where
    that reward gave None, which is not graded: neither correct nor wrong, as every comparison with NaN is false."""
    texts: tuple[Any, ...] | None = field(default=None, compare=False, repr=False)
    """By rollout, what was read off its text while others were sampled (``annotation.reading.ReadText``); None: it has not been read."""

    @property
    def correct(self) -> tuple[bool, ...]:
        """By rollout, whether it is correct."""
        return tuple(score >= CORRECT_THRESHOLD for score in self.scores)

    @property
    def graded(self) -> tuple[bool, ...]:
        """By rollout, whether it was graded."""
        return tuple(not isnan(score) for score in self.scores)

    @property
    def pass_rate(self) -> float:
        """Share of its graded rollouts that are correct; NaN without any."""
        return sum(self.correct) / sum(self.graded) if any(self.graded) else nan

    @property
    def mixed(self) -> bool:
        """Whether some of its rollouts are correct and some are wrong."""
        return 0 < sum(self.correct) < sum(self.graded)


@dataclass(frozen=True)
class AskModel:
    """A conversation for the student itself to continue; the reply is a ``tuple[Reply, ...]``."""

    messages: tuple[Message, ...]
    samples: int = 1


@dataclass(frozen=True)
class Reply:
    """One answer of the student to ``AskModel``."""

    text: str
    score: float
    """The score of the text as a rollout of the problem (``ScoredGroup.scores``)."""
    final: str = ""
    """The part of the text after its thinking."""


@dataclass(frozen=True)
class SampleProblem:
    """Another problem of the dataset, the same one for all rollouts of a problem within a step; the reply is a ``Prompt``."""


ContextCoroutine = Generator[AskModel | SampleProblem, object, tuple[Message, ...] | None]
"""What a context returns that needs more than its group: a generator function's object, which yields a request and is sent the reply,
as often as it likes, and returns the messages. Equal requests of one step are answered once; all of a step go to the generator together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A rollout with everything that was decided about it, before it becomes tensors."""

    rollout: Rollout
    prompt: Prompt
    group_id: int
    """Index of the group within its step."""
    reward: float | None
    """Weighted sum of ``reward_breakdown``; None where it was not graded."""
    reward_breakdown: RewardBreakdown
    advantage: float
    """From ``credit``; the same for each token of the completion; 0 where it was not graded."""
    teacher_prompt_ids: Mapping[str, tuple[int, ...]]
    """Per context the privileged prompt ``[P']``. A context that has nothing to show for this rollout is absent."""
    routes: Mapping[str, float] = field(default_factory=dict)
    """Per loss term how much of this rollout goes to it: 0 none, 1 all of it. An absent term takes all."""
    spans: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    """Per name under ``spans`` which completion tokens ``[T]`` lie inside; never an observed one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """One micro-batch as tensors."""

    examples: tuple[Example, ...]
    """The B rollouts."""
    completion_ids: Tensor
    """[B, T] int64; 0 on padding."""
    sampled_mask: Tensor
    """[B, T] bool; tokens the policy sampled: neither padding nor observed."""
    rollout_logprobs: Tensor
    """[B, T] float32; 0 where not sampled."""
    advantages: Tensor
    """[B, T] float32; 0 where not sampled."""
    context_masks: Mapping[str, Tensor]
    """[B, T] bool by context; the ``teacher_mask``: sampled tokens whose rollout has a context in this context."""
    routes: Mapping[str, Tensor] = field(default_factory=dict)
    """[B] float32 by loss term."""
    spans: Mapping[str, Tensor] = field(default_factory=dict)
    """[B, T] bool by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherScores:
    """What one teacher context says about the sampled tokens; never carries gradient."""

    logprobs: Tensor
    """[B, T] of the sampled token."""
    entropy: Tensor
    """[B, T] in nats, over the whole vocabulary."""
    mask: Tensor
    """[B, T] bool; the context's ``teacher_mask``."""


def this_batch(values: Tensor) -> Tensor:
    """The values themselves: the micro-batch is the whole update."""
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """All a loss term may look at. Everything is ``[B, T]``; only ``logprobs`` and ``divergences`` carry gradient.

    Where ``sampled_mask`` is False (padding, observed tokens) there is nothing to see: log-probabilities and divergences are 0.
    """

    logprobs: Tensor
    """Current student, sampled token."""
    entropy: Tensor
    """Current student, in nats, detached."""
    old_logprobs: Tensor
    """The trainer's own at the start of the step, detached."""
    rollout_logprobs: Tensor
    """The generator's."""
    ref_logprobs: Tensor | None
    """The reference model's on the student's prompt, detached; None unless something declares ``reads_ref``."""
    advantages: Tensor
    sampled_mask: Tensor
    """bool; the tokens that the policy sampled."""
    teacher: Mapping[str, TeacherScores]
    """By context."""
    divergences: Mapping[Any, Tensor]
    """By ``Comparison`` (onpolicy.losses.comparison); computed over the vocabulary in chunks."""
    ref_entropy: Tensor | None = None
    """The reference model's, in nats, detached; as ``ref_logprobs``."""
    marker_mass: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    """(context, ``<student>`` or ``<reference model>``; lexicon) -> log of the probability of the lexicon's markers, detached."""
    routes: Mapping[str, Tensor] = field(default_factory=dict)
    """[B] by loss term."""
    spans: Mapping[str, Tensor] = field(default_factory=dict)
    """[B, T] bool by name."""
    tempered: Mapping[float, LossInputs] = field(default_factory=dict)
    """By temperature other than 1 that a term asks for: the same, from logits divided by it; marker mass and the sampler's stay at 1."""
    tokens: Tensor | None = None
    """[B, T] bool: those of the term that is being computed; None outside of an objective."""
    over_update: Callable[[Tensor], Tensor] = this_batch
    """[n] numbers of this micro-batch -> those of the whole optimizer update, in no order; for functions that declare ``reads_update``
    (onpolicy.losses.update_values). By default this micro-batch is the whole update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TermOutput:
    """A loss term's answer. It does not mask, sum or divide: the framework does."""

    per_token: Tensor
    """[B, T] loss of each token."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """[B, T] each; averaged over the term's tokens and logged under the term's name."""


Metrics = dict[str, float]
"""``stage/what`` -> number, one flat dictionary a step."""
