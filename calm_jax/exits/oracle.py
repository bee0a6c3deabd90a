"""The oracle: stop at the first layer that already says the right token.

It needs the answer beforehand, usually the tokens of a full decode, so it is no
method but a bound: how early could a perfect confidence measure stop?
"""

import dataclasses

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.exits.candidates import first_best, logits_of
from calm_jax.interfaces import LayeredDecoder, LayerView
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class OracleExit:
  """Fires when this layer's best token is the target token of the position.

  The confidence is 1 where they agree and 0 elsewhere.

  Attributes:
    target_tokens: int [B, T], T at least the maximum length; usually
      `generate(...).tokens` of the full model.
  """

  target_tokens: Array

  needs_logits = True

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself with an int32 leaf; raises ValueError on bad tokens."""
    shape = jnp.shape(self.target_tokens)
    if len(shape) != 2 or shape[0] != batch_size or shape[1] < max_length:
      raise ValueError(
        f'target_tokens has shape {list(shape)}; give the tokens of a full '
        f'decode of these inputs, [{batch_size}, {max_length}]'
      )
    target_tokens = checks.checked_array(
      self.target_tokens,
      'target token',
      shapes=(shape,),
      low=0,
      high=decoder.vocab_size - 1,
      dtype=jnp.int32,
      remedy="targets must come from this model's vocabulary",
    )
    return OracleExit(target_tokens)

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns the targets, int32 [B, T]."""
    del decoder, batch_size
    return self.target_tokens[:, :max_length]

  def looks(self, layer: Array | int) -> bool:
    """Returns True: every layer may be the first to agree."""
    del layer
    return True

  def step(self, state: PyTree, view: LayerView) -> tuple[PyTree, Array, Array]:
    """Stops rows whose best token is their target."""
    best = first_best(logits_of(view))[:, None]
    if view.token_ids is not None:
      best = jnp.take_along_axis(view.token_ids, best, axis=1)
    target = jnp.take_along_axis(state, view.positions[:, None], axis=1)
    agrees = (best == target)[:, 0]
    return state, agrees, agrees.astype(jnp.float32)
