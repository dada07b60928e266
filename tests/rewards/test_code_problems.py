"""Problems in the shapes of LiveCodeBench, APPS and MBPP, of this project's own wording: read, asked, and graded by running programs."""

from __future__ import annotations

import base64
import json
import os
import pickle
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onpolicy.annotation.contexts.feedback import feedback
from onpolicy.annotation.scoring import Reward, Scorer, evaluate_rewards, reward_inputs
from onpolicy.data import load_prompts
from onpolicy.rewards import base
from onpolicy.rewards.code import (
    Outcome,
    code_tests,
    compute_score,
    extract_program,
    grading,
    problem_of,
    sandbox,
    shape_of,
)
from onpolicy.rewards.code.tests import AssertTest, CallTest, same_output, same_value
from onpolicy.run.check_run import check_run
from onpolicy.types import EnvironmentOutcome, Prompt, Rollout, RolloutGroup
from onpolicy.utils.errors import ConfigError
from tests.runs import metrics, run_here, write_config

FILE = Path(__file__).with_name("code_problems.jsonl")
ROWS = {
    str(row.get("question_id", row.get("problem_id", row.get("task_id")))): row for row in map(json.loads, FILE.open())
}

SOLVED = {
    "lcb-stdin": "n = int(input())\np = sorted(map(int, input().split()))\nprint(max([b - a for a, b in zip(p, p[1:])], default=0))",
    "lcb-call": "class Solution:\n    def quietDays(self, v: List[int]) -> List[int]:\n"
    "        return [i for i in range(1, len(v) - 1) if v[i - 1] > v[i] < v[i + 1]]",
    "7": "import sys\nhours = defaultdict(list)\nfor line in sys.stdin:\n    name, n = line.split()\n    hours[name].append(int(n))\n"
    "for name in sorted(hours):\n    print(name, sum(hours[name]) / len(hours[name]))",
    "8": "def repeated(word):\n    return ''.join(c for c in dict.fromkeys(word) if word.count(c) > 1)",
    "601": "def frame(a, b, w):\n    return a * b - max(a - 2 * w, 0) * max(b - 2 * w, 0)",
    "602": "def roots(p, q):\n    d = p * p / 4 - q\n    return () if d < 0 else (-p / 2 - d ** .5, -p / 2 + d ** .5)",
}
FAILS = {
    "lcb-stdin": (
        "n = int(input())\np = sorted(map(int, input().split()))\nprint(max(b - a for a, b in zip(p, p[1:])))",
        "Runtime Error\nValueError: max() arg is an empty sequence\nLine 3 in <module> (program.py): "
        "print(max(b - a for a, b in zip(p, p[1:])))\n\nLast Executed Input\n1\n7",
    ),
    "lcb-call": (
        "class Solution:\n    def quietDays(self, visitors):\n        return [visitors.index(min(visitors))]",
        "Test Case 1: Wrong Answer\n\nInput\nquietDays([5, 2, 6, 1, 1, 3])\n\nOutput\n[3]\n\nExpected\n[1]",
    ),
    "7": (
        "while True:\n    pass",
        "Time Limit Exceeded\n\nLast Executed Input\nann 2\nbo 3\nann 4",
    ),
    "8": (
        "def repeated(word):\n    return [c for c in word if word.count(c) > 1]",
        "Test Case 1: Wrong Answer\n\nInput\nrepeated('letter')\n\nOutput\n['e', 't', 't', 'e']\n\nExpected\n['et']",
    ),
    "601": (
        "def frame(a, b, w):\n    return {(4, 3, 1): 10, (2, 2, 1): 4}[a, b, w]",
        "Runtime Error\nKeyError: (10, 10, 2)\nLine 2 in frame (program.py): return {(4, 3, 1): 10, (2, 2, 1): 4}[a, b, w]"
        "\n\nLast Executed Input\nframe(10, 10, 2)",
    ),
    "602": (
        "def roots(p, q):\n    return [1.0, 2.0]",
        "Test Case 1: Wrong Answer\n\nInput\nroots(-3, 2)\n\nOutput\n[1.0, 2.0]\n\nExpected\n(1.0, 2.0)",
    ),
}


