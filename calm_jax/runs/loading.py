"""Models from disk: parameters, configuration, tokenizer, trained parts.

A run directory holds all of it; of other checkpoints the caller says what they
leave open.
"""

import dataclasses
import logging
import os
from typing import Any, Self

from calm_jax import checkpoints, exits, model
from calm_jax.array_types import Params
from calm_jax.checkpoints import gate_adapters, trained_parts
from calm_jax.context_gates import ContextGates
from calm_jax.draft_heads import DraftHead
from calm_jax.exit_adapters import AdaptsExits
from calm_jax.exit_layers import adapters_of
from calm_jax.quantisation import Int8Weights
from calm_jax.runs.text_features import (
  TextFeatures,
  check_own_vocabulary,
  vocabulary_doubts,
)
from calm_jax.small_twins import SmallTwins
from calm_jax.source_scorer import SourceScorer
from calm_jax.tokenizer import KEEPS_EOS, Tokenizer, find_tokenizer

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LoadedRun:
  """What a run directory holds.

  Attributes:
    params: the parameter tree, T5X's names, in float32 unless `weights` says
      otherwise.
    config: the model's shape.
    tokenizer: the tokenizer it was trained with.
    step: training steps taken.
    feature_lengths: longest inputs and targets in tokens, EOS included.
    prefix: what training put in front of every input.
    prefixes: of the parts of a mixture, by their names.
    suppressed_tokens: ids that outputs never hold, where the checkpoint says so
      (suppress_tokens of a generation_config.json, or of what was converted).
    forced_prefix: ids that outputs begin with, where it says so.
    notes: what was assumed, honoured or left aside, in sentences.
    checkpoint: where they lie, if in a run directory.
    weights: which matrices of `params` are in 8 bits, to bind them with; None
      if none is.
    float_fingerprint: of the float parameters, where `params` are not they.
  """

  params: Params
  config: model.T5Config
  tokenizer: Tokenizer
  step: int
  feature_lengths: dict[str, int]
  prefix: str
  prefixes: dict[str, str] = dataclasses.field(default_factory=dict)
  suppressed_tokens: tuple[int, ...] = ()
  forced_prefix: tuple[int, ...] = ()
  notes: tuple[str, ...] = ()
  checkpoint: str | None = None
  weights: Int8Weights | None = None
  float_fingerprint: str | None = None

  @property
  def fingerprint(self) -> str:
    """Of the float parameters, as certificates name them."""
    if self.float_fingerprint is not None:
      return self.float_fingerprint
    return checkpoints.parameter_fingerprint(self.params)

  def context(self) -> dict[str, Any]:
    """Returns fields of `records.DecodingContext` that are this run's.

    `evaluation.calibrate(..., context=run.context())` makes a certificate that
    every job understands.
    """
    return {
      'parameters': self.fingerprint,
      'tokenizer': self.tokenizer.fingerprint,
      'prefix': self.prefix,
      'inputs_cut': KEEPS_EOS,
      'input_length': self.feature_lengths['inputs'],
      'dtype': self.config.dtype,
    }

  def with_output_length(self, max_length: int | None) -> Self:
    """Returns the run with outputs of so many tokens, EOS included.

    Args:
      max_length: at least 1; None for those of training.

    Raises:
      ValueError: if it is less.
    """
    if max_length is None:
      return self
    if max_length < 1:
      raise ValueError(f'max_length is {max_length}; it must be 1 or more')
    lengths = {**self.feature_lengths, 'targets': max_length}
    return dataclasses.replace(self, feature_lengths=lengths)


def load_run(
  path: str | os.PathLike, *, allow_nonfinite: bool = False
) -> LoadedRun:
  """Loads parameters, configuration and tokenizer of a run directory.

  Args:
    path: the run directory, or one of its checkpoints.
    allow_nonfinite: load parameters that are not numbers all the same.

  Raises:
    FileNotFoundError: if a part is missing.
    ValueError: if the vocabulary beside the checkpoint is not the one that the
      model was trained with, or a parameter is not finite.
  """
  path = os.path.expanduser(path)
  # Once: training may be writing others.
  checkpoint = checkpoints.find_checkpoint(path)
  run = run_of_checkpoint(
    path, checkpoints.load_params(checkpoint), allow_nonfinite=allow_nonfinite
  )
  return dataclasses.replace(run, checkpoint=checkpoint)


