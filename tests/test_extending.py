"""A user's own functions: the examples run as they stand, keep to the contracts, and the contracts catch what breaks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from onpolicy.config.builtins import TABLES
from onpolicy.config.registry import resolve_plugin
from onpolicy.contracts import CHECKS, ContractError
from onpolicy.losses.supports import Entries
from onpolicy.types import TermOutput
from tests.runs import metrics, run_here, write_config

EXAMPLES = Path(__file__).parent.parent / "examples"
OPTIONS: dict[str, dict[str, Any]] = {
    "jsd": {"beta": 0.5},
    "shuffled": {"token_weights": "position"},
    "distill": {"divergence": "forward_kl"},
    "overlong": {"max_tokens": 8, "buffer": 4},
    "brevity": {"budget": 8},
    "saturating_floor": {"floor": 4.0},
    "temperature": {"temperature": 2.0},
    "logratio_above": {"threshold": -1.0},
    "spans": {"marked": "key"},
    "normalized": {"token_weights": "position"},
    "normalized_in_update": {"token_weights": "position"},
    "contrast_changes": {"advantage": "teacher_logratio"},
    "entropy_matched": {"token_weights": "position"},
    "on_markers": {"advantage": "bounded_reversal"},
}


OF_ROWS_OF_THEIR_OWN = ("gym_answer", "code_tests")
"""Rewards that read columns which the contract's row does not have."""


@pytest.fixture(autouse=True)
def examples_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.parametrize(
    ("kind", "name"),
    [(k, n) for k in CHECKS for n in TABLES[k] if n not in OF_ROWS_OF_THEIR_OWN]
    + [
        ("reward", "custom_reward:brief_and_right"),
        ("reward", "custom_reward:compute_score"),
        ("reward", "custom_reward:ends_with_a_full_stop"),
        ("context", "custom_context:hint_for_failures"),
        ("divergence", "custom_divergence:hellinger"),
        ("term", "custom_term:confident_only"),
    ],
)
def test_built_ins_and_examples_keep_to_the_contracts(kind: str, name: str) -> None:
    CHECKS[kind](resolve_plugin(kind, {"name": name, **OPTIONS.get(name, {})}, kind).bind())


@pytest.mark.parametrize(
    ("kind", "function", "rule"),
    [
        ("divergence", lambda s, t: (s - t).sum(), "one number per token"),
        ("divergence", lambda s, t: (s - t).detach().abs().sum(-1), "gradient"),
        ("divergence", lambda s, t: -s.sum(-1), "must be 0"),
        ("support", lambda s, t: (s[..., :2], t[..., :2]), "Entries"),
        ("support", lambda s, t: Entries(torch.zeros(2, 3, 2, dtype=torch.long)), "each once"),
        ("support", lambda s, t: Entries(torch.zeros(2, 2, dtype=torch.long)), "for each token"),
        ("term", lambda inputs: inputs.logprobs, "TermOutput"),
        ("term", lambda inputs: TermOutput(per_token=inputs.logprobs.sum()), "one number per token"),
        ("term", lambda inputs: TermOutput(per_token=torch.zeros(2, 3)), "gradient"),
        ("term", lambda inputs: inputs.nothing, "nothing"),
        ("context", lambda group, index, rewards: ({"role": "assistant", "content": "4"},), "user's turn"),
        ("credit", lambda rewards: [1.0], "one advantage per reward"),
        ("credit", lambda rewards: [1.0 for _ in rewards], "all rewards are equal"),
    ],
)
def test_the_contracts_catch(kind: str, function: Any, rule: str) -> None:
    with pytest.raises(ContractError, match=rule):
        CHECKS[kind](function)


def test_the_example_config_trains(tmp_path: Path) -> None:
    given = yaml.safe_load((EXAMPLES / "custom.yaml").read_text())
    changes = {key: given[key] for key in ("rewards", "contexts", "objective")}
    config = write_config(tmp_path, **changes)
    assert run_here(config, f"run_dir={tmp_path / 'run'}") == 0
    row = metrics(tmp_path / "run")[-1]
    assert (
        "distill/divergence" in row
        and "confident_only/share_sure" in row
        and "reward/custom_reward:compute_score" in row
    )


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("custom_*.py")), ids=lambda f: f.stem)
def test_an_extension_stays_under_twenty_lines_a_piece(file: Path) -> None:
    code = [
        line for line in file.read_text().splitlines() if line.strip() and not line.lstrip().startswith(("#", '"""'))
    ]
    functions = sum(line.startswith("def ") for line in code)
    assert len(code) / functions < 20