def fenced(program: str) -> str:
    return f"I try.\n```python\n{program}\n```\nDone."


# ---- reading


def test_rows_are_asked_without_their_solutions_and_hidden_tests() -> None:
    prompts = {prompt.id: prompt for prompt in load_prompts(FILE)}
    assert prompts.keys() == ROWS.keys()
    asked = {name: prompt.messages[-1]["content"] for name, prompt in prompts.items()}
    assert asked["lcb-stdin"] == ROWS["lcb-stdin"]["question_content"]
    assert asked["lcb-call"].endswith(
        "solution to the problem:\n```python\nclass Solution:\n    def quietDays(self, visitors: List[int]) -> List[int]:\n```"
    )
    assert asked["8"].endswith("problem:\n```python\ndef repeated(word):\n```")
    assert asked["601"] == (
        "Write a function to find the area of a frame of the given outer sides and width.\n\nYour code should pass these tests:\n\n"
        "assert frame(4, 3, 1) == 10\nassert frame(2, 2, 1) == 4"
    )
    assert not any("secret" in text or "frame(10" in text for text in asked.values())
    assert {shape_of(row) for row in ROWS.values()} == {"LiveCodeBench", "APPS", "MBPP"}
    assert prompts["7"].fields["input_output"] == ROWS["7"]["input_output"]
    reading = load_prompts(FILE).reading.columns["prompt"]
    assert "question_content, starter_code (1 of 6 rows)" in reading and "text, test_list (1 of 6 rows)" in reading


