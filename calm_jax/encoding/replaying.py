"""What exit rules would do, from one pass over all encoder layers.

A row that leaves the encoder changes nothing for any layer before: there is no
token that goes back in. So the pooled states and the logits of all layers,
computed once, tell what every rule and every threshold makes of an input, and a
whole grid of settings is evaluated without running the encoder again.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array, PyTree
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.encoding import exit_checks
from calm_jax.interfaces import ExitRule, LayeredEncoder, LayerView
from calm_jax.pytrees import register_pytree
from calm_jax.source_heads import SourceHeads, read_all_layers


@register_pytree
@dataclasses.dataclass(frozen=True)
class AllLayers:
  """What exit rules may look at, of inputs that ran all L encoder layers.

  Attributes:
    pooled: float32 [L + 1, B, D], mean normed states: of the embedded input,
      and after each layer.
    logits: float32 [L, B, C], of the heads of all layers.
  """

  pooled: Array
  logits: Array

  def first_rows(self, count: int) -> 'AllLayers':
    """Returns the first rows alone; padding comes last in a batch."""
    return AllLayers(self.pooled[:, :count], self.logits[:, :count])


@functools.partial(jax.jit, static_argnums=0)
def all_layers(
  encoder: LayeredEncoder,
  params: PyTree,
  inputs: Array,
  heads: EncoderHeads | SourceHeads,
) -> AllLayers:
  """Runs all layers, and all of their heads.

  Args:
    encoder: the encoder.
    params: its parameters, laid out or not.
    inputs: int32 [B, S], 0 is padding.
    heads: the heads, checked.
  """
  params = encoder.prepare(params)
  hidden, mask = encoder.embed(params, inputs)
  return layers_from(encoder, params, hidden, mask, heads)


def layers_from(
  encoder: LayeredEncoder,
  params: PyTree,
  hidden: Array,
  mask: Array,
  heads: EncoderHeads | SourceHeads,
) -> AllLayers:
  """The same from embedded inputs, inside a jitted function.

  Args:
    encoder: the encoder.
    params: its parameters, laid out.
    hidden: [B, S, D], of `encoder.embed`, or what stands for it.
    mask: bool [B, S], of it.
    heads: the heads, checked.
  """
  shared = encoder.shared(params, mask.shape[1])
  pooled, states = [encoder.pooled(params, hidden, mask)], []
  for layer in range(encoder.num_layers):
    hidden = encoder.layer(params, layer, hidden, mask, shared)
    states.append(hidden)
    pooled.append(encoder.pooled(params, hidden, mask))
  means = jnp.stack(pooled)
  if isinstance(heads, SourceHeads):
    logits = read_all_layers(heads, encoder, params, jnp.stack(states), mask)
  else:
    logits = heads.all_logits(means[1:])
  return AllLayers(pooled=means, logits=logits)


@functools.partial(jax.jit, static_argnums=0)
def _replay(
  encoder: LayeredEncoder, rule: ExitRule, layers: AllLayers
) -> tuple[Array, Array]:
  last, rows = layers.logits.shape[0] - 1, layers.logits.shape[1]
  sizes: Any = encoder
  state = rule.init(sizes, rows, 1)
  active = jnp.ones((rows,), bool)
  exit_layers = jnp.full((rows,), last + 1, jnp.int32)
  confidences = jnp.full((rows,), jnp.nan, jnp.float32)
  for layer in range(last + 1):
    stops, confidence = jnp.full((rows,), layer == last), jnp.float32(jnp.nan)
    if rule.looks(layer):
      view = LayerView(
        layer=layer,
        positions=jnp.zeros((rows,), jnp.int32),
        hidden=layers.pooled[layer + 1],
        previous_hidden=layers.pooled[layer],
        logits=layers.logits[layer] if rule.needs_logits else None,
        token_ids=None,
        log_total=None,
        active=active,
      )
      state, fires, confidence = rule.step(state, view)
      stops |= fires
    stops &= active
    exit_layers = jnp.where(stops, layer + 1, exit_layers)
    confidences = jnp.where(stops, confidence, confidences)
    active &= ~stops
  return exit_layers, confidences


def replay(
  encoder: LayeredEncoder, exit_rule: ExitRule, layers: AllLayers
) -> tuple[Array, Array]:
  """Returns where rows leave, int32 [B] in 1..L, and how sure the rule was.

  The same as stopping there, without running anything again.

  Args:
    encoder: the encoder that `layers` are of.
    exit_rule: the rule; another threshold compiles nothing.
    layers: of `all_layers`.

  Raises:
    TypeError: for what is no exit rule.
    ValueError: for a rule that does not go with the encoder.
  """
  _, rows, classes = layers.logits.shape

  def kept(pooled, layer):
    del layer
    return jnp.zeros((len(pooled), classes))

  heads = exit_checks.as_pytree(kept)
  rule = exit_checks.check_rule(exit_rule, encoder, heads, rows)
  return _replay(encoder, rule, layers)
