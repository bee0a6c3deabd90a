"""Every R-th exit per step, in turn, and the last layer's: LayerSkip's loss."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.training.forward import Forward
from calm_jax.training.losses import ExitMetrics, Exits
from calm_jax.training.objectives.wrapping import ChoosingObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedExits(ChoosingObjective):
  """Reads every R-th exit and the last; the next step those beside them.

  Of the exits below the last one that have a weight, the k-th (from 0) is read
  in steps t with t mod R = k mod R: LayerSkip's rotating curriculum (arXiv
  2404.16710). The weights of what is read are rescaled to the sum of all
  weights, so that every step counts the same. With the weights of
  `layer_skip_weights` that is the paper's early-exit loss.

  Attributes:
    rotation: R; 1 reads all exits in every step.
  """

  rotation: int = 2

  def __post_init__(self):
    super().__post_init__()
    checks.check_whole(self.rotation, 'rotation', low=1)

  def loss(self, forward: Forward) -> tuple[Array, ExitMetrics]:
    """Returns the inner loss, read at the exits whose turn it is."""
    layers = forward.config.num_decoder_layers
    weights = self.base.settings(layers).layer_weights
    exits = rotated(np.array(weights), self.rotation, forward.draws.step)
    return self.objective.loss(dataclasses.replace(forward, exits=exits))


def rotated(weights: np.ndarray, rotation: int, step: Array) -> Exits:
  """Returns the exits of a step.

  Args:
    weights: [L], of all exits.
    rotation: R, at least 1.
    step: int32 scalar.
  """
  layers = len(weights)
  # Static: as many entries as a step can have at most; others are empty.
  candidates = np.flatnonzero(weights[:-1])
  places = step % rotation + rotation * np.arange(
    -(-len(candidates) // rotation)
  )
  padded = np.append(candidates, np.full(rotation, layers))
  below = jnp.asarray(padded)[places]
  chosen = jnp.append(below, layers - 1)
  raw = jnp.asarray(np.append(weights, 0.0), jnp.float32)[chosen]
  return Exits(chosen, raw * (np.float32(weights.sum()) / raw.sum()))
