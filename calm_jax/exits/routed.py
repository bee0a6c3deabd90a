"""One depth per request, predicted before its first token."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.exits.router import Router
from calm_jax.exits.thresholds import ConstantThreshold
from calm_jax.interfaces import LayeredDecoder, LayerView
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class RoutedState:
  """What the rule keeps of each row.

  Attributes:
    threshold: the threshold, repeated per row.
    confidences: float32 [B, L], how likely so many layers suffice; NaN, which
      reaches no threshold, until the source was seen.
  """

  threshold: ConstantThreshold
  confidences: Array


@register_pytree
@dataclasses.dataclass(frozen=True)
class RoutedExit:
  """Fires when the row has used the layers that its request is said to need.

  All tokens of a request leave after n layers, the smallest n with
  P(needed <= n) >= threshold, or all L: so a higher threshold never takes
  fewer, and 1 is the full model. In log-odds the threshold is the shift of the
  router's scores, log(threshold / (1 - threshold)). The confidence is
  P(needed <= n).

  Nothing is computed per token, no layer above n is run at any position of the
  row, and none of its keys and values is read.

  Attributes:
    router: trained for the model (`runs.load_router`).
    threshold: in [0, 1], [] or [B], or an `exits.ConstantThreshold`.
  """

  router: Router
  threshold: Any

  needs_logits = False
  reads_source = True

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself with float32 leaves; raises ValueError on bad numbers."""
    if decoder.pool_source is None:
      raise ValueError(
        'RoutedExit reads the encoded source, and this decoder has no '
        'pool_source: give its LayeredDecoder one, or take an exit rule that '
        'reads layers, such as exits.ConfidenceExit'
      )
    if not isinstance(self.router, Router):
      raise ValueError(
        f'router is {self.router!r}; give an exits.Router, such as '
        'runs.load_router(model_dir)'
      )
    threshold = self._threshold().check(decoder, batch_size, max_length)
    return RoutedExit(self.router.check(decoder), threshold)

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> RoutedState:
    """Returns rows whose sources have not been seen."""
    return RoutedState(
      threshold=self.threshold.init(decoder, batch_size, max_length),
      confidences=jnp.full((batch_size, decoder.num_layers), jnp.nan),
    )

  def see_source(
    self, state: RoutedState, pooled: Array, lengths: Array
  ) -> RoutedState:
    """Returns the state with what the router says of every depth."""
    confidences = self.router.confidences(pooled, lengths)
    return dataclasses.replace(state, confidences=confidences)

  def depths(self, pooled: Array, lengths: Array) -> Array:
    """Returns the layers of each request, int32 [B]; of a checked rule.

    Args:
      pooled: float32 [B, D], mean states of the sources.
      lengths: int32 [B], their tokens.
    """
    confidences = self.router.confidences(pooled, lengths)
    least = jnp.broadcast_to(self.threshold.at(lengths), lengths.shape)
    suffices = (confidences >= least[:, None]).at[:, -1].set(True)
    return suffices.argmax(axis=1).astype(jnp.int32) + 1

  def thresholds(self, max_length: int) -> Array:
    """Returns the threshold of every position, float32 [T].

    Raises:
      ValueError: if it differs by row.
    """
    threshold = self._threshold()
    if jnp.ndim(threshold.value):
      raise ValueError(
        f'the threshold {threshold} has a number per row; thresholds() gives '
        'those of a rule that treats all rows alike'
      )
    return threshold.at(jnp.arange(max_length)) + jnp.zeros(max_length)

  def looks(self, layer: Array | int) -> bool:
    """Returns True: any layer may be some row's last, and looking is free."""
    del layer
    return True

  def step(
    self, state: RoutedState, view: LayerView
  ) -> tuple[RoutedState, Array, Array]:
    """Stops rows whose request has got its layers."""
    confidence = state.confidences[:, view.layer]
    stops = confidence >= state.threshold.at(view.positions)
    return state, stops, confidence

  def _threshold(self) -> ConstantThreshold:
    """Returns the threshold as an object; refuses one that moves."""
    threshold = self.threshold
    if isinstance(threshold, ConstantThreshold):
      return threshold
    checks.check_no_class(threshold, 'threshold')
    if hasattr(threshold, 'init'):
      raise ValueError(
        f'{type(threshold).__name__} changes with the position, and a request '
        'has one depth; give a number in [0, 1]'
      )
    return ConstantThreshold(threshold)
