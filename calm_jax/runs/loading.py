"""Models from disk: parameters, configuration, tokenizer.

A run directory holds all of it; of other checkpoints the caller says what they
leave open.
"""

import dataclasses
import logging
import os
from typing import Any, Self

from calm_jax import checkpoints, model
from calm_jax.array_types import Params
from calm_jax.quantisation import Int8Weights
from calm_jax.runs.text_features import (
  TextFeatures,
  check_own_vocabulary,
  vocabulary_doubts,
)
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
