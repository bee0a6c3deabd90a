"""The clock of an encoder's classifier under exit rules, in turns."""

from collections.abc import Mapping, Sequence
from typing import Any

from calm_jax import encoding, evaluation
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
  loops = [encoding.UnrolledLayers()]
  if batch_size > 1:
    loops.append(encoding.CompactedLayers())
  times = evaluation.classifying_times(
    classifier,
    {
      (place, type(loop).__name__): (rule, loop)
      for place, rule in enumerate(rules)
      for loop in loops
    },
    timed,
    num_repeats=num_repeats,
  )
  return [
    min(
      (times[place, name][0], name)
      for name in (type(loop).__name__ for loop in loops)
    )
    for place in range(len(rules))
  ]