def run_of_checkpoint(
  path: str | os.PathLike,
  checkpoint: checkpoints.Checkpoint,
  *,
  allow_nonfinite: bool = False,
) -> LoadedRun:
  """Returns a loaded checkpoint with the tokenizer beside it.

  Args:
    path: of the run directory, or of the checkpoint.
    checkpoint: what was loaded from it.
    allow_nonfinite: let parameters be that are not numbers.

  Raises:
    FileNotFoundError, ValueError: as `load_run`.
  """
  path = os.path.expanduser(path)
  params, config, metadata = checkpoint
  if not allow_nonfinite:
    checkpoints.check_all_finite(path, params)
  context = metadata['context']
  missing = [
    name
    for name in ('vocabulary_file', 'vocabulary_fingerprint', 'feature_lengths')
    if name not in context
  ]
  if missing:
    raise ValueError(
      f'{os.fspath(path)} does not say which vocabulary it was trained with '
      f'(its context lacks {missing}): name it (vocabulary=..., for generate '
      '--gin.generate.run.vocabulary=...), or convert with --vocabulary. '
      'calm_jax.cli.train notes it, training.train takes it as `context`'
    )
  where = os.fspath(path)
  rules = checkpoints.GenerationRules.read(where, context, config.vocab_size)
  notes = rules.describe(where)
  for note in notes:
    _LOGGER.warning(note)
  return LoadedRun(
    params=params,
    config=config,
    tokenizer=find_tokenizer(context, path),
    step=metadata['step'],
    feature_lengths=context['feature_lengths'],
    prefix=context.get('prefix', ''),
    prefixes=context.get('prefixes', {}),
    suppressed_tokens=rules.suppressed_tokens,
    forced_prefix=rules.forced_prefix,
    notes=tuple(notes),
  )


def load_checkpoint(
  path: str | os.PathLike,
  texts: TextFeatures,
  *,
  allow_nonfinite: bool = False,
) -> LoadedRun:
  """Loads a checkpoint of any form, whose vocabulary lies elsewhere.

  Args:
    path: whatever `checkpoints.load` reads.
    texts: its vocabulary, and what else it leaves open.
    allow_nonfinite: load parameters that are not numbers all the same.

  Raises:
    FileNotFoundError: if the checkpoint or the vocabulary is missing.
    ValueError: if they do not go together, or as `checkpoints.load`.
  """
  params, config, about = checkpoints.load(
    path, allow_nonfinite=allow_nonfinite
  )
  context = about.get('context', {})
  texts = texts.agreed(about['texts'])
  tokenizer = texts.tokenizer(config.vocab_size)
  check_own_vocabulary(path, tokenizer)
  notes = [*about['notes'], *vocabulary_doubts(tokenizer, config.vocab_size)]
  known = context.get('vocabulary_fingerprint', tokenizer.fingerprint)
  if known != tokenizer.fingerprint:
    raise ValueError(
      f'{tokenizer.name} with {tokenizer.extra_ids} extra ids is not the '
      f'vocabulary that {os.fspath(path)} was trained with: its fingerprint is '
      f'{tokenizer.fingerprint}, not {known}'
    )
  for note in notes:
    # Without a handler, Python writes warnings to standard error.
    _LOGGER.warning('%s: %s', os.fspath(path), note)
  return LoadedRun(
    params=params,
    config=config,
    tokenizer=tokenizer,
    step=about['step'],
    feature_lengths=texts.lengths(context.get('feature_lengths')),
    prefix=texts.prefix or context.get('prefix', ''),
    suppressed_tokens=about['generation'].suppressed_tokens,
    forced_prefix=about['generation'].forced_prefix,
    notes=tuple(notes),
  )


def load(
  path: str | os.PathLike,
  vocabulary: str | os.PathLike | TextFeatures | None = None,
  *,
  allow_nonfinite: bool = False,
  **about: Any,
) -> LoadedRun:
  """Loads a run directory, or any checkpoint where a vocabulary is given.

  Args:
    path: as for `load_run` or `load_checkpoint`.
    vocabulary: None for a run directory, which has its own.
    allow_nonfinite: load parameters that are not numbers all the same.
    **about: with a vocabulary that is a file or 'bytes', what else
      `TextFeatures` takes.

  Raises:
    TypeError: for these without a vocabulary, or beside a TextFeatures.
    FileNotFoundError, ValueError: as `load_run` or `load_checkpoint`.
  """
  if vocabulary is not None:
    if not isinstance(vocabulary, TextFeatures):
      vocabulary, about = TextFeatures(vocabulary, **about), {}
    if about:
      raise TypeError(f'{sorted(about)} go into the TextFeatures')
    return load_checkpoint(path, vocabulary, allow_nonfinite=allow_nonfinite)
  if about:
    raise TypeError(
      f'{sorted(about)} go with `vocabulary`; a run directory says all of it'
    )
  return load_run(path, allow_nonfinite=allow_nonfinite)


