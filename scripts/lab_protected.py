"""The protected arm of the lab by step: python scripts/lab_protected.py RUNS > docs/results/lab/protected.json

RUNS is the output of: onpolicy sweep lab/decisive --arm opportunity --arm 8 --output RUNS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from onpolicy.experiments.lab.curves import curves_by_step
from onpolicy.experiments.lab.readout import rounded, versions

SEEDS = (0, 1, 2)

found = [
    SimpleNamespace(arm="opportunity", factor="8", seed=s, folder=Path(sys.argv[1]) / f"opportunity/8/seed-{s}")
    for s in SEEDS
]
print(json.dumps(rounded({"versions": versions(), "seeds": SEEDS, "curves": curves_by_step(found)})))
