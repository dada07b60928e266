"""Text is text: what is typed arrives, in files and overrides alike; a number that is written oddly is that number or refused.

1. overrides, as the shell hands them over; 2. files; 3. options of plug-ins, ours and a user's; 4. references, lists and paths;
5. what is saved, printed and compared is what the run has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from onpolicy.config.compare import config_differences
from onpolicy.config.load import build, load, to_yaml
from onpolicy.config.plain import Plain, read_plain, scalar
from onpolicy.config.resolve import load_resolved
from onpolicy.config.yaml_io import read_value, read_yaml
from onpolicy.utils.errors import ConfigError

pytestmark = pytest.mark.omegaconf

SOUND: dict[str, Any] = {
    "model": {"path": "m"},
    "data": {"name": "file", "path": "d.jsonl"},
    "generator": {"name": "transformers"},
    "rewards": [{"name": "tests.config.test_text:kinds"}],
    "contexts": {"teacher": {"name": "reference_solution"}},
    "objective": [{"name": "distill", "divergence": "forward_kl"}],
}


def kinds(
    completion: str,
    *,
    text: str = "",
    maybe: str | None = "default",
    texts: list[str] | None = None,
    named: dict[str, str] | None = None,
    choice: Literal["yes", "no", "010"] = "no",
    either: int | str | None = 0,
    whole: int = 0,
    number: float = 0.0,
    numbers: list[float] | None = None,
    switch: bool = False,
    anything: Any = None,
    unnamed: Unknown = None,  # type: ignore[name-defined]  # noqa: F821
) -> float:
    """A user's reward with an option of each kind."""
    return 0.0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(SOUND))
    return path


def at(tree: Any, key: str) -> Any:
    for part in key.replace("[", ".").replace("]", "").split("."):
        tree = (
            tree[int(part)] if isinstance(tree, list) else tree[part] if isinstance(tree, dict) else getattr(tree, part)
        )
    return tree


GIVEN = [
    ("run_dir=20261129_173000", "20261129_173000"),
    ("run_dir=12:30", "12:30"),
    ("run_dir=010", "010"),
    ("run_dir=yes", "yes"),
    ("run_dir=2026-11-29", "2026-11-29"),
    ("run_dir=runs/exp #2", "runs/exp #2"),
    ("run_dir=~", "~"),
    ("model.revision=0123456", "0123456"),
    ("model.revision=12e4567", "12e4567"),
    ("data.prompt_template=# {problem}", "# {problem}"),
    ("data.prompt_template={problem} Box it.", "{problem} Box it."),
    ("data.prompt_template=Q: {problem}", "Q: {problem}"),
    ("data.prompt_template=> {problem}", "> {problem}"),
    ("trainer.lr=1e-6", 0.000001),
    ("steps=010", 10),
    ("model.revision=null", None),
    ("model.revision=", None),
    ("model.revision=''", None),
]
MORE = [
    *[(f"run_dir={text}", text) for text in (
        "0o17", "0x1F", "1_000", "1e5", "1E5", "1.50", "+3", "-0", ".5", "5.", "00", "1:2:3", "190:20:30.15", "12:30:45", "true", "True",
        "NO", "off", "y", ".inf", ".NaN", "nan", "2026-11-29T12:00:00Z", "a: b", "- a", "? a", "[a", "[a, b]", "{a}", "{a: 1}", "&a b",
        "*a", "!x y", "!!int 3", "| x", "%x", "@x", "`x`", "a # b", "#", " a ", "a\nb", "a=b", "=", "'a' 'b'", '"a" # b', "it's", '"',
        "ümlaut ☃", "9" * 5000, "1" * 20, "1e999", "---", "...", "--- a", "<<", "a:", ":a", "?", "-", "\\n", "a\tb", "...x", "'", "[" * 400,
    )],
    ("run_dir='a b'", "a b"),
    ('run_dir="exp #2"', "exp #2"),
    ("run_dir='010'", "010"),
    ("run_dir='null'", "null"),
    ('run_dir="a\\u00e4\\n"', "aä\n"),
    ("run_dir=3", "3"),
    ("run_dir=0.5", "0.5"),
    ("model.revision=1e-06", "1e-06"),
    ("model.path=007", "007"),
    ("data.path=2024.10", "2024.10"),
    ("contexts.teacher.template=Solution: {solution}", "Solution: {solution}"),
    ("contexts.teacher.template=[{solution}] {question}", "[{solution}] {question}"),
    ("contexts.teacher.template={question}", "{question}"),
    ("logging.trackers=[jsonl]", ["jsonl"]),
    ("epistemic.lexicons=[hedges]", ["hedges"]),
    ("trainer.lr=1E-6", 1e-6),
    ("trainer.lr=+1.0e-6", 1e-6),
    ("trainer.lr=.000001", 1e-6),
    ("trainer.lr='1e-6'", 1e-6),
    ("steps=1_000", 1000),
    ("steps=0x10", 16),
    ("steps=0o17", 15),
    ("steps=+7", 7),
    ("steps='08'", 8),
    ("trainer.warmup_from_zero=yes", True),
    ("trainer.warmup_from_zero=Off", False),
    ("rendering.thinking=no", False),
    ("rendering.thinking=NULL", None),
    ("trainer.betas=[.5, 9e-1]", [0.5, 0.9]),
    ("eval.pass_at=[01, 2]", [1, 2]),
]  # fmt: skip


