"""Choices that are hard and yet learnt: straight-through Gumbel-softmax.

What runs is one option, as later where nothing is learnt; what is learnt is as
if it were a mixture. Noise falls away with a temperature, so that in the end
the best option is taken always.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array


def draw(
  scores: Array, uniform: Array, temperature: Array | float
) -> tuple[Array, Array]:
  """Draws options by softmax(scores / temperature).

  Args:
    scores: float32 [..., O].
    uniform: numbers in [0, 1), like `scores`.
    temperature: above 0.

  Returns:
    Options int32 [...], and shares float32 [..., O], the softmax with the noise
    of this draw, for `take`.
  """
  tiny = jnp.finfo(jnp.float32).tiny
  noise = -jnp.log(-jnp.log(jnp.maximum(uniform, tiny)))
  noisy = scores / temperature + noise
  return noisy.argmax(axis=-1).astype(jnp.int32), jax.nn.softmax(noisy)


def take(
  options: Sequence[Array], choice: Array, shares: Array | None
) -> Array:
  """Returns the options that were chosen, [..., D], to the bit.

  Args:
    options: O arrays [..., D].
    choice: int32 [...], 0..O-1, or what broadcasts to it.
    shares: float32 [..., O]; the slope is that of the options' mixture by these
      in place of the choice's, which has none. None for no slope.
  """
  first, *others = options
  taken = first
  for number, option in enumerate(others, 1):
    taken = jnp.where(choice[..., None] == number, option, taken)
  if shares is None:
    return taken
  # Zeros, whose slopes are not.
  slopes = shares - jax.lax.stop_gradient(shares)
  for number, option in enumerate(options):
    slope = slopes[..., number, None].astype(option.dtype)
    taken = taken + slope * jax.lax.stop_gradient(option)
  return taken
