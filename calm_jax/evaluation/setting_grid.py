"""The decodes of a calibration: the full model, then setting by setting."""

from collections.abc import Sequence
from typing import Any

from calm_jax import decoding
from calm_jax.evaluation.calibration_cost import CostMeter
from calm_jax.evaluation.dataset_decoder import DatasetDecoder
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.full_traces import FullTraces


class SettingGrid:
  """Decodes settings, and of thresholds only what no other decode tells.

  That is what the full model's outputs tell, where K/V are exact, and the
  setting before.
  """

  def __init__(
    self,
    decode: DatasetDecoder,
    batches: Sequence[Batch],
    policy: decoding.ComputePolicy,
    meter: CostMeter,
    settings: Sequence[float | dict[str, Any]] = (),
  ):
    """Decodes nothing yet.

    Args:
      decode: decodes the batches under any policy.
      batches: the batches.
      policy: the policy, at any threshold.
      meter: notes what each decode costs.
      settings: those that will be decoded, in their order, or fewer.
    """
    self._decode = decode
    self._batches = batches
    self._policy = policy
    self._meter = meter
    self._settings = settings
    self._latest: tuple[Any, DecodedDataset] | None = None
    self._traces: FullTraces | None = None

  def full(self) -> DecodedDataset:
    """Decodes with the full model."""
    coming = [
      decoding.with_setting(self._policy, setting) for setting in self._settings
    ]
    decoded, self._traces = self._decode.full_and_traces(
      self._batches, self._policy, coming
    )
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
    decoded = self._decode(
      self._batches, policy=policy, earlier=earlier, traces=self._traces
    )
    self._latest = (setting, decoded)
    self._meter.note(setting, decoded)
    return decoded

  def note_traces(self) -> None:
    """Notes what traces cost, at the end; all processes must call it."""
    if self._traces is not None:
      self._meter.note_traces(self._traces.total_seconds())
