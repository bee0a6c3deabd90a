"""What the multi-exit training minimises, as an object that gin can bind.

A `BatchObjective` says how the loss of a batch comes about. `Objective` is the
paper's, and holds the numbers that all others share; `objectives` has those
that choose other exits in every step, or add to the loss of one.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.training.forward import Draws, Forward
from calm_jax.training.layer_weights import check_layer_weights, linear_weights
from calm_jax.training.losses import ExitMetrics, LossSettings


class BatchObjective(abc.ABC):
  """How the loss of a batch comes about. Hashable, once `for_layers` made it.

  Gradients of a batch are added up over its parts, so a loss must be a sum over
  target tokens divided by `forward.denominator`, or over rows; and what it
  draws must come from `Draws` alone.
  """

  @property
  @abc.abstractmethod
  def base(self) -> 'Objective':
    """The numbers of the loss, of parts of a batch and of frozen parameters."""

  @abc.abstractmethod
  def for_layers(self, num_layers: int) -> Self:
    """Returns the same for a decoder of so many layers, L.

    Raises:
      ValueError: for what does not go with L layers, naming it.
    """

  @abc.abstractmethod
  def layer_mask(
    self, draws: Draws, num_layers: int, positions: Array
  ) -> Array | None:
    """Returns which decoder layers run, bool [B, 1, L] or [B, T, L].

    None for all. `positions` int32 [B, T] are those of target tokens in their
    outputs, of which a packed row holds several.
    """

  @abc.abstractmethod
  def loss(self, forward: Forward) -> tuple[Array, ExitMetrics]:
    """Returns the loss of a batch, or of a part of one, and what is reported.

    Returns:
      A float32 scalar, and the metrics with NaN for exits that are not read.
    """

  @abc.abstractmethod
  def description(self) -> dict[str, Any]:
    """Returns JSON values that a restart must give again; {} of Eq. 6."""

  def context(self) -> dict[str, Any]:
    """Returns what a run saves of it with its checkpoints."""
    description = self.description()
    return {'objective': description} if description else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(BatchObjective):
  """The weighted multi-exit loss (arXiv 2207.07061, Eq. 6) and its parts.

  Attributes:
    layer_weights: one weight per decoder layer, or a function from their number
      to the weights. The last layer's must be positive.
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

  @property
  def base(self) -> 'Objective':
    """Itself."""
    return self

  def settings(self, num_layers: int) -> LossSettings:
    """Returns the loss of a decoder of so many layers.

    Raises:
      ValueError: for a number outside its range, naming it, and for weights
        that leave out the last layer.
    """
    weights = self.layer_weights
    if callable(weights):
      weights = weights(num_layers)
    weights = check_layer_weights(weights, num_layers)
    if not weights[-1] > 0:
      raise ValueError(
        f'layer_weights {weights} leave out the last layer, {num_layers}: '
        'every token that no other exit takes is decoded there, so it must be '
        'trained; give it a positive weight'
      )
    return LossSettings(
      weights,
      z_loss=self.z_loss,
      label_smoothing=self.label_smoothing,
      loss_normalizer=self.loss_normalizer,
    )

  def for_layers(self, num_layers: int) -> Self:
    """Returns the same with one number per layer; raises as `settings`."""
    frozen = self.frozen
    return dataclasses.replace(
      self,
      layer_weights=self.settings(num_layers).layer_weights,
      frozen=frozen if isinstance(frozen, str) else tuple(frozen),
    )

  def layer_mask(self, draws: Draws, num_layers: int, positions: Array) -> None:
    """Returns None: all layers run."""
    del draws, num_layers, positions

  def loss(self, forward: Forward) -> tuple[Array, ExitMetrics]:
    """Returns the weighted loss of the exits."""
    return forward.exit_loss(self.settings(forward.config.num_decoder_layers))

  def description(self) -> dict[str, Any]:
    """Returns {}: a run may go on with other numbers."""
    return {}
