"""The file of the bonuses: what later runs add to it, and what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.test_docs import script

GRIDS = [Path("configs/lab/bonus.yaml"), Path("configs/lab/surprise.yaml")]


def found(*points: tuple[str, str, float], overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """A point and a run of each."""
    return {
        "overrides": list(overrides),
        "start": {},
        "runs": [{"arm": arm, "factor": factor, "seed": 0} for arm, factor, _ in points],
        "points": [{"arm": arm, "factor": factor, "dose": dose} for arm, factor, dose in points],
    }


def test_later_runs_stand_beside_the_earlier_ones() -> None:
    earlier = found(
        ("surprise_grpo", "3", 0.1), ("density_mixed_after", "0", 0.0), ("density_mixed_after", "3", 1.0)
    ) | {"start": {"unseen": 0.35}}
    later = found(("density_mixed_after", "3", 2.0), ("density_mixed_after", "-3", -0.4))
    merged = script("lab_bonus").with_earlier(later, earlier, GRIDS)
    assert [tuple(point.values()) for point in merged["points"]] == [
        ("density_mixed_after", "-3", -0.4),
        ("density_mixed_after", "0", 0.0),
        ("density_mixed_after", "3", 2.0),
        ("surprise_grpo", "3", 0.1),
    ]
    assert [(run["arm"], run["factor"]) for run in merged["runs"]] == [tuple(p.values())[:2] for p in merged["points"]]
    assert merged["start"] == {"unseen": 0.35}
    assert script("lab_bonus").with_earlier(later, {}, GRIDS) == later


def test_runs_of_other_lengths_do_not_stand_beside_each_other() -> None:
    with pytest.raises(SystemExit, match=r"steps=100.*got \[\]"):
        script("lab_bonus").with_earlier(found(), found(overrides=("steps=100",)), GRIDS)
