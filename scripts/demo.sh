#!/usr/bin/env bash
# Everything once, on the embedded corpus, on a bare machine: sets up ./.venv,
# trains, calibrates, evaluates, decodes one sentence. Downloads nothing but
# Python packages. A second start goes on where the first one stopped.
#   scripts/demo.sh [--input 'a sentence'] [--directory runs/demo]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,5p' "$0" | cut -c3-; }

directory=runs/demo
input='Anna sells seventeen plus four apples on two days after Sunday.'
while [ $# -gt 0 ]; do
  case "$1" in
    --input | --directory)
      [ $# -gt 1 ] || { echo "demo.sh: $1 needs a value" >&2; exit 2; }
      [ "$1" = --input ] && input=$2 || directory=$2
      shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "demo.sh: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
  esac
done

[ -n "$input" ] || { echo "demo.sh: --input is empty" >&2; exit 2; }
scripts/setup_environment.sh
job() {
  echo
  echo "== $1 ($((SECONDS / 60)) min $((SECONDS % 60)) s since the start)"
  .venv/bin/python -m "calm_jax.cli.$1" --gin_file="runs/$1.gin" \
    --gin.MODEL_DIR="$directory" "${@:2}"
}
task=--gin_file=tasks/embedded_corpus.gin
policy=--gin_file=policies/softmax_margin.gin
job train --gin_file=models/demo.gin "$task" --gin_file=runs/demo.gin
job calibrate "$task" "$policy"
job evaluate "$task" "$policy"
job generate "$policy" --gin.INPUTS="$input"
echo
echo "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s."
