"""Which way inputs turn so that exits come later: the gradients of SAME.

The loss of arXiv 2305.12228, by the tokens as the encoder embeds them: the
exits from where a token left on are drawn to disagree with the exit before them
(against rules that wait for agreement) and to be sure of nothing (against rules
that wait for confidence).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from calm_jax import checks, encoding, interfaces
from calm_jax.array_types import Array, PyTree
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.evaluation import teacher_forcing
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class DelayLoss:
  """What falls as exits are delayed.

  At each exit, with the weights of the paper,

    disagreement * CE(logits, another) + (1 - disagreement) * CE(logits, even)

  where `another` is the exit's best token if the exit before has another one,
  else its second best, and `even` all tokens alike. The last layer ends every
  row, so that it counts for nothing.

  Attributes:
    disagreement: float in [0, 1].
    before: the weight of exits before the one that was taken.
    growth: by how much more each exit counts than the one before it, from 1 at
      the exit that was taken.
  """

  disagreement: float = 0.8
  before: float = 0.1
  growth: float = 1.2

  def check(self) -> 'DelayLoss':
    """Returns itself; raises ValueError for numbers that make no sense."""
    for name, high in (('disagreement', 1), ('before', 1e6), ('growth', 1e6)):
      checks.checked_array(
        getattr(self, name),
        name,
        low=0,
        high=high,
        remedy='the loss of the paper is that of DelayLoss()',
      )
    return self

  def at(
    self,
    layer: Array | int,
    logits: Array,
    last_best: Array,
    exit_layers: Array,
    num_layers: int,
  ) -> tuple[Array, Array]:
    """Returns the best tokens int32 [...] of an exit, and its weighted loss.

    Args:
      layer: 0..L-1.
      logits: float32 [..., C].
      last_best: int32 [...], the best tokens of the exit before; -1 before the
        first.
      exit_layers: int32 [...], 1..L, where rows left; less where none is.
      num_layers: L.
    """
    _, order = lax.top_k(lax.stop_gradient(logits), 2)
    best, second = order[..., 0], order[..., 1]
    another = jnp.where(best == last_best, second, best)
    logs = jax.nn.log_softmax(logits)
    drawn = jnp.take_along_axis(logs, another[..., None], axis=-1)[..., 0]
    loss = -self.disagreement * drawn
    loss -= (1 - self.disagreement) * logs.mean(axis=-1)
    behind = (layer + 1 - exit_layers).astype(jnp.float32)
    weights = jnp.where(behind < 0, self.before, self.growth**behind)
    counts = (exit_layers > 0) & (layer < num_layers - 1)
    return best, jnp.where(counts, weights * loss, 0.0).sum()


def embedding_table(
  encoder: interfaces.LayeredEncoder, params: PyTree
) -> Array:
  """Returns how an encoder embeds every token, float [V, D].

  Args:
    encoder: the encoder.
    params: of it, or of its decoder.
  """
  tokens = jnp.arange(encoder.vocab_size)[None]
  return encoder.embed(encoder.prepare(params), tokens)[0][0]


@functools.partial(jax.jit, static_argnums=0)
def encoder_exit_gradients(
  encoder: interfaces.LayeredEncoder,
  params: PyTree,
  heads: EncoderHeads,
  inputs: Array,
  exit_layers: Array,
  loss: DelayLoss,
) -> Array:
  """Returns the gradients by embedded inputs of sources that exit, [B, S, D].

  Args:
    encoder: the encoder.
    params: its parameters, laid out or not.
    heads: of its layers, checked.
    inputs: int32 [B, S], 0 is padding.
    exit_layers: int32 [B], where they left.
    loss: what is to fall.
  """
  params = encoder.prepare(params)
  hidden, mask = encoder.embed(params, inputs)

  def total(hidden):
    logits = encoding.layers_from(encoder, params, hidden, mask, heads).logits
    best, lost = jnp.full(exit_layers.shape, -1), 0.0
    for layer in range(encoder.num_layers):
      best, of_exit = loss.at(
        layer, logits[layer], best, exit_layers, encoder.num_layers
      )
      lost += of_exit
    return lost

  return jax.grad(total)(hidden)


@jax.jit
def token_exit_gradients(
  bound: interfaces.BoundDecoder,
  inputs: Array,
  outputs: Array,
  exit_layers: Array,
  loss: DelayLoss,
) -> Array:
  """Returns the gradients by embedded inputs of tokens that exit, [B, S, D].

  The outputs are given, all positions at once, with the full model's keys and
  values. Exits are read with the whole vocabulary.

  Args:
    bound: the decoder with its parameters; the decoder has an `encoder`.
    inputs: int32 [B, S], 0 is padding.
    outputs: int32 [B, T].
    exit_layers: int32 [B, T], where tokens left, -1 behind an output.
    loss: what is to fall.
  """
  encoder: Any = bound.decoder.encoder
  params = encoder.prepare(bound.params)
  hidden, mask = encoder.embed(params, inputs)
  shared = encoder.shared(params, inputs.shape[1])

  # Logits of all layers at once would have no room.
  @jax.checkpoint
  def at(layer, states, best):
    logits = bound.logits(states).astype(jnp.float32)
    return loss.at(layer, logits, best, exit_layers, bound.num_layers)

  def look(carry, layer, entering, leaving):
    del entering
    best, lost = carry
    best, of_exit = at(layer, leaving, best)
    return (best, lost + of_exit), ()

  def total(hidden):
    for layer in range(encoder.num_layers):
      hidden = encoder.layer(params, layer, hidden, mask, shared)
    encoded = encoder.finish(params, hidden, mask)
    nothing = jnp.full(outputs.shape, -1, jnp.int32), jnp.float32(0)
    _, carry, _ = teacher_forcing.run_encoded(
      bound, encoded, outputs, look, nothing
    )
    return carry[1]

  return jax.grad(total)(hidden)
