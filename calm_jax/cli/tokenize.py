"""Writes a Task's token ids to .npz files, for training without TensorFlow.

  python -m calm_jax.cli.tokenize --gin_file=runs/tokenize.gin \
    --gin_file=tasks/e2e_nlg.gin --gin.DATA_DIR=../shared/data \
    --gin.OUTPUT_DIR=runs/e2e_nlg/tokens

Leaves OUTPUT_DIR/<split>.npz for every split, the vocabulary and the
configuration. `calm_jax.training.npz_batches` makes batches of such a file, and
`training.train(..., vocabulary=OUTPUT_DIR)` takes the vocabulary along.
"""

import os
from collections.abc import Sequence
from typing import Any

from calm_jax import data, training
from calm_jax.cli import gin_runner
from calm_jax.tokenizer import keep_vocabulary, vocabulary_context


def run(
  *,
  task: Any,
  output_dir: str,
  splits: Sequence[str] | None = None,
  max_examples: int | None = None,
) -> dict[str, str]:
  """Tokenises the splits of a Task.

  Args:
    task: a definition with `register()`, a seqio Task or the name of one; not
      a Mixture.
    output_dir: the folder to write to.
    splits: the splits to write; all that the Task has if None.
    max_examples: of every split, only so many from its start; None for all.

  Returns:
    The path of each split's file.
  """
  seqio_task = data.as_task(task)
  tokenizer = data.tokenizer_of(
    seqio_task.output_features['targets'].vocabulary
  )
  os.makedirs(output_dir, exist_ok=True)
  gin_runner.write_operative_config(output_dir, 'tokenize.gin')
  keep_vocabulary(tokenizer, output_dir)
  paths = {}
  for split in splits or seqio_task.splits:
    paths[split] = os.path.join(output_dir, f'{split}.npz')
    count = training.write_npz(
      paths[split],
      data.tokenised_examples(seqio_task, split, max_examples=max_examples),
      metadata={
        'task': seqio_task.name,
        'split': split,
        'prefix': data.prefix_of(task),
        **vocabulary_context(tokenizer),
        'vocab_size': tokenizer.vocab_size,
      },
    )
    print(f'{paths[split]}: {count} examples', flush=True)
  return paths


if __name__ == '__main__':
  gin_runner.main('tokenize', one_process=True)
