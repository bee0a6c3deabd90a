"""Measures how fast every setting of a grid decodes, inputs one by one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calm_jax import decoding, interfaces, records
from calm_jax.costs import BytesOf
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.evaluation.timing import OfModel, take_batches, time_decode

_REPEATS = 3


def time_settings(
  bound: Mapping[str, interfaces.BoundDecoder],
  batches: Sequence[Batch],
  *,
  policy: decoding.ComputePolicy,
  settings: Sequence[float],
  num_inputs: int,
  max_length: int,
  eos_id: int = 1,
  suppressed_tokens: Sequence[int] = (),
  fingerprint: dict[str, Any],
  context: records.RunContext,
  bytes_of: BytesOf | None = None,
  full_bound: Mapping[str, interfaces.BoundDecoder] | None = None,
  progress: Callable[[str], None] | None = None,
) -> records.SettingSpeeds:
  """Times the full model and a policy at J settings, interleaved.

  Args:
    bound: as for `time_decode`.
    batches: the calibration split.
    policy: the policy.
    settings: the settings.
    num_inputs: how many of the inputs are decoded, at batch 1.
    max_length: T, the most tokens of an output.
    eos_id: the id that ends a sequence.
    suppressed_tokens: ids that are never said.
    fingerprint: that of the loss table.
    context: how this came about.
    bytes_of: as for `time_decode`.
    full_bound: what the full model is decoded with, where that is another one
      than the policy's.
    progress: gets a line now and then.

  Raises:
    ValueError: if there are no inputs.
  """
  full, *timings = time_decode(
    bound,
    take_batches(batches, batch_size=1, num_batches=num_inputs),
    {
      'full model': OfModel(decoding.full_model(policy), full_bound),
      **{
        records.setting_in_words(setting): decoding.with_setting(
          policy, setting
        )
        for setting in settings
      },
    },
    max_length=max_length,
    baseline='full model',
    eos_id=eos_id,
    suppressed_tokens=suppressed_tokens,
    bytes_of=bytes_of,
    num_repeats=_REPEATS,
    progress=progress,
  )
  return records.SettingSpeeds(
    settings=tuple(settings),
    full=full,
    timings=tuple(timings),
    fingerprint=fingerprint,
    context=context,
  )
