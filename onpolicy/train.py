"""The loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onpolicy.run.run import Run


def train(run: Run) -> None:
    """On-policy self-distillation, from where the run stands to its last step.

    Sample and score rollouts, build what the teacher reads, update the student, hand the new weights to the generator. Step
    ``n`` samples with the weights of version ``n - 1`` and ends with version ``n``.
    """
    for step in run.remaining_steps():
        groups, metrics = run.sampler.sample(step)
        with run.timer.phase("annotate"):
            examples, facts = run.annotator.annotate(groups, version=step - 1)
        metrics |= facts | run.trainer.step(examples)
        with run.timer.phase("sync"):
            run.generator.update_weights(run.trainer.weights(), version=step)
        metrics |= run.evaluate_if_due(step)
        run.finish_step(step, metrics, examples)
        run.save_if_due(step, metrics)
