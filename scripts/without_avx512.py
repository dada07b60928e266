"""Runs ``onpolicy`` as on a processor without AVX-512: ``python scripts/without_avx512.py train quickstart``.

vLLM's CPU build comes in three extension modules, and ``CpuPlatform.import_kernels`` asks torch which to load; no variable of the
environment overrules it. torch and oneDNN read theirs when they are loaded. Holds for this process, not for actors of Ray.
"""

from __future__ import annotations

import os
import sys

os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}

import torch

from onpolicy.cli import main

if __name__ == "__main__":
    for asked in ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        setattr(torch.cpu, asked, lambda: False)
    status = main(sys.argv[1:])
    with open("/proc/self/maps") as maps:
        loaded = sorted({line.split()[-1] for line in maps if "vllm/_C" in line})
    print(f"vLLM's kernels: {', '.join(loaded) or 'not loaded'}", file=sys.stderr)
    sys.exit(status)