@pytest.mark.parametrize(("override", "expected"), [*GIVEN, *MORE], ids=lambda v: repr(v)[:40])
def test_an_override_arrives_as_typed(override: str, expected: Any, config: Path) -> None:
    key = override.partition("=")[0]
    found = at(load_resolved(config, [override]).config, key)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "override",
    ["steps=5.5", "steps=1e3", "steps=12:30", "steps=yes", "steps=2026-11-29", "steps=~", "steps={a", "steps=1__0", "steps=0x", "steps=",
     "trainer.lr=12:30", "trainer.lr=1e", "trainer.lr=yes", "trainer.lr=1e999", "trainer.lr=[1]", "trainer.lr={a b",
     "trainer.warmup_from_zero=maybe", "eval.pass_at=[1.5]", "trainer.betas=[0.9, 12:30]"],
)  # fmt: skip
def test_what_is_no_such_number_is_refused_with_its_key(override: str, config: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_resolved(config, [override])
    assert str(caught.value).startswith(override.partition("=")[0]), caught.value


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("model: {path: m, revision: 12e4567}", "model.revision", "12e4567"),
        ("run_dir: 20261129_173000", "run_dir", "20261129_173000"),
        ("run_dir: 12:30", "run_dir", "12:30"),
        ("run_dir: 2026-11-29", "run_dir", "2026-11-29"),
        ("run_dir: 010", "run_dir", "010"),
        ("run_dir: no", "run_dir", "no"),
        ("run_dir: ~", "run_dir", "~"),
        ("run_dir:", "run_dir", None),
        ("run_dir: null", "run_dir", None),
        ("run_dir: 'null'", "run_dir", "null"),
        ("run_dir: 'exp #2'", "run_dir", "exp #2"),
        ("run_dir: |-\n  a\n  b", "run_dir", "a\nb"),
        ("trainer: {lr: 1e-6}", "trainer.lr", 1e-6),
        ("steps: 010", "steps", 10),
        ("data: {name: file, path: 2024}", "data.path", "2024"),
        ("contexts: {teacher: {name: reference_solution, template: 1_0}}", "contexts.teacher.template", "1_0"),
        ("model: {path: &a 1_0}\nrun_dir: *a", "run_dir", "1_0"),
        ("eval: {sets: {2024: {name: file, path: on}, no: {name: gym}}}", "eval.sets.2024.path", "on"),
        ("custom_lexicons: {mine: [yes, 010, maybe so]}", "custom_lexicons.mine", ["yes", "010", "maybe so"]),
    ],
)  # fmt: skip
def test_a_file_and_an_override_read_the_same(
    line: str, key: str, expected: Any, config: Path, monkeypatch: Any
) -> None:
    from onpolicy.rewards import lexicon

    monkeypatch.setattr(lexicon, "LEXICONS", dict(lexicon.LEXICONS))
    config.write_text(yaml.safe_dump({k: v for k, v in SOUND.items() if f"{k}:" != line.split()[0]}) + line + "\n")
    resolved = load_resolved(config)
    assert at(resolved.config, key) == expected
    assert load_resolved(to_yaml_file(resolved.config, config)).config == resolved.config, (
        "what is saved loads as what was saved"
    )


