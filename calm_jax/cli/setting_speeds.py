"""Measures how fast every threshold of a grid decodes, inputs one by one."""

from collections.abc import Sequence
from typing import Any

from calm_jax import costs, decoding, evaluation, records, runs
from calm_jax.cli import jobs
from calm_jax.processes import speaking

_REPEATS = 3


def measure(
  loaded: runs.LoadedRun,
  batches: Sequence[Any],
  *,
  policy: decoding.ComputePolicy,
  thresholds: Sequence[float],
  num_inputs: int,
  fingerprint: dict[str, Any],
) -> records.SettingSpeeds:
  """Times the full model and a policy at J thresholds, interleaved.

  Args:
    loaded: the run.
    batches: the calibration split.
    policy: the policy.
    thresholds: the grid.
    num_inputs: how many of the inputs are decoded, at batch 1.
    fingerprint: that of the loss table.

  Raises:
    ValueError: if there are no inputs.
  """
  names = [f'threshold {threshold:g}' for threshold in thresholds]
  timings = evaluation.time_decode(
    jobs.bind_to_loops(loaded),
    evaluation.take_batches(batches, batch_size=1, num_batches=num_inputs),
    {
      'full model': decoding.full_model(policy),
      **{
        name: decoding.with_threshold(policy, threshold)
        for name, threshold in zip(names, thresholds, strict=True)
      },
    },
    max_length=loaded.feature_lengths['targets'],
    baseline='full model',
    eos_id=loaded.tokenizer.eos_id,
    bytes_of=costs.bytes_of(loaded.config, loaded.feature_lengths['inputs']),
    num_repeats=_REPEATS,
    progress=speaking.say,
  )
  full, *settings = timings
  return records.SettingSpeeds(
    settings=tuple(thresholds),
    full=full,
    timings=tuple(settings),
    fingerprint=fingerprint,
    context=jobs.run_context(loaded.config),
  )
