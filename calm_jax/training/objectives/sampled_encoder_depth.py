"""The whole encoder and one that is cut at a sampled depth, in every row."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.training.forward import Draws, Forward, batch_states
from calm_jax.training.losses import ExitMetrics
from calm_jax.training.objectives.wrapping import (
  WrappingObjective,
  check_number,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledEncoderDepth(WrappingObjective):
  """Adds the loss of the model whose encoder is cut, at a depth per row.

  The decoder reads the states after n encoder layers, normed as those of the
  last one are, so the loss of depth n is that of the model with the first n
  encoder layers. Sorted LLaMA's fine-tuning (SoFT, arXiv 2309.08968) on the
  encoder: what makes `decoding.StoppedEncoder` worth having. The encoder runs
  once for both losses, the decoder twice. All examples that a packed row holds
  have one depth. What is reported, and evaluated, is of the whole encoder.

  Attributes:
    depths: those to draw from, all as probable, in 1..L_enc-1; None for all of
      these.
    weight: of the loss with a cut encoder, at least 0.
  """

  depths: Sequence[int] | None = None
  weight: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    check_number(self.weight, 'weight')
    if self.depths is None:
      return
    if isinstance(self.depths, (int, str)) or not len(self.depths):
      raise ValueError(
        f'depths of SampledEncoderDepth is {self.depths!r}, which is empty or '
        'no list; give encoder layers to cut behind, such as [2, 4]'
      )
    for depth in self.depths:
      checks.check_whole(depth, 'depth', low=1)
      if list(self.depths).count(depth) > 1:
        raise ValueError(
          f'depths of SampledEncoderDepth names {depth} twice; all are as '
          'probable, so name each once'
        )

  def for_layers(self, num_layers: int) -> Self:
    """Returns the same around the same, for a decoder of so many layers."""
    depths = None if self.depths is None else tuple(self.depths)
    return dataclasses.replace(super().for_layers(num_layers), depths=depths)

  def exit_layers(self, draws: Draws, num_layers: int) -> Array:
    """Returns behind which encoder layer each row is cut, int32 [B].

    Args:
      draws: what may be drawn on.
      num_layers: L_enc.

    Raises:
      ValueError: for depths that leave nothing to cut.
    """
    depths = range(1, num_layers) if self.depths is None else self.depths
    if not depths or max(depths) >= num_layers:
      raise ValueError(
        f'SampledEncoderDepth cuts an encoder of {num_layers} layers below the '
        f'last one, and depths are {list(depths)}: give some in '
        f'1..{num_layers - 1}, or train with training.Objective'
      )
    drawn = draws.uniform('SampledEncoderDepth') * len(depths)
    places = jnp.minimum(drawn.astype(jnp.int32), len(depths) - 1)
    return jnp.array(depths, jnp.int32)[places]

  def loss(self, forward: Forward) -> tuple[Array, ExitMetrics]:
    """Returns the inner loss plus the weighted one of cut encoders."""
    loss, metrics = self.objective.loss(forward)
    if self.weight == 0:
      return loss, metrics
    config = forward.config
    states = batch_states(
      config,
      forward.params,
      forward.batch,
      layer_mask=forward.layer_mask,
      encoder_exit_layers=self.exit_layers(
        forward.draws, config.num_encoder_layers
      ),
      dropout_rng=forward.states_rng,
    )
    cut, _ = self.objective.loss(dataclasses.replace(forward, states=states))
    return loss + self.weight * cut, metrics
