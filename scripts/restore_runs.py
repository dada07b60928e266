"""Puts kept runs of a sweep into its output, so that the sweep goes on with the others: python scripts/restore_runs.py FILE RUNS

FILE is kept_runs.jsonl of another output, or docs/results/lab/*_runs.jsonl; RUNS is the --output of the same sweep. A run that is there
stays. A restored run has no checkpoint and no answers: it can be compared, drawn and confirmed, not evaluated again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from onpolicy.experiments.sweep.kept_runs import restore

file, runs = map(Path, sys.argv[1:])
print(f"{len(restore(file, runs))} runs restored under {runs}")
