"""Full depth and one sampled depth per step: two heads instead of L."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax.array_types import Array
from calm_jax.training.forward import Draws, Forward
from calm_jax.training.layer_weights import subset_weights
from calm_jax.training.losses import ExitMetrics, Exits
from calm_jax.training.objectives.wrapping import ChoosingObjective

SAMPLINGS = ('weights', 'uniform')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledDepth(ChoosingObjective):
  """The last layer's loss and that of one exit, sampled anew in every step.

  Unbiased: with w the weights of the depths (of the `Objective` it is around)
  and p_d the probability of drawing depth d < L, the loss is w_L L_L +
  (w_d / p_d) L_d, whose expectation is the weighted sum over all depths. All
  parts of a batch have the same depth.

  Nested depths with one head are those of Sorted LLaMA's fine-tuning (SoFT,
  arXiv 2309.08968) and LITE (arXiv 2310.18581), which read all of them in every
  step: `Objective(layer_weights=subset_weights(...))`.

  Attributes:
    exit_layers: the depths, in 1..L with L among them; their weights are then
      those of `subset_weights`. None for all of positive weight.
    sampling: 'weights' (in proportion to their weights: every step's loss is of
      one scale) or 'uniform' (each depth as often).
  """

  exit_layers: Sequence[int] | None = None
  sampling: str = 'weights'

  def __post_init__(self):
    super().__post_init__()
    if self.sampling not in SAMPLINGS:
      raise ValueError(
        f'sampling must be one of {SAMPLINGS}, got {self.sampling!r}'
      )
    if self.exit_layers is not None:
      # Looks at them; weights come once L is known.
      subset_weights(self.exit_layers)

  def for_layers(self, num_layers: int) -> Self:
    """Returns the same; ValueError where no depth below L is left."""
    exit_layers = self.exit_layers
    resolved = dataclasses.replace(
      super().for_layers(num_layers),
      exit_layers=None if exit_layers is None else tuple(exit_layers),
    )
    if not any(resolved.weights(num_layers)[:-1]):
      raise ValueError(
        'SampledDepth samples a depth below the last layer, '
        f'{num_layers}, and there is none of positive weight: give exit_layers '
        'or layer_weights with others, or train with training.Objective'
      )
    return resolved

  def weights(self, num_layers: int) -> tuple[float, ...]:
    """Returns the weight of every layer in the expected loss."""
    weights = self.base.settings(num_layers).layer_weights
    if self.exit_layers is None:
      return weights
    return tuple(
      subset_weights(self.exit_layers, lambda _: weights)(num_layers)
    )

  def exits(self, draws: Draws, num_layers: int) -> Exits:
    """Returns the exit that a step draws, and the last one."""
    weights = np.array(self.weights(num_layers))
    candidates = np.flatnonzero(weights[:-1])
    wanted = weights[candidates]
    probabilities = (
      wanted / wanted.sum()
      if self.sampling == 'weights'
      else np.full(len(wanted), 1 / len(wanted))
    )
    drawn = jax.random.choice(
      draws.named('SampledDepth'),
      len(candidates),
      p=jnp.asarray(probabilities, jnp.float32),
    )
    scaled = jnp.asarray(wanted / probabilities, jnp.float32)
    return Exits(
      layers=jnp.append(jnp.asarray(candidates)[drawn], num_layers - 1),
      weights=jnp.append(scaled[drawn], np.float32(weights[-1])),
    )

  def loss(self, forward: Forward) -> tuple[Array, ExitMetrics]:
    """Returns the inner loss, read at two exits."""
    exits = self.exits(forward.draws, forward.config.num_decoder_layers)
    return self.objective.loss(dataclasses.replace(forward, exits=exits))
