"""Measures everybody who enters the arena, on the inputs of one run."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from calm_jax import decoding, evaluation, model, records, runs
from calm_jax.benchmarks import (
  arena_entries,
  arena_peers,
  output_scores,
  peers,
  policy_costs,
  token_inputs,
  whole_outputs,
)
from calm_jax.benchmarks.arena_entries import Entry
from calm_jax.benchmarks.text_inputs import Inputs
from calm_jax.interfaces import BoundDecoder
from calm_jax.records import ArenaClock, ArenaRow

_OTHER = 'other program'


class Arena:
  """One model and its inputs, for whoever enters."""

  def __init__(
    self,
    run: runs.LoadedRun,
    inputs: Inputs,
    *,
    title: str,
    depth_loops: Sequence[str],
    num_repeats: int,
  ):
    """Takes a run and what is decoded; `title` is what a table calls it."""
    self._run = run
    self._inputs = inputs
    self._scores = output_scores.OutputScores(run, inputs)
    self._title = title
    self._depth_loops = depth_loops
    self._num_repeats = num_repeats
    self._bound: dict[Any, BoundDecoder] = {}

  def measure(
    self,
    entries: Sequence[Entry],
    decode_peers: Mapping[str, peers.Decode],
    batch_sizes: Mapping[int, int],
  ) -> list[ArenaRow]:
    """Returns a row for each entry and each other program.

    Args:
      entries: the full model first.
      decode_peers: as `peers.installed_peers` and `t5x_calm.of_model` return.
      batch_sizes: B -> how many inputs the clock measures at it.
    """
    said = {}
    for name, decode in decode_peers.items():
      _say(f'decoding by {name}')
      said[name] = arena_peers.decode_all(decode, self._inputs.sources)
    found = {}
    for entry in entries:
      _say(f'decoding by {entry.name}')
      found[entry.name] = whole_outputs.decode_all(
        self._bind(entry.weights),
        self._inputs.sources,
        entry.policy,
        self._inputs.max_length,
        suppressed_tokens=self._run.suppressed_tokens,
      )
    full = found[entries[0].name]
    clocks = [
      self._clock(entries, decode_peers, size, number)
      for size, number in batch_sizes.items()
    ]
    full_texts = self._scores.texts(full.tokens)
    rows = [
      self._row(
        entry.name,
        _kind(entry),
        self._scores.texts(found[entry.name].tokens),
        full_texts,
        entry.promises,
        clocks,
        error_rate=entry.error_rate,
        mean_layers=policy_costs.layers_per_token(found[entry.name]),
        cost=self._flops(entry, found[entry.name])
        / self._flops(entries[0], full),
      )
      for entry in entries
    ]
    for name, decode in decode_peers.items():
      same_as, share = arena_peers.agreement(decode, said[name], found)
      row = self._row(
        name,
        _OTHER,
        self._scores.texts(said[name].tokens),
        full_texts,
        (),
        clocks,
        mean_layers=said[name].mean_layers,
      )
      rows.append(dataclasses.replace(row, same_as=same_as, same_outputs=share))
    return rows

  def _bind(self, weights, depth_loop: str | None = None) -> BoundDecoder:
    """Returns the decoder with such weights; each is prepared once."""
    key = weights, depth_loop
    if key not in self._bound:
      self._bound[key] = decoding.bind(
        model.as_layered_decoder(self._run.config),
        runs.int8_params(self._run, weights),
        depth_loop=depth_loop and decoding.DEPTH_LOOPS[depth_loop],
        weights=weights,
      )
    return self._bound[key]

  def _flops(self, entry: Entry, result: decoding.DecodeResult) -> float:
    """Returns the decoder's operations per token, by the ledger."""
    return policy_costs.per_token(
      self._run.config,
      result,
      entry.policy,
      source_length=token_inputs.bucket(max(map(len, self._inputs.sources))),
      weights=entry.weights,
    ).flops

  def _row(
    self,
    name: str,
    kind: str,
    texts: Sequence[str],
    full_texts: Sequence[str],
    promises: Sequence[records.PromisedLoss],
    clocks: Sequence[Mapping[str, ArenaClock]],
    *,
    error_rate: float = math.nan,
    mean_layers: float = math.nan,
    cost: float = math.nan,
  ) -> ArenaRow:
    return ArenaRow(
      run=self._title,
      name=name,
      kind=kind,
      outcomes=self._scores.outcomes(promises, texts, full_texts),
      error_rate=error_rate,
      distance=self._scores.distance(texts, full_texts),
      quality=self._scores.quality(texts),
      metric=self._inputs.metric,
      mean_layers=mean_layers,
      cost=cost,
      clocks=tuple(one[name] for one in clocks),
    )

  def _clock(
    self,
    entries: Sequence[Entry],
    decode_peers: Mapping[str, peers.Decode],
    batch_size: int,
    num_inputs: int,
  ) -> dict[str, ArenaClock]:
    """Measures everybody at one batch size."""
    batches = token_inputs.whole_batches(
      self._inputs.sources[:num_inputs], batch_size
    )
    bound = {
      weights: {name: self._bind(weights, name) for name in self._depth_loops}
      for weights in dict.fromkeys(entry.weights for entry in entries)
    }
    timings = evaluation.time_decode(
      bound[None],
      [{'encoder_input_tokens': batch} for batch in batches],
      {
        entry.name: evaluation.OfModel(entry.policy, bound[entry.weights])
        for entry in entries
      },
      max_length=self._inputs.max_length,
      baseline=entries[0].name,
      suppressed_tokens=self._run.suppressed_tokens,
      num_repeats=self._num_repeats,
      progress=_say,
    )
    found = {
      one.name: ArenaClock(
        batch_size,
        one.depth_loop,
        one.milliseconds_per_step / batch_size,
        one.speed_up,
      )
      for one in timings
    }
    full = timings[0].milliseconds_per_step
    for name, decode in decode_peers.items():
      _say(f'timing {name} at batch {batch_size}')
      took = peers.milliseconds_per_step(decode, batches, self._num_repeats)
      found[name] = ArenaClock(
        batch_size,
        '-',
        took / batch_size,
        full / took,
        arena_peers.layers_in_batches(decode, batches),
      )
    return found


def _kind(entry: Entry) -> str:
  if entry.name == arena_entries.FULL:
    return 'full'
  if entry.lossless:
    return 'lossless'
  return 'uncertified' if entry.certificate is None else 'certified'


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