def test_private_tests_are_read_and_never_unpickled(tmp_path: Path) -> None:
    assert len(problem_of(ROWS["lcb-stdin"]).tests) == 3

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    def packed(data: bytes) -> dict[str, Any]:
        return {"private_test_cases": base64.b64encode(zlib.compress(data)).decode()}

    for data in (
        pickle.dumps(Trap()),
        pickle.dumps(["[]", "[]"]),
        b"\x80\x05.",
        b"\x80\x05\x8cabc",
        b"[",
        pickle.dumps(3),
    ):
        with pytest.raises(ValueError, match="'private_test_cases' holds"):
            problem_of(packed(data))
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "sprung").exists(), "the trap works"
    case = [{"input": "1", "output": "1", "testtype": "stdin"}]
    for protocol in range(2, 6):
        assert len(problem_of(packed(pickle.dumps(json.dumps(case), protocol))).tests) == 1
    assert len(problem_of(packed(json.dumps(case).encode())).tests) == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "Q"}, "the row has no tests: expected one of the columns public_test_cases.*it has question"),
        ({"input_output": "{"}, "column 'input_output' holds broken JSON"),
        ({"input_output": {"inputs": ["1"], "outputs": []}}, "1 inputs and 0 outputs"),
        ({"input_output": {"fn_name": "a b", "inputs": [[1]], "outputs": [1]}}, "got 'a b', expected its name"),
        ({"test_list": []}, "hold no test"),
        ({"test_list": ["print(1)"]}, "is no assertion"),
        ({"test_list": ["assert 1 == 1"]}, "asks nothing of the program"),
        ({"test_list": ["assert all(f(x) == y for x, y in [(1, 2)])"]}, "in a loop of its own"),
        ({"public_test_cases": '[{"input": "1"}]'}, "test 0 of the row cannot be read: KeyError"),
        ({"private_test_cases": "!"}, "holds neither JSON nor packed tests"),
    ],
)
def test_rows_that_cannot_be_read_say_why(row: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        problem_of(row)


def test_an_assertion_is_cut_between_the_program_and_the_rest() -> None:
    def cut(source: str, setup: str = "") -> tuple[tuple[str, ...], str, str | None]:
        test = AssertTest.read(source, setup)
        return test.asked, test.rest, test.expected

    assert cut("assert f(1, [2]) == [3], 'no'") == (("f(1, [2])",), "value_0 == [3]", "[3]")
    assert cut("assert set(f(g(1))) == {1}") == (("set(f(g(1)))",), "value_0 == {1}", "{1}")
    assert cut("assert sorted(f(1) + [2]) == [1, 2]") == (("f(1)",), "sorted(value_0 + [2]) == [1, 2]", None)
    assert cut("assert Stack().push(1).top == 1") == (("Stack().push(1).top",), "value_0 == 1", "1")
    assert cut("assert f(1) == f(2)") == (("f(1)", "f(2)"), "value_0 == value_1", None)
    assert cut("assert sum(10, 15) == 6") == (("sum(10, 15)",), "value_0 == 6", "6"), (
        "a function by the name of Python's"
    )
    assert cut("assert near(f(1), 2)", "def near(a, b):\n    return abs(a - b) < 1") == (
        ("f(1)",),
        "near(value_0, 2)",
        None,
    )
    for source in ("assert all([f(1) == 2])", "assert max(f(1), key=[3].count) == 3", "assert sum([f(1), 2]) == 3"):
        assert AssertTest.read(source).evaluated == ("f(1)",), "an expected value would be beside the program"
    assert cut("assert not f(1) and len(f(2)) > 3") == (("f(1)", "len(f(2))"), "not value_0 and value_1 > 3", None)
    test = AssertTest.read("assert math.isclose(f(1), 0.5)")
    assert (test.asked, test.setup) == (("f(1)",), "import math")


OBJECTS = {
    "a map": (
        "def f(x):\n    return map(int, x)",
        ["list(f('12')) == [1, 2]", "sum(f('12')) == 3", "f('12') is not None"],
    ),
    "a generator": (
        "def f(x):\n    for c in x:\n        yield int(c)",
        [
            *(
                "sorted(f('21'), reverse=True) == [2, 1]",
                "tuple(map(str, f('12'))) == ('1', '2')",
                "max(*f('12')) == 2",
            ),
            *(
                "all(a == b for a, b in zip(f('12'), [1, 2]))",
                "[a + 1 for a in f('12')] == [2, 3]",
                "next(f('12')) == 1",
            ),
            *(
                "2 in f('12')",
                "not any(f('0'))",
                "len(list(reversed(list(f('12'))))) == 2",
                "not isinstance(f('1'), list)",
            ),
        ],
    ),
    "a view": (
        "def f(d):\n    return d.keys()",
        ["sorted(f({'a': 1})) == ['a']", "'a' in f({'a': 1})", "len(f({})) == 0"],
    ),
    "a range": (
        "def f(x):\n    return range(x)",
        ["list(f(3)) == [0, 1, 2]", "f(1) and not f(0)", "set(f(2)) == {0, 1}"],
    ),
    "a match": (
        "def f(s):\n    return re.match('a', s)",
        [
            "f('ab')",
            "not f('b')",
            "bool(f('ab')) == True",
            "f('ab') is not None",
            "f('b') is None",
            "f('ab') if f('a') else 0",
        ],
    ),
    "an exact number": (
        "from fractions import Fraction\ndef f(x):\n    return Fraction(1, x)",
        ["float(f(2)) == 0.5", "round(f(3)) == 0"],
    ),
    "a function": (
        "def f(x):\n    return -x",
        ["list(map(f, [1, 2])) == [-1, -2]", "sorted([1, 2], key=f) == [2, 1]", "callable(f)"],
    ),
    "names of Python's": (
        "def list(x):\n    return 0\nbool = sorted = len = 7\nimport builtins\nbuiltins.sum = list\ndef f(x):\n    return iter(x)",
        ["list(f([1])) == [1]", "f([1])", "len(sorted(f([1]))) == 1", "sum(f([1])) == 1"],
    ),
    "a number too large to write": (
        "def f(x):\n    return 10 ** x",
        ["f(5000) % 7 == 10 ** 5000 % 7", "len(f'{f(9)}') == 10"],
    ),
}
"""What a correct program may return or define -> a program, and assertions that Python finds true of it."""


@pytest.mark.process
@pytest.mark.parametrize("name", OBJECTS)
def test_correct_programs_that_return_other_objects(name: str) -> None:
    program, truths = OBJECTS[name]
    sources = [f"assert {truth}" for truth in truths]
    if name != "names of Python's":
        for source in sources:
            exec(f"import re\n{program}\n{source}", {})
    assert code_tests(fenced(program), {"test_list": sources}) == {"score": 1.0, "feedback": None}
    for source in sources:
        wrong = code_tests(fenced(program), {"test_list": [f"assert not ({source.removeprefix('assert ')})"]})
        assert wrong["score"] == 0.0 and "NotPlain" not in wrong["feedback"], source


@pytest.mark.process
def test_an_object_is_equal_to_no_list() -> None:
    said = code_tests(fenced("def f(x):\n    return map(int, x)"), {"test_list": ["assert f('12') == [1, 2]"]})
    assert said["score"] == 0.0 and "NotPlain: map object" in said["feedback"]


LARGE = "{1: 2, 10 ** 5000: 3}"


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "row"),
    [
        (f"def f(x):\n    return {LARGE}", {"input_output": {"fn_name": "f", "inputs": [[1]], "outputs": [{"1": 2}]}}),
        (f"def f(x):\n    return {LARGE}", {"test_list": ["assert f(1) == {1: 2}"]}),
        ("def f(x):\n    return 10 ** 5000", {"test_list": ["assert str(f(1)) == '1'"]}),
        ("def f(x):\n    return 10 ** 400", {"test_list": ["assert f(1) / 3.0 < 1"]}),
        ("def f(x):\n    return 1j", {"test_list": ["assert f(1) < 3"]}),
        (
            "def f(x):\n    for _ in range(450):\n        x = [x]\n    return x",
            {"input_output": {"fn_name": "f", "inputs": [[1]], "outputs": [[[1]]]}},
        ),
        ("print('1' * 1_000_000 + 'x')", {"input_output": {"inputs": [""], "outputs": ["2"]}}),
        ("print('1e9999 1e-9999')", {"input_output": {"inputs": [""], "outputs": ["2 2"]}}),
        ("print('\\u0663' * 1_000_000)", {"input_output": {"inputs": [""], "outputs": ["2"]}}),
    ],
)
def test_a_value_that_cannot_be_compared_or_shown_is_wrong(program: str, row: dict[str, Any]) -> None:
    began = time.process_time()
    verdict = code_tests(fenced(program), row)
    assert verdict["score"] == 0.0 and verdict["feedback"] and time.process_time() - began < 5


