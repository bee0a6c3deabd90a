"""What a run reads, as an object that gin can bind."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from calm_jax.data import batch_shapes
from calm_jax.tokenizer import KEEPS_EOS, LOSES_EOS, check_form

DEFAULT_BUCKETS = ((16, 16), (32, 32), (64, 64))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPlan:
  """How the examples of a Task become batches.

  Attributes:
    batch_size: rows of every batch, all processes together (packed rows with
      `pack`).
    feature_lengths: longest `inputs` and `targets` in tokens, EOS included;
      64 each where none is given. Longer examples are cut, with one warning
      that counts them: inputs keep their EOS, targets end without.
    length_buckets: (inputs, targets) lengths that batches are padded to; an
      example goes into the first bucket it fits. Buckets above
      `feature_lengths` are left out and `feature_lengths` is always the last
      one, so there are at most len(length_buckets) + 1 array shapes.
    pack: whether to put several examples into a row, as seqio does; all batches
      then have `feature_lengths`, and `length_buckets` are not used.
    use_cached: whether to read seqio's offline cache, see
      `calm_jax.data.seqio.caching`.
    shuffle_buffer: examples held for shuffling; None for the whole split if it
      has at most 250,000 examples, and 50,000 of a larger one.
    inputs_cut: `tokenizer.LOSES_EOS` for runs that were begun when inputs that
      were cut lost their EOS, and that are to go on so.
    eval_examples: examples of the validation split that a run measures on; None
      for all.
  """

  batch_size: int = 64
  feature_lengths: Mapping[str, int] | None = None
  length_buckets: Sequence[Sequence[int]] = DEFAULT_BUCKETS
  pack: bool = False
  use_cached: bool = False
  shuffle_buffer: int | None = None
  inputs_cut: str = KEEPS_EOS
  eval_examples: int | None = 1000

  def __post_init__(self):
    batch_shapes.check_positive(batch_size=self.batch_size)
    for name in ('shuffle_buffer', 'eval_examples'):
      if getattr(self, name) is not None:
        batch_shapes.check_positive(**{name: getattr(self, name)})
    check_form(self.inputs_cut)
    # Raises for bad ones.
    _ = self.buckets

  @property
  def lengths(self) -> dict[str, int]:
    """The longest inputs and targets, by feature."""
    return batch_shapes.checked_lengths(self.feature_lengths)

  @property
  def buckets(self) -> list[tuple[int, int]]:
    """The (inputs, targets) lengths of batches, growing."""
    return batch_shapes.buckets_within(self.length_buckets, self.lengths)

  def as_begun(self, context: Mapping[str, Any] | None) -> 'DataPlan':
    """Returns the plan that cuts inputs as a run did so far.

    Args:
      context: of the run that goes on; None for one that begins.
    """
    if context is None or 'inputs_cut' in context:
      return self
    return dataclasses.replace(self, inputs_cut=LOSES_EOS)

  def context(self) -> dict[str, Any]:
    """Returns what decides which batches a seed gives, as JSON values.

    A run that goes on must read the same. Some names are there only where they
    are not at their default.
    """
    optional = {
      'pack': self.pack,
      'use_cached': self.use_cached,
      'shuffle_buffer': self.shuffle_buffer,
    }
    if self.inputs_cut != LOSES_EOS:
      # What runs of 0.1.0 do not say is what they did.
      optional['inputs_cut'] = self.inputs_cut
    return {
      'batch_size': self.batch_size,
      'length_buckets': [list(bucket) for bucket in self.length_buckets],
      **{name: value for name, value in optional.items() if value},
    }
