"""Finds the words by which a text-to-text model names a Task's classes.

  python -m calm_jax.cli.find_label_words \
    --gin_file=runs/find_label_words.gin --gin_file=tasks/banking77.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/banking77

The targets of the Task name classes, and the model in MODEL_DIR was trained to
write them. What its decoder says first, of these names alone, classifies an
input by the states of any encoder layer, and nothing is trained: the names go
to MODEL_DIR/label_words, with accuracies and temperatures per layer on the
validation split. Other jobs take that folder for one of heads:
calibrate_encoder with --gin.ENCODER_HEADS=label_words,
`calm_jax.benchmarks.encoder_exits` with --heads=label_words.
"""

import os
from typing import Any

import numpy as np

from calm_jax import data, records, runs
from calm_jax.cli import gin_runner, head_folders, head_measures, jobs
from calm_jax.processes import speaking


def run(
  *,
  model_dir: str,
  task: Any,
  name: str = 'label_words',
  batch_size: int = 32,
  max_examples: int | None = None,
) -> records.EncoderHeadEvaluation:
  """Reads the classes off the split 'train' and measures on 'validation'.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`, or of `convert`.
    task: the Task, whose targets name classes.
    name: of the folder in `model_dir` that the words go to.
    batch_size: rows of a pass.
    max_examples: measure on only so many.

  Raises:
    ValueError: for a folder that holds something trained, or a Task without
      validation inputs.
  """
  directory = head_folders.words_directory(model_dir, name)
  found = data.as_task(task)
  if 'validation' not in found.splits:
    raise ValueError(
      f"{found.name} has no split 'validation', which accuracies and "
      f'temperatures of the words are measured on; it has '
      f'{sorted(found.splits)}: give the task one'
    )
  with jobs.open_output(directory, 'find_label_words.gin'):
    loaded = jobs.load_run(model_dir, task)
    labels = data.read_class_labels(
      task, target_length=loaded.feature_lengths['targets']
    )
    words = runs.label_words(loaded, labels.tokens)
    batches = data.eval_batches(
      task,
      batch_size,
      feature_lengths=loaded.feature_lengths,
      split='validation',
      max_examples=max_examples,
    )
    measured = head_measures.measure_heads(
      loaded,
      words,
      labels,
      batches,
      about={
        'task': found.name,
        'split': 'validation',
        'steps': 0,
        'context': jobs.run_context(loaded.config, checkpoint_step=loaded.step),
      },
    )
    # Temperatures were fitted on them.
    records.write_training_rows(
      os.path.join(directory, records.TRAINING_ROWS_NAME),
      np.zeros(0, np.uint64),
      data.input_hashes(task, 'validation', max_examples=max_examples),
    )
    kept = records.LabelWordList(
      labels.texts, labels.tokens, loaded.fingerprint
    )
    for file, record in (
      ('evaluation.json', measured),
      (records.LABEL_WORDS_NAME, kept),
    ):
      records.write_json(os.path.join(directory, file), record)
  nodes = len(words.tree.nodes)
  speaking.say(
    f'{directory}: {measured.describe()}\n{nodes} decoder positions per look'
  )
  return measured


if __name__ == '__main__':
  gin_runner.main('find_label_words', one_process=True)
