"""What the finished runs of a frontier say, while others are still to run: python scripts/lab_frontier.py RUNS [GRID.yaml] [key=value ...]

RUNS is the output of: onpolicy lab frontier --output RUNS, or of onpolicy sweep GRID --output RUNS [key=value ...] with some of its arms
and seeds. Without GRID it is that of lab/frontier, whose unprotected runs are also evaluated with weights between start and end; GRID is
one with a frontier and an arm called unprotected, e.g. configs/lab/confirmation.yaml.
"""

from __future__ import annotations

import sys
from pathlib import Path

from onpolicy.experiments.lab.frontier import GRID, SHARES, write_frontier

runs, *rest = sys.argv[1:]
given = Path(rest.pop(0)) if rest and "=" not in rest[0] else None
write_frontier(Path(runs), given or GRID, rest, () if given else SHARES)
