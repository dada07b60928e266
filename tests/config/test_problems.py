"""All problems of a config in one answer: each once, none that only follows from another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from onpolicy.cli import main
from onpolicy.config.load import build
from onpolicy.config.other_names import name_elsewhere
from onpolicy.config.problems import Problems
from onpolicy.config.renamed import RENAMED
from onpolicy.config.resolve import load_resolved, resolve
from onpolicy.contracts import check_config
from onpolicy.utils.errors import ConfigError
from tests.runs import write_here

SOUND: dict[str, Any] = {
    "model": {"path": "m"},
    "data": {"name": "file", "path": "d.jsonl"},
    "generator": {"name": "transformers", "group_size": 3},
    "rewards": [{"name": "math_answer"}],
    "contexts": {"teacher": {"name": "reference_solution"}},
    "teacher": {"name": "ema", "ema_decay": 0.9},
    "objective": [{"name": "distill", "divergence": "forward_kl"}, {"name": "policy_gradient", "weight": 0.1}],
    "trainer": {"lr": 1e-3},
    "steps": 3,
}
MISTAKES = {
    "generater.x=1": "generater",
    "model.pth=x": "model.pth",
    "model.trust_remote_code=[1]": "model.trust_remote_code",
    "data.sise=3": "data.sise",
    "data.prompt_template='Solve it.'": "data.prompt_template",
    "data.columns={question: Problem}": "data.columns",
    "data.answer_from=box": "data.answer_from",
    "eval.sets={near: {name: file, path: e, prompt_template: 'Solve it.'}}": "eval.sets.near.prompt_template",
    "data.on_bad_row=[1]": "data.on_bad_row",
    "data.prompts_per_step=0": "data.prompts_per_step",
    "generator.temperature=-1": "generator.temperature",
    "generator.max_token=3": "generator.max_token",
    "rewards[0].nothing=1": "rewards[0].nothing",
    "rewards=[nope]": "rewards[0]",
    "contexts.hint=final_anser": "contexts.hint",
    "teacher.ema_decay=soon": "teacher.ema_decay",
    "credit=group_sd": "credit.name",
    "objective[0].divergence=revers_kl": "objective[0].divergence",
    "objective[0].support={name: student_topk, tail: bukket}": "objective[0].support.tail",
    "objective[1].weight=heavy": "objective[1].weight",
    "objective[1].advantage={name: add, context: lost}": "objective[1].advantage.context",
    "trainer.lr=fast": "trainer.lr",
    "trainer.micro_batch_tokens=0": "trainer.micro_batch_tokens",
    "trainer.name=locl": "trainer.name",
    "steps=many": "steps",
    "eval.pass_at=[9]": "eval.pass_at",
    "eval.every=-1": "eval.every",
    "rendering.overlong=cut": "rendering.overlong",
    "epistemic.lexicon=Q": "epistemic.lexicon",
    "custom_lexicons={mine: 3}": "custom_lexicons.mine",
    "logging.trackers=[jsnl]": "logging.trackers[0]",
    "guards=[{name: falls, metric: x, below_fraction: much}]": "guards[0].below_fraction",
    "seed=${oc.env:HOME}": "seed",
    "run_dir=${nowhere}": "run_dir",
    "nonsense": "override 'nonsense'",
}
"""Override -> the key that the answer begins with. Each spoils the sound config alone, and none hides another."""


def place(mistake: str) -> str:
    """Where it is made: an override of all rewards takes back one of the first."""
    return "rewards" if mistake.startswith("rewards") else mistake


def keys(error: ConfigError) -> list[str]:
    return [problem.partition(": ")[0] for problem in error.problems]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_here(tmp_path, monkeypatch, SOUND)


@pytest.fixture(autouse=True)
def known_lexicons(monkeypatch: pytest.MonkeyPatch) -> None:
    from onpolicy.rewards import lexicon

    monkeypatch.setattr(lexicon, "LEXICONS", dict(lexicon.LEXICONS))


def test_eight_mistakes_of_different_kinds_are_eight_problems(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = [
        "generater.x=1",  # an unknown key
        "steps=many",  # a wrong type
        "rewards=[nope]",  # an unknown plug-in
        "generator.max_token=3",  # an unknown option
        "objective[0].divergence.name=jsd",  # a missing option
        "trainer.micro_batch_tokens=0",  # a value out of range
        "objective[1].advantage={name: add, context: lost}",  # a contradiction
        "teacher={name: ema, ema_decay: 1.5}",  # an option out of its bounds
    ]
    assert main(["check", str(config), *mistakes]) == 2
    error = capsys.readouterr().err
    assert error.startswith("onpolicy check: 8 problems:\n")
    lines = error.splitlines()[1:]
    assert [line.split(". ", 1)[0].strip() for line in lines] == [str(i) for i in range(1, 9)]
    assert sorted(line.split(". ", 1)[1].partition(": ")[0] for line in lines) == [
        *("generater", "generator.max_token", "objective[0].divergence.beta", "objective[1].advantage.context"),
        *("rewards[0]", "steps", "teacher.ema_decay", "trainer.micro_batch_tokens"),
    ]
    assert "trainer.micro_batch_tokens: got 0, expected at least 1." in error
    assert main(["train", str(config), *mistakes]) == 2 and "8 problems" in capsys.readouterr().err


@settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(st.sampled_from(sorted(MISTAKES)), min_size=1, max_size=8, unique_by=place))
def test_as_many_problems_as_mistakes(config: Path, mistakes: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_resolved(config, mistakes)
    assert sorted(keys(caught.value)) == sorted(MISTAKES[m] for m in mistakes), caught.value


def test_what_follows_from_a_mistake_is_not_reported(config: Path) -> None:
    for overrides, key in (
        (["custom_lexicons={mine: 3}", "epistemic.lexicon=mine"], "custom_lexicons.mine"),
        (["eval.samples_per_problem=few", "eval.pass_at=[9]"], "eval.samples_per_problem"),
        (["objective=[distil]"], "objective[0]"),
        (["objective[0].divergence={name: jsd, betta: 0.5}"], "objective[0].divergence.betta"),
        (["rewards=[nope]", "correctness=nope"], "rewards[0]"),
        (["objective[0].divergence={name: jsd, beta: 1.0}"], "objective[0].divergence"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_config(config, overrides)
        assert keys(caught.value) == [key], caught.value


TEMPERED = "objective[0]={name: teacher_advantage, importance_cap: null, temperature: 1.1}"
CAP = "the sampler's log-probabilities are those at temperature 1; expected null"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective[0].temperature=0"], "objective[0].temperature: got 0.0, expected more than 0"),
        (["objective[0].temperature={name: linear, initial: 1, final: 2, end: 9}"], "objective[0].temperature: a schedule has no effect"),
        (["objective[0].temperature=1.1", "objective[0].importance_cap=2"],
         f"objective[0].importance_cap: got 2.0 with objective[0].temperature = 1.1, but {CAP}"),
        (["objective[0]={name: teacher_advantage, temperature: 1.1}"], "objective[0].importance_cap: got 2.0 with"),  # the default
        (["objective[0].temperature=1.1", "objective[0].importance_cap=.inf"], "objective[0].importance_cap: got inf with"),
        ([TEMPERED, "objective[0].advantage={name: teacher_logratio, against: sampler}"],
         "objective[0].advantage.against: got 'sampler' with objective[0].temperature = 1.1"),
        ([TEMPERED, "trainer.updates_per_step=2"], "trainer.updates_per_step: got 2, but objective[0] reads log-probabilities"),
        (["objective[0].temperature=1.1", "objective[0].select={name: logratio_above, threshold: 0}", "trainer.updates_per_step=2"],
         "trainer.updates_per_step: got 2, but objective[0] reads"),
    ],
)  # fmt: skip
def test_at_another_temperature_nothing_is_known_of_sampling_and_of_the_start(
    config: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_resolved(config, overrides)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        [TEMPERED],
        [
            "objective[0].temperature=1.1",
            "trainer.updates_per_step=2",
        ],  # no importance weight: nothing of the start is read
        [TEMPERED, "objective[0].temperature=1", "trainer.updates_per_step=2"],
        ["objective[0].importance_cap=2", "trainer.updates_per_step=2"],
    ],
)
def test_what_goes_with_a_temperature(config: Path, overrides: list[str]) -> None:
    load_resolved(config, overrides)


def test_the_settings_of_a_config_are_never_read_from_the_environment(config: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_resolved(config, ["data.path=${oc.env:HOME}", "steps=0"])
    assert keys(caught.value) == ["data.path", "steps"] and str(Path.home()) not in str(caught.value)


def test_one_problem_hides_later_ones_below_it() -> None:
    problems = Problems()
    problems.add("a: wrong")
    problems.add("a.b: follows", "ab: does not", "a[0]: follows")
    assert problems.keys == ["a", "ab"]
    assert not problems.sound("a.b") and not problems.sound("x", "ab") and problems.sound("abc")
    with pytest.raises(ConfigError, match=r"^2 problems:\n  1. a: wrong\n  2. ab: does not$"):
        problems.refuse()


def test_a_metric_of_a_lexicon_of_the_users_own_is_not_a_renamed_one() -> None:
    for name in ("epistemic/A/rate_per_1k", "audit/A/lead"):
        guards = [{"name": "falls", "metric": name}]
        assert resolve(build({**SOUND, "guards": guards, "custom_lexicons": {"A": ["well"]}})).guards
        with pytest.raises(ConfigError, match="self_doubt"):
            resolve(build({**SOUND, "guards": guards}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": [{"name": "start_kl"}]}, "objective[0].name: unknown term 'start_kl'. It is called 'ref_kl' now."),
        (
            {"objective": [{"name": "distill", "divergence": "forward_kl", "view": "teacher"}]},
            "objective[0].view: unknown key. It is called objective[0].context now.",
        ),
        ({"old": 1}, "old: unknown key. It is called steps now."),
        ({"old_section": {"a": 1, "b": 2}}, "old_section: unknown key. It is called trainer now (old_section.a is trainer.lr)."),
        ({"generator": {"name": "vllm", "old": 1}}, "generator.old: unknown key. It is called generator.max_tokens now."),
        ({"epistemic": {"lexicon": "old"}}, "It is called 'self_doubt' now."),
        (
            {"rewards": ["onpolicy.experiments.lab.grading:doubt_recall"]},
            "has no 'doubt_recall'. It is called 'onpolicy.experiments.lab.grading:self_doubt_recall' now.",
        ),
        (
            {"guards": [{"name": "falls", "metric": "epistemic/A/rate_per_1k/wrong"}]},
            "guards[0].metric: no metric is called 'epistemic/A/rate_per_1k/wrong'. "
            "It is called 'epistemic/self_doubt/rate_per_1k/incorrect' now.",
        ),
        (
            {"guards": [{"name": "rises", "metric": "audit/{followed}/lead", "by": 0.1}]},
            "guards[0].metric: no metric is called 'audit/{followed}/lead'. It is called 'audit/{lexicon}/lead' now.",
        ),
        (
            {"rewards": [{"name": "math_answer", "weight": {"name": "schmitt_gate", "metric": "group/right"}}]},
            "rewards[0].weight.metric: no metric is called 'group/right'. It is called 'group/pass_rate' now.",
        ),
        (
            {"checkpoint": {"best_metric": "eval/easy/epistemic/seed10/mass/start"}},
            "checkpoint.best_metric: no metric is called 'eval/easy/epistemic/seed10/mass/start'. "
            "It is called 'eval/easy/epistemic/paper10/mass/ref' now.",
        ),
    ],
)  # fmt: skip
def test_an_old_name_is_answered_with_the_new_one(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for old, new in {"old": "steps", "old_section": "trainer", "old_section.a": "trainer.lr", "generator.old": "generator.max_tokens",
                     "lexicon old": "self_doubt"}.items():  # fmt: skip
        monkeypatch.setitem(RENAMED, old, new)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        problems = Problems()
        resolve(build({**SOUND, **changes}, problems), problems)
        problems.refuse()
    assert len(caught.value.problems) == 1, caught.value


def test_an_option_of_the_plugin_that_was_there_before(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_resolved("smollm2", ["data.name=file", "data.path=my.csv"])
    assert "data.templates: 'file' has no such option." in str(caught.value) and "'gym' has it" in str(caught.value)
    assert "'data={name: file, path: …}'" in str(caught.value) and "Did you mean" not in str(caught.value)
    load_resolved("smollm2", ["data={name: file, path: my.csv}"])


def test_a_reference_to_a_setting_that_is_not_written_leads_to_its_default() -> None:
    for overrides in ([], ["data.coverage.problems=3"]):
        found = load_resolved("quickstart", ["data={name: file, path: x.jsonl}", *overrides])
        assert found.eval_sets["in_domain"].settings.coverage == found.data.settings.coverage
    with pytest.raises(ConfigError) as caught:
        load_resolved("quickstart", ["eval.sets.in_domain.coverage=${data.nothing}"])
    assert caught.value.problems == ("eval.sets.in_domain.coverage: Interpolation key 'data.nothing' not found",)


def test_a_module_that_ends_the_program_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quitter.py").write_text("import sys\n\nsys.exit(3)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"it ends the program while it is imported, sys.exit\(3\) \(quitter.py, line 3\)"
    ):
        load_resolved("quickstart", ["rewards=[quitter:f]"])


def test_an_option_of_another_plug_in_is_not_told_as_another_frameworks() -> None:
    with pytest.raises(ConfigError, match=r"'transformers' has it") as caught:
        load_resolved("quickstart", ["generator={name: vllm, batch_size: 8}"])
    assert "Here this is" not in str(caught.value)
    assert name_elsewhere("trainer.weight_decay") == "" and "trainer.lr" in name_elsewhere("trainer.learning_rate")
