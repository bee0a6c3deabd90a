"""The decodes of a calibration: the full model, then setting by setting."""

from collections.abc import Sequence
from typing import Any, Protocol

from calm_jax import decoding, records
from calm_jax.evaluation.calibration_cost import CostMeter
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.full_traces import FullTraces
from calm_jax.processes import collectives


class DecodesSettings(Protocol):
  """What a calibration decodes with: `DatasetDecoder`, `DatasetClassifier`."""

  @property
  def max_length(self) -> int:
    """T, the most tokens of an output."""
    ...

  @property
  def share(self) -> collectives.Share:
    """The inputs that this process decodes."""
    ...

  def __call__(
    self,
    batches: Sequence[Batch],
    *,
    policy: decoding.ComputePolicy,
    earlier: DecodedDataset | None,
    traces: Any,
  ) -> DecodedDataset:
    """Decodes every input under a policy; see `DatasetDecoder`."""
    ...

  def full_and_traces(
    self,
    batches: Sequence[Batch],
    policy: decoding.ComputePolicy,
    coming: Sequence[decoding.ComputePolicy],
  ) -> tuple[DecodedDataset, FullTraces | None]:
    """Decodes with the full model, and returns what saves other decodes."""
    ...

  def context(
    self, policy: decoding.ComputePolicy, setting: Any = None
  ) -> records.DecodingContext:
    """Returns the context of decodes under a policy."""
    ...


class SettingGrid:
  """Decodes settings, and of thresholds only what no other decode tells.

  That is what the full model's outputs tell, where K/V are exact, and the
  setting before.
  """

  def __init__(
    self,
    decode: DecodesSettings,
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
    # What one threshold of exits says of a lower one, other fields do not, nor
    # those of layer plans.
    of_exits = hasattr(self._policy.exit_rule, 'thresholds')
    if self._latest is not None and of_exits and isinstance(setting, float):
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
