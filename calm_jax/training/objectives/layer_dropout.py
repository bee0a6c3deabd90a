"""Decoder layers that are dropped while training, deeper ones more often."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.training.forward import Draws, Forward
from calm_jax.training.losses import ExitMetrics
from calm_jax.training.objectives.wrapping import (
  WrappingObjective,
  check_number,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerDropout(WrappingObjective):
  """Drops decoder layers of whole rows, as LayerSkip does (arXiv 2404.16710).

  At step t, layer l (from 0) is dropped in a row with probability

    p = max_probability (exp(ln 2 l / (L-1)) - 1) S(t)

  so the first one never is and the last one most often; S(t) is 1, or grows
  as exp(ln 2 t / (T-1)) - 1 to 1. A dropped layer hands the row's states on,
  unscaled. Its keys and values would be those of these states
  (`model.decode_with_layer_mask`), but as all of a row drops it, nobody reads
  them: this is a plain skip. The layer is computed all the same, so that no
  time is saved. Evaluation never drops.

  The loss is that of the objective inside; the paper's reads exits in turn,
  `LayerDropout(objective=RotatedExits(objective=Objective(
  layer_weights=layer_skip_weights())))`.

  Attributes:
    max_probability: of dropping the last layer, in [0, 1).
    curriculum_steps: T, steps until then; None for the same from the first
      step, as in the paper's fine-tuning.
  """

  max_probability: float = 0.1
  curriculum_steps: int | None = None

  def __post_init__(self):
    super().__post_init__()
    check_number(self.max_probability, 'max_probability', high=1.0)
    # Drawn in float32.
    if np.float32(self.max_probability) >= 1.0:
      raise ValueError(
        f'max_probability must be below 1, got {self.max_probability!r}: the '
        'last layer would be dropped in every row, and never be trained; give '
        'less, such as 0.5'
      )
    if self.curriculum_steps is not None:
      checks.check_whole(self.curriculum_steps, 'curriculum_steps', low=1)

  def probabilities(self, step: Array | int, num_layers: int) -> Array:
    """Returns how probably each layer is dropped at a step, float32 [L]."""
    depth = np.arange(num_layers) / max(num_layers - 1, 1)
    by_layer = self.max_probability * np.expm1(np.log(2) * depth)
    if self.curriculum_steps is None:
      return jnp.asarray(by_layer, jnp.float32)
    done = jnp.minimum(step / max(self.curriculum_steps - 1, 1), 1.0)
    return jnp.asarray(by_layer, jnp.float32) * jnp.expm1(np.log(2) * done)

  def layer_mask(
    self, draws: Draws, num_layers: int, positions: Array
  ) -> Array | None:
    """Returns which layers run, bool [B, 1, L] or [B, T, L]."""
    inside = super().layer_mask(draws, num_layers, positions)
    if self.max_probability == 0:
      return inside
    drawn = draws.uniform('LayerDropout', (num_layers,))
    runs = drawn >= self.probabilities(draws.step, num_layers)
    runs = runs[:, None, :]
    return runs if inside is None else runs & inside

  def loss(self, forward: Forward) -> tuple[Array, ExitMetrics]:
    """Returns the inner loss, of states of which some layers were dropped."""
    return self.objective.loss(forward)
