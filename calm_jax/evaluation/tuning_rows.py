"""Half of the rows of a tuning: decodes and losses, candidate by candidate.

One half screens candidates and the other tests what is left of them. Both are
decoded through the stores of the run, so that nothing is decoded twice.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from calm_jax import calibration, decoding, records
from calm_jax.evaluation.calibrated_inputs import seen_rows
from calm_jax.evaluation.candidates import Candidate
from calm_jax.evaluation.dataset_classifier import DatasetClassifier
from calm_jax.evaluation.dataset_decoder import DatasetDecoder
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.distinct_inputs import distinct_inputs, leave_out
from calm_jax.evaluation.losses import ConsistencyLoss
from calm_jax.evaluation.threshold_reuse import says_of_lower
from calm_jax.evaluation.tuning_columns import Column

# Decodes rows, or classifies them.
Decoder = DatasetDecoder | DatasetClassifier
# Weights of candidates -> what decodes with them.
Decoders = Callable[[Any], Decoder]


class HalfOfRows:
  """Rows, their full model's outputs, and what candidates make of them."""

  def __init__(
    self,
    decoders: Decoders,
    batches: Sequence[Batch],
    candidates: Sequence[Candidate],
  ):
    """Decodes nothing yet.

    Args:
      decoders: gives what decodes with these weights.
      batches: of the rows.
      candidates: those that may be decoded, in that order.
    """
    self.batches = batches
    self._decoders = decoders
    self._candidates = candidates
    self._full: DecodedDataset | None = None
    self._traces: dict[str, Any] = {}
    self._decoded: dict[str, list[tuple[float, DecodedDataset]]] = {}

  @property
  def full(self) -> DecodedDataset:
    """The full model's decode, in float: what all losses are against."""
    if self._full is None:
      self._full = self._decoders(None).full(
        self.batches, decoding.ComputePolicy()
      )
    return self._full

  @functools.cached_property
  def example_ids(self) -> tuple[str, ...]:
    """The hashes of its inputs."""
    return distinct_inputs(self.batches).example_ids

  @property
  def number(self) -> int:
    """How many inputs there are."""
    return len(self.example_ids)

  def seen(self) -> records.SeenRows:
    """Returns what these rows are like, for a certificate."""
    return seen_rows(distinct_inputs(self.batches), self.full)

  def column(
    self, candidate: Candidate, losses: Sequence[ConsistencyLoss]
  ) -> Column:
    """Decodes a candidate and returns its K losses."""
    decoded = self._decode(candidate)
    found = [np.asarray(loss(decoded, self.full)) for loss in losses]
    return Column(candidate, np.stack(found).astype(np.float64), decoded)

  def _decode(self, candidate: Candidate) -> DecodedDataset:
    decoder = self._decoders(candidate.weights)
    if candidate.name not in self._traces:
      self._traces[candidate.name] = decoder.trace(
        self.batches,
        self.full,
        candidate.policy,
        [one.policy for one in self._of(candidate.name)],
      )
    decoded = decoder(
      self.batches,
      policy=candidate.policy,
      earlier=self._earlier(candidate),
      traces=self._traces[candidate.name],
    )
    if isinstance(candidate.setting, float):
      kept = self._decoded.setdefault(candidate.name, [])
      kept.append((candidate.setting, decoded))
    return decoded

  def _of(self, name: str) -> list[Candidate]:
    return [one for one in self._candidates if one.name == name]

  def _earlier(self, candidate: Candidate) -> DecodedDataset | None:
    """Returns the decode at the next higher threshold that there is."""
    if not says_of_lower(candidate.policy):
      return None
    higher = [
      (threshold, number)
      for number, (threshold, _) in enumerate(
        self._decoded.get(candidate.name, ())
      )
      if isinstance(candidate.setting, float) and threshold >= candidate.setting
    ]
    return self._decoded[candidate.name][min(higher)[1]][1] if higher else None


def as_decoders(given: Decoder | Decoders) -> Decoders:
  """Returns what gives decoders; of a single one, for its own weights alone."""
  if not isinstance(given, Decoder):
    return given
  own = getattr(given.bound, 'weights', None)

  def alone(weights: Any) -> Decoder:
    if weights != own:
      raise ValueError(
        f'a policy of the space has weights {weights}, and the decoder has '
        f'{own}: give a function from weights to what decodes with them'
      )
    return given

  return alone


def split_batches(
  batches: Sequence[Batch],
  example_ids: Sequence[str],
  *,
  seed: int,
  share: float,
) -> tuple[list[Batch], list[Batch]]:
  """Returns the batches of the rows that screen, and of those that test.

  Which row does what depends on the seed and on the inputs there are, not on
  their order.

  Args:
    batches: distinct inputs.
    example_ids: N hashes of them.
    seed: of the split.
    share: of the rows that screen.
  """
  ids = sorted(example_ids)
  rows = calibration.split_rows(len(ids), seed=seed, share=share)
  screening = {ids[row] for row in rows}
  screens, _, _ = leave_out(batches, set(ids) - screening)
  tests, _, _ = leave_out(batches, screening)
  return screens, tests
