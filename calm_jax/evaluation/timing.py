"""Measures the wall clock of decoding under several policies, fairly.

Every policy decodes the same batches with the same compiled lengths; the
repeats of all policies are interleaved, so that a machine that slows down for a
while slows them all; medians are compared. Early exits are held against the
fastest full-depth decode there is, one without any confidence checks, and not
against their own graph at a threshold that never fires.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import decoding, interfaces, records
from calm_jax.costs import BytesOf
from calm_jax.evaluation import stopwatch
from calm_jax.evaluation.decode_dataset import Batch

_START = 'start'
_empty = functools.partial(dataclasses.field, default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class OfModel:
  """A policy, and the model that it is timed on.

  Attributes:
    policy: the policy.
    bound: the decoder bound to each depth loop, by the names of the others;
      None for that of all policies. Where policies have weights in 8 bits, the
      full model that they are held against has not.
  """

  policy: decoding.ComputePolicy
  bound: Mapping[str, interfaces.BoundDecoder] | None = None


@dataclasses.dataclass
class _Measured:
  """One policy under one depth loop.

  Attributes:
    policy: the policy.
    bound: the decoder, bound to the depth loop.
    seconds: one wall clock per batch and repeat.
    start_seconds: the same of what is done once per batch, before any token.
    num_steps: steps of the token loop per batch.
    exit_layers: int [B, T] per batch, -1 where not decoded.
    work: the ledger of each batch, [B, T].
    encoder_layers: encoder layers of its sources, int [B]; None for all.
  """

  policy: decoding.ComputePolicy
  bound: interfaces.BoundDecoder
  seconds: list[list[float]] = _empty()
  start_seconds: list[list[float]] = _empty()
  num_steps: list[int] = _empty()
  exit_layers: list[np.ndarray] = _empty()
  work: list[interfaces.Work] = _empty()
  encoder_layers: list[np.ndarray | None] = _empty()

  def mean_exit_layer(self) -> float:
    """Returns the layers per decoded token, over all batches."""
    layers = np.concatenate([batch.ravel() for batch in self.exit_layers])
    return float(layers[layers > 0].mean())

  def mean_encoder_layer(self) -> float:
    """Returns the encoder layers per source; NaN where all run for all."""
    if any(layers is None for layers in self.encoder_layers):
      return math.nan
    return float(np.concatenate(self.encoder_layers).mean())

  def start_key(self, loop_name: str) -> tuple[Any, ...]:
    """Returns what the time of all that is done once per batch depends on.

    The encoder and the choice of source positions, which exits of tokens leave
    as they are.
    """
    once = self.policy.encoder_exit, self.policy.source_plan
    own = (
      ''
      if all(slot.whole for slot in once)
      else str([decoding.describe(slot) for slot in once])
    )
    return _START, loop_name, self.bound.weights, own

  def seconds_per_batch(self) -> float:
    """Returns the mean over batches of the median over repeats."""
    return statistics.fmean(statistics.median(row) for row in self.seconds)

  def seconds_per_step(self, usual_steps: int) -> float:
    """Returns the time of a step, with a share of what is done once.

    Args:
      usual_steps: the steps of all batches that the latter is divided by, the
        same for everything that is compared: outputs of another length must
        gain or lose nothing by it.
    """
    whole, once = (
      sum(statistics.median(row) for row in rows)
      for rows in (self.seconds, self.start_seconds)
    )
    return (whole - once) / sum(self.num_steps) + once / usual_steps


def time_decode(
  bound: Mapping[str, interfaces.BoundDecoder],
  batches: Sequence[Batch],
  policies: Mapping[str, decoding.ComputePolicy | OfModel],
  *,
  max_length: int,
  baseline: str = 'full',
  eos_id: int = 1,
  suppressed_tokens: Sequence[int] = (),
  num_repeats: int = 5,
  bytes_of: BytesOf | None = None,
  progress: Callable[[str], None] | None = None,
) -> tuple[records.TimingRow, ...]:
  """Times policies on batches of one shape.

  The time of a batch runs from its token ids on the host to its decoded tokens
  back on the host: encoder, token loop, transfers. Each policy is reported
  under its fastest depth loop. Speed-ups compare time per step of the token
  loop, plus what is done once per batch over the steps of the baseline: a
  policy whose outputs are shorter or longer gains nothing by it.

  Args:
    bound: name -> the decoder with its parameters, bound to each depth loop to
      try; rows say by these names which one was the fastest.
    batches: batches of one shape without rows that only fill up; see
      `take_batches`.
    policies: name -> policy, the baseline among them; `OfModel` for one that
      another model decodes.
    max_length: T.
    baseline: the policy that speed-ups are held against; it should run all
      layers without looking at confidences.
    eos_id: the id that ends a sequence.
    suppressed_tokens: ids that are never said.
    num_repeats: how often each batch is timed, after one warm-up.
    bytes_of: what a decode with this ledger, weights and encoder layers has to
      move once per batch and in all of its steps, for the largest speed-up that
      memory traffic allows; NaN without it.
    progress: gets a line per policy while it compiles, and when done.

  Returns:
    One row per policy, in the order of `policies`.

  Raises:
    ValueError: if the baseline is missing, there are no batches, shapes differ,
      or rows only fill a batch up.
  """
  inputs = _checked_inputs(batches, policies, baseline)
  say = progress if progress is not None else lambda line: None
  measured = {
    (name, loop_name): _Measured(
      policy=decoding.as_policy(entry.policy), bound=one
    )
    for name, policy in policies.items()
    for entry in [policy if isinstance(policy, OfModel) else OfModel(policy)]
    for loop_name, one in _of_size(entry.bound or bound, len(inputs[0])).items()
  }

  def call(function, entry: _Measured, index: int):
    return function(
      entry.bound,
      inputs[index],
      policy=entry.policy,
      max_length=max_length,
      eos_id=eos_id,
      suppressed_tokens=suppressed_tokens or None,
    )

  def run(entry: _Measured, index: int):
    return jax.device_get(call(decoding.generate, entry, index))

  for (name, loop_name), entry in measured.items():
    say(f'compiling {name} ({loop_name}) at batch {len(inputs[0])}')
    _warm_up(entry, run, len(inputs))
  # Policies are the innermost loop: neighbours in time are compared.
  runs = {
    (name, index): functools.partial(run, entry, index)
    for index in range(len(inputs))
    for name, entry in measured.items()
  }
  # What is done once per batch is the same for all policies of a loop and its
  # weights that run all of the encoder and read all of the source.
  starts = {
    (*entry.start_key(loop_name), index): functools.partial(
      call, decoding.start, entry, index
    )
    for (_, loop_name), entry in reversed(measured.items())
    for index in range(len(inputs))
  }
  seconds = stopwatch.interleaved_seconds({**starts, **runs}, num_repeats)
  for (name, loop_name), entry in measured.items():
    for index in range(len(inputs)):
      entry.seconds.append(seconds[(name, loop_name), index])
      start = *entry.start_key(loop_name), index
      entry.start_seconds.append(seconds[start])
  return _rows(measured, policies, baseline, len(inputs[0]), bytes_of)


def take_batches(
  batches: Iterable[Batch], *, batch_size: int, num_batches: int
) -> list[dict[str, Any]]:
  """Cuts whole batches of `batch_size` rows out of a dataset's batches.

  Args:
    batches: batches of any size and one source length.
    batch_size: rows per batch.
    num_batches: how many to take; fewer if the data run out.

  Returns:
    Batches with `encoder_input_tokens` alone.

  Raises:
    ValueError: if there are not even `batch_size` inputs.
  """
  rows = []
  for batch in batches:
    inputs = np.asarray(batch['encoder_input_tokens'])
    rows.extend(inputs[: int(batch.get('num_valid', len(inputs)))])
    if len(rows) >= batch_size * num_batches:
      break
  count = min(num_batches, len(rows) // batch_size)
  if not count:
    raise ValueError(
      f'a batch of {batch_size} cannot be made of {len(rows)} inputs; lower '
      'batch_size or pass more data.'
    )
  return [
    {
      'encoder_input_tokens': np.stack(
        rows[index * batch_size : (index + 1) * batch_size]
      )
    }
    for index in range(count)
  ]


def _checked_inputs(batches, policies, baseline):
  """Returns the inputs of the batches, int32 [B, S] each."""
  if baseline not in policies:
    raise ValueError(
      f'the baseline {baseline!r} is not among the policies '
      f'{sorted(policies)}; add a full-depth policy under that name.'
    )
  inputs = [
    np.asarray(batch['encoder_input_tokens'], dtype=np.int32)
    for batch in batches
  ]
  if not inputs:
    raise ValueError('there is nothing to time: no batches.')
  if len({array.shape for array in inputs}) > 1:
    raise ValueError(
      'batches to time must have one shape, not '
      f'{sorted({array.shape for array in inputs})}; use take_batches.'
    )
  if not all(array.any(axis=1).all() for array in inputs):
    raise ValueError(
      'a batch to time holds an empty row, whose decode would not be typical; '
      'use take_batches.'
    )
  return inputs


def _of_size(
  bound: Mapping[str, interfaces.BoundDecoder], batch_size: int
) -> Mapping[str, interfaces.BoundDecoder]:
  """Returns those whose depth loops do something for so many rows."""
  found = {
    name: one
    for name, one in bound.items()
    if batch_size > 1 or not decoding.is_for_batches(one.depth_loop)
  }
  return found or bound


def _warm_up(entry: _Measured, run, num_batches: int) -> None:
  """Compiles, and notes what was done, which time does not change."""
  for index in range(num_batches):
    result = run(entry, index)
    entry.num_steps.append(int(np.max(result.lengths)))
    entry.exit_layers.append(np.asarray(result.exit_layers))
    entry.work.append(result.work)
    entry.encoder_layers.append(result.encoder_exit_layers)


def _ceiling(
  full: _Measured, entry: _Measured, usual_steps: int, bytes_of: BytesOf | None
) -> float:
  """Returns the ratio of what the two move per step, as times are compared."""
  if bytes_of is None:
    return math.nan

  def per_step(one: _Measured) -> float:
    moved = (
      bytes_of(work, one.bound.weights, layers, one.policy)
      for work, layers in zip(one.work, one.encoder_layers, strict=True)
    )
    once, stepping = (sum(part) for part in zip(*moved, strict=True))
    return stepping / sum(one.num_steps) + once / usual_steps

  return per_step(full) / per_step(entry)


def _rows(measured, policies, baseline, batch_size, bytes_of):
  """Returns one row per policy under its fastest depth loop."""
  usual_steps = sum(
    next(e.num_steps for (name, _), e in measured.items() if name == baseline)
  )
  fastest = {}
  for name in policies:
    loops = {
      loop_name: entry
      for (policy_name, loop_name), entry in measured.items()
      if policy_name == name
    }
    best = min(loops, key=lambda key: loops[key].seconds_per_step(usual_steps))
    fastest[name] = (best, loops[best])
  full = fastest[baseline][1]
  full_seconds = full.seconds_per_step(usual_steps)
  return tuple(
    records.TimingRow(
      name=name,
      batch_size=batch_size,
      depth_loop=loop_name,
      milliseconds_per_step=1e3 * entry.seconds_per_step(usual_steps),
      milliseconds_per_batch=1e3 * entry.seconds_per_batch(),
      speed_up=full_seconds / entry.seconds_per_step(usual_steps),
      ceiling=_ceiling(full, entry, usual_steps, bytes_of),
      num_batches=len(entry.seconds),
      num_repeats=len(entry.seconds[0]),
      mean_exit_layer=entry.mean_exit_layer(),
      mean_encoder_layer=entry.mean_encoder_layer(),
    )
    for name, (loop_name, entry) in fastest.items()
  )
