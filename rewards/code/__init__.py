"""Code as the answer: a program that a model wrote is run on tests, where it can do no harm.

    from rewards.code import code_tests        # or compute_score, as verl calls it: custom_reward_function.path=pkg://onpolicy.rewards.code
    code_tests("```python\\nprint(int(input()) ** 2)\\n```", {"input_output": {"inputs": ["3\\n"], "outputs": ["9\\n"]}})

``sandbox`` runs programs, ``problems`` reads the tests of a dataset's row, ``grading`` brings them together.
"""

from .grading import code_tests, compute_score, extract_program, grade
from .problems import CodeProblem, problem_of, shape_of
from .sandbox import Limits, Outcome, SandboxUnavailable, mechanism, run_tests

__all__ = [
    "CodeProblem",
    "Limits",
    "Outcome",
    "SandboxUnavailable",
    "code_tests",
    "compute_score",
    "extract_program",
    "grade",
    "mechanism",
    "problem_of",
    "run_tests",
    "shape_of",
]
