"""What `decode_speed` compares: fills, depths and checks."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from calm_jax import decoding, exits, model
from calm_jax.benchmarks import forced_depths
from calm_jax.context_gates import ContextGates
from calm_jax.source_scorer import SourceScorer

FILLS = {
  'eager': decoding.ProjectExitState(),
  'deferred': decoding.DeferredExitState(),
}
EXACT = {**FILLS, 'exact': decoding.CatchUp()}
# R of gates, as runs/train_context.gin trains them.
_GATE_SIZE = 16
FULL, ONE = 'full depth', 'all after layer 1'
CHECKS, INT8_CHECKS = 'margin checks', 'margin checks in 8 bits'


@dataclasses.dataclass(frozen=True, eq=False)
class Way:
  """One way of decoding.

  Attributes:
    name: what a table calls it.
    fill: a key of `FILLS`.
    policy: the policy.
    depths: int [B, T], the exit layers that it forces.
    layers: layers that a token runs on the mean, where a plan leaves some out
      below its exit; None where none does.
    source_kept: source positions that are read; None for all.
    context_room: positions of the output that caches have room for; None for
      all.
  """

  name: str
  fill: str
  policy: decoding.ComputePolicy
  depths: np.ndarray
  layers: float | None = None
  source_kept: int | None = None
  context_room: int | None = None

  @property
  def mean_layers(self) -> float:
    """Layers that a token runs on the mean."""
    return float(self.depths.mean()) if self.layers is None else self.layers


def exact_ways(
  config: model.T5Config, batch_size: int, length: int, *, seed: int = 0
) -> Iterator[Way]:
  """Yields every fill at depths that leave much to catch up, and at L/2."""
  num_layers = config.num_decoder_layers
  size = (batch_size, length)
  rng = np.random.default_rng(seed)
  shallow = rng.integers(1, 3, size)
  depths = {
    FULL: np.full(size, num_layers),
    ONE: np.ones(size),
    '85 % after layer 1 or 2, else all': np.where(
      rng.random(size) < 0.85, shallow, num_layers
    ),
    'evenly up to L/2': rng.integers(1, num_layers // 2 + 1, size),
  }
  for name, exit_layers in depths.items():
    exit_layers = exit_layers.astype(np.int32)
    rule = exits.ScheduledExit(exit_layers)
    alone = name in (FULL, ONE)
    for fill, cache_fill in EXACT.items():
      if not alone or fill == 'eager':
        policy = decoding.ComputePolicy(exit_rule=rule, cache_fill=cache_fill)
        yield Way(name, fill, policy, exit_layers)


def ways(
  config: model.T5Config, batch_size: int, length: int, *, seed: int = 0
) -> Iterator[Way]:
  """Yields what is compared at one shape and batch size."""
  num_layers = config.num_decoder_layers
  size = (batch_size, length)
  share = 4 if batch_size == 1 else 3
  depths = {
    FULL: np.full(size, num_layers, np.int32),
    ONE: np.ones(size, np.int32),
    f'depths of mean L/{share}': forced_depths.random_depths(
      size, num_layers, mean=max(1.0, num_layers / share), seed=seed
    ),
  }
  for name, exit_layers in depths.items():
    rule = exits.ScheduledExit(exit_layers)
    if name == FULL:
      rule = exits.NeverExit()
    for fill, cache_fill in FILLS.items():
      if name != FULL or fill == 'eager':
        policy = decoding.ComputePolicy(exit_rule=rule, cache_fill=cache_fill)
        yield Way(name, fill, policy, exit_layers)
  checked = forced_depths.CheckedSchedule(exits.SoftmaxMargin(), exit_layers)
  pruned = decoding.PrunedVocabulary(
    num_blocks=max(1, min(128, config.vocab_size // 8))
  )
  for what, readout in (
    (CHECKS, decoding.FullVocabulary()),
    (INT8_CHECKS, decoding.Int8Vocabulary()),
    ('checks of candidates', pruned),
  ):
    policy = decoding.ComputePolicy(exit_rule=checked, readout=readout)
    yield Way(f'{name}, {what}', 'eager', policy, exit_layers)


def plan_ways(
  config: model.T5Config, batch_size: int, length: int, *, seed: int = 0
) -> Iterator[Way]:
  """Yields layer plans of L/2 layers, and exits of as many on the mean."""
  num_layers = config.num_decoder_layers
  half = num_layers // 2
  size = (batch_size, length)
  full = np.full(size, num_layers, np.int32)
  depths = {
    FULL: full,
    ONE: np.ones(size, np.int32),
    'every token after L/2': np.full(size, half, np.int32),
    'exits of mean L/2': forced_depths.random_depths(
      size, num_layers, mean=half, seed=seed
    ),
  }
  for name, exit_layers in depths.items():
    rule = exits.ScheduledExit(exit_layers)
    if name == FULL:
      rule = exits.NeverExit()
    policy = decoding.ComputePolicy(exit_rule=rule)
    yield Way(name, 'eager', policy, exit_layers)
  schedule = decoding.SkipDecode(
    num_layers - half // 2, half - half // 2, length=length
  )
  plans = {
    f'{half} layers kept': (decoding.KeepLayers(half), half),
    f'{max(1, half // 2)} layers kept': (
      decoding.KeepLayers(max(1, half // 2)),
      max(1, half // 2),
    ),
    f'SkipDecode {schedule.max_layers} to {schedule.min_layers}': (
      schedule,
      np.mean(schedule.depths(length)),
    ),
    'FFNs of L/2 layers left out': (
      forced_depths.SomeFeedForwards(every=2),
      num_layers,
    ),
  }
  for name, (plan, layers) in plans.items():
    policy = decoding.ComputePolicy(layer_plan=plan)
    yield Way(name, 'eager', policy, full, float(layers))


def source_ways(
  config: model.T5Config,
  batch_size: int,
  length: int,
  *,
  source_length: int,
  seed: int = 0,
) -> Iterator[Way]:
  """Yields parts of the source, alone and beside exits of mean L/3."""
  num_layers = config.num_decoder_layers
  size = (batch_size, length)
  full = np.full(size, num_layers, np.int32)
  third = forced_depths.random_depths(
    size, num_layers, mean=max(1.0, num_layers / 3), seed=seed
  )
  # Whatever the scores: as many positions as there is room for.
  weights = np.random.default_rng(seed).normal(size=config.embed_dim)
  scorer = SourceScorer(weights.astype(np.float32), np.float32(0.0))
  depths = {
    FULL: (exits.NeverExit(), full),
    ONE: (exits.ScheduledExit(np.ones(size, np.int32)), np.ones(size, int)),
    'depths of mean L/3': (exits.ScheduledExit(third), third),
  }
  for name, (rule, exit_layers) in depths.items():
    yield Way(
      name, 'eager', decoding.ComputePolicy(exit_rule=rule), exit_layers
    )
  for share in (2, 4, 8):
    keep = max(1, source_length // share)
    plan = decoding.PrunedSource(scorer, keep, float('inf'))
    for name, (rule, exit_layers) in depths.items():
      if name == ONE or (name != FULL and share != 4):
        continue
      policy = decoding.ComputePolicy(exit_rule=rule, source_plan=plan)
      what = f'{keep} of {source_length} source positions'
      if name != FULL:
        what = f'{name}, {what}'
      yield Way(what, 'eager', policy, exit_layers, source_kept=keep)


def context_ways(
  config: model.T5Config, batch_size: int, length: int, *, seed: int = 0
) -> Iterator[Way]:
  """Yields parts of the output so far, whatever their gates say."""
  size = (batch_size, length)
  full = np.full(size, config.num_decoder_layers, np.int32)
  one = np.ones(size, np.int32)
  yield Way(FULL, 'eager', decoding.ComputePolicy(), full)
  rule = exits.ScheduledExit(one)
  yield Way(ONE, 'eager', decoding.ComputePolicy(exit_rule=rule), one)
  rng = np.random.default_rng(seed)
  matrices = (config.num_decoder_layers, config.embed_dim, _GATE_SIZE)
  queries, keys = rng.normal(size=(2, *matrices)).astype(np.float32)
  gates = ContextGates(queries, keys, np.zeros(matrices[:1], np.float32))
  for share in (1, 2, 4, 8):
    room = max(1, length // share)
    # Gates shut nothing: every place is taken once so many tokens are there.
    plan = decoding.PrunedContext(gates, room, float('inf'))
    yield Way(
      f'{room} of {length} places for the past',
      'eager',
      decoding.ComputePolicy(layer_plan=plan),
      full,
      context_room=room,
    )


# What `--compare` names, of sources of some length.
COMPARED = {
  'exits': lambda *shape, source_length, seed: ways(*shape, seed=seed),
  'exact': lambda *shape, source_length, seed: exact_ways(*shape, seed=seed),
  'plans': lambda *shape, source_length, seed: plan_ways(*shape, seed=seed),
  'sources': source_ways,
  'contexts': lambda *shape, source_length, seed: context_ways(
    *shape, seed=seed
  ),
}
