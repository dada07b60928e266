"""Reward functions: plain functions that import nothing of the framework.

A reward is a function whose positional parameters name what it reads (``base``), so reward functions
written for verl and for TRL work as they are.
"""

BUILTIN: dict[str, str] = {
    "math_answer": "onpolicy.rewards.answer:math_answer",
    "exact_answer": "onpolicy.rewards.answer:exact_answer",
    "choice_answer": "onpolicy.rewards.choices:choice_answer",
    "paper_train_answer": "onpolicy.rewards.paper:paper_train_answer",
    "paper_eval_answer": "onpolicy.rewards.paper:paper_eval_answer",
    "gym_answer": "onpolicy.rewards.gym:gym_answer",
    "code_tests": "onpolicy.rewards.code.grading:code_tests",
    "environment": "onpolicy.rewards.environment:environment",
    "boxed_format": "onpolicy.rewards.format:boxed_format",
    "thinking_format": "onpolicy.rewards.format:thinking_format",
    "tagged_format": "onpolicy.rewards.format:tagged_format",
    "density": "onpolicy.rewards.uncertainty:density",
    "saturating_floor": "onpolicy.rewards.uncertainty:saturating_floor",
    "target_rate": "onpolicy.rewards.uncertainty:target_rate",
    "recovery": "onpolicy.rewards.uncertainty:recovery",
    "repetition": "onpolicy.rewards.uncertainty:repetition",
    "brier": "onpolicy.rewards.calibration:brier",
    "brevity": "onpolicy.rewards.length:brevity",
    "overlong": "onpolicy.rewards.length:overlong",
}
"""Name -> ``module:function``."""
