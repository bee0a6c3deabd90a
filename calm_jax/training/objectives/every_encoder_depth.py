"""The decoder reads the encoder after every layer: a task loss of each."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Self

import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.training.forward import Forward, batch_states
from calm_jax.training.layer_weights import check_layer_weights, uniform_weights
from calm_jax.training.losses import ExitMetrics
from calm_jax.training.objectives.wrapping import WrappingObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class EveryEncoderDepth(WrappingObjective):
  """The weighted sum, over the encoder's layers, of the loss of each depth.

  The term of depth n is the inner loss, of all decoder exits, of the model
  whose encoder is cut behind n layers: the layer-wise task loss of MuE (arXiv
  2211.11152), for exits in encoder and decoder. `SampledEncoderDepth` draws one
  depth per row instead: a decoder pass more, where this takes one for every
  depth of positive weight. The encoder runs once for all of them. What is
  reported, and evaluated, is of the whole encoder.

  Attributes:
    encoder_weights: one weight per encoder layer, or a function from their
      number to the weights; the last one's must be positive.
  """

  encoder_weights: Sequence[float] | Callable[[int], Sequence[float]] = (
    uniform_weights
  )

  def __post_init__(self):
    super().__post_init__()
    if callable(self.encoder_weights):
      return
    weights = self.encoder_weights
    if isinstance(weights, str) or not isinstance(weights, Sequence):
      raise ValueError(
        f'encoder_weights of EveryEncoderDepth is {weights!r}; give one number '
        'per encoder layer, or a function such as training.uniform_weights'
      )

  def for_layers(self, num_layers: int) -> Self:
    """Returns the same around the same, for a decoder of so many layers."""
    weights = self.encoder_weights
    return dataclasses.replace(
      super().for_layers(num_layers),
      encoder_weights=weights if callable(weights) else tuple(weights),
    )

  def weights(self, num_layers: int) -> tuple[float, ...]:
    """Returns the weight of every encoder depth.

    Args:
      num_layers: L_enc.

    Raises:
      ValueError: for weights that do not go with the encoder, or leave out its
        last layer.
    """
    weights = self.encoder_weights
    if callable(weights):
      weights = weights(num_layers)
    weights = check_layer_weights(weights, num_layers)
    if not weights[-1] > 0:
      raise ValueError(
        f'encoder_weights {weights} leave out the last encoder layer, '
        f'{num_layers}: every source that no other depth takes is read there; '
        'give it a positive weight'
      )
    return weights

  def description(self) -> dict:
    """Returns the name and all fields; a function by its name."""
    weights = self.encoder_weights
    described = super().description()
    if callable(weights):
      described['encoder_weights'] = weights.__qualname__
    return described

  def loss(self, forward: Forward) -> tuple[Array, ExitMetrics]:
    """Returns the weighted sum of the inner losses of all depths."""
    config = forward.config
    *others, last = self.weights(config.num_encoder_layers)
    whole, metrics = self.objective.loss(forward)
    loss = whole if last == 1.0 else last * whole
    rows = jnp.shape(forward.batch['encoder_input_tokens'])[:1]
    for depth, weight in enumerate(others, start=1):
      if not weight:
        continue
      states = batch_states(
        config,
        forward.params,
        forward.batch,
        layer_mask=forward.layer_mask,
        encoder_exit_layers=jnp.full(rows, depth, jnp.int32),
        dropout_rng=forward.states_rng,
      )
      cut, _ = self.objective.loss(dataclasses.replace(forward, states=states))
      loss += weight * cut
    return loss, metrics
