"""What an answer is worth: plain functions, and nothing of the framework.

A reward is a function whose positional parameters name what it wants to see (``rewards.base``), so reward functions
written for verl and for TRL work as they are.
"""

BUILTIN: dict[str, str] = {
    "math_answer": "rewards.answer:math_answer",
    "exact_answer": "rewards.answer:exact_answer",
    "paper_train_answer": "rewards.paper:paper_train_answer",
    "paper_eval_answer": "rewards.paper:paper_eval_answer",
    "gym_answer": "rewards.gym:gym_answer",
    "boxed_format": "rewards.format:boxed_format",
    "thinking_format": "rewards.format:thinking_format",
    "density": "rewards.doubt:density",
    "saturating_floor": "rewards.doubt:saturating_floor",
    "target_rate": "rewards.doubt:target_rate",
    "recovery": "rewards.doubt:recovery",
    "repetition": "rewards.doubt:repetition",
    "brier": "rewards.calibration:brier",
    "brevity": "rewards.length:brevity",
    "overlong": "rewards.length:overlong",
}
"""Name -> ``module:function``."""
