"""Where two configs differ, and when they are the same."""

from __future__ import annotations

from dataclasses import fields

import pytest

from onpolicy.config.compare import ABSENT, config_differences, fingerprint, shown
from onpolicy.config.keys import under
from onpolicy.config.schema import Config
from onpolicy.experiments.sweep.grid import IGNORED_KEYS
from onpolicy.run.run_dir import EVALUATED, RESUMABLE


def test_differences_of_settings() -> None:
    one = {"a": [1, {"b": 2}], "c": {"name": "x", "n": 1}, "d": {}, "same": [1]}
    other = {"a": [1], "c": {"name": "y"}, "same": [1.0]}
    assert sorted((d.key, shown(d.one), shown(d.other)) for d in config_differences(one, other)) == [
        ("a[1].b", "2", "nothing"),
        ("c.n", "1", "nothing"),
        ("c.name", "x", "y"),
    ]
    assert list(config_differences({"a": {"b": 1}}, {"a": "text"})) == [("a", {"b": 1}, "text")]
    assert not list(config_differences({"lr": "1e-6"}, {"lr": 0.000001})), "YAML reads the one as a text"
    assert under("objective[0].weight", ["objective"]) and under("objective[0].weight", ["objective[0]"])
    assert under("trainer.lr", ["trainer.lr"]) and not under("trainer.lr_schedule", ["trainer.lr"])
    assert not under("objective[10].weight", ["objective[1]"])


def test_ignored_keys_are_left_out_with_all_below_them() -> None:
    one, other = {"a": {"b": 1, "c": [1]}, "seed": 0}, {"a": {"b": 2, "c": [2]}, "seed": 1}
    assert list(config_differences(one, other, ["seed", "a.c"])) == [("a.b", 1, 2)]
    assert list(config_differences(one, ABSENT, ["a"])) == [("seed", 0, ABSENT)]


def test_the_same_settings_have_the_same_fingerprint() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})
    assert fingerprint({"a": 1, "seed": 0}, ["seed"]) == fingerprint({"a": 1, "seed": 1}, ["seed"])


@pytest.mark.parametrize(
    "keys", [RESUMABLE, EVALUATED, IGNORED_KEYS], ids=["resumable", "evaluated", "ignored in sweeps"]
)
def test_lists_of_keys_name_keys_that_exist(keys: tuple[str, ...]) -> None:
    """A key that is renamed in the schema but not in such a list is silently compared again."""
    assert {key.split(".")[0] for key in keys} <= {field.name for field in fields(Config)}