def to_yaml_file(config: Any, path: Path) -> Path:
    path.write_text(to_yaml(config))
    return path


OPTIONS = [
    ("text", "0123", "0123"),
    ("text", "true", "true"),
    ("text", "{a: b}", "{a: b}"),
    ("text", "- a", "- a"),
    ("maybe", "null", None),
    ("maybe", "~", "~"),
    ("maybe", "1e3", "1e3"),
    ("maybe", "A: b", "A: b"),
    ("texts", "[yes, 010, 1e-6, '#', 3]", ["yes", "010", "1e-6", "#", "3"]),
    ("named", "{a: 010, on: no}", {"a": "010", "on": "no"}),
    ("choice", "yes", "yes"),
    ("choice", "010", "010"),
    ("either", "3", 3),
    ("either", "x: y", "x: y"),
    ("either", "", None),
    ("whole", "010", 10),
    ("number", "1e-6", 1e-6),
    ("number", "010", 10.0),
    ("number", ".inf", float("inf")),
    ("numbers", "[1e-6, 010, 5]", [1e-6, 10.0, 5.0]),
    ("switch", "On", True),
    ("anything", "1e-6", 1e-6),
    ("anything", "010", 10),
    ("anything", "{a: [yes, 010]}", {"a": [True, 10]}),
    ("unnamed", "no", False),
    ("unnamed", "'no'", "no"),
]


@pytest.mark.parametrize(("option", "text", "expected"), OPTIONS)
def test_the_signature_says_what_is_text(option: str, text: str, expected: Any, config: Path) -> None:
    resolved = load_resolved(config, [f"rewards[0].{option}={text}"])
    found = resolved.rewards[0].plugin.options[option]
    assert found == expected and type(found) is type(expected)
    assert resolved.config.rewards[0][option] == expected
    whole = load_resolved(config, [f"rewards[0]={{name: tests.config.test_text:kinds, {option}: {flow(text)}}}"])
    assert whole.rewards[0].plugin.options[option] == expected
    assert whole.config == resolved.config


def flow(text: str) -> str:
    """The text as it has to stand inside of braces to mean the same."""
    return (
        json.dumps(text)
        if text == "{a: b}" or (": " in text and text[0] != "{")
        else text or "null"
        if text != "- a"
        else "'- a'"
    )


