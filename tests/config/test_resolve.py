"""Configs: what is wrong is said with its full key, the value, and what is expected, before anything is loaded.

1. every shipped file is valid and its defaults are the code's; 2. each kind of mistake; 3. overrides reach into lists;
4. the resolved config loads again; 5. nested plug-ins; 6. OmegaConf 2.3's rules suffice.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from onpolicy.cli import main
from onpolicy.config.load import build, load, to_yaml
from onpolicy.config.resolve import resolve
from onpolicy.contracts import ContractError, keep_to_contracts
from onpolicy.run.axes import read
from onpolicy.utils.errors import ConfigError
from tests.runs import write_config

ROOT = Path(__file__).parents[2]
FILES = [
    p for p in sorted((ROOT / "configs").rglob("*.yaml")) if p.parent.name != "verl"
]  # tests/integrations/verl has those
CONFIGS = [p for p in FILES if "arms" not in yaml.safe_load(p.read_text())]

pytestmark = pytest.mark.omegaconf


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_is_valid(path: Path) -> None:
    keep_to_contracts(resolve(read(path)))
    assert path.read_text().startswith("# "), "a config opens with what it reproduces"


MISTAKES = [
    ("generater.x=1", ["generater: unknown key", "Did you mean 'generator'"]),
    ("model.pth=x", ["model.pth: unknown key", "Did you mean 'path'", "revision"]),
    ("lr=1", ["lr: unknown key", "trainer.lr"]),
    ("generator.max_token=3", ["generator.max_token", "Did you mean 'max_tokens'"]),
    ("generator.name=vlm", ["generator.name: unknown generator 'vlm'", "Did you mean 'vllm'", "transformers"]),
    (
        "objective[0].divergence=revers_kl",
        ["objective[0].divergence: unknown divergence", "Did you mean 'reverse_kl'", "module:function"],
    ),
    ("objective[0].divergence.name=jsd", ["objective[0].divergence.beta: missing", "float"]),
    (
        "objective[0].support={name: student_topk, tail: bukket}",
        ["objective[0].support.tail: got 'bukket'", "'bucket', 'renormalize'"],
    ),
    ("objective[0].weight=heavy", ["objective[0].weight", "heavy"]),
    ("trainer.lr=fast", ["trainer.lr", "fast"]),
    ("trainer.lr=-1", ["trainer.lr: got -1"]),
    ("trainer.micro_batch_tokens=0", ["trainer.micro_batch_tokens: got 0, expected at least 1"]),
    ("trainer.lr_schedule=cosin", ["trainer.lr_schedule: got 'cosin'", "Did you mean 'cosine'"]),
    ("steps=many", ["steps", "many"]),
    ("steps=0", ["steps: got 0"]),
    ("rewards=[nope]", ["rewards[0]: unknown reward 'nope'", "math_answer"]),
    ("rewards=[math_answer,math_answer]", ["rewards: the same name twice"]),
    ("rewards=[no_such_module:f]", ["rewards[0]: cannot import 'no_such_module'"]),
    (
        "rewards=[onpolicy.rewards.answer:math_anser]",
        ["rewards[0]: module 'onpolicy.rewards.answer' has no 'math_anser'", "Did you mean 'math_answer'"],
    ),
    ("contexts.hint=final_answer", ["contexts.hint: no term of the objective reads this context"]),
    ("objective[0].context=hint", ["objective[0].context", "'hint'", "contexts"]),
    ("objective[1].advantage={name: add, context: hint}", ["objective[1].advantage.context", "'hint'"]),
    (
        "objective[0].token_weights={name: teacher_logratio, context: hint}",
        ["objective[0].token_weights.context", "'hint'"],
    ),
    ("generator.temperature=-1", ["generator.temperature: got -1"]),
    ("generator.temperature=warm", ["generator.temperature", "warm"]),
    ("teacher={name: ema, ema_decay: soon}", ["teacher.ema_decay: got 'soon', expected float"]),
    ("eval.pass_at=[9]", ["eval.pass_at: got 9"]),
    ("custom_lexicons={self_doubt: [other]}", ["custom_lexicons.self_doubt: ", "the name is taken"]),
    (
        "rewards[0]={name: math_answer, when: correct}",
        ["rewards[0].when: 'math_answer' decides which answers are correct"],
    ),
    ("rewards=[{name: math_answer}, {name: brevity, budget: 9, when: rigth}]", ["rewards[1].when: got 'rigth'"]),
    ("correctness=nope", ["correctness: 'nope' is not under rewards"]),
    ("rendering.overlong=cut", ["rendering.overlong: got 'cut'", "error, drop"]),
    ("objective=[]", ["objective: empty"]),
    ("data={}", ["data: missing"]),
    (
        "data={name: file, path: d, answer_from: box}",
        ["data.answer_from: got 'box', expected one of 'boxed', 'hash', None"],
    ),
    (
        "data={name: file, path: d, prompt_template: Solve.}",
        ["data.prompt_template: got 'Solve.', expected a text with {problem}"],
    ),
    ("eval.sets.near={name: hub, path: d, prompt_template: Solve.}", ["eval.sets.near.prompt_template: got 'Solve.'"]),
    (
        "data={name: hub, path: d, columns: {question: Problem}}",
        ["data.columns: got 'question', expected one of prompt, answer, solution"],
    ),
    ("epistemic.lexicons=[[hedges]]", ["epistemic.lexicons: got [['hedges']], expected a list of names of lexicons"]),
    ("nonsense", ["override 'nonsense': expected key=value"]),
    ("objective[7].weight=1", ["objective[7].weight"]),
]


@pytest.mark.parametrize(("override", "words"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_mistakes_are_named(override: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(load(write_config(tmp_path), [override]))
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective[0].divergence={name: jsd, beta: 1.0}", ["objective[0].divergence", "reverse_kl"]),
        ("objective[0].support={name: student_topk, k: 0}", ["objective[0].support", "at least 1"]),
    ],
)
def test_values_that_only_the_function_can_judge(override: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ContractError) as caught:
        keep_to_contracts(resolve(load(write_config(tmp_path), [override])))
    assert all(word in str(caught.value) for word in words), caught.value


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.yaml").write_text("a: [1, 2\n")
    write_config(tmp_path)
    for name, words in (
        ("confg.yaml", "Did you mean"),
        ("list.yaml", "expected sections"),
        ("broken.yaml", "not valid YAML"),
    ):
        with pytest.raises(ConfigError, match=words):
            load(tmp_path / name)
    with pytest.raises(ConfigError, match=r"model\.path: missing"):
        build({"data": {"name": "gym"}})


def test_errors_on_the_command_line_have_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    capsys.readouterr()
    assert main(["train", str(config), "trainer.lrr=1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("onpolicy train: trainer.lrr") and "Traceback" not in error and "Did you mean 'lr'" in error


def test_overrides_reach_into_lists_and_types_are_kept(tmp_path: Path) -> None:
    config = load(
        write_config(tmp_path),
        ["objective[0].weight=2", "trainer.lr=1e-4", "eval.pass_at=[1]", "run_dir=", "teacher.ema_decay=1"],
    )
    resolved = resolve(config)
    assert (
        resolved.objective[0].settings.weight == 2.0 and resolved.trainer.settings.lr == 1e-4 and config.run_dir is None
    )
    assert resolved.teacher.options["ema_decay"] == 1.0


def test_the_resolved_config_loads_again(tmp_path: Path) -> None:
    config = load(write_config(tmp_path))
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "again.yaml") == config


def test_a_named_section_replaces_its_default_whole(tmp_path: Path) -> None:
    config = load(write_config(tmp_path))
    assert config.teacher == {"name": "ema", "ema_decay": 0.9} and config.credit == {"name": "group_std"}


def test_files_hold_only_what_differs_from_the_defaults() -> None:
    defaults = yaml.safe_load(to_yaml(build({"model": {"path": "x"}})))
    for path in CONFIGS:
        for section, value in yaml.safe_load(path.read_text()).items():
            if isinstance(value, dict) and isinstance(defaults.get(section), dict):
                same = [
                    k for k, v in value.items() if k in defaults[section] and defaults[section][k] == v and k != "name"
                ]
                assert not same, f"{path.name}: {section}.{same} is the default"
