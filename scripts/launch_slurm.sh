#!/usr/bin/env bash
# Runs a job on GPUs under SLURM, one process per GPU, from the checkout:
#   sbatch [sbatch options] scripts/launch_slurm.sh JOB FLAGS...
#   sbatch --nodes=4 scripts/launch_slurm.sh train \
#     --gin_file=runs/train.gin ... --gin.MODEL_DIR=/shared/run
# One process per node instead: sbatch --ntasks-per-node=1 ... MODEL_DIR must be
# on a file system that all nodes mount. When a process dies the job is queued
# again, at most $RESTARTS times (default 3), and goes on where it was.
# PRINT=1 prints the command and runs nothing. ./.venv must have been set up:
#   EXTRAS=all,cuda12 scripts/setup_environment.sh
#SBATCH --job-name=calm_jax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
# SLURM runs a copy of this file, from the directory of sbatch.
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"

if [ $# -lt 1 ]; then
  echo 'launch_slurm.sh: give a JOB; for example: sbatch scripts/launch_slurm.sh train --gin_file=runs/train.gin ...' >&2
  exit 2
fi
job=$1
shift
if [ ! -f "calm_jax/cli/$job.py" ]; then
  echo "launch_slurm.sh: there is no job '$job' in $PWD/calm_jax/cli" >&2
  exit 2
fi
if [ ! -x .venv/bin/python ]; then
  echo "launch_slurm.sh: no $PWD/.venv; run EXTRAS=all,cuda12 scripts/setup_environment.sh first" >&2
  exit 2
fi

# JAX gives a process the GPU of its number on the node; a process that is
# alone there takes all.
gpus=${SLURM_GPUS_ON_NODE:-1}
if [ "${SLURM_NTASKS_PER_NODE:-}" = 1 ] && [ "$gpus" -gt 1 ]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
# Without its GPU a process must not go on with the CPU.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}

# Nobody else takes a process's place; srun hands the environment on.
if [ -z "${CALM_JAX_JOB_TOKEN:-}" ]; then
  CALM_JAX_JOB_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  export CALM_JAX_JOB_TOKEN
fi
# Every process must see all GPUs of its node: --gpu-bind=none.
command=(srun --kill-on-bad-exit=0 --gpu-bind=none
  .venv/bin/python -m "calm_jax.cli.$job" --multiprocess "$@")
if [ -n "${PRINT:-}" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
status=0
"${command[@]}" || status=$?
# 75: another process died; else killed or aborted. srun says the highest.
case "$status" in
  75 | 134 | 137 | 139)
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-3}" ]; then
      echo "launch_slurm.sh: a process died (exit code $status); queued again" >&2
      scontrol requeue "$SLURM_JOB_ID"
    fi ;;
esac
exit "$status"
