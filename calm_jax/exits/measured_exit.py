"""What exit rules share that compare a measure with a threshold."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.exits import thresholds
from calm_jax.exits.measures import Measure
from calm_jax.interfaces import LayeredDecoder


@dataclasses.dataclass(frozen=True)
class MeasuredExit:
  """Where they look, what they check, and their threshold.

  They look after exit layers minimum_exit_layer, minimum_exit_layer + interval,
  ... that the measure can speak about.

  Attributes:
    measure: a confidence measure.
    threshold: a threshold of `calm_jax.exits.thresholds`, or plain numbers []
      or [B], which mean a constant one.
    minimum_exit_layer: the first exit layer that is looked at, 1..L.
    interval: every how many layers, at least 1.
  """

  measure: Measure
  threshold: Any
  minimum_exit_layer: int = dataclasses.field(
    default=1, metadata=dict(static=True)
  )
  interval: int = dataclasses.field(default=1, metadata=dict(static=True))

  @property
  def needs_logits(self) -> bool:
    """Whether the measure reads logits."""
    return self.measure.needs_logits

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> Self:
    """Returns itself with float32 leaves; raises ValueError on bad numbers."""
    size = (decoder, batch_size, max_length)
    threshold = self.threshold
    if not hasattr(threshold, 'check'):
      threshold = thresholds.ConstantThreshold(threshold)
    check_measure(self.measure)
    check_grid(self.minimum_exit_layer, self.interval, decoder)
    return dataclasses.replace(
      self,
      measure=self.measure.check(*size),
      threshold=threshold.check(*size),
    )

  def at_output_length(self, max_length: int) -> Self:
    """Returns itself for outputs of a length, if its threshold left it open."""
    if not hasattr(self.threshold, 'at_output_length'):
      return self
    threshold = self.threshold.at_output_length(max_length)
    return dataclasses.replace(self, threshold=threshold)

  def thresholds(self, max_length: int) -> Array:
    """Returns the threshold of every position, float32 [T].

    Raises:
      ValueError: if numbers differ by row.
    """
    threshold = self.at_output_length(max_length).threshold
    if not hasattr(threshold, 'at'):
      threshold = thresholds.ConstantThreshold(threshold)
    for number in jax.tree.leaves(threshold):
      if jnp.ndim(number):
        raise ValueError(
          f'the threshold {threshold} has a number per row; thresholds() gives '
          'those of a rule that treats all rows alike'
        )
    return threshold.at(jnp.arange(max_length)) + jnp.zeros(max_length)

  def looks(self, layer: Array | int) -> Array | bool:
    """Returns whether the confidence is compared after this layer."""
    first = max(self.minimum_exit_layer, self.measure.minimum_exit_layer)
    return on_grid(layer, self.minimum_exit_layer, self.interval, first)

  def looks_first(self, layer: Array | int) -> Array | bool:
    """Returns whether this is the first look at a token, where it looks."""
    first = max(self.minimum_exit_layer, self.measure.minimum_exit_layer)
    return layer + 1 < first + self.interval


def check_measure(measure: Any) -> None:
  """Raises ValueError for what is no confidence measure."""
  if isinstance(measure, type) or not hasattr(measure, 'confidence'):
    raise ValueError(
      f'measure {measure!r} is not a confidence measure; give an object '
      'such as SoftmaxMargin() (get_measure finds one by name)'
    )


def check_grid(
  minimum_exit_layer: int, interval: int, decoder: LayeredDecoder
) -> None:
  """Raises ValueError for a bad first exit layer or interval."""
  checks.check_whole(
    minimum_exit_layer, 'minimum_exit_layer', low=1, high=decoder.num_layers
  )
  checks.check_whole(interval, 'interval', low=1)


def on_grid(
  layer: Array | int, minimum_exit_layer: int, interval: int, first: int
) -> Array | bool:
  """Returns whether a layer is on the grid of a rule, from `first` on."""
  exit_layer = layer + 1
  return (exit_layer >= first) & (
    (exit_layer - minimum_exit_layer) % interval == 0
  )