def load_classifier(
  model_dir: str | os.PathLike, *, name: str = trained_parts.CLASSIFIER.key
) -> exits.Classifier:
  """Loads the early-exit classifier that was trained for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_classifier` was run on.
    name: of the classifier's folder in it.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it was trained for other parameters than the directory holds.
  """
  part = trained_parts.CLASSIFIER
  return exits.Classifier(**trained_parts.load_part(part, model_dir, name))


def load_gate(
  model_dir: str | os.PathLike,
  *,
  name: str = trained_parts.GATE.key,
  exit_adapters: str | None = None,
) -> exits.Gate:
  """Loads the gate that was trained for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_gates` was run on.
    name: of the gate's folder in it.
    exit_adapters: of the folder of those that exits are read through beside it,
      for `decoding.AdaptedVocabulary`; None where they are read as they are.

  Raises:
    FileNotFoundError: if there is none, or there are no such adapters.
    ValueError: if it was trained for other parameters than the directory holds,
      or beside other adapters.
  """
  part = trained_parts.GATE
  gate = exits.Gate(**trained_parts.load_part(part, model_dir, name))
  gate_adapters.check_read_through(model_dir, name, exit_adapters)
  return gate


def load_router(
  model_dir: str | os.PathLike, *, name: str = trained_parts.ROUTER.key
) -> exits.Router:
  """Loads the router that was trained for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_router` was run on.
    name: of the router's folder in it.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it was trained for other parameters than the directory holds.
  """
  part = trained_parts.ROUTER
  return exits.Router(**trained_parts.load_part(part, model_dir, name))


def load_source_scorer(
  model_dir: str | os.PathLike, *, name: str = trained_parts.SOURCE_SCORER.key
) -> SourceScorer:
  """Loads the scorer of source positions trained for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_source` was run on.
    name: of the scorer's folder in it.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it was trained for other parameters than the directory holds.
  """
  part = trained_parts.SOURCE_SCORER
  return SourceScorer(**trained_parts.load_part(part, model_dir, name))


def load_context_gates(
  model_dir: str | os.PathLike, *, name: str = trained_parts.CONTEXT_GATES.key
) -> ContextGates:
  """Loads the gates of its own past trained for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_context` was run on.
    name: of the gates' folder in it.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if they were trained for other parameters than the directory
      holds.
  """
  part = trained_parts.CONTEXT_GATES
  return ContextGates(**trained_parts.load_part(part, model_dir, name))


def load_draft_head(
  model_dir: str | os.PathLike, *, name: str = trained_parts.DRAFT_HEAD.key
) -> DraftHead:
  """Loads the head that was trained to draft for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_draft_head` was run on.
    name: of the head's folder in it.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it was trained for other parameters than the directory holds.
  """
  part = trained_parts.DRAFT_HEAD
  return DraftHead(**trained_parts.load_part(part, model_dir, name))


def load_exit_adapters(
  model_dir: str | os.PathLike, *, name: str = trained_parts.EXIT_ADAPTERS.key
) -> AdaptsExits:
  """Loads the adapters that were trained for the exits of a run's model.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_exits` was run on.
    name: of the adapters' folder in it.

  Raises:
    FileNotFoundError: if there are none.
    ValueError: if they were trained for other parameters than the directory
      holds.
  """
  part = trained_parts.EXIT_ADAPTERS
  return adapters_of(**trained_parts.load_part(part, model_dir, name))


def load_twins(
  model_dir: str | os.PathLike, *, name: str = trained_parts.SMALL_TWINS.key
) -> SmallTwins:
  """Loads the small twins of the feed-forwards of a run's model.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_twins` was run on.
    name: of the twins' folder in it.

  Raises:
    FileNotFoundError: if there are none.
    ValueError: if they were trained for other parameters than the directory
      holds.
  """
  part = trained_parts.SMALL_TWINS
  return SmallTwins(**trained_parts.load_part(part, model_dir, name))
