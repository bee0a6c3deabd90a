"""Settings of every adaptive system, conservative first.

What was trained for a system is read from the run directory.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from calm_jax import decoding, exits, runs
from calm_jax.small_twins import OWN, TWIN

_THRESHOLDS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
# Of cosines, which crowd below 1.
_COSINES = (0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8)
_SHARES = (3 / 4, 1 / 2, 1 / 4, 1 / 8, 1 / 16)


class Setting(NamedTuple):
  """One setting of a system.

  Attributes:
    words: what a table calls it.
    policy: the policy, at the setting.
    first_layers: n of a model that was cut to its first n decoder layers; None
      for the whole model.
  """

  words: str
  policy: decoding.ComputePolicy
  first_layers: int | None = None


@dataclasses.dataclass(frozen=True)
class Model:
  """What settings depend on.

  Attributes:
    run_dir: where trained parts lie.
    num_layers: L, of the decoder.
    vocab_size: V.
    source_length: S, of the longest source, padding included.
    max_length: T, the most tokens of an output.
  """

  run_dir: str
  num_layers: int
  vocab_size: int
  source_length: int
  max_length: int

  @property
  def fewer_layers(self) -> range:
    """L - 1 .. 1."""
    return range(self.num_layers - 1, 0, -1)


def _margin(about: Model, **slots: Any) -> Iterator[Setting]:
  """Yields thresholds of the softmax margin, decaying as in Eq. 5."""
  for threshold in _THRESHOLDS:
    rule = exits.ConfidenceExit(
      exits.SoftmaxMargin(),
      exits.DecayingThreshold(threshold, temperature=4.0),
    )
    policy = decoding.ComputePolicy(exit_rule=rule, **slots)
    yield Setting(
      f'threshold {threshold:g}',
      decoding.at_output_length(policy, about.max_length),
    )


def _projected(about: Model) -> Iterator[Setting]:
  return _margin(about)


def _exact(about: Model) -> Iterator[Setting]:
  return _margin(about, cache_fill=decoding.CatchUp())


def _static(about: Model) -> Iterator[Setting]:
  """Yields exits of all tokens after n layers; no later one is ever run."""
  for number in about.fewer_layers:
    policy = decoding.ComputePolicy(
      exit_rule=exits.FixedExit(number), cache_fill=decoding.CatchUp()
    )
    yield Setting(f'{number} layers', policy)


def _truncated(about: Model) -> Iterator[Setting]:
  """Yields the model of the first n layers."""
  for number in about.fewer_layers:
    yield Setting(f'{number} layers', decoding.ComputePolicy(), number)


def _kept(about: Model) -> Iterator[Setting]:
  """Yields n layers that lie evenly."""
  for number in about.fewer_layers:
    plan = decoding.KeepLayers(number)
    yield Setting(f'{number} layers', decoding.ComputePolicy(layer_plan=plan))


def _skip_decode(about: Model) -> Iterator[Setting]:
  """Yields schedules from many layers to few."""
  layers = about.num_layers
  shares = ((4, 3), (4, 2), (4, 1), (3, 2), (3, 1), (2, 1))
  pairs = [
    (max(1, layers * high // 4), max(1, layers * low // 4))
    for high, low in shares
  ]
  for high, low in dict.fromkeys(pairs):
    if low == high == layers:
      continue
    plan = decoding.SkipDecode(high, low)
    policy = decoding.ComputePolicy(layer_plan=plan)
    yield Setting(
      f'{high} to {low} layers',
      decoding.at_output_length(policy, about.max_length),
    )


def _router(about: Model) -> Iterator[Setting]:
  """Yields how sure a router has to be."""
  router = runs.load_router(about.run_dir)
  for threshold in (0.95, *_THRESHOLDS[:-1]):
    policy = decoding.ComputePolicy(
      exit_rule=exits.RoutedExit(router, exits.ConstantThreshold(threshold)),
      cache_fill=decoding.CatchUp(),
    )
    yield Setting(f'threshold {threshold:g}', policy)


def _feed_forwards(about: Model) -> Iterator[Setting]:
  """Yields how little a feed-forward block may turn a state."""
  del about
  for threshold in _COSINES:
    plan = decoding.SkipSaturatedFeedForward(threshold)
    yield Setting(
      f'threshold {threshold:g}', decoding.ComputePolicy(layer_plan=plan)
    )


def _twins(about: Model) -> Iterator[Setting]:
  """Yields twins in ever more layers, from the middle outwards."""
  twins = runs.load_twins(about.run_dir)
  outwards = sorted(
    range(about.num_layers),
    key=lambda layer: abs(layer - about.num_layers // 2),
  )
  for number in range(1, about.num_layers + 1):
    choices = [OWN] * about.num_layers
    for layer in outwards[:number]:
      choices[layer] = TWIN
    plan = decoding.ChosenFeedForward(tuple(choices), twins)
    yield Setting(
      f'{number} of {about.num_layers} layers',
      decoding.ComputePolicy(layer_plan=plan),
    )


def _source_plans(about: Model) -> Iterator[tuple[str, decoding.PrunedSource]]:
  """Yields ever smaller parts of the source."""
  scorer = runs.load_source_scorer(about.run_dir)
  for keep in _parts(about.source_length):
    words = f'{keep} of {about.source_length} positions'
    yield words, decoding.PrunedSource(scorer, keep)


def _source(about: Model) -> Iterator[Setting]:
  for words, plan in _source_plans(about):
    yield Setting(words, decoding.ComputePolicy(source_plan=plan))


def _composed(about: Model) -> Iterator[Setting]:
  """Yields exits over candidates, with half and a quarter of the source."""
  readout = decoding.PrunedVocabulary(
    num_blocks=max(1, min(128, about.vocab_size // 8))
  )
  for words, plan in list(_source_plans(about))[1:3]:
    slots = dict(
      source_plan=plan, readout=readout, cache_fill=decoding.CatchUp()
    )
    for setting in _margin(about, **slots):
      yield setting._replace(words=f'{words}, {setting.words}')


def _context(about: Model) -> Iterator[Setting]:
  """Yields ever less room for the past."""
  gates = runs.load_context_gates(about.run_dir)
  for slots in (about.max_length, *_parts(about.max_length)):
    plan = decoding.PrunedContext(gates, slots)
    yield Setting(
      f'{slots} of {about.max_length} places',
      decoding.ComputePolicy(layer_plan=plan),
    )


def _parts(length: int) -> list[int]:
  """Returns three quarters, a half ... of a length, each once."""
  return [*dict.fromkeys(max(1, int(share * length)) for share in _SHARES)]


# In the order of the table.
SYSTEMS: dict[str, Callable[[Model], Iterator[Setting]]] = {
  'CALM, projected K/V': _projected,
  'CALM, exact K/V': _exact,
  'static depth': _static,
  'SoFT depth': _truncated,
  'kept layers (ULS)': _kept,
  'SkipDecode': _skip_decode,
  'router': _router,
  'FFN skipping': _feed_forwards,
  'small twins': _twins,
  'part of the source': _source,
  'pruned context': _context,
  'source, exits and vocabulary': _composed,
}
