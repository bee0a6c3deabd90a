"""A second pass whose layers are masked by the model's own exits."""

import dataclasses

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array
from calm_jax.exits.candidates import best_two, total_over_best
from calm_jax.training import losses
from calm_jax.training.forward import Forward, batch_states, logits_fn
from calm_jax.training.layer_weights import last_layer_weights
from calm_jax.training.objectives.wrapping import (
  WrappingObjective,
  check_number,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnExits(WrappingObjective):
  """Adds the loss that the model would have if it decoded with its exits.

  In a second pass every position stops at the first layer whose softmax margin
  in the first pass is at least a threshold, drawn per row. Its state stays as
  it is from there on, and keys and values of deeper layers are made from it,
  as in CALM's decoding (arXiv 2207.07061, 3.2): training so sees the propagated
  K/V that decoding reads. The loss is that of the state at the exit. Margins
  are constants. It takes a second pass of the decoder, and a head per layer.

  Attributes:
    weight: of the second pass's loss, at least 0.
    lowest_threshold: of the thresholds that are drawn, in [0, 1].
    highest_threshold: of these, in [0, 1], at least the lowest.
  """

  weight: float = 1.0
  lowest_threshold: float = 0.0
  highest_threshold: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    check_number(self.weight, 'weight')
    check_number(self.lowest_threshold, 'lowest_threshold', high=1.0)
    check_number(
      self.highest_threshold,
      'highest_threshold',
      low=self.lowest_threshold,
      high=1.0,
    )

  def loss(self, forward: Forward) -> tuple[Array, losses.ExitMetrics]:
    """Returns the inner loss plus that of the second pass."""
    loss, metrics = self.objective.loss(forward)
    layers = forward.config.num_decoder_layers
    # The only layer of a decoder is its last: there is no exit before it.
    if self.weight == 0 or layers == 1:
      return loss, metrics
    width = self.highest_threshold - self.lowest_threshold
    drawn = forward.draws.uniform('OwnExits')
    mask = layers_before_exits(
      margins(forward), self.lowest_threshold + width * drawn
    )
    if forward.layer_mask is not None:
      mask = mask & forward.layer_mask
    second = dataclasses.replace(
      forward,
      states=batch_states(
        forward.config,
        forward.params,
        forward.batch,
        layer_mask=mask,
        dropout_rng=forward.states_rng,
      ),
      exits=None,
      distilled=0.0,
    )
    settings = dataclasses.replace(
      self.base.settings(layers), layer_weights=last_layer_weights(layers)
    )
    return loss + self.weight * second.exit_loss(settings)[0], metrics


def margins(forward: Forward) -> Array:
  """Returns p_(1) - p_(2) at every exit but the last, float32 [L-1, B, T]."""
  head = logits_fn(forward.config)
  params, states = jax.lax.stop_gradient((forward.params, forward.states))

  def margin(hidden):
    logits = head(params, hidden, None)
    flat = logits.reshape(-1, logits.shape[-1])
    best, second = best_two(flat)
    total = total_over_best(flat, best, None)
    return ((1.0 - jnp.exp(second - best)) / total).reshape(hidden.shape[:-1])

  # A scan: XLA would otherwise be free to hold the logits of several exits.
  return jax.lax.map(margin, states[:-1])


def layers_before_exits(confidences: Array, thresholds: Array) -> Array:
  """Returns which layers run where a position stops at its first sure one.

  Args:
    confidences: float32 [L-1, B, T], at every exit but the last.
    thresholds: float32 [B].

  Returns:
    bool [B, T, L]; the first layer always runs.
  """
  unsure = confidences < thresholds[:, None]
  runs = jnp.cumprod(unsure.astype(jnp.int32), axis=0).astype(bool)
  runs = jnp.moveaxis(runs, 0, -1)
  return jnp.concatenate([jnp.ones_like(runs[..., :1]), runs], axis=-1)
