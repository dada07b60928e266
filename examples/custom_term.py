"""A loss term: LossInputs -> one number per token; the framework masks, sums and divides."""

from onpolicy.losses.terms.base import loss_term
from onpolicy.types import TermOutput


@loss_term(tokens="teacher_mask")
def confident_only(inputs, *, context: str = "teacher", max_entropy: float = 1.0):
    """Follow the teacher on the sampled token, but only where the teacher is sure.

    Args:
        context: the context under which the teacher reads
        max_entropy: nats; where the teacher's entropy is higher it is ignored
    """
    teacher = inputs.teacher[context]
    sure = (teacher.entropy < max_entropy).float()
    gap = (teacher.logprobs - inputs.logprobs).detach()
    return TermOutput(per_token=-sure * gap * inputs.logprobs, metrics={"share_sure": sure})
