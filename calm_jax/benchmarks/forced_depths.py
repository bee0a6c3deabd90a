"""Exits at depths fixed beforehand, so that speed is measured and not luck.

Random weights exit nowhere in particular. A benchmark therefore forces the
depth of every token, with or without the checks that a real rule would pay for.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from calm_jax.array_types import Array, PyTree
from calm_jax.exits import ScheduledExit
from calm_jax.exits.measures import Measure
from calm_jax.interfaces import (
  LayeredDecoder,
  LayerView,
  LayerWork,
  PlansAhead,
  PlanView,
  StatelessSlot,
)
from calm_jax.pytrees import register_pytree


def random_depths(
  shape: tuple[int, int], num_layers: int, *, mean: float, seed: int = 0
) -> np.ndarray:
  """Draws exit layers, int32 [B, T], evenly between 1 and 2 * mean - 1.

  Args:
    shape: B, T.
    num_layers: L.
    mean: of the depths, between 1 and (L + 1) / 2; what comes out has it to
      within one token's depth.
    seed: of the draws.

  Raises:
    ValueError: for a mean that even draws cannot have.

  >>> depths = random_depths((1, 64), 8, mean=2.0)
  >>> int(depths.min()), int(depths.max()), float(depths.mean())
  (1, 3, 2.0)
  """
  if not 1 <= mean <= (num_layers + 1) / 2:
    raise ValueError(
      f'mean is {mean}, give a depth in 1..{(num_layers + 1) / 2:g} for '
      f'{num_layers} layers'
    )
  rng = np.random.default_rng(seed)
  # Real numbers evenly up to twice the mean, rounded by chance.
  depths = 1 + rng.random(shape) * 2 * (mean - 1)
  depths = np.floor(depths + rng.random(shape))
  depths = np.clip(depths, 1, num_layers).astype(np.int32)
  # Moved to the mean, one random token after the other.
  flat = depths.reshape(-1)
  missing = round(mean * flat.size) - int(flat.sum())
  step = 1 if missing > 0 else -1
  for place in rng.permutation(flat.size).repeat(num_layers):
    if missing == 0:
      break
    if 1 <= flat[place] + step <= num_layers:
      flat[place] += step
      missing -= step
  return depths


@register_pytree
@dataclasses.dataclass(frozen=True)
class SomeFeedForwards(PlansAhead, StatelessSlot):
  """A layer plan with every n-th feed-forward block alone, of all rows.

  Attributes:
    every: n, of the layers that have one: 0, n, 2 n ...
  """

  every: int = dataclasses.field(metadata=dict(static=True))

  def before(self, state: PyTree, view: PlanView) -> tuple[PyTree, LayerWork]:
    """Asks for attention, and for the feed-forward block of some layers."""
    runs = jnp.equal(view.layer % self.every, 0)
    runs = jnp.broadcast_to(runs, view.active.shape)
    return state, LayerWork(feed_forward=runs)


@register_pytree
@dataclasses.dataclass(frozen=True)
class CheckedSchedule:
  """Fires by a schedule, but measures its confidence after every layer.

  That costs what a confidence rule of the same depths costs.

  Attributes:
    measure: the confidence measure.
    exit_layers: int [T] or [B, T], in 1..L, as for `ScheduledExit`.
  """

  measure: Measure
  exit_layers: Array

  @property
  def needs_logits(self) -> bool:
    """Whether the measure reads logits."""
    return self.measure.needs_logits

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself checked; raises ValueError on bad layers."""
    size = (decoder, batch_size, max_length)
    schedule = ScheduledExit(self.exit_layers).check(*size)
    return CheckedSchedule(self.measure.check(*size), schedule.exit_layers)

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns the schedule of each row, int32 [B, T]."""
    schedule = ScheduledExit(self.exit_layers)
    return schedule.init(decoder, batch_size, max_length)

  def looks(self, layer: Array | int) -> bool:
    """Returns True: every layer is measured."""
    del layer
    return True

  def step(self, state: PyTree, view: LayerView) -> tuple[PyTree, Array, Array]:
    """Stops rows whose layers are used up, whatever their confidence."""
    schedule = ScheduledExit(self.exit_layers)
    _, stops, _ = schedule.step(state, view)
    return state, stops, self.measure.confidence(view)