def test_a_deep_value_is_wrong_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared and shown where little of the stack is left, as below a run's own functions."""
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    test = CallTest("f", (1,), [[1]])
    assert grading._failure(1, test, Outcome("done", values=(deep,))).endswith(
        "Output\na value that is too large to show\n\nExpected\n[[1]]"
    )
    equal = CallTest("f", (1,), deep)
    assert not grading._accepts(equal, Outcome("done", values=([deep][0],)))


def test_a_sandbox_that_fails_while_comparing_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise sandbox.SandboxUnavailable("no")
        yield

    monkeypatch.setattr("onpolicy.rewards.code.tests.run_tests", fails)
    with pytest.raises(sandbox.SandboxUnavailable):
        grading._accepts(AssertTest.read("assert f(1) == f(2)"), Outcome("done", values=(1, 1)))


def test_comparisons() -> None:
    assert same_output("1 2\n3\n", "1 2 \n3") and same_output("0.50\n", "0.5") and same_output("Yes", "Yes\n\n")
    assert not same_output("1 2", "1\n2") and not same_output("yes", "Yes") and not same_output("1", "1 1")
    assert not same_output("1", "1e99999999") and not same_output("1", "1_0") and not same_output("nan", "NaN")
    assert same_value([1, [2]], (1, (2,))) and same_value({"1": [2]}, {1: (2,)}) and same_value(None, None)
    assert not same_value([1], [1, 2]) and not same_value({"1": 2}, {1: 3}) and not same_value({"1": 2}, {1: 2, "1": 2})


