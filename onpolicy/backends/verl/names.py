"""Names that more than one process has to know."""

VENDOR = "onpolicy"
"""Under which verl finds our engine."""
MODE = "onpolicy"
"""``trainer.v1.trainer_mode``; of verl's asynchronous trainers with the mixin, followed by their own mode."""
COEFFICIENTS = "onpolicy_coefficients"
"""With a batch: the scheduled numbers as they are in this step."""
