#!/usr/bin/env bash
# Everything once, on a bare machine: sets up ./.venv, teaches a small finished T5
# to leave early, finds the fastest certified setting for this machine, evaluates
# it, decodes one sentence before and after. Downloads nothing but Python packages.
# A second start goes on where the first one stopped.
#   scripts/demo.sh [--input 'a sentence'] [--directory runs/demo]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,6p' "$0" | cut -c3-; }

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
# Jobs find there what an earlier one compiled, where it is the same program.
export JAX_COMPILATION_CACHE_DIR="$directory/compiled"
t5=scripts/demo_t5
if [ ! -e "$directory/t5" ]; then
  .venv/bin/python -m calm_jax.cli.convert --source=$t5 --target="$directory/t5" --to=calm_jax \
    --vocabulary=$t5/spiece.model --extra_ids=0 --input_length=26 --target_length=18
fi
task=(--gin_file=tasks/embedded_corpus.gin
  --gin.corpus.EmbeddedCorpus.vocabulary_model=$t5/spiece.model)
job train --gin_file=models/demo.gin "${task[@]}" --gin_file=runs/demo.gin --gin.CHECKPOINT="$directory/t5"
# Some of the space's six policies: the paper's, and what is fastest on CPUs.
tune=("${task[@]}" --gin_file=spaces/int8.gin --gin.TOLERANCE=0.05 --gin.tune.run.max_examples=800
  --gin.THRESHOLDS='(0.9, 0.8, 0.75, 0.7)')
paper=@calm/evaluation.Candidates\(\) full=@full_int8/evaluation.Candidates\(\)
job tune "${tune[@]}" --gin.SPACE="($paper, @exact_int8/evaluation.Candidates(), $full)"
# In a batch, rows that leave early wait for the deepest.
job tune "${tune[@]}" --gin.SPACE="($paper, $full)" --gin.BATCH_SIZE=8 --gin.OUTPUT_DIR="$directory/tuned_8"
# The clock has spoken already, and a sweep of thresholds takes minutes.
plan=--gin.evaluation.ComparisonPlan
job evaluate "${task[@]}" --gin_file=policies/tuned.gin $plan.sweep_thresholds='()' $plan.timing_batch_sizes='()'
echo
echo "The full model:"
job generate --gin_file=policies/softmax_margin.gin --gin.THRESHOLD=1 --gin.INPUTS="$input"
echo
echo "As tuned for one request at a time:"
job generate --gin_file=policies/tuned.gin --gin.INPUTS="$input"
echo
echo "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s."
