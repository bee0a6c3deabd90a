"""Training a stage: steps, a log, evaluations, checkpoints, and resuming.

Running the same call again goes on where the last checkpoint of `model_dir`
left off: parameters, optimizer, random numbers, data and log. Ctrl-C and
SIGTERM save before they end the run; a run killed outright keeps its last
checkpoint; a NaN stops the run and is never saved. Checkpoints are written
while training goes on.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from calm_jax import tokenizer as tokenizer_lib
from calm_jax.tokenizer import Tokenizer
from calm_jax.training import seen_rows as seen_rows_lib
from calm_jax.training.evaluators import Evaluator
from calm_jax.training.interruption import StopSignals
from calm_jax.training.placement import OneDevice, OnMesh
from calm_jax.training.plan import Plan, TrainResult
from calm_jax.training.run import Run
from calm_jax.training.run_directory import RowLogger, RunDirectory
from calm_jax.training.stage import Batch, Stage

Batches = Iterable[Batch] | Callable[[int], Iterable[Batch]]
Vocabulary = Tokenizer | str | os.PathLike


def train(
  stage: Stage,
  batches: Batches,
  *,
  plan: Plan,
  model_dir: str | os.PathLike,
  evaluators: Mapping[str, Evaluator] | None = None,
  vocabulary: Vocabulary | None = None,
  seen_rows: seen_rows_lib.Rows | None = None,
  context: Mapping[str, Any] | None = None,
  loggers: Sequence[RowLogger] = (),
  mesh: jax.sharding.Mesh | None = None,
  partitioning: str = 'data_parallel',
) -> TrainResult:
  """Trains a stage until the plan ends it.

  Writes to `model_dir`: train_log.jsonl, parameters.txt, checkpoint_<step>/,
  by the plan's `best_metric` best/checkpoint_<step>/ (parameters only), and
  vocabulary.model and training_rows.npz where they are given.

  Args:
    stage: what to train, from `training.multi_exit_stage` for example.
    batches: dicts of NumPy arrays as the stage reads them, one per step; or a
      function from the number of batches already consumed to the batches from
      there on. Given an iterable, a resumed run draws and discards the batches
      it has consumed before. With several processes, each gives its own rows,
      as many in as many batches as the others.
    plan: how many steps, and when to log, evaluate, save and stop.
    model_dir: where to write, and to resume from.
    evaluators: name -> function of parameters and step that returns metrics.
    vocabulary: what made the batches' ids: a tokenizer, the path of a
      SentencePiece model, or the folder that calm_jax.cli.tokenize wrote. It
      is kept in `model_dir` and named in the context, so that the run can be
      decoded from texts.
    seen_rows: returns the hashes of the inputs trained and selected on, which
      calibration then refuses; `npz_rows` of .npz files.
    context: JSON values that are saved with checkpoints; a restart must give
      the same.
    loggers: called with every row that goes to train_log.jsonl, in the first
      process.
    mesh: devices to train on together, from `sharding.make_mesh`; None for the
      default one. A run may go on over another mesh than it was started on.
    partitioning: with a mesh, 'data_parallel' (every device holds all
      parameters) or 'fsdp' (they are shared out over the mesh axis 'data');
      the mesh axis 'model' splits heads, feed-forward layers and vocabulary
      under both.

  Raises:
    ValueError: for bad arguments, batches, or a `model_dir` of another run, or
      in which another job trains.
    FileNotFoundError: if there is no such vocabulary.
    SaveError: when a checkpoint could not be written, at a later step.
    FloatingPointError: when the loss becomes NaN or infinite.
    KeyboardInterrupt, SystemExit: after a signal, with a checkpoint saved.
  """
  context = dict(context or {})
  tokenizer = _tokenizer(vocabulary, context)
  if tokenizer is not None:
    context |= tokenizer_lib.vocabulary_context(tokenizer)
  context |= stage.context
  placement = OneDevice() if mesh is None else OnMesh(mesh, partitioning)
  directory = RunDirectory(
    model_dir,
    stage.config,
    context=context,
    max_to_keep=plan.max_to_keep,
    loggers=loggers,
  )
  run = Run(
    stage,
    plan,
    evaluators=dict(evaluators or {}),
    directory=directory,
    placement=placement,
  )
  with directory.locked(), placement.scope():
    run.start(context)
    directory.keep_vocabulary(tokenizer)
    directory.add_seen_rows(seen_rows, resumed=run.resumed, inside=stage.inside)
    with StopSignals() as signals:
      return run.loop(_from(batches, run.step), signals)


def _tokenizer(
  vocabulary: Vocabulary | None, context: Mapping[str, Any]
) -> Tokenizer | None:
  """Returns the tokenizer, which must be the one that the context names."""
  if isinstance(vocabulary, (str, os.PathLike)):
    name = os.fspath(vocabulary)
    if os.path.isdir(name):
      name = os.path.join(name, tokenizer_lib.VOCABULARY_NAME)
    vocabulary = tokenizer_lib.load_tokenizer(name, context.get('extra_ids', 0))
  named = context.get('vocabulary_fingerprint')
  if vocabulary is not None and named not in (None, vocabulary.fingerprint):
    raise ValueError(
      f'the vocabulary {vocabulary.name} has the fingerprint '
      f'{vocabulary.fingerprint}, but the context says that the ids were made '
      f'with {named}: give the vocabulary that made them'
    )
  return vocabulary


def _from(batches: Batches, consumed: int) -> Iterator[Batch]:
  """Returns the batches after the first `consumed`."""
  if callable(batches):
    return iter(batches(consumed))
  iterator = iter(batches)
  for _ in range(consumed):
    if next(iterator, None) is None:
      break
  return iterator
