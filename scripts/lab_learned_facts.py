"""What students of the frontier know and try after training: python scripts/lab_learned_facts.py RUNS > docs/results/lab/learned_facts.json

By arm, seed 0, problems that nothing trains: probability of the true fact where the right attempt states it (``stated``); and of the
answers to problems that rest on an unknown fact, the share in which the right idea is tried.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean

from onpolicy.experiments.lab import grading
from onpolicy.experiments.lab.asking import sampler_of
from onpolicy.experiments.lab.data import lab
from onpolicy.experiments.lab.partial import Knowledge, knowledge, right
from onpolicy.experiments.lab.partial_start import stated
from onpolicy.types import Sampling

ARMS = ("unprotected", "protected", "facts", "reversal_markers", "grpo_1e-4")
found = {}
for arm in ARMS:
    (checkpoint,) = Path(sys.argv[1], arm).glob("*/seed-0/checkpoints/step-000300")
    sampler, prompts = sampler_of(str(checkpoint)), lab(family="route-c-2", split="test")[:200]
    attempts = {p.id: right(grading.problem_of(p.fields["problem_id"])) for p in prompts}
    asked = [p for p in prompts if knowledge(attempts[p.id].idea) is Knowledge.UNKNOWN]
    groups = sampler.generate(asked, seed=0, sampling=Sampling(group_size=8, max_tokens=96))
    tried = [
        any(t.said.startswith(f"{attempts[p.id].idea} ") for t in grading.tried(r.text))
        for p, group in zip(asked, groups, strict=True)
        for r in group.rollouts
    ]
    shares = {kind: round(p, 4) for kind, p in stated(sampler, prompts).items()}
    found[arm] = {"stated": shares, "problems": len(asked), "tried": round(fmean(tried), 4)}
print(json.dumps(found, indent=1))
