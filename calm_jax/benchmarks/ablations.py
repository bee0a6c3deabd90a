"""Where a decode's time goes: what leaving a part out saves.

Parts of one compiled program cannot be timed one by one. So a decode that has
been made is replayed at its own depths with a part left out: its checks, its
cache fill, its output matrix. What is decoded then means nothing, and every
step takes the time it took.
"""

import dataclasses
import functools
import statistics
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from calm_jax import decoding, exits
from calm_jax.array_types import Array, PyTree
from calm_jax.benchmarks import forced_depths
from calm_jax.benchmarks.shares import Shares
from calm_jax.evaluation import stopwatch
from calm_jax.interfaces import (
  BoundDecoder,
  FillWork,
  NoCompanions,
  Reading,
  ReadsAll,
  StatelessSlot,
)
from calm_jax.pytrees import register_pytree


def measure_shares(
  bound: BoundDecoder,
  inputs: np.ndarray,
  exit_layers: np.ndarray,
  *,
  policy: decoding.ComputePolicy,
  num_repeats: int = 5,
) -> Shares:
  """Measures where the time of a decode goes.

  Args:
    bound: the decoder with its parameters.
    inputs: int [B, S].
    exit_layers: int [B, T] of the decode, less than 1 where nothing was
      decoded. Rows that had ended are replayed at one layer.
    policy: what it was decoded with.
    num_repeats: turns; medians are compared.
  """
  depths = np.maximum(exit_layers, 1).astype(np.int32)
  depths = depths[:, : int((exit_layers > 0).sum(axis=1).max())]
  replay = functools.partial(
    decoding.generate,
    bound,
    inputs,
    max_length=depths.shape[1],
    eos_id=-1,
  )
  runs: dict[str, Any] = {
    name: functools.partial(replay, policy=replayed)
    for name, replayed in _replays(policy, depths).items()
  }
  runs['start'] = functools.partial(
    decoding.start, *replay.args, policy=policy, **replay.keywords
  )
  for run in runs.values():
    run()
  seconds = stopwatch.interleaved_seconds(runs, num_repeats)
  return _shares({k: statistics.median(turns) for k, turns in seconds.items()})


def _replays(
  policy: decoding.ComputePolicy, depths: np.ndarray
) -> Mapping[str, decoding.ComputePolicy]:
  """Returns the policy at fixed depths, whole and with parts left out."""
  schedule = exits.ScheduledExit(depths)
  measure = getattr(policy.exit_rule, 'measure', None)
  # One reading of the whole vocabulary chooses the token without checks.
  unchecked = dataclasses.replace(
    policy, exit_rule=schedule, readout=decoding.FullVocabulary()
  )
  whole = unchecked
  if measure is not None:
    whole = dataclasses.replace(
      policy, exit_rule=forced_depths.CheckedSchedule(measure, depths)
    )
  return {
    'whole': whole,
    'unchecked': unchecked,
    'unfilled': dataclasses.replace(unchecked, cache_fill=NoFill()),
    'unread': dataclasses.replace(unchecked, readout=NoReading()),
  }


def _shares(seconds: Mapping[str, float]) -> Shares:
  whole = seconds['whole'] - seconds['start']
  unchecked = seconds['unchecked']
  checks = (seconds['whole'] - unchecked) / whole
  fill = (unchecked - seconds['unfilled']) / whole
  head = (unchecked - seconds['unread']) / whole
  return Shares(checks, fill, head, 1.0 - checks - fill - head)


@register_pytree
@dataclasses.dataclass(frozen=True)
class NoFill(NoCompanions, StatelessSlot):
  """Writes no keys and values at all: attention reads an empty cache."""

  def step(
    self,
    state: PyTree,
    bound: BoundDecoder,
    *,
    cache: PyTree,
    active: Array,
    **ignored: Any,
  ) -> tuple[PyTree, PyTree, FillWork]:
    """Returns the cache as it is."""
    del bound, ignored
    return state, cache, FillWork(jnp.zeros(active.shape, jnp.int32))


@register_pytree
@dataclasses.dataclass(frozen=True)
class NoReading(ReadsAll):
  """Reads nothing: one candidate, token 0, whose logit is a state's entry."""

  reads_exit_states: ClassVar[bool] = False
  needs_whole_matrix: ClassVar[bool] = False

  def num_outputs(
    self, vocab_size: int, *, layer: Array | int, first: Array | bool
  ) -> int:
    """Returns 0: no row of the output matrix is used."""
    del vocab_size, layer, first
    return 0

  def step(
    self,
    state: PyTree,
    bound: BoundDecoder,
    *,
    hidden: Array,
    **ignored: Any,
  ) -> tuple[PyTree, Reading]:
    """Returns one candidate per row."""
    del bound, ignored
    # What depends on the state keeps the layers in the program.
    logits = hidden[:, :1].astype(jnp.float32)
    return state, Reading(logits, jnp.where(jnp.isinf(logits), 1, 0))
