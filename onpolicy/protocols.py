"""The interfaces: what a generator, a context and a trainer must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from onpolicy.types import (
    ContextCoroutine,
    EnvironmentOutcome,
    Example,
    FinishReason,
    Message,
    Metrics,
    Prompt,
    RolloutGroup,
    Sampling,
)

if TYPE_CHECKING:
    from torch import Tensor


OnGroup = Callable[[int, RolloutGroup], None]
"""Called with a prompt's place in a call of ``generate`` and its group as soon as that is whole, on the thread that called."""


def ignore_group(place: int, group: RolloutGroup) -> None:
    """Nobody wants a group before all are there."""


@dataclass(frozen=True)
class AdapterShape:
    """The student's low-rank adapters, as a generator has to know them that is given them apart from the weights that they are added to."""

    rank: int
    targets: tuple[str, ...]
    """Last parts of the names of the layers that have one."""


@dataclass(frozen=True, slots=True)
class SampledReply:
    """One turn of the student in a conversation with an environment."""

    text: str
    """Without special tokens; with the opening of its thinking, where that stands in the prompt."""
    ids: tuple[int, ...]
    """The tokens that it sampled."""
    finish_reason: FinishReason


class Sampler(Protocol):
    """Where the answers of a step come from: a generator, or what a dataset has recorded."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        sampling: Sampling | None = None,
        on_group: OnGroup = ignore_group,
    ) -> list[RolloutGroup]: ...


class Weights(Protocol):
    """The student's weights as they are now. Each tensor is made when it is its turn, and may be gone when the next one is there."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """All of them: full tensors under their Hugging Face names, adapters merged in."""
        ...

    def adapter(self) -> Iterable[tuple[str, Tensor]]:
        """Its adapters alone, under peft's names: ``base_model.model.<layer>.lora_A.weight`` ``[rank, in]`` and ``....lora_B.weight``
        ``[out, rank]``, which is scaled, so that the layer's matrix is that of the model in ``model.path`` and B A. Nothing where it has
        none."""
        ...


class Generator(Protocol):
    """Samples from the student. ``generate`` may be called by several threads at once, and ``update_weights`` meanwhile."""

    sampling: Sampling
    """How it samples unless told otherwise."""
    policy_version: int
    """Version of the weights now in the engine; every rollout carries that of its oldest token."""
    on_progress: Callable[[int, int, int], None]
    """Called with (rollouts finished, rollouts expected, tokens sampled so far) while generating, for each token at least: silence means
    that it hangs."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        sampling: Sampling | None = None,
        on_group: OnGroup = ignore_group,
    ) -> list[RolloutGroup]:
        """Samples ``group_size`` rollouts of each prompt, in the order given; ``sampling`` replaces the one it was made with.

        ``seed`` decides every token: rollout ``j`` of prompt ``i`` has its own seed derived from it, so the same call
        with the same weights gives the same rollouts whatever else is in the batch. Where the weights change meanwhile, a
        rollout may go on with the new ones if its ``token_versions`` say so. ``on_group`` is told of every group, once, before
        this returns.
        """
        ...

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Loads full tensors under their Hugging Face names and drops every cache made with the old ones.

        Does not wait for rollouts that are being sampled to end, beyond a batch. A generator that was made with an ``adapter`` loads
        ``weights.adapter()`` in their place, where ``weights`` are a trainer's (``Weights``).
        """
        ...

    def rest(self) -> None:
        """The trainer works next: what the generator holds of a device that both share it may give back. Whoever samples, or brings new
        weights, ends that."""
        ...

    def reset_version(self) -> None:
        """The run goes back: what is under way is of no use, and the next weights may be older than those in use."""
        ...

    def close(self) -> None:
        """Frees what it holds; calls of ``generate`` that are under way end with an error."""
        ...


class Student(Protocol):
    """The student, as an environment talks to it."""

    async def reply(self, messages: Sequence[Message], read: Callable[[SampledReply], Message]) -> Message:
        """What it says after ``messages``, the whole conversation so far, which begins with the problem's own.

        Args:
            messages: as they were in the last call, then its reply, then what the environment says to that
            read: the reply -> the message that stands for it in the next call's ``messages``

        Raises:
            NoRoomLeft: the completion is as long as it may be; the environment grades what there is.
        """
        ...


class Environment(Protocol):
    """Answers what the student says, turn after turn, and grades it."""

    async def run(self, prompt: Prompt, student: Student) -> EnvironmentOutcome:
        """One rollout of a problem. Many run in one event loop; what it raises costs this rollout."""
        ...


class ContextBuilder(Protocol):
    """What the teacher reads instead of the student's messages; None where this rollout has no teacher.

    One that needs more than its group is a generator function and asks for it (``onpolicy.types.ContextCoroutine``).
    """

    def __call__(
        self, group: RolloutGroup, index: int, rewards: Sequence[float]
    ) -> tuple[Message, ...] | ContextCoroutine | None: ...


class Trainer(Protocol):
    """Owns the student's and the teacher's weights, and the optimizer."""

    def step(self, examples: Sequence[Example]) -> Metrics:
        """Scores, computes the loss, updates the student, then the teacher."""
        ...

    def weights(self) -> Weights: ...

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(trainer, *arguments)`` where the weights are; the function is one of a module, its arguments can be pickled."""
        ...

    def restart(self) -> None:
        """After ``RoleLost``: the ranks anew, with the reference model. A trainer in the driver's process is never lost."""
        ...

    def freeze_teacher(self) -> None:
        """From now on the teacher stays as it is; one that is the student itself cannot."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside what ``save`` writes: few plain values."""
        ...

    def save(self, folder: Path) -> Callable[[], None]:
        """Writes everything else that a resumed run needs, and the student as a Hugging Face folder, to a folder that exists.

        What is returned writes the rest, where the trainer has copied it: on any thread, while training goes on.

        Raises:
            OSError: it could not be written.
        """
        ...

    def load_state(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Puts back what ``save`` wrote and ``state`` returned."""
        ...

    def close(self) -> None: ...