@pytest.mark.parametrize(
    ("option", "text"),
    [("whole", "1e3"), ("whole", "x: y"), ("number", "nan"), ("number", ".nan"), ("numbers", "[.nan]"), ("anything", ".nan"),
     ("choice", "true"), ("switch", "maybe"), ("texts", "a"), ("named", "[a]"), ("anything", "{a"), ("number", "1e999")],
)  # fmt: skip
def test_the_signature_refuses(option: str, text: str, config: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_resolved(config, [f"rewards[0].{option}={text}"])
    assert str(caught.value).startswith(f"rewards[0].{option}: got "), caught.value


def test_later_overrides_reach_into_earlier_ones(config: Path) -> None:
    overrides = [
        "objective[0]={name: distill, divergence: {name: jsd, beta: .5}}",
        "objective[0].divergence.beta=2.5e-1",
        "objective[0].weight={name: linear, initial: 1e-1, final: 0, end: 010}",
        "objective[0].weight.final=5e-2",
        "rewards=[tests.config.test_text:kinds, {name: brevity, budget: 0x40}]",
        "rewards[1].weight=1e-2",
        "eval.sets.mine={name: file, path: 010}",
        "eval.sets.mine.problems=03",
    ]
    resolved = load_resolved(config, overrides)
    term = resolved.objective[0]
    assert term.plugin.options["divergence"].keywords == {"beta": 0.25}
    assert resolved.config.objective[0] == {
        "name": "distill",
        "divergence": {"name": "jsd", "beta": 0.25},
        "weight": {"name": "linear", "initial": 0.1, "final": 0.05, "end": 10},
    }
    assert resolved.rewards[1].settings.weight == 0.01 and resolved.config.rewards[1]["budget"] == 64
    assert resolved.config.eval.sets["mine"] == {"name": "file", "path": "010", "problems": 3}


@pytest.mark.parametrize(
    ("overrides", "key", "expected"),
    [
        (["seed=07", "run_dir=runs/s${seed} #2: x"], "run_dir", "runs/s7 #2: x"),
        (["model.revision=0123", "run_dir=r-${model.revision}"], "run_dir", "r-0123"),
        (["data.path=0123", "run_dir=${data.path}"], "run_dir", "0123"),
        (["data.path=010.jsonl", "eval.sets.x={name: file, path: '${data.path}'}"], "eval.sets.x.path", "010.jsonl"),
        (["data.path=010", "eval.sets.x={name: file, path: '${data.path}'}"], "eval.sets.x.path", "010"),
        (["data.path=010", "steps=${data.path}"], "steps", 10),
        (["trainer.lr=1e-6", "trainer.weight_decay=${trainer.lr}"], "trainer.weight_decay", 1e-6),
        (["trainer.lr=1e-6", "preflight.logprob_tolerance=${trainer.lr}"], "preflight.logprob_tolerance", 1e-6),
        (["generator.max_tokens=1_0", "eval.max_tokens=${generator.max_tokens}"], "eval.max_tokens", 10),
        (["run_dir=${model.path}: #${seed}"], "run_dir", "m: #0"),
        (["data.prompt_template=${model.path} - {problem} #${seed}"], "data.prompt_template", "m - {problem} #0"),
        (
            ["objective[0]={name: distill, divergence: forward_kl, weight: '${trainer.lr}'}", "trainer.lr=1e-1"],
            "objective[0].weight",
            0.1,
        ),
    ],
)
def test_references_hand_text_on(overrides: list[str], key: str, expected: Any, config: Path) -> None:
    assert at(load_resolved(config, overrides).config, key) == expected


def test_what_python_gives_is_taken_as_it_is() -> None:
    config = build({**SOUND, "run_dir": 12, "model": {"path": "m", "revision": "0123"}, "steps": "07"})
    assert (config.run_dir, config.model.revision, config.steps) == ("12", "0123", 7)


@pytest.mark.parametrize(
    "text", ["1", "0", "-3", "0.5", "1e-06", "1e+20", "true", "false", "null", "a b", "010", "1e-6", "~", "yes", "1.50"]
)
def test_the_text_is_kept_where_the_value_does_not_lead_back_to_it(text: str) -> None:
    read = read_plain(text)
    assert isinstance(read, Plain) == (text in ("010", "1e-6", "~", "yes", "1.50"))
    assert str(read) == text or read is None or isinstance(read, bool | float | int)


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("0b11", 3), ("-0x1f", -31), ("1_2_3", 123), ("1__2", "1__2"), ("_1", "_1"), ("1_", "1_"), ("1.5e3", 1500.0),
     ("1e-6", 1e-6), ("-.inf", float("-inf")), ("1e400", "1e400"), ("12:30", "12:30"), ("2026-11-29", "2026-11-29"), ("e5", "e5"),
     ("-", "-"),
     (".", "."), ("+", "+"), ("0x", "0x"), ("0o8", "0o8"), ("~", None), ("Yes", True), ("yEs", "yEs"), ("y", "y"), ("n", "n")],
)  # fmt: skip
def test_scalars(text: str, value: Any) -> None:
    assert scalar(text) == value and type(scalar(text)) is type(value)


