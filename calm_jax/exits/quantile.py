"""Q-exit (PALBERT, arXiv 2204.03276): stop at a quantile of the exit layer."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from calm_jax.array_types import Array, PyTree
from calm_jax.exits.measured_exit import MeasuredExit
from calm_jax.exits.usual_thresholds import EVENLY
from calm_jax.interfaces import LayeredDecoder, LayerView
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class QuantileState:
  """What the rule keeps of each row.

  Attributes:
    threshold: the threshold with its numbers repeated per row.
    staying: float32 [B], the probability of not having left the present token
      at any layer that was looked at.
  """

  threshold: PyTree
  staying: Array


@register_pytree
@dataclasses.dataclass(frozen=True)
class QuantileExit(MeasuredExit):
  """Fires when the token has probably left already: when the CDF exceeds q.

  The measure is read as the probability c_l of leaving at layer l once it is
  reached, as a gate trained for the target 'quantile' says it. So the token has
  left after layer l with probability 1 - prod_{j<=l} (1 - c_j), over the layers
  that are looked at; the row stops where that exceeds the threshold q strictly.
  It grows with the layers, so that a larger q never stops earlier: q = 0 stops
  where a confidence is above rounding (1 - c_l < 1 in float32), q = 1 never.

  The confidence is that probability. Attributes are those of `MeasuredExit`,
  with q as the threshold.
  """

  # Of all exits together, however the gate's own confidences lie.
  usual_thresholds: ClassVar[tuple[float, ...]] = EVENLY

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> QuantileState:
    """Returns the threshold of each row, and that nothing has left."""
    return QuantileState(
      threshold=self.threshold.init(decoder, batch_size, max_length),
      staying=jnp.ones((batch_size,), jnp.float32),
    )

  def step(
    self, state: QuantileState, view: LayerView
  ) -> tuple[QuantileState, Array, Array]:
    """Stops rows that have left with a probability above their threshold."""
    confidence = self.measure.confidence(view).astype(jnp.float32)
    # Every token begins anew.
    before = jnp.where(self.looks_first(view.layer), 1.0, state.staying)
    staying = before * (1.0 - confidence)
    left = 1.0 - staying
    stops = left > state.threshold.at(view.positions)
    return dataclasses.replace(state, staying=staying), stops, left
