"""What the multi-exit training minimises, as an object that gin can bind."""

import dataclasses
from collections.abc import Callable, Sequence

from calm_jax import checks
from calm_jax.training.layer_weights import check_layer_weights, linear_weights
from calm_jax.training.losses import LossSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """The weighted multi-exit loss (arXiv 2207.07061, Eq. 6) and its parts.

  Attributes:
    layer_weights: one weight per decoder layer, or a function from their number
      to the weights.
    z_loss: see `LossSettings`.
    label_smoothing: see `LossSettings`.
    loss_normalizer: see `LossSettings`.
    num_microbatches: parts of a batch that are run one after the other to save
      memory; see `step.make_train_step`.
    frozen: patterns of parameter paths to leave as they are; see `freeze`.
  """

  layer_weights: Sequence[float] | Callable[[int], Sequence[float]] = (
    linear_weights
  )
  z_loss: float = 1e-4
  label_smoothing: float = 0.0
  loss_normalizer: float | None = None
  num_microbatches: int = 1
  frozen: Sequence[str] = ()

  def __post_init__(self):
    checks.check_whole(self.num_microbatches, 'num_microbatches', low=1)

  def settings(self, num_layers: int) -> LossSettings:
    """Returns the loss of a decoder of so many layers.

    Raises:
      ValueError: for a number outside its range, naming it.
    """
    weights = self.layer_weights
    if callable(weights):
      weights = weights(num_layers)
    return LossSettings(
      check_layer_weights(weights, num_layers),
      z_loss=self.z_loss,
      label_smoothing=self.label_smoothing,
      loss_normalizer=self.loss_normalizer,
    )