def test_the_last_block_is_the_program() -> None:
    assert extract_program("```\na\n```\nthen\n```python\nb = 1\n```\n") == "b = 1\n"
    assert extract_program("```python\nprint('''```''')\n```") == "print('''```''')\n"
    assert extract_program("print(1)") is None and extract_program("```python\nprint(1)") is None


# ---- grading


@pytest.mark.process
@pytest.mark.parametrize("name", ROWS)
def test_right_and_wrong_programs(name: str) -> None:
    assert code_tests(fenced(SOLVED[name]), ROWS[name]) == {"score": 1.0, "feedback": None}
    program, said = FAILS[name]
    assert code_tests(fenced(program), ROWS[name], cpu_seconds=1) == {"score": 0.0, "feedback": said}


@pytest.mark.process
def test_no_program_and_one_that_was_cut() -> None:
    assert code_tests("It is 4.", ROWS["7"])["feedback"].startswith(
        "Incorrect Format: Put your code inside a ```python"
    )
    assert code_tests("```python\nx", ROWS["7"], None, "length")["feedback"].startswith(
        "Truncated Attempt: Your previous"
    )
    thought = "<think>\n```python\nprint(1)\n```\n</think>\nI do not know."
    assert (
        code_tests(thought, ROWS["7"])["score"] == 0.0 == code_tests(fenced(SOLVED["7"]), ROWS["7"], "no code")["score"]
    )


@pytest.mark.process
@pytest.mark.parametrize(
    "program",
    [
        "class E:\n    def __eq__(self, o):\n        return True\ndef frame(*_):\n    return E()",
        "import gc, sys\ndef frame(*_):\n"
        "    for o in gc.get_objects():\n        if isinstance(o, dict) and 'expected' in o:\n            return o['expected']\n"
        "    frame, seen = sys._getframe(), []\n"
        "    while frame:\n        seen.append(repr(frame.f_locals))\n        frame = frame.f_back\n"
        "    return 64 if '64' in str(seen) or '== 10' in str(seen) else -1",
        "import builtins\nbuiltins.AssertionError = None\ndef frame(*_):\n    exit(0)",
        "import os\ndef frame(*_):\n    os.write(3, b'{\"values\": [true]}')\n    os._exit(0)",
        "import os\ndef frame(*_):\n    os.write(3, b'{\"values\": [10, 10]}')\n    os._exit(0)",
        "import builtins\nbuiltins.eval = lambda *_: 10\ndef frame(*_):\n    return True",
    ],
)
def test_a_program_cannot_pass_without_the_answers(program: str) -> None:
    assert code_tests(fenced(program), ROWS["601"], cpu_seconds=1)["score"] == 0.0


@pytest.mark.process
@pytest.mark.parametrize("claim", ["[]", "[1, 2]"])
def test_a_forged_number_of_values_is_wrong(claim: str) -> None:
    for function, row in (("repeated", "8"), ("frame", "601")):
        forged = f"def {function}(*_):\n    os.write(3, b'{{\"values\": {claim}}}')\n    os._exit(0)"
        assert code_tests(fenced(f"import os\n{forged}"), ROWS[row])["score"] == 0.0


@pytest.mark.process
def test_as_verl_calls_it() -> None:
    truth = {"inputs": ["3\n"], "outputs": ["9\n"]}
    good, bad = fenced("print(int(input()) ** 2)"), fenced("print(3)")
    assert compute_score("code", good, json.dumps(truth)) == {"score": 1.0, "feedback": ""}
    assert compute_score("code", bad, truth)["feedback"].startswith("Test Case 1: Wrong Answer")
    assert compute_score("code", fenced(SOLVED["601"]), None, ROWS["601"])["score"] == 1.0


