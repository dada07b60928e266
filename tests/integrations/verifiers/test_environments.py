"""Environments of verifiers, run by verifiers' own rules with the student in place of a server.

1. an environment of a package grades as its own rubric does; 2. a tool that a package serves is called, and the conversation's tokens
are those written here by hand; 3. one that raises, hangs, says nothing or cannot grade costs its rollouts, with the reason; one that says
too much ends its rollouts; 4. what cannot be run is refused before anything is sampled; 5. whole runs: trained, evaluated, resumed, shown
by turns, with transformers and with vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy.data.errors import DataError
from onpolicy.data.rendering import Renderer
from onpolicy.integrations.verifiers.data import verifiers as problems
from onpolicy.integrations.verifiers.environment import verifiers as environment
from onpolicy.integrations.verifiers.loading import load_environment
from onpolicy.protocols import OnGroup, ignore_group
from onpolicy.rollout.environments import EnvironmentBroken, EnvironmentGenerator, Rules
from onpolicy.types import Prompt, Rollout, RolloutGroup, Sampling
from onpolicy.utils.errors import ConfigError
from tests.data.test_next_turn import TOOLS
from tests.runs import metrics, run_here, write_config
from tests.tiny import byte_tokenizer

HERE = "tests.integrations.verifiers.environments"
OFFERS = TOOLS.replace(
    "{% for m in messages %}",
    "{% if tools %}<|im_start|>system\nTools: {% for t in tools %}{{ t.function.name }} {% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}",
    1,
)
TOKENIZER = byte_tokenizer(OFFERS, added=("<tool_call>", "</tool_call>"))


class Scripted:
    """A generator that says what it is told to, turn by turn."""

    def __init__(self, say: Callable[[Prompt], str]) -> None:
        self.renderer, self.say = Renderer(TOKENIZER), say
        self.sampling, self.policy_version = Sampling(group_size=1, max_tokens=400), 0
        self.on_progress: Callable[[int, int, int], None] = lambda done, total, tokens: None

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        sampling: Sampling | None = None,
        on_group: OnGroup = ignore_group,
    ) -> list[RolloutGroup]:
        groups = [RolloutGroup(prompt=p, rollouts=(self._rollout(p),)) for p in prompts]
        for place, group in enumerate(groups):
            on_group(place, group)
        return groups

    def _rollout(self, prompt: Prompt) -> Rollout:
        text = self.say(prompt)
        ids = (*TOKENIZER.encode(text, add_special_tokens=False), 2)
        return Rollout(
            prompt_ids=(*self.renderer.prompt_ids(prompt.messages), *prompt.completion_prefix_ids),
            completion_ids=ids,
            rollout_logprobs=tuple(-0.01 * i for i in range(len(ids))),
            text=self.renderer.completion_text(ids),
            finish_reason="stop",
            policy_version=0,
        )

    def update_weights(self, weights: Iterable[Any], *, version: int) -> None: ...
    def rest(self) -> None: ...
    def reset_version(self) -> None: ...
    def close(self) -> None: ...


def held(
    name: str,
    say: Callable[[Prompt], str],
    notes: list[str] | None = None,
    *,
    timeout: float = 20.0,
    window: int = 1024,
    **args: Any,
) -> list[RolloutGroup]:
    id, generator = f"{HERE}:{name}", Scripted(say)

    def make() -> Any:
        return environment(id=id, args=args, renderer=generator.renderer, tool_parser="qwen3")

    rules = Rules(generator.renderer, window, timeout)
    talks = EnvironmentGenerator(generator, make, rules, (notes if notes is not None else []).append)
    return talks.generate(problems(id=id, args=args), seed=0)


def test_an_environment_of_a_package_grades_by_its_rubric() -> None:
    entries = load_environment(f"{HERE}:gym", {"size": 6}).rg_dataset
    answers = {entry["question"]: entry["answer"] for entry in entries}

    def say(prompt: Prompt) -> str:
        question = prompt.messages[-1]["content"]
        return f"<answer>{answers[question] if list(answers).index(question) % 2 else 'no'}</answer>"

    groups = held("gym", say, size=6)
    outcomes = [group.rollouts[0].outcome for group in groups]
    assert [o.reward for o in outcomes if o is not None] == [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    assert outcomes[0] is not None and outcomes[0].metrics.keys() == {"check_answer_reward_func", "format_reward_func"}
    assert groups[0].prompt.messages[0]["role"] == "system"


CALL = 'I ask.\n<tool_call>\n{"name": "calculate", "arguments": {"expression": "2 + 2"}}\n</tool_call>'
SAID, ANSWERED = "I ask.\n<tool_call>", "4"


@pytest.mark.process
def test_a_tool_is_called_and_the_tokens_are_those_by_hand() -> None:
    def say(prompt: Prompt) -> str:
        number = prompt.messages[0]["content"].split()[2]
        if not prompt.completion_prefix_ids:
            return CALL.replace("2 + 2", f"{number} + {number}")
        return "It is so."

    groups = held("calculator", say, size=3)
    rollout = groups[1].rollouts[0]
    whole = (
        "<|im_start|>system\nTools: calculate <|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
        f"[{CALL}<|im_end|>]"
        "\n<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        "[It is so.<|im_end|>]"
    )
    ids, mask = list[int](), list[bool]()
    for piece in whole.replace("[", "\0S").replace("]", "\0O").split("\0"):
        own = TOKENIZER.encode(piece[1:] if piece[0] in "SO" else piece, add_special_tokens=False)
        ids, mask = ids + own, mask + [piece[0] == "S"] * len(own)
    assert list(rollout.prompt_ids + rollout.completion_ids) == ids
    assert list(rollout.sampled_mask) == mask[len(rollout.prompt_ids) :]
    first = len(TOKENIZER.encode(CALL, add_special_tokens=False)) + 1
    assert rollout.rollout_logprobs[first - 1] == -0.01 * (first - 1) and rollout.rollout_logprobs[-2] == pytest.approx(
        -0.08
    )
    assert rollout.text == f"{CALL}It is so." and rollout.final == "It is so."
    outcome = rollout.outcome
    assert outcome is not None and (outcome.reward, outcome.turns) == (1.0, 2)
    assert outcome.metrics["total_tool_calls"] == 1 and outcome.metrics["num_turns"] == 2


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("raises", "RuntimeError: the database is gone"),
        ("says_nothing", "EpisodeError('the environment answered with no text')"),
        ("hangs", "it held its thread for 1 seconds"),
    ],
)
def test_what_goes_wrong_has_its_reason(kind: str, reason: str) -> None:
    with pytest.raises(EnvironmentBroken) as error:
        held("faults", lambda prompt: "Well.", timeout=1.0, kind=kind)
    assert reason in str(error.value)


def test_a_rubric_that_cannot_grade_gives_its_own_verdict() -> None:
    groups = held("faults", lambda prompt: "Well.", kind="cannot_grade")
    assert {g.rollouts[0].outcome.reward for g in groups if g.rollouts[0].outcome} == {0.0}, "verifiers counts it as 0"


def test_one_that_says_too_much_ends_its_rollouts() -> None:
    groups = held("faults", lambda prompt: "Well.", kind="floods")
    rollouts = [g.rollouts[0] for g in groups]
    assert {(r.finish_reason, r.failed, r.text) for r in rollouts} == {("length", False, "Well.")}
    assert all(r.outcome is not None and r.outcome.reward == 1.0 for r in rollouts)


@pytest.mark.process
def test_what_cannot_be_run_is_refused() -> None:
    own = Renderer(TOKENIZER)
    for id, said in {
        f"{HERE}:compares": "compares the rollouts of a group",
        f"{HERE}:nothing_here": "AttributeError",
        "no-such-environment": "No module named 'no_such_environment'",
        "json:dumps": "TypeError",
    }.items():
        with pytest.raises(ConfigError, match=r"environment\.id: ") as error:
            environment(id=id, renderer=own)
        assert said in str(error.value)
    for parser, said in {None: "is not known by its name", "qwen9": "Unknown tool_parser 'qwen9'"}.items():
        with pytest.raises(ConfigError, match=r"environment\.tool_parser: ") as error:
            environment(id=f"{HERE}:calculator", renderer=own, tool_parser=parser)
        assert said in str(error.value)


def test_the_second_set_is_for_evaluation() -> None:
    id, args = f"{HERE}:gym", {"size": 6}
    train, held_out = problems(id=id, args=args), problems(id=id, args=args, split="eval")
    assert (len(train), len(held_out)) == (6, 2) and all(p.interactive for p in [*train, *held_out])
    assert len(problems(id=id, args=args, size=3)) == 3
    with pytest.raises(DataError, match=r"data\.split: .* has no problems for evaluation"):
        problems(id=f"{HERE}:faults", args={"kind": "none"}, split="eval")


def write_run(folder: Path, **changes: Any) -> Path:
    path = write_config(folder)
    config = yaml.safe_load(path.read_text())
    of = {"id": f"{HERE}:faults", "args": {"kind": "none"}}
    config |= {
        "environment": {"name": "verifiers", **of},
        "data": {"name": "verifiers", **of, "prompts_per_step": 2},
        "generator": {"name": "transformers", "group_size": 3, "max_tokens": 80},
        "rewards": [{"name": "environment"}, {"name": "tests.runs:length_reward", "weight": 0.5}],
        "contexts": {"teacher": {"name": "instruction", "template": "{question}\n\nBe right."}},
        "logging": {"trackers": ["jsonl"], "samples": 6},
        "eval": {"every": 3, "sets": {"same": {"name": "verifiers", **of}}, "samples_per_problem": 2, "pass_at": [1]},
        **changes,
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("generator", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_a_run_is_trained_evaluated_and_resumed(tmp_path: Path, generator: str) -> None:
    config = write_run(tmp_path)
    run, again = tmp_path / "run", tmp_path / "again"
    assert run_here(config, f"run_dir={run}", f"generator.name={generator}") == 0
    rows = metrics(run)
    assert rows[-1]["environment/failed"] == 0 and 1 < rows[-1]["environment/turns"] <= 2
    assert rows[-1]["environment/observed_tokens"] > 0 and rows[-1]["environment/metrics/graded"] == 1.0
    assert rows[-1]["rollout/logprob_gap/mean"] < 1e-4 if "rollout/logprob_gap/mean" in rows[-1] else True
    assert rows[-1]["eval/same/avg@2"] == 1.0
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    turns = next(sample["turns"] for sample in samples if "turns" in sample)
    assert [next(iter(turn)) for turn in turns] == ["sampled", "observed", "sampled"]
    assert "And now?" in turns[1]["observed"]
    assert (
        run_here(config, f"run_dir={again}", f"generator.name={generator}", "steps=1", "trainer.lr_schedule=constant")
        == 0
    )
    assert run_here(config, f"run_dir={again}", f"generator.name={generator}") == 0
    mine, theirs = metrics(run)[1:], metrics(again)[1:]
    for row, other in zip(mine, theirs, strict=True):
        # which turns are sampled in one batch depends on when the environment answers, and the last bits on that
        assert row == pytest.approx({k: other[k] for k in row}, abs=1e-3), "the resumed run is another one"
