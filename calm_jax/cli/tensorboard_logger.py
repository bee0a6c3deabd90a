"""Rows of a training log as TensorBoard scalars.

Written by TensorBoard's own writer, which needs no TensorFlow graph and no clu.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

# What a log row holds besides scalars worth a curve.
_SKIPPED = ('kind', 'step')


class TensorBoardLogger:
  """Takes rows of train_log.jsonl and writes their numbers as scalars.

  Training rows go to `<directory>/train`, evaluations to
  `<directory>/evaluation`. A list over the exits becomes one curve per exit:
  `exit_losses` gives `exit_losses/exit_1` and so on.
  """

  def __init__(self, directory: str | os.PathLike):
    """Remembers where to write; files are made with the first row."""
    self._directory = os.fspath(directory)
    self._writers: dict[str, Any] = {}

  def __call__(self, row: Mapping[str, Any]) -> None:
    """Writes the finite numbers of a row of kind 'train' or 'evaluation'."""
    kind = row.get('kind')
    if kind not in ('train', 'evaluation'):
      return
    writer = self._writer(kind)
    for tag, value in scalars(row).items():
      writer.add_scalar(tag, value, row['step'])
    writer.flush()

  def _writer(self, kind: str) -> Any:
    if kind not in self._writers:
      from tensorboard.summary import Writer

      path = os.path.join(self._directory, kind)
      self._writers[kind] = Writer(path)
    return self._writers[kind]


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
  """Returns the finite numbers of a log row by TensorBoard tag.

  >>> scalars({'kind': 'train', 'step': 3, 'loss': 2.0, 'exit_losses': [4, 3]})
  {'loss': 2.0, 'exit_losses/exit_1': 4.0, 'exit_losses/exit_2': 3.0}
  """
  found = {}
  for name, value in row.items():
    if name in _SKIPPED or isinstance(value, (str, bool, Mapping)):
      continue
    if isinstance(value, (list, tuple, np.ndarray)):
      for layer, item in enumerate(value, 1):
        found[f'{name}/exit_{layer}'] = item
    else:
      found[name] = value
  return {
    tag: float(value)
    for tag, value in found.items()
    if isinstance(value, (int, float, np.number)) and np.isfinite(value)
  }
