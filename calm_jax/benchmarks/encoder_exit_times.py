"""The clock of an encoder's classifier under exit rules, in turns."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import encoding, evaluation
from calm_jax.evaluation import stopwatch
from calm_jax.interfaces import ExitRule


def batch_times(
  classifier: evaluation.DatasetClassifier,
  rules: Sequence[ExitRule],
  batches: Sequence[Mapping[str, Any]],
  *,
  batch_size: int,
  num_inputs: int,
  num_repeats: int,
) -> list[tuple[float, str]]:
  """Returns milliseconds per batch and the fastest loop, for each rule.

  Args:
    classifier: encoder, parameters and heads.
    rules: the exit rules, timed in turns.
    batches: of inputs, of any size.
    batch_size: rows of a batch.
    num_inputs: how many are timed, at most.
    num_repeats: turns.

  Raises:
    ValueError: if there are not even `batch_size` inputs.
  """
  timed = evaluation.take_batches(
    batches, batch_size=batch_size, num_batches=num_inputs // batch_size
  )
  inputs = [_without_padding(batch['encoder_input_tokens']) for batch in timed]
  params = classifier.encoder.prepare(classifier.params)
  loops = [encoding.UnrolledLayers()]
  if batch_size > 1:
    loops.append(encoding.CompactedLayers())

  def call(rule, loop, tokens):
    found = encoding.classify(
      classifier.encoder,
      params,
      tokens,
      classifier.heads,
      exit_rule=rule,
      loop=loop,
    )
    return jax.device_get((found.classes, found.exit_layers))

  calls = {
    (place, loop, number): lambda rule=rule, loop=loop, tokens=tokens: call(
      rule, loop, tokens
    )
    for number, tokens in enumerate(inputs)
    for place, rule in enumerate(rules)
    for loop in loops
  }
  for warm_up in calls.values():
    warm_up()
  seconds = stopwatch.interleaved_seconds(calls, num_repeats)

  def milliseconds(place, loop):
    medians = (
      statistics.median(seconds[place, loop, number])
      for number in range(len(inputs))
    )
    return 1e3 * statistics.fmean(medians)

  return [
    min((milliseconds(place, loop), type(loop).__name__) for loop in loops)
    for place in range(len(rules))
  ]


def _without_padding(tokens: np.ndarray) -> np.ndarray:
  """Returns inputs as a server would pad them: to a multiple of 16."""
  longest = int((np.asarray(tokens) > 0).sum(axis=1).max())
  return np.asarray(tokens)[:, : -(-longest // 16) * 16]