def test_before_the_plug_in_is_known_it_equals_its_value(config: Path) -> None:
    found = load(config, ["trainer.lr=1e-6", "teacher={name: ema, ema_decay: 5e-1}"])
    assert found.trainer["lr"] == 1e-6 == float(found.trainer["lr"]) and found.teacher["ema_decay"] == 0.5
    assert found == load(config, ["trainer.lr=1e-6", "teacher={name: ema, ema_decay: 5e-1}"])
    assert (
        read_plain("010") == 10
        and read_plain("010") == read_plain("010") != read_plain("+10")
        and read_plain("010") != "010"
    )


def test_one_loader(tmp_path: Path) -> None:
    """A value in a file is what it is as an override, unless YAML cuts a comment off or the file could not be read at all."""
    for text in (
        "010",
        "yes",
        "'yes'",
        "1e-6",
        "12:30",
        "~",
        "",
        "[a, 010]",
        "{a: 010, b: [no]}",
        "2026-11-29",
        "a b",
        '"\\t"',
        ".inf",
    ):
        (tmp_path / "x.yaml").write_text(f"x: {text}\n")
        file, override = read_yaml(tmp_path / "x.yaml")["x"], read_value(text)
        if isinstance(override, Plain) and not isinstance(file, Plain):
            override = override.value("")
        assert repr(file) == repr(override), text


def test_what_is_saved_is_what_the_run_has(config: Path) -> None:
    odd = [
        "trainer.lr=1e-4",
        "trainer.weight_decay=.10",
        "objective[0].weight=5e-1",
        "steps=010",
        "generator.temperature=1.50",
    ]
    plain = [
        "trainer.lr=0.0001",
        "trainer.weight_decay=0.1",
        "objective[0].weight=0.5",
        "steps=10",
        "generator.temperature=1.5",
    ]
    one, other = load_resolved(config, odd).config, load_resolved(config, plain).config
    assert one == other and to_yaml(one) == to_yaml(other)
    assert "lr: 0.0001" in to_yaml(one)
    assert not list(config_differences(yaml.safe_load(to_yaml(one)), yaml.safe_load(to_yaml(other))))


def test_a_date_in_a_saved_config_stays_text(config: Path) -> None:
    text = to_yaml(load_resolved(config, ["model.revision=2026-11-29", "run_dir=12:30"]).config)
    assert yaml.safe_load(text)["model"]["revision"] == "2026-11-29" and yaml.safe_load(text)["run_dir"] == "12:30"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.x=1", "'x' stands in a list"),
        ("model[0]=1", "[0] stands behind what is no list"),
        ("objective[9].x=1", "the list has 1 items"),
        ("a..b=1", "got the key 'a..b'"),
        ("x[=1", "got the key 'x['"),
        (".=1", "got the key '.'"),
        ("[]=1", "got the key '[]'"),
        ("[0]=1", "got the key '[0]'"),
        ("run_dir=\x00", "special characters are not allowed"),
        ("rewards[0]={name: a", "not valid YAML"),
        ("objective=[{name: distill, divergence: jsd", "not valid YAML"),
        ("teacher={name: ema, name: live}", "duplicate key name"),
    ],
)
def test_keys_and_values_that_lead_nowhere(override: str, words: str, config: Path) -> None:
    with pytest.raises(ConfigError, match="(?s)" + words.replace("[", r"\[")):
        load_resolved(config, [override])
