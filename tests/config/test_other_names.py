"""docs/keys.md: 1. it has every name that a config is refused with; 2. what it says is what the refusal says; 3. our keys in it exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from onpolicy.config.options import options
from onpolicy.config.other_names import OTHER_NAMES, VERL, name_elsewhere
from onpolicy.config.schema import Config

PAGE = Path(__file__).parent.parent.parent / "docs" / "keys.md"
SHORT = ("rollout.", "actor.", "model.")


class Row(NamedTuple):
    ours: list[str]
    ours_on_verl: list[str]
    trl: list[str]
    verl: list[str]


def in_full(key: str) -> str:
    return f"actor_rollout_ref.{key}" if key.startswith(SHORT) else key


def rows() -> Iterator[Row]:
    """Keys by cell; verl's in full."""
    for line in re.findall(r"^\| `.*\|$", PAGE.read_text(), re.MULTILINE):
        cells = [re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:7]]
        yield Row(cells[0], [in_full(key) for key in cells[1]], cells[2], [in_full(key) for key in cells[3]])


def test_it_has_every_name_that_is_known() -> None:
    leaves = {key.rpartition(".")[2] for row in rows() for key in (*row.trl, *row.verl)}
    full = {key for row in rows() for key in row.verl}
    assert OTHER_NAMES.keys() - leaves == set() and VERL.keys() - full == set()


def test_it_says_what_a_refusal_says() -> None:
    for row in rows():
        for key in (*row.trl, *row.verl):
            if key.rpartition(".")[2] in OTHER_NAMES or key in VERL:
                told = OTHER_NAMES.get(key.rpartition(".")[2]) or VERL[key]
                words = [word for ours in row.ours for word in re.findall(r"[a-z_]+", ours.rpartition(".")[2])]
                assert any(word in told for word in words), f"{key}: {row.ours}, but a refusal says {told!r}"
        for key in row.trl:
            assert "Here this is" in name_elsewhere(key), f"{key} is in the page and not known to a config"


def test_our_keys_exist() -> None:
    leaves = (re.match(r"\w+", option.key.rpartition(".")[2]) for option in options())  # clip_low (policy_gradient)
    known = {"name", *(leaf[0] for leaf in leaves if leaf), *Config.__dataclass_fields__}
    named = {key for row in rows() for key in row.ours}
    assert {"{name: ref_kl}", "route: finished"} < named
    for key in named - {"{name: ref_kl}"}:
        section, _, name = key.partition(":")[0].rpartition(".")
        assert name in known and section.partition(".")[0].removesuffix("[]") in {"", *Config.__dataclass_fields__}, key
