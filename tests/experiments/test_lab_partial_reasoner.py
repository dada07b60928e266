"""The reasoner that knows part of two tasks: what it knows before any training, and in small what training makes of it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from onpolicy.config.shipped import find_config
from onpolicy.experiments.lab.asking import probability_of_last, sampler_of
from onpolicy.experiments.lab.data import lab
from onpolicy.experiments.lab.partial_start import KNOWN_TASKS, measure_start, start_table
from onpolicy.experiments.lab.sets import partial_families
from onpolicy.experiments.sweep.frontier import FrontierPoint, frontier_points
from onpolicy.experiments.sweep.grid import cells, chosen, read_grid
from onpolicy.experiments.sweep.processes import run_cell
from onpolicy.models import PARTIAL_REASONER, resolve_model


@pytest.fixture(scope="module")
def start() -> dict[str, Any]:
    return measure_start(resolve_model(PARTIAL_REASONER), problems=48)


@pytest.mark.parametrize("family", list(partial_families()))
def test_it_knows_part_of_what_it_is_to_learn(start: dict[str, Any], family: str) -> None:
    found, by = start[family], start[family]["by_knowledge"]
    assert 0.3 <= found["accuracy"] <= 0.6 and found["verdicts"] >= 0.97
    assert found["with_solution"]["accuracy"] >= 0.95, "a teacher reads it from the hint"
    assert by["known"]["accuracy"] > 0.5 and by["unknown"]["accuracy"] < 0.1
    assert by["faint"]["pass@16"] > 0.6 > by["faint"]["accuracy"], "what rewards alone can find"


@pytest.mark.parametrize("family", list(partial_families()))
def test_what_it_states_in_a_search(start: dict[str, Any], family: str) -> None:
    alone, shown = start[family]["stated"], start[family]["stated_with_solution"]
    assert alone["known"] > 0.95 and alone["unknown"] < 0.05 < alone["faint"] < 0.5, "as its training data says"
    assert min(shown.values()) > 0.8, "a teacher reads it from the hint in a search too"


def test_it_still_knows_the_rest(start: dict[str, Any]) -> None:
    for family, least in zip(KNOWN_TASKS, (0.85, 0.85, 0.55, 0.95), strict=True):
        assert start[family]["accuracy"] >= least, family
    assert start_table(start).row_count == len(start)


def test_the_bonus_by_token_can_be_paid() -> None:
    """It pays where the reference model's entropy is above ``fork``; where the reasoner hesitates, it chooses between two words."""
    arms = read_grid(find_config("lab/surprise")).arms
    fork = arms["surprise_grpo"]["objective"][0]["advantage"]["fork"]
    sampler = sampler_of(resolve_model(PARTIAL_REASONER))
    asked = sampler.renderer.prompt_ids(next(iter(lab(family="route-c-2", split="test"))).messages)
    chances = [probability_of_last(sampler, asked, word) for word in ("maybe", "perhaps")]
    entropy = -math.fsum(p * math.log(p) for p in chances)
    assert sum(chances) > 0.99 and fork < entropy < 0.7, "the default of .7 would pay nothing"


@pytest.mark.nightly
@pytest.mark.process
def test_what_training_makes_of_it(tmp_path: Path) -> None:
    """Two arms, one seed, the signs: a teacher with the solution brings new routes and takes the search, searched solutions only bring."""
    grid = find_config("lab/headroom_coverage")
    runs = chosen(list(cells(grid, tmp_path)), ["distilled", "searched", "all"])
    ends: dict[str, FrontierPoint] = {}
    for cell in (c for c in runs if c.seed == 0):
        assert run_cell(cell, os.environ) == 0, cell.log.read_text()
        ends[cell.arm] = frontier_points([cell.run], read_grid(grid).eval_groups, read_grid(grid).frontier)[-1]
    assert ends["distilled"].in_domain.difference > 0.02 and ends["searched"].in_domain.difference > 0.2
    assert ends["distilled"].out_of_domain.difference < -0.25 < ends["searched"].out_of_domain.difference
