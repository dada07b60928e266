"""Procedural problems with verifiers, from reasoning-gym."""

from __future__ import annotations

from random import Random
from typing import Any

from onpolicy.data.errors import DataError
from onpolicy.types import Prompt

STEP_BY_STEP = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}."
"""The wording of arXiv 2603.24472."""
WORKED = ("answer_cot", "solution", "expression", "goal_path")
"""Where tasks keep a worked solution, in this order."""


def gym(
    *,
    task: str = "gsm_symbolic",
    size: int = 500,
    seed: int = 42,
    templates: list[int] | None = None,
    config: dict[str, Any] | None = None,
    prompt_template: str = STEP_BY_STEP,
) -> list[Prompt]:
    """Problems of a reasoning-gym task; the reward `gym_answer` grades them. Needs no network.

    `gsm_symbolic` (grade-school word problems) carries a worked solution with each problem, and is made from 85
    templates: training on some and evaluating on others measures transfer.

    Args:
        task: name in reasoning-gym
        size: number of problems
        seed: same seed, same problems
        templates: gsm_symbolic only: first and last number of the templates used, among the 85; null: all
        config: further options of the task, as reasoning-gym names them
        prompt_template: text around a problem; `{problem}` stands for it
    """
    import reasoning_gym

    try:
        dataset = reasoning_gym.create_dataset(task, size=size, seed=seed, **(config or {}))
    except (ValueError, TypeError, AssertionError) as error:
        raise DataError(f"data: reasoning-gym cannot make {task!r}: {error}") from error
    entries = _from_templates(dataset, templates) if templates is not None else [dataset[i] for i in range(size)]
    return [_prompt(task, seed, i, entry, prompt_template) for i, entry in enumerate(entries)]


def _from_templates(dataset: Any, span: list[int]) -> list[dict[str, Any]]:
    """Entry ``i`` comes from template ``i`` of the span, round and round, with random numbers of its own."""
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok

    if not hasattr(dataset, "generators"):
        raise DataError("data.templates: only the task gsm_symbolic is made from templates")
    if len(span) != 2 or not 0 <= span[0] <= span[1] < len(tasks_ok):
        raise DataError(f"data.templates: got {span}, expected [first, last] within 0 to {len(tasks_ok) - 1}")
    chosen = tasks_ok[span[0] : span[1] + 1]
    entries = []
    for i in range(dataset.size):
        template = chosen[i % len(chosen)]
        entry = dataset.generators[template](Random(f"{dataset.seed}/{i}"), 1.0)
        entry["metadata"] = {**entry.get("metadata", {}), "template": template}
        entries.append(entry)
    return entries


def _prompt(task: str, seed: int, index: int, entry: dict[str, Any], template: str) -> Prompt:
    metadata = entry.get("metadata") or {}
    problem = template.replace("{problem}", entry["question"])
    solution = next((metadata[name] for name in WORKED if metadata.get(name)), entry.get("answer"))
    fields: dict[str, Any] = {
        "prompt": [{"role": "user", "content": problem}],
        "data_source": f"reasoning_gym/{task}",
        "gym": {"task": task, "entry": entry},
    }
    if entry.get("answer") is not None:
        fields["answer"] = str(entry["answer"])
    if solution is not None:
        fields["solution"] = solution if isinstance(solution, str) else str(solution)
    if "template" in metadata:
        fields["template"] = metadata["template"]
    messages = ({"role": "user", "content": problem},)
    return Prompt(id=f"{task}/{seed}/{index}", messages=messages, fields=fields)  # type: ignore[arg-type]
