"""The loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onpolicy.run.run import Run


def train(run: Run) -> None:
    """On-policy self-distillation, from where the run stands to its last step.

    Sample, judge, let the same model teach, update, hand the new weights to the sampler. Step ``n`` samples with the
    weights of version ``n - 1`` and leaves behind version ``n``.
    """
    for step in run.remaining_steps():
        groups, metrics = run.sample(step)
        with run.clock("annotate"):
            examples, facts = run.annotate(groups, version=step - 1)
        metrics |= facts | run.trainer.step(examples)
        with run.clock("sync"):
            run.generator.update_weights(run.trainer.weights(), version=step)
        metrics |= run.evaluate_if_due(step)
        run.log(step, metrics, examples)
        run.save_if_due(step, metrics)
