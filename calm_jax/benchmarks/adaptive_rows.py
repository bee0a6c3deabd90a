"""Measures the settings of adaptive systems on the inputs of one model."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from calm_jax import decoding, evaluation, model, runs
from calm_jax.benchmarks import (
  arena_entries,
  output_scores,
  policy_costs,
  token_inputs,
  whole_outputs,
)
from calm_jax.benchmarks.adaptive_certificates import Entry
from calm_jax.benchmarks.adaptive_settings import Setting
from calm_jax.benchmarks.text_inputs import Inputs
from calm_jax.interfaces import BoundDecoder
from calm_jax.records import FULL_SYSTEM, ArenaClock, SystemRow

Say = Callable[[str], None]


class Systems:
  """One model and its inputs, decoded by whatever setting is asked for."""

  def __init__(
    self,
    run: runs.LoadedRun,
    inputs: Inputs,
    *,
    names: tuple[str, str],
    depth_loops: Sequence[str],
    num_repeats: int,
    say: Say,
  ):
    """Decodes with the full model.

    Args:
      run: the model.
      inputs: what is decoded.
      names: of the data and of the model, for the rows.
      depth_loops: keys of `decoding.DEPTH_LOOPS` that the clock tries.
      num_repeats: turns of the clock.
      say: gets a line now and then.
    """
    self._run, self._inputs, self._names = run, inputs, names
    self._depth_loops, self._num_repeats = depth_loops, num_repeats
    self._say = say
    self._bound: dict[Any, BoundDecoder] = {}
    self._scores = output_scores.OutputScores(run, inputs)
    policy = decoding.ComputePolicy()
    self._full = Entry(
      FULL_SYSTEM,
      Setting('', policy),
      arena_entries.Entry(FULL_SYSTEM, policy),
    )
    say('decoding by the full model')
    self._result = self._decode(self._full)
    self._texts = self._scores.texts(self._result.tokens)
    self._cost = self._cost_of(self._full, self._result)

  def full(self) -> SystemRow:
    """Returns the row of the full model."""
    return self._row(self._full, self._result)

  def row(self, entry: Entry) -> SystemRow:
    """Returns the row of a setting, without clocks."""
    return self._row(entry, self._decode(entry))

  def cost_of_layers(self, number: float) -> float:
    """Returns the arithmetic of a token of n layers over the full model's."""
    config = self._run.config
    head = 2 * config.embed_dim * config.vocab_size / self._cost.flops
    return head + number / config.num_decoder_layers * (1 - head)

  def clocks(
    self, entries: Sequence[Entry], batch_size: int, num_inputs: int
  ) -> dict[tuple[str, str, str], ArenaClock]:
    """Measures settings and the full model, in turns; key -> clock.

    Args:
      entries: the settings.
      batch_size: B.
      num_inputs: so many inputs, in whole batches.
    """
    batches = token_inputs.whole_batches(
      self._inputs.sources[:num_inputs], batch_size
    )
    every = {' / '.join(one.key): one for one in (self._full, *entries)}
    timings = evaluation.time_decode(
      {name: self._bind(self._full, name) for name in self._depth_loops},
      [{'encoder_input_tokens': batch} for batch in batches],
      {
        name: evaluation.OfModel(
          one.setting.policy,
          {loop: self._bind(one, loop) for loop in self._depth_loops},
        )
        for name, one in every.items()
      },
      max_length=self._inputs.max_length,
      baseline=' / '.join(self._full.key),
      suppressed_tokens=self._run.suppressed_tokens,
      num_repeats=self._num_repeats,
      progress=self._say,
    )
    return {
      every[one.name].key: ArenaClock(
        batch_size,
        one.depth_loop,
        one.milliseconds_per_step / batch_size,
        one.speed_up,
      )
      for one in timings
    }

  def _config(self, entry: Entry) -> model.T5Config:
    """Returns the shape of the model that decodes a setting."""
    layers = entry.setting.first_layers
    if layers is None:
      return self._run.config
    return dataclasses.replace(self._run.config, num_decoder_layers=layers)

  def _bind(self, entry: Entry, depth_loop: str | None = None) -> BoundDecoder:
    """Returns the decoder of a setting; each is prepared once."""
    weights, layers = entry.certified.weights, entry.setting.first_layers
    key = weights, layers, depth_loop
    if key not in self._bound:
      config = self._run.config
      params = runs.int8_params(self._run, weights)
      if layers is not None:
        config, params = model.truncate(config, params, layers)
      self._bound[key] = decoding.bind(
        model.as_layered_decoder(config),
        params,
        depth_loop=depth_loop and decoding.DEPTH_LOOPS[depth_loop],
        weights=weights,
      )
    return self._bound[key]

  def _decode(self, entry: Entry) -> decoding.DecodeResult:
    """Returns the outputs of all inputs."""
    return whole_outputs.decode_all(
      self._bind(entry),
      self._inputs.sources,
      entry.setting.policy,
      self._inputs.max_length,
      suppressed_tokens=self._run.suppressed_tokens,
    )

  def _cost_of(
    self, entry: Entry, result: decoding.DecodeResult
  ) -> policy_costs.TokenCost:
    return policy_costs.per_token(
      self._config(entry),
      result,
      entry.setting.policy,
      source_length=token_inputs.bucket(max(map(len, self._inputs.sources))),
      weights=entry.certified.weights,
    )

  def _row(self, entry: Entry, result: decoding.DecodeResult) -> SystemRow:
    """Returns the row of a setting that was decoded."""
    texts = self._scores.texts(result.tokens)
    cost = self._cost_of(entry, result)
    run, name = self._names
    return SystemRow(
      run=run,
      model=name,
      system=entry.system,
      setting=entry.setting.words,
      policy=digest_of(entry),
      outcomes=self._scores.outcomes(
        entry.certified.promises, texts, self._texts
      ),
      error_rate=entry.certified.error_rate,
      distance=self._scores.distance(texts, self._texts),
      quality=self._scores.quality(texts),
      metric=self._inputs.metric,
      mean_layers=policy_costs.layers_per_token(result),
      flops=cost.flops / self._cost.flops,
      bytes=cost.bytes / self._cost.bytes,
    )


def digest_of(entry: Entry) -> str:
  """Returns a hash of what decodes a setting, besides the model."""
  described = [
    decoding.describe(entry.setting.policy, {}),
    entry.setting.first_layers,
    repr(entry.certified.weights),
  ]
  text = json.dumps(described, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
