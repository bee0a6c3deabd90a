"""Batches of NumPy arrays with T5X's keys, from examples in an order.

The only place where rows are grouped by length, padded, shifted, weighed and
shared out among processes; where the examples come from, and in which order, is
for their source to say (`token_batches` for .npz files, `seqio` for Tasks).
"""

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from calm_jax.data.batch_shapes import shard_rows
from calm_jax.data.token_files import FEATURES
from calm_jax.tokenizer import KEEPS_EOS, cut_input

Batch = dict[str, Any]
# With `inputs` and `targets`, int32 ids of any length.
Example = Mapping[str, Any]
# Lengths of inputs and targets.
Lengths = tuple[int, int]


def batch_examples(
  examples: Iterable[Example],
  batch_size: int,
  buckets: Sequence[Lengths],
  *,
  skip: int = 0,
  num_shards: int = 1,
  shard_id: int = 0,
  inputs_cut: str = KEEPS_EOS,
) -> Iterator[tuple[Batch, Sequence[Example]]]:
  """Yields batches in the order in which they fill up, with their examples.

  Args:
    examples: in their order; longer ones than the last bucket are cut to it.
    batch_size: rows of a batch, all processes together. What does not fill one
      at the end comes last, filled up with rows of zeros.
    buckets: (inputs, targets) lengths; an example goes to the first it fits.
    skip: batches to leave out at the start; none of them is made.
    num_shards: processes that share each batch.
    shard_id: which of them this is; rows of the processes, in this order, are
      the batch that a single process would get.
    inputs_cut: see `make_batch`.

  Yields:
    The batch, see `make_batch`, and the examples of its first rows.
  """
  rows = shard_rows(batch_size, num_shards, shard_id)
  groups = _grouped(examples, batch_size, buckets)
  for lengths, group in itertools.islice(groups, skip, None):
    size = rows.stop - rows.start
    batch = make_batch(group[rows], size, lengths, inputs_cut=inputs_cut)
    yield batch, group[rows]


def make_batch(
  examples: Sequence[Example],
  num_rows: int,
  lengths: Lengths,
  *,
  inputs_cut: str = KEEPS_EOS,
) -> Batch:
  """Returns examples as one batch, cut or padded to `lengths`.

  Args:
    examples: at most `num_rows` of them.
    num_rows: B.
    lengths: S and T. Inputs are cut as everywhere, by `tokenizer.cut_input`. A
      target that is cut ends without EOS: no model shall learn to stop there.
    inputs_cut: the form of that cut, `tokenizer.LOSES_EOS` where inputs end
      with no EOS.

  Returns:
    encoder_input_tokens int32 [B, S], decoder_input_tokens (the targets, one
    place later) and decoder_target_tokens int32 [B, T], decoder_loss_weights
    float32 [B, T] (1 at targets, 0 at padding), and num_valid, the number of
    real rows, which come first. B is `num_rows`.
  """
  source, target = lengths
  inputs = _padded(
    [cut_input(row['inputs'], source, form=inputs_cut) for row in examples],
    num_rows,
    source,
  )
  targets = _padded(
    [row['targets'][:target] for row in examples], num_rows, target
  )
  shifted = np.zeros_like(targets)
  shifted[:, 1:] = targets[:, :-1]
  return {
    'encoder_input_tokens': inputs,
    'decoder_input_tokens': shifted,
    'decoder_target_tokens': targets,
    'decoder_loss_weights': (targets > 0).astype(np.float32),
    'num_valid': len(examples),
  }


def fill_rows(array: np.ndarray, num_rows: int) -> np.ndarray:
  """Returns an array with rows of zeros behind its own, [num_rows, ...]."""
  missing = num_rows - len(array)
  return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))


def report_too_long(
  too_long: int,
  size: int,
  lengths: Mapping[str, int],
  place: str,
  *,
  refuse: bool = False,
) -> None:
  """Warns of examples that are cut.

  Args:
    too_long: how many are.
    size: of how many.
    lengths: what they are cut to, by feature.
    place: where they come from, as it reads after '<size> examples of'.
    refuse: whether they are an error instead.

  Raises:
    ValueError: if `refuse` and there are any.
  """
  if not too_long:
    return
  message = (
    f'{too_long} of {size} examples of {place} are longer than {dict(lengths)} '
    f'tokens and are {"refused" if refuse else "cut (inputs keep their EOS)"}; '
    'raise feature_lengths to keep them whole.'
  )
  if refuse:
    raise ValueError(message)
  logging.warning('%s', message)


def _grouped(
  examples: Iterable[Example], batch_size: int, buckets: Sequence[Lengths]
) -> Iterator[tuple[Lengths, list[Example]]]:
  """Yields the lengths and the examples of one batch after the other."""
  waiting = collections.defaultdict(list)
  for example in examples:
    sizes = [len(example[name]) for name in FEATURES]
    lengths = next(
      (b for b in buckets if sizes[0] <= b[0] and sizes[1] <= b[1]),
      buckets[-1],
    )
    waiting[lengths].append(example)
    if len(waiting[lengths]) == batch_size:
      yield lengths, waiting.pop(lengths)
  for lengths in buckets:
    if lengths in waiting:
      yield lengths, waiting[lengths]


def _padded(
  rows: Sequence[np.ndarray], num_rows: int, length: int
) -> np.ndarray:
  """Returns sequences as int32 [num_rows, length], padded with 0."""
  padded = np.zeros((num_rows, length), np.int32)
  for row, ids in zip(padded, rows, strict=False):
    row[: len(ids)] = ids
  return padded
