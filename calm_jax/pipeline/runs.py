"""Run directories: parameters, configuration, tokenizer and classifier."""

import dataclasses
import os

from calm_jax import checkpoints, exits, model
from calm_jax.array_types import Params
from calm_jax.checkpoints import classifiers
from calm_jax.tokenizer import Tokenizer, find_tokenizer


@dataclasses.dataclass(frozen=True)
class LoadedRun:
  """What a run directory holds.

  Attributes:
    params: the parameter tree, float32, T5X's names.
    config: the model's shape.
    tokenizer: the tokenizer it was trained with.
    step: training steps taken.
    feature_lengths: longest inputs and targets in tokens, EOS included.
    prefix: what training put in front of every input.
    prefixes: of the parts of a mixture, by their names.
  """

  params: Params
  config: model.T5Config
  tokenizer: Tokenizer
  step: int
  feature_lengths: dict[str, int]
  prefix: str
  prefixes: dict[str, str] = dataclasses.field(default_factory=dict)


def load_run(path: str | os.PathLike) -> LoadedRun:
  """Loads parameters, configuration and tokenizer of a run directory.

  Raises:
    FileNotFoundError: if a part is missing.
    ValueError: if the vocabulary beside the checkpoint is not the one that the
      model was trained with.
  """
  params, config, metadata = checkpoints.load_params(path)
  context = metadata['context']
  missing = [
    name
    for name in ('vocabulary_file', 'vocabulary_fingerprint', 'feature_lengths')
    if name not in context
  ]
  if missing:
    raise ValueError(
      f'{os.fspath(path)} does not say which vocabulary it was trained with '
      f'(its context lacks {missing}): calm_jax.cli.train notes it, '
      'training.train takes it as `context`; checkpoints.load_params loads the '
      'parameters alone'
    )
  return LoadedRun(
    params=params,
    config=config,
    tokenizer=find_tokenizer(context, path),
    step=metadata['step'],
    feature_lengths=context['feature_lengths'],
    prefix=context.get('prefix', ''),
    prefixes=context.get('prefixes', {}),
  )


def load_classifier(
  model_dir: str | os.PathLike, *, name: str = classifiers.DEFAULT_NAME
) -> exits.Classifier:
  """Loads the early-exit classifier that was trained for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_classifier` was run on.
    name: of the classifier's folder in it.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it was trained for other parameters than the directory holds.
  """
  return exits.Classifier(**classifiers.load_classifier(model_dir, name=name))
