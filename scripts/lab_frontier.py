"""What the finished runs of a frontier say, while others are still to run: python scripts/lab_frontier.py RUNS [key=value ...]

RUNS is the output of: onpolicy lab frontier --output RUNS, or of onpolicy sweep lab/frontier --output RUNS [key=value ...] with some of its
arms.
"""

from __future__ import annotations

import sys
from pathlib import Path

from onpolicy.experiments.lab.frontier import write_frontier

write_frontier(Path(sys.argv[1]), sys.argv[2:])