# ---- from the grader to the teacher


def said(completion: str, other: str = "") -> dict[str, Any]:
    return {
        "score": float("4" in completion),
        "feedback": f"{other}{completion} is off" if "4" not in completion else None,
    }


def said_to_a_group(completions: list[Any], **_: Any) -> list[dict[str, Any]]:
    return [{"score": 0.0, "feedback": f"line {i}"} for i, _ in enumerate(completions)]


def group(*texts: str) -> RolloutGroup:
    def rollout(text: str) -> Rollout:
        return Rollout(
            prompt_ids=(1,),
            completion_ids=(1,),
            rollout_logprobs=(0.0,),
            text=text,
            finish_reason="stop",
            policy_version=0,
        )

    prompt = Prompt(id="p", messages=({"role": "user", "content": "2 + 2?"},))
    return RolloutGroup(prompt=prompt, rollouts=tuple(map(rollout, texts)))


def test_what_rewards_say_reaches_the_context() -> None:
    rewards = [Reward("said", 1.0, said), Reward("more", 0.0, said_to_a_group)]
    (scored,) = Scorer(rewards, str, "said").score([group("5", "4")])
    assert [r.feedback for r in scored.group.rollouts] == ["5 is off\n\nline 0", "line 1"]
    messages = feedback(scored.group, 0, scored.scores)
    assert messages is not None and messages[-1]["content"] == (
        "2 + 2?\nThe following is feedback from your unsuccessful earlier attempt:\n\n5 is off\n\nline 0\n\n"
        "Correctly solve the original question."
    )
    assert feedback(scored.group, 1, scored.scores) is None, "it succeeded"
    played = replace(group("5").rollouts[0], outcome=EnvironmentOutcome(feedback="the door is shut"))
    messages = feedback(RolloutGroup(prompt=scored.group.prompt, rollouts=(played,)), 0, [0.0])
    assert messages is not None and "attempt:\n\nthe door is shut\n\nCorrectly" in messages[-1]["content"]
    assert [own.feedback for own in evaluate_rewards({"said": said}, reward_inputs(group("4"), str))] == [None]


def test_feedback_is_text() -> None:
    def odd(completion: str) -> dict[str, Any]:
        return {"score": 0.0, "feedback": 3}

    with pytest.raises(base.RewardError, match="returned the feedback 3, expected a text or None"):
        base.score(odd, reward_inputs(group("x"), str))


@pytest.mark.process
def test_a_run_whose_teacher_reads_what_running_the_programs_said(tmp_path: Path) -> None:
    """On a tiny model, which writes no programs."""
    config = write_config(
        tmp_path,
        data={"name": "file", "path": str(FILE), "prompts_per_step": 2},
        rewards=[{"name": "code_tests", "cpu_seconds": 1}],
        contexts={"teacher": {"name": "successful_sibling", "context": "feedback"}},
        objective=[{"name": "distill", "divergence": "reverse_kl"}],
        logging={"trackers": ["jsonl"]},
        steps=1,
    )
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "preflight.enabled=false") == 0
    (row,) = (row for row in metrics(tmp_path / "run") if "reward/mean" in row)
    assert row["reward/code_tests"] == 0.0
    samples = (tmp_path / "run" / "samples.jsonl").read_text()
    assert "Incorrect Format: Put your code inside" in samples or "Truncated Attempt" in samples


def test_a_run_is_refused_where_nothing_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> str:
        raise sandbox.SandboxUnavailable("code that a model wrote cannot be run safely here. Install bubblewrap")

    monkeypatch.setattr("onpolicy.rewards.code.grading.mechanism", nothing)
    overrides = ["model.path=m", f"data.path={FILE}"]
    with pytest.raises(ConfigError, match=r"rewards\[0\].*cannot be run safely here. Install bubblewrap"):
        check_run("sdpo_feedback", overrides)
