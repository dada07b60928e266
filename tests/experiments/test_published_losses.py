"""Each method equals the published code whose name its config carries (onpolicy/experiments/parity/golden/README.md).

1. every golden case: loss, gradient and advantages to its tolerance, or a committed cause that is still one; 2. the committed table
and the configs' headers say what this suite finds; 3. an error in a method turns its cases red.

ONPOLICY_GOLDEN=<folder> runs 1 on another folder of the same format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onpolicy.experiments.parity.compare import KINDS, compare_case
from onpolicy.experiments.parity.fixtures import GOLDEN, Case, accepted_differences, golden_folder, loss_cases
from onpolicy.experiments.parity.table import published_by
from onpolicy.experiments.parity.texts import KINDS as KINDS_OF_TEXTS
from onpolicy.experiments.parity.threads import one_thread

ROOT = Path(__file__).parents[2]

ACCEPTED = accepted_differences()
CASES = list(loss_cases())


@pytest.fixture(autouse=True, scope="module")
def without_threads() -> Iterator[None]:
    with one_thread():
        yield


def test_there_are_cases() -> None:
    assert CASES, f"{golden_folder()}: no losses/<method>/<case>.npz"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_method_equals_its_published_code(case: Case) -> None:
    found = compare_case(case, ACCEPTED.get(case.name))
    assert found.verdict != "differs", found
    if case.name in ACCEPTED:
        assert found.verdict == "accepted", f"{case.name} is equal now: remove it from accepted.json"


# ---- 2. what is committed about it


def committed() -> dict[str, Any]:
    return {row["method"]: row for row in json.loads((ROOT / "docs/results/parity.json").read_text())}


def headers() -> dict[str, str]:
    """Config -> its opening comment."""
    files = sorted((ROOT / "configs").glob("*.yaml"))
    return {p.stem: " ".join(line for line in p.read_text().splitlines() if line.startswith("#")) for p in files}


@pytest.mark.skipif(golden_folder() != GOLDEN, reason="another folder of cases")
def test_the_committed_table_is_current() -> None:
    """Its differences are powers of ten: another processor may be off by one of them."""
    rows, methods = committed(), {case.method for case in CASES}
    assert set(rows) - set(KINDS_OF_TEXTS) == methods, "run: make parity"
    assert not [name for row in rows.values() for name in row["differing"]]
    for method in methods:
        row = rows[method]
        own = [case for case in CASES if case.method == method]
        assert row["cases"] == len(own) and set(row["accepted"]) == {c.name for c in own} & set(ACCEPTED)
        assert row["published"] == list(dict.fromkeys(published_by(case) for case in own))


@pytest.mark.parametrize(("name", "text"), headers().items(), ids=headers())
def test_confidence_follows_from_the_comparison(name: str, text: str) -> None:
    """High: equal to numbers that published code computed. Nobody's code: never high."""
    row = committed().get(name)
    equal_to_code = row is not None and any("@" in source for source in row["published"])
    assert ("confidence high" in text) == equal_to_code
    assert not (equal_to_code and "no public code found" in text)


# ---- 3. what a method consists of, each part changed: config -> (override, a case that has to differ)
ERRORS = {
    "rloo": ("objective[0].normalize=sequences", "rloo/ordinary"),
    "sdft": ("objective[0].importance_level=token", "sdft/ordinary"),
    "reopold": ("objective[0].normalize=all_tokens", "reopold/phase_1_ordinary"),
    "reopold, quantile": ("objective[1].select={name: entropy, share: 0.2}", "reopold/phase_2_ordinary"),
    "rlcsd": ("objective[0].normalize=all_tokens", "rlcsd/teacher_near_student"),
    "rlcsd, rows": ("objective[1].route=all", "rlcsd/rows_without_both_hints"),
    "srpo": ("objective[1].normalize=tokens", "srpo/ordinary"),
    "srpo, weight": ("objective[1].token_weights=teacher_certainty", "srpo/ordinary"),
    "sd_zero": ("objective[0].weight=1", "sd_zero/ordinary"),
    "minillm": ("objective[1].advantage=future_logratio", "minillm/long_part"),
    "opsd": ("objective[0].normalize=tokens", "opsd/as_trained_micro_batch_1"),
    "opsd, temperature": ("objective[0].temperature=1.0", "opsd/as_trained_micro_batch_1"),
    "pw_opsd": ("objective[0].token_weights={name: position, midpoint: 0.31}", "pw_opsd/ordinary"),
    "eopd": ("objective[0].importance_cap=2", "eopd/sampler_noise"),
    "rlsd": ("objective[0].advantage.share.begin=0", "rlsd/step_26"),
    "opd": ("objective[0].advantage.against=old", "opd/sampler_noise"),
    "dr_grpo": ("objective[0].normalize=tokens", "dr_grpo/corner_empty_row"),
    "grpo": ("credit={name: group_mean}", "grpo/whole_from_rewards"),
    "antisd": ("objective[0].advantage.coefficient=1", "antisd/as_configured"),
    "rlrt": ("objective[0].advantage.clip=0.2", "rlrt/as_configured"),
}


@pytest.mark.skipif(not all((golden_folder() / "losses" / f"{case}.npz").exists() for _, case in ERRORS.values()),
                    reason="another folder of cases")  # fmt: skip
@pytest.mark.parametrize(("override", "name"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_noticed(override: str, name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    assert KINDS["loss"](case, ()).verdict == "equal"
    assert KINDS["loss"](case, (override,)).verdict == "differs"
