"""What onpolicy does on this machine's GPU.

    python -m benchmarks.gpu                     every part at the shapes of Qwen3-0.6B and Qwen3-8B; about ten minutes on one H200
    python -m benchmarks.gpu kernels head --shape 0.6b
    python -m benchmarks.gpu --tiny              the same code at a tiny shape, on the CPU too: whether it runs

Weights are random, so no network is needed. Every part runs in a process of its own, so that none holds memory of another, and writes a
line of JSON; a part that fails says why, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.__main__ import machine
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.shapes import WORKLOADS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Kernels, memory and speed on this machine's GPU."
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument(
        "--shape", action="append", choices=[name for name in WORKLOADS if name != "tiny"], help="default: all"
    )
    parser.add_argument("--tiny", action="store_true", help="at a tiny shape, in one process")
    parser.add_argument("--output", type=Path, help="file to which lines of JSON are added")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    shapes = ["tiny"] if arguments.tiny else arguments.shape or [name for name in WORKLOADS if name != "tiny"]
    parts = arguments.parts or list(PARTS)
    if len(shapes) * len(parts) == 1 or arguments.tiny:
        results = [run(part, shape) for shape in shapes for part in parts]
        for line in results:
            _write(line, arguments.output)
        return int(any("failed" in line for line in results))
    codes = []
    for shape in shapes:
        for part in parts:
            command = [sys.executable, "-m", "benchmarks.gpu", part, "--shape", shape]
            codes.append(
                subprocess.run(
                    [*command, *(["--output", str(arguments.output)] if arguments.output else [])]
                ).returncode
            )
    return int(any(codes))


def run(part: str, shape: str) -> dict[str, Any]:
    """One part at one shape; what it found, or why it failed."""
    start = time.perf_counter()
    try:
        found = PARTS[part](WORKLOADS[shape])
    except Exception as error:
        where = traceback.format_exc().splitlines()[-3:]
        found = {"failed": f"{type(error).__name__}: {error}", "where": where}
    return {
        "part": part,
        "shape": shape,
        "machine": machine(),
        **found,
        "took_seconds": round(time.perf_counter() - start, 1),
    }


def _write(line: dict[str, Any], output: Path | None) -> None:
    text = json.dumps(line)
    print(text, flush=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
