"""Many steps under harm: role processes killed and stopped, drivers killed, checkpoints torn, disks full.

    python -m benchmarks.soak                           200 steps, a fault every eight seconds or so
    python -m benchmarks.soak --steps 2000 --seed 1     a night
    python -m benchmarks.soak --kinds kill stop         of some kinds alone

A tiny model is trained under Ray by two generators, a reward worker and the trainer while harm is done to a process of the run
every few seconds. Whenever the driver has died it is started again with the same folder, as a scheduler would. At the end
the run's files must look as if nothing had happened, and nothing may have grown. Status 1: something is wrong.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.__main__ import RESULTS
from benchmarks.soak.chaos import KINDS
from benchmarks.soak.report import as_dict, tables
from benchmarks.soak.soak import Soak
from benchmarks.soak.work import Work


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Many steps under harm.")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    parser.add_argument("--seconds", type=float, default=8.0, help="between two faults, on average")
    parser.add_argument("--seed", type=int, default=0, help="of the run, and of what is done to it")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="of faults; default: all")
    parser.add_argument("--limit", type=int, help="faults at most")
    parser.add_argument("--generator", choices=["vllm", "transformers"], default="vllm", help="who samples")
    parser.add_argument(
        "--patience", type=float, default=Work.patience, help="distributed.heartbeat_timeout_s, in seconds"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json", help="file of the results")
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"), help="of the run; what is in it goes")
    arguments = parser.parse_args()
    console = Console()
    if arguments.folder.exists():
        if any(arguments.folder.iterdir()) and not (arguments.folder / "problems.jsonl").exists():
            parser.error(f"--folder {arguments.folder}: holds something other than a soak")
        shutil.rmtree(arguments.folder)
    requested = Work(arguments.steps, arguments.seed, arguments.generator, patience=arguments.patience)
    soak = Soak(
        requested,
        arguments.folder.resolve(),
        seconds=arguments.seconds,
        kinds=arguments.kinds,
        limit=arguments.limit,
        say=lambda line: console.print(line, highlight=False, soft_wrap=True),
    )
    soak()
    results = soak.results()
    for table in tables(soak, results):
        console.print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m benchmarks.soak", *sys.argv[1:]])
    arguments.out.write_text(json.dumps(as_dict(soak, results, command), indent=1) + "\n")
    return 0 if all(check.ok for check in results) else 1


if __name__ == "__main__":
    sys.exit(main())
