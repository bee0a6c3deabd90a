"""Decoded datasets made by hand, for tests that need no decoder."""

import numpy as np

from calm_jax import evaluation
from calm_jax.evaluation.decode_store import WORK


def decoded_dataset(texts, layers, *, references=None, num_layers=4, ids=None):
  """Returns N one-word outputs, each decoded at one of `layers` [N]."""
  number = len(texts)
  ones = np.ones((number, 1))
  return evaluation.DecodedDataset(
    tokens=np.arange(number, dtype=np.int32)[:, None],
    exit_layers=np.array(layers, np.int32)[:, None],
    confidences=0.5 * ones.astype(np.float32),
    rejected_confidences=np.full((number, 1), -np.inf, np.float32),
    scores=-ones[:, 0],
    lengths=np.ones(number, np.int32),
    work=np.array(layers)[:, None] * np.ones(len(WORK), np.int64),
    texts=tuple(texts),
    inputs_text=tuple(f'input {index}' for index in range(number)),
    references=tuple(references or [()] * number),
    example_ids=tuple(ids or (f'id{index}' for index in range(number))),
    batch_shapes=((number, 1),) * number,
    num_layers=num_layers,
    seconds=np.zeros(number),
  )


def same_text(prediction, references):
  """A text metric: 1 for equal texts."""
  return float(prediction in references)
