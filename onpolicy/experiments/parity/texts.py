"""Prompts, removal of thinking, warm-up and graders of arXiv 2603.24472's code: ours beside its own, from the golden texts.

Each case goes through a shipped config: the student's message through the data source, the teacher's through the context.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onpolicy.annotation.scoring import with_feedback
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data import load_prompts
from onpolicy.experiments.parity.fixtures import golden_folder, text_cases
from onpolicy.experiments.parity.update import config_of
from onpolicy.rewards.paper import paper_eval_answer, paper_train_answer
from onpolicy.trainer.learning_rate import lr_factor
from onpolicy.types import Message, Prompt, Rollout, RolloutGroup

CONFIGS = {"solution": "sdpo", "solution_without_thinking": "sdpo_no_think"}
"""Variant of the teacher's prompt in the golden texts -> the config that has to write it."""
WITH_FEEDBACK = "sdpo_feedback"
"""The config that has to write the prompt with feedback, where no attempt of the group succeeded."""
WARMED_UP = ("sdpo", "sdpo_no_think", "sdpo_ema", "grpo_paper", "paper/math")
"""Configs whose warm-up has to be the published one."""
MARK = "\x01"


@dataclass(frozen=True)
class TextFinding:
    """What comparing one case found."""

    case: str
    equal: bool
    difference: str = ""
    """Ours and theirs around the first place where they differ; empty where they are equal."""


def compare_texts(kind: str, folder: Path | None = None) -> list[TextFinding]:
    """Every case of one kind of golden texts.

    Args:
        kind: one of ``KINDS``
        folder: of the cases; None: ``golden_folder()``
    """
    return list(KINDS[kind](text_cases(kind, folder or golden_folder())))


def prompts(data: Mapping[str, Any]) -> Iterator[TextFinding]:
    """The student's message, and the teacher's for every attempt of a group: with thinking, without, and with feedback."""
    for case in data["cases"]:
        name = f"prompts/{case['name']}"
        yield _finding(f"{name}_student", student_message(case["problem"]), case["out_student"])
        group, rewards = _group(case), case["rewards"]
        for variant, config in CONFIGS.items():
            for i, theirs in enumerate(case[f"out_{variant}"]):
                yield _finding(f"{name}_{variant}_{i}", _plain(_context(config)(group, i, rewards)), theirs)
        for i, theirs in enumerate(case["out_feedback"]):
            if theirs is not None:
                told, failed = with_feedback(group, [case["feedback"]] * len(rewards)), [0.0] * len(rewards)
                yield _finding(f"{name}_feedback_{i}", _plain(_context(WITH_FEEDBACK)(told, i, failed)), theirs)


def student_message(problem: str, config: str = "sdpo") -> str:
    """What the student reads of a problem that stands in a file as plain text."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "problem.jsonl"
        file.write_text(json.dumps({"problem": problem}) + "\n", encoding="utf-8")
        options = _config(config).data.plugin.options
        (prompt,) = load_prompts(file, prompt_template=options["prompt_template"])
    return prompt.messages[-1]["content"]


def thinking(data: Mapping[str, Any]) -> Iterator[TextFinding]:
    """What is left of a sibling's text when its thinking is taken out."""

    def shown(text: str) -> str:
        prompt = Prompt(id="p", messages=({"role": "user", "content": "Q"},))
        group = RolloutGroup(prompt=prompt, rollouts=(_rollout("x"), _rollout(text)))
        messages = _context("sdpo_no_think")(group, 0, [0.0, 1.0])
        assert messages is not None
        return messages[-1]["content"]

    before, after = shown(MARK).split(MARK)
    for case in data["cases"]:
        ours = shown(case["text"]).removeprefix(before).removesuffix(after)
        yield _finding(f"thinking/{case['name']}", ours, case["out"])


def warmup(data: Mapping[str, Any]) -> Iterator[TextFinding]:
    """Fractions of the peak learning rate at the first steps."""
    for config in WARMED_UP if "out_factor" in data else ():
        factor = lr_factor(_config(config).trainer.settings, data["steps"])
        ours = [factor(step) for step in range(len(data["out_factor"]))]
        same = all(abs(a - b) < 1e-9 for a, b in zip(ours, data["out_factor"], strict=True))
        yield TextFinding(f"lr_warmup/{config}", same, "" if same else f"{ours}, published {data['out_factor']}")


def graded(name: str, grade: Callable[[str, str], bool], data: Mapping[str, Any]) -> Iterator[TextFinding]:
    """A grader's verdicts, numbered within each form of answer."""
    seen: dict[str, int] = {}
    for case in data["cases"]:
        number = seen[case["form"]] = seen.get(case["form"], -1) + 1
        ours = grade(case["completion"], case["gold"])
        said = f"gold {case['gold']!r}, completion …{case['completion'][-60:]!r}: {ours}, published {case['out']}"
        yield TextFinding(f"{name}/{case['form']} {number}", ours == case["out"], "" if ours == case["out"] else said)


KINDS: dict[str, Callable[[Mapping[str, Any]], Iterator[TextFinding]]] = {
    "prompts": prompts,
    "thinking": thinking,
    "lr_warmup": warmup,
    "train_grader": partial(graded, "train_grader", paper_train_answer),
    "eval_grader": partial(graded, "eval_grader", paper_eval_answer),
}
"""Name of a file under golden/texts -> how its cases are compared."""


def _finding(case: str, ours: Any, theirs: Any) -> TextFinding:
    if ours == theirs:
        return TextFinding(case, True)
    if ours is None or theirs is None:
        return TextFinding(case, False, f"no context {'here' if ours is None else 'in the published code'}")
    one, other = (text if isinstance(text, str) else json.dumps(text, ensure_ascii=False) for text in (ours, theirs))
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    around = slice(max(at - 10, 0), at + 20)
    return TextFinding(case, False, f"at {at}: {one[around]!r}, published {other[around]!r}")


@cache
def _config(name: str) -> ResolvedConfig:
    return config_of(name, {})


def _context(config: str) -> Callable[[RolloutGroup, int, Sequence[float]], tuple[Message, ...] | None]:
    bound: Callable[[RolloutGroup, int, Sequence[float]], tuple[Message, ...] | None] = (
        _config(config).contexts["teacher"].bind()
    )
    return bound


def _group(case: Mapping[str, Any]) -> RolloutGroup:
    messages = (*case["earlier_messages"], {"role": "user", "content": student_message(case["problem"])})
    prompt = Prompt(id=case["name"], messages=messages)
    return RolloutGroup(prompt=prompt, rollouts=tuple(map(_rollout, case["attempts"])))


def _rollout(text: str) -> Rollout:
    return Rollout(
        prompt_ids=(1,), completion_ids=(1,), rollout_logprobs=(0.0,), text=text, finish_reason="stop", policy_version=0
    )


def _plain(messages: Sequence[Message] | None) -> list[dict[str, Any]] | None:
    return None if messages is None else [dict(message) for message in messages]
