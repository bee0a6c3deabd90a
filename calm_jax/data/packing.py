"""Packed batches: several short examples in one row, told apart by segment ids.

They are what seqio's EncDecFeatureConverter makes with pack=True. The ids are
the only thing read here; its positions are not, see `model.layer_states`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

SEGMENT_KEYS = ('encoder_segment_ids', 'decoder_segment_ids')


def segment_ids(batch: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the batch's segment ids by key; nothing if it is not packed.

  Raises:
    ValueError: if only one of the two is there, their shapes are not those of
      the tokens, or (looked at in NumPy arrays only) a row is not packed as
      seqio packs: ids that grow from left to right and zeros at the end, with a
      segment wherever a target counts.
  """
  present = {key: batch[key] for key in SEGMENT_KEYS if key in batch}
  if not present:
    return {}
  if len(present) == 1:
    lacking = next(key for key in SEGMENT_KEYS if key not in present)
    raise ValueError(
      f'the batch has {next(iter(present))} but lacks {lacking}: a packed '
      'batch needs both, and one that is not packed neither'
    )
  for key, ids in present.items():
    tokens = key.replace('segment_ids', 'input_tokens')
    if np.shape(ids) != np.shape(batch[tokens]):
      raise ValueError(
        f'{key} must have the shape of {tokens}, {np.shape(batch[tokens])}, '
        f'got {np.shape(ids)}'
      )
    # Arrays already on a device are left alone: looking would wait for them.
    if isinstance(ids, np.ndarray):
      _check_rows(key, ids)
  weights, ids = batch['decoder_loss_weights'], present['decoder_segment_ids']
  if isinstance(weights, np.ndarray) and isinstance(ids, np.ndarray):
    if np.any((weights != 0) & (ids == 0)):
      raise ValueError(
        'decoder_loss_weights count targets whose decoder_segment_ids is 0, '
        'which means padding'
      )
  return present


def _check_rows(key: str, ids: np.ndarray) -> None:
  # Zeros at the end count as larger than every id.
  ranks = np.where(ids == 0, np.iinfo(ids.dtype).max, ids)
  wrong = (ids < 0).any(-1) | (ranks[:, 1:] < ranks[:, :-1]).any(-1)
  if wrong.any():
    row = int(np.argmax(wrong))
    raise ValueError(
      f'{key} of row {row} are {ids[row].tolist()}: a segment must lie in one '
      'piece, with ids >= 1 that grow from left to right and zeros (padding) '
      'at the end only'
    )
