"""The decodes of a calibration: the full model, then threshold by threshold."""

from calm_jax import decoding
from calm_jax.evaluation.calibration_cost import CostMeter
from calm_jax.evaluation.decoded_dataset import DecodedDataset


class ThresholdGrid:
  """Decodes thresholds, each from what the one before it has decoded."""

  def __init__(self, decode, policy, meter: CostMeter):
    """Decodes nothing yet.

    Args:
      decode: a `DatasetDecoder`, for the batches at hand.
      policy: the policy, at any threshold.
      meter: notes what each decode costs.
    """
    self._decode = decode
    self._policy = policy
    self._meter = meter
    self._latest: tuple[float, DecodedDataset] | None = None

  def full(self) -> DecodedDataset:
    """Decodes with the full model."""
    decoded = self._decode(policy=decoding.full_model(self._policy))
    self._meter.note_full(decoded)
    return decoded

  def at(self, threshold: float) -> DecodedDataset:
    """Decodes at one threshold."""
    earlier = None
    if self._latest is not None and threshold <= self._latest[0]:
      earlier = self._latest[1]
    policy = decoding.with_threshold(self._policy, threshold)
    decoded = self._decode(policy=policy, earlier=earlier)
    self._latest = (threshold, decoded)
    self._meter.note(threshold, decoded)
    return decoded
