"""Early-exit classifiers on disk, each beside the parameters it belongs to.

A classifier is a checkpoint of its own, in a folder of the model's run
directory, whose parameters are {'classifier': {'kernel' [D], 'bias' []}} and
whose context says which model's hidden states it reads. Beside any other
parameters it would still give numbers, and they would mean nothing.
"""

import os
from collections.abc import Mapping
from typing import Any

from calm_jax.array_types import Array, Params
from calm_jax.checkpoints import directories, native
from calm_jax.checkpoints.fingerprints import parameter_fingerprint
from calm_jax.model.config import T5Config

DEFAULT_NAME = 'classifier'
_BACKBONE = 'backbone_parameters'


def backbone_context(params: Params) -> dict[str, Any]:
  """Returns what the context of a classifier says of its model."""
  return {_BACKBONE: parameter_fingerprint(params)}


def save_classifier(
  model_dir: str | os.PathLike,
  classifier: Mapping[str, Array],
  config: T5Config,
  *,
  backbone: str,
  step: int = 0,
  name: str = DEFAULT_NAME,
) -> str:
  """Writes a classifier that was trained elsewhere, and returns its path.

  Args:
    model_dir: the run directory of its model.
    classifier: {'kernel' [D], 'bias' []}.
    config: the model's configuration.
    backbone: the fingerprint of the model's parameters.
    step: training steps taken.
    name: of the classifier's folder.
  """
  return native.save(
    os.path.join(os.path.abspath(os.fspath(model_dir)), name),
    step,
    params={'classifier': dict(classifier)},
    config=config,
    context={_BACKBONE: backbone},
  )


def load_classifier(
  model_dir: str | os.PathLike, *, name: str = DEFAULT_NAME
) -> dict[str, Array]:
  """Returns {'kernel': [D], 'bias': []} of the classifier of a run directory.

  Args:
    model_dir: the model's run directory; its parameters are those that
      `load_params` takes from it.
    name: of the classifier's folder in it.

  Raises:
    FileNotFoundError: if there is no model or no classifier.
    ValueError: if files are damaged, hold no classifier, or the classifier was
      trained for other parameters.
  """
  path = os.path.join(os.path.abspath(os.fspath(model_dir)), name)
  if directories.latest_step(path) is None:
    raise FileNotFoundError(
      f'there is no classifier in {path}; run calm_jax.cli.train_classifier '
      f'for {os.fspath(model_dir)} first'
    )
  params, _, metadata = native.load_params(path)
  trained_for = metadata['context'].get(_BACKBONE)
  if trained_for is None or set(params) != {'classifier'}:
    raise ValueError(
      f'{path} is no classifier: it holds the parameters {sorted(params)}; '
      'give the name of a folder that calm_jax.cli.train_classifier wrote'
    )
  backbone = directories.find_checkpoint(model_dir)
  found = native.read_metadata(backbone)['parameter_fingerprint']
  if found != trained_for:
    raise ValueError(
      f'the classifier in {path} was trained for parameters {trained_for}, but '
      f'{backbone} holds {found}: train it again for these, under another name '
      'or in place of the old one'
    )
  return dict(params['classifier'])
