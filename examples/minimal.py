"""The whole of on-policy self-distillation from Python: your rows, your reward, a run, its numbers.

    python examples/minimal.py [FOLDER]

Needs nothing but this package: the student is the lab's reasoner, a model of a million parameters. About a minute on two cores.
"""

import sys
from pathlib import Path

import onpolicy

ROWS = [  # which two of the numbers add up to the last one?
    {"prompt": "add 3 5 8 11 to 16 :", "answer": "5 + 11", "solution": "so #### 5 + 11"},
    {"prompt": "add 2 3 7 10 to 12 :", "answer": "2 + 10", "solution": "so #### 2 + 10"},
    {"prompt": "add 1 4 6 11 to 10 :", "answer": "4 + 6", "solution": "so #### 4 + 6"},
    {"prompt": "add 1 6 8 12 to 14 :", "answer": "6 + 8", "solution": "so #### 6 + 8"},
]

CONFIG = {
    "model": {"path": "lab-reasoner"},
    "generator": {"name": "transformers", "group_size": 4, "max_tokens": 48},
    "contexts": {  # what the teacher sees and the student does not
        "teacher": {"name": "reference_solution", "template": "{question} hint {solution}"},
    },
    "objective": [
        {"name": "distill", "divergence": "reverse_kl"},  # towards the teacher
        {"name": "policy_gradient", "weight": 0.5},  # GRPO on the reward, in the same loss
    ],
    "trainer": {"lr": 1e-4},
    "data": {"prompts_per_step": 2},
    "steps": 3,
}


def correct(completion: str, answer: str) -> float:
    """1 where the answer follows the mark ####."""
    return float(completion.rpartition("####")[2].strip() == answer)


def main(folder: Path) -> None:
    result = onpolicy.train(CONFIG, [f"run_dir={folder}"], data=ROWS, rewards=[correct])
    print(f"{result.step} steps in {result.folder}; the model is in {result.model_path}")
    for name in ("reward/mean", "distill/divergence", "rollout/completion_length/mean"):
        print(f"{name:32} first {result.first[name]:8.3f}   last {result.metrics[name]:8.3f}")
    onpolicy.report([result.folder], folder / "report.html")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/minimal"))
