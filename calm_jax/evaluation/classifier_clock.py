"""The clock of an encoder's classifier: rules in turns, beside all layers."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import encoding, exits, interfaces, records
from calm_jax.evaluation import stopwatch
from calm_jax.evaluation.candidates import FULL_MODEL, Candidate
from calm_jax.evaluation.dataset_classifier import DatasetClassifier
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.evaluation.tuning_clock import Clocked
from calm_jax.evaluation.tuning_plan import TuningPlan

# What is timed: an exit rule, and how the layers are looped over.
RuleAndLoop = tuple[interfaces.ExitRule, encoding.LayerLoop]


def classifying_times(
  classifier: DatasetClassifier,
  entries: Mapping[Any, RuleAndLoop],
  batches: Sequence[Batch],
  *,
  num_repeats: int,
) -> dict[Any, tuple[float, float]]:
  """Times rules on the same batches, in turns, from ids to classes.

  Args:
    classifier: encoder, parameters and heads.
    entries: name -> what is timed.
    batches: of one size, without rows that only fill up; padding is cut as a
      server would.
    num_repeats: turns.

  Returns:
    name -> milliseconds per batch, the mean over batches of medians of turns;
    and the mean exit layer.
  """
  inputs = [without_padding(batch['encoder_input_tokens']) for batch in batches]
  params = classifier.encoder.prepare(classifier.params)

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
    (name, number): lambda entry=entry, tokens=tokens: call(*entry, tokens)
    for number, tokens in enumerate(inputs)
    for name, entry in entries.items()
  }
  layers = {key: float(warm_up()[1].mean()) for key, warm_up in calls.items()}
  seconds = stopwatch.interleaved_seconds(calls, num_repeats)

  def mean_of(values: Callable[[Any], float], name: Any) -> float:
    return statistics.fmean(values((name, i)) for i in range(len(inputs)))

  return {
    name: (
      1e3 * mean_of(lambda key: statistics.median(seconds[key]), name),
      mean_of(layers.__getitem__, name),
    )
    for name in entries
  }


def without_padding(tokens: np.ndarray) -> np.ndarray:
  """Returns inputs as a server would pad them: to a multiple of 16.

  >>> without_padding(np.array([[5, 1, 0, 0]])).shape
  (1, 4)
  """
  longest = int((np.asarray(tokens) > 0).sum(axis=1).max())
  return np.asarray(tokens)[:, : -(-longest // 16) * 16]


def clock(
  classifier: DatasetClassifier,
  batches: Sequence[Batch],
  candidates: Sequence[Candidate],
  plan: TuningPlan,
  *,
  progress: Callable[[str], None],
) -> Clocked:
  """Measures all layers and C candidates; a batch is a step.

  Args:
    classifier: encoder, parameters and heads.
    batches: as for `tuning_clock.clock`.
    candidates: C of them, of `DatasetClassifier.space`.
    plan: how often each is measured.
    progress: gets a line.
  """
  progress(f'timing {len(candidates)} candidates at batch {plan.batch_size}')
  entries: dict[str, RuleAndLoop] = {
    FULL_MODEL: (exits.NeverExit(), encoding.UnrolledLayers())
  }
  for one in candidates:
    stops: Any = one.policy.encoder_exit
    entries[one.label] = stops.rule, stops.loop
  times = classifying_times(
    classifier, entries, batches, num_repeats=plan.repeats
  )
  full_time, _ = times[FULL_MODEL]
  full, *rows = (
    records.TimingRow(
      name=name,
      batch_size=plan.batch_size,
      depth_loop=type(entries[name][1]).__name__,
      milliseconds_per_step=time,
      milliseconds_per_batch=time,
      speed_up=full_time / time,
      ceiling=math.nan,
      num_batches=len(batches),
      num_repeats=plan.repeats,
      mean_exit_layer=layers,
    )
    for name, (time, layers) in times.items()
  )
  return Clocked(full, tuple(rows))
