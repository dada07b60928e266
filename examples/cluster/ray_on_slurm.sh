#!/usr/bin/env bash
# Runs a command on a Ray cluster of all nodes of a Slurm job: bash ray_on_slurm.sh COMMAND...
#
# The job files beside this one call it on the job's first node, which becomes Ray's head. GPUS is the number of GPUs of a node. Slurm's
# SIGTERM goes on to the command: onpolicy then finishes its step, saves, and goes on from there when the job is submitted again.
set -euo pipefail

read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=${RAY_PORT:-6379}
export RAY_ADDRESS="$head:$port"
# Ray 2.60 protects a cluster where a token lies in the home folder, and those who join have to say so; this job has one of its own
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(python -c 'import secrets; print(secrets.token_hex(32))')}
start=(srun --overlap --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --gpus-per-node="$GPUS")
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

"${start[@]}" --nodes=1 --nodelist="$head" ray start --head --port="$port" --num-gpus="$GPUS" --block &
if ((SLURM_JOB_NUM_NODES > 1)); then
    until (: <"/dev/tcp/$head/$port") 2>/dev/null; do sleep 1; done
    "${start[@]}" --nodes=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        ray start --address="$RAY_ADDRESS" --num-gpus="$GPUS" --block &
fi
python "$(dirname "$0")/wait_for_nodes.py" "$SLURM_JOB_NUM_NODES"

"$@" &
run=$!
trap 'kill -TERM $run' TERM
while true; do # a signal ends `wait` while the command goes on
    status=0
    wait $run || status=$?
    kill -0 $run 2>/dev/null || exit $status
done
