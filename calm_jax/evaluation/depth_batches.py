"""Requests of one depth in one batch.

A batch runs as many layers as its deepest row wants. Where an exit rule gives
each request a depth before it is decoded, requests can be put together that
want the same.
"""

from collections.abc import Sequence

import numpy as np

from calm_jax import decoding, interfaces
from calm_jax.evaluation import reordered_batches
from calm_jax.evaluation.decode_dataset import Batch, num_valid_of


def batches_by_depth(
  bound: interfaces.BoundDecoder,
  batches: Sequence[Batch],
  policy: decoding.ComputePolicy | interfaces.ExitRule,
) -> list[Batch]:
  """Returns the rows of batches in others of the same shapes, by their depth.

  The encoder runs for it once more. An output is the same in any batch; results
  come in the new order, with the ids that their inputs had.

  Args:
    bound: the decoder with its parameters.
    batches: as for `decode_dataset`.
    policy: its exit rule is an `exits.RoutedExit`, or a budget around one.

  Raises:
    ValueError: for another exit rule.
  """
  kinds: dict[tuple[int, ...], int] = {}
  order_of: list[tuple[int, int]] = []
  for batch in batches:
    inputs = np.asarray(batch['encoder_input_tokens'])
    kind = kinds.setdefault(inputs.shape, len(kinds))
    count = num_valid_of(batch)
    # Places that are left over may hold anything.
    rows = np.minimum(np.arange(len(inputs)), count - 1)
    depths = np.asarray(decoding.routed_depths(bound, inputs[rows], policy))
    order_of.extend((kind, depth) for depth in depths[:count])
  # Of one shape first, so that no batch is begun for nothing.
  order = sorted(range(len(order_of)), key=order_of.__getitem__)
  if not order:
    return []
  (block,) = reordered_batches.blocks_of(batches, order, len(order))
  return block
