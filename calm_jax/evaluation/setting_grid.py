"""The decodes of a calibration: the full model, then setting by setting."""

from typing import Any

from calm_jax import decoding
from calm_jax.evaluation.calibration_cost import CostMeter
from calm_jax.evaluation.decoded_dataset import DecodedDataset


class SettingGrid:
  """Decodes settings; thresholds from what the one before has decoded."""

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
    self._latest: tuple[Any, DecodedDataset] | None = None

  def full(self) -> DecodedDataset:
    """Decodes with the full model."""
    decoded = self._decode(policy=decoding.full_model(self._policy))
    self._meter.note_full(decoded)
    return decoded

  def at(self, setting: float | dict[str, Any]) -> DecodedDataset:
    """Decodes at one setting."""
    earlier = None
    # What one threshold says of a lower one, other fields do not.
    if self._latest is not None and isinstance(setting, float):
      threshold, decoded = self._latest
      if isinstance(threshold, float) and setting <= threshold:
        earlier = decoded
    policy = decoding.with_setting(self._policy, setting)
    decoded = self._decode(policy=policy, earlier=earlier)
    self._latest = (setting, decoded)
    self._meter.note(setting, decoded)
    return decoded
