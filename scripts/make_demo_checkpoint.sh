#!/usr/bin/env bash
# Makes scripts/demo_t5 anew, the checkpoint that scripts/demo.sh starts from: a T5
# trained on the embedded corpus by its last layer alone, as finished models are,
# in bfloat16 and the format of Hugging Face. A second start goes on.
#   scripts/make_demo_checkpoint.sh [--directory runs/demo_t5]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

directory=runs/demo_t5
case "${1:-}" in
  '') ;;
  --directory) directory=${2:?make_demo_checkpoint.sh: --directory needs a value} ;;
  -h | --help) sed -n '2,5p' "$0" | cut -c3-; exit 0 ;;
  *) echo "make_demo_checkpoint.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
esac

scripts/setup_environment.sh
.venv/bin/python -m calm_jax.cli.train --gin_file=runs/train.gin --gin_file=models/demo.gin \
  --gin_file=tasks/embedded_corpus.gin --gin_file=runs/corpus.gin --gin.MODEL_DIR="$directory" \
  --gin.TRAIN_STEPS=5000 --gin.LEARNING_RATE=6e-4 --gin.training.warmup_cosine.warmup_steps=300 \
  --gin.training.Objective.layer_weights=@training.last_layer_weights
rm -rf "$directory/huggingface"
.venv/bin/python -m calm_jax.cli.convert --source="$directory" --target="$directory/huggingface" \
  --to=huggingface --dtype=bfloat16
cp "$directory"/huggingface/* scripts/demo_t5/
echo "scripts/demo_t5 was made in $((SECONDS / 60)) min $((SECONDS % 60)) s."
