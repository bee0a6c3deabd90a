"""Early-exit classifiers on disk: {'classifier': {'kernel' [D], 'bias' []}}."""

import os
from collections.abc import Mapping

from calm_jax.array_types import Array
from calm_jax.checkpoints import native, trained_parts
from calm_jax.model.config import T5Config

DEFAULT_NAME = trained_parts.CLASSIFIER.key


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
    params={trained_parts.CLASSIFIER.key: dict(classifier)},
    config=config,
    context={trained_parts.BACKBONE: backbone},
  )
