#!/usr/bin/env bash
# Runs a job on every host of a TPU pod (gcloud must be logged in):
#   scripts/launch_tpu_pod.sh [options] NAME ZONE JOB FLAGS...
#   scripts/launch_tpu_pod.sh --setup my-pod us-central2-b train \
#     --gin_file=runs/train.gin ... --gin.MODEL_DIR=/mnt/shared/run
# MODEL_DIR must be on a file system that all hosts mount.
#   --setup           first copy the committed sources there and install them
#   --directory DIR   where they are on the hosts (default: calm_jax)
#   --project PROJECT of Google Cloud
#   --print           print the commands and run nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,10p' "$0" | cut -c3-; }
fail() {
  echo "launch_tpu_pod.sh: $1" >&2
  usage >&2
  exit 2
}

setup='' print='' directory=calm_jax project=()
while [ $# -gt 0 ]; do
  case "$1" in
    --setup) setup=1; shift ;;
    --print) print=1; shift ;;
    --directory | --project)
      [ $# -gt 1 ] || fail "$1 needs a value"
      if [ "$1" = --project ]; then project=("--project=$2"); else directory=$2; fi
      shift 2 ;;
    -h | --help) usage; exit 0 ;;
    -*) fail "unknown option '$1'" ;;
    *) break ;;
  esac
done
[ $# -ge 3 ] || fail 'give NAME, ZONE and JOB'
name=$1 zone=$2 job=$3
shift 3
[ -f "calm_jax/cli/$job.py" ] || fail "there is no job '$job' in calm_jax/cli"
case "$directory" in
  *[!A-Za-z0-9_./~-]*) fail "--directory '$directory' has characters that a shell reads" ;;
esac

run() {
  if [ -n "$print" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}
where=(--zone="$zone" --worker=all ${project[@]+"${project[@]}"})
on_all_hosts() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command="$1"
}

if [ -n "$setup" ]; then
  archive=$(mktemp -t calm_jax.XXXXXX)
  trap 'rm -f "$archive"' EXIT
  # The same sources on all hosts; jobs compare them when they start.
  git archive --format=tar.gz --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:calm_jax.tar.gz" "${where[@]}"
  on_all_hosts "mkdir -p $directory && tar -xzf calm_jax.tar.gz -C $directory && cd $directory && EXTRAS=all,tpu scripts/setup_environment.sh"
fi
flags=''
for flag in "$@"; do flags+=" $(printf '%q' "$flag")"; done
# JAX_PLATFORMS: a host that cannot use its TPU must not go on with its CPU.
token=${CALM_JAX_JOB_TOKEN:+CALM_JAX_JOB_TOKEN=$(printf '%q' "$CALM_JAX_JOB_TOKEN") }
on_all_hosts "cd $directory && ${token}JAX_PLATFORMS=tpu,cpu exec .venv/bin/python -m calm_jax.cli.$job --multiprocess$flags"
