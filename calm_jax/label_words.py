"""Classes as a text-to-text model says them: the words of its labels.

A decoder that was trained to write the name of a class needs no head: what it
says at its first step, of the labels' tokens alone, is a classifier. Read from
sources as they leave the encoder it is one for every encoder layer, and nothing
is trained.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import (
  CachedPositions,
  LayeredDecoder,
  LayeredEncoder,
)
from calm_jax.label_trees import LabelTree
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class LabelWords:
  """Logits of C classes by the decoder's words for them, in float32.

  Where first tokens of labels all differ, they are the logits of these tokens
  at the decoder's first step. Where some labels begin alike, the decoder reads
  every prefix behind which labels differ, all in one pass, and a class is as
  likely as its label is under decoding that may say nothing but labels: the sum
  over these prefixes of log softmax, over the tokens that may follow, of the
  label's own. The first case is the second one, but for a constant.

  Attributes:
    params: the decoder's parameters, prepared without traced layers.
    decoder: the decoder.
    tree: the labels.
  """

  params: PyTree
  decoder: LayeredDecoder = dataclasses.field(metadata=dict(static=True))
  tree: LabelTree = dataclasses.field(metadata=dict(static=True))

  @classmethod
  def of(
    cls,
    decoder: LayeredDecoder,
    params: PyTree,
    tokens: Sequence[Sequence[int]],
  ) -> 'LabelWords':
    """Returns the words of labels.

    Args:
      decoder: the model's decoder, `model.as_layered_decoder(config)`.
      params: its parameters; prepared ones without traced layers.
      tokens: the token ids of each label, as the model was trained to write
        them: `ClassLabels.tokens`.

    Raises:
      ValueError: for labels that cannot be told apart, or tokens that the
        decoder does not know, and for a decoder that cannot read a tree.
    """
    tree = LabelTree(tuple(tuple(map(int, label)) for label in tokens))
    for label in tree.tokens:
      checks.check_whole(
        max(label), 'token of a label', low=1, high=decoder.vocab_size - 1
      )
    if len(tree.nodes) > 1 and not decoder.accepts_context:
      raise ValueError(
        'some labels begin with the same token, and this decoder reads no '
        'prefixes side by side (accepts_context); give labels whose first '
        'tokens differ'
      )
    prepare: Any = decoder.prepare
    return cls(prepare(params, traced_layers=False), decoder, tree)

  @property
  def num_classes(self) -> int:
    """C."""
    return len(self.tree.tokens)

  @property
  def num_layers(self) -> int:
    """L, of the encoder they are for."""
    encoder: Any = self.decoder.encoder
    return encoder.num_layers

  def check(self, encoder: LayeredEncoder) -> 'LabelWords':
    """Returns itself; raises ValueError for another model's encoder."""
    if self.decoder.encoder != encoder:
      raise ValueError(
        'the label words are of another model than the encoder; give the '
        'encoder that their decoder names, decoder.encoder'
      )
    return self

  def describe(self) -> dict[str, Any]:
    """Returns what certificates say of them; parameters they name anyway."""
    return {
      'type': type(self).__name__,
      'tokens': [list(label) for label in self.tree.tokens],
    }

  def of_sources(self, encoded: PyTree, layer: Array | int) -> Array:
    """Returns float32 [B, C]; the decoder reads all layers' sources alike.

    Args:
      encoded: of `LayeredEncoder.finish`.
      layer: not used.
    """
    del layer
    hidden = self._states(encoded)
    ids = jnp.asarray(self.tree.candidates)[None]
    rows = self.decoder.output_rows(self.params, ids)[0]
    batch_size, nodes = hidden.shape[:2]
    flat = hidden.reshape(batch_size * nodes, -1)
    logits = self.decoder.logits(self.params, flat, rows)
    if nodes == 1:
      return logits
    # [B, P, N], of tokens that may follow alone.
    logits = logits.reshape(batch_size, nodes, -1)
    logits = jnp.where(self.tree.allowed, logits, -jnp.inf)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    node, candidate = jnp.moveaxis(jnp.asarray(self.tree.steps), -1, 0)
    # A prefix behind which labels do not differ is no step of any.
    shares = jnp.where(self.tree.allowed, logits - total, 0.0)
    steps = shares[:, node, jnp.maximum(candidate, 0)]
    return jnp.where(candidate >= 0, steps, 0.0).sum(axis=-1)

  def _states(self, encoded: PyTree) -> Array:
    """Returns the decoder's last states of all nodes, [B, P, D]."""
    decoder, tree = self.decoder, self.tree
    # Not len(): in an exported program it is a symbol.
    batch_size, nodes = jax.tree.leaves(encoded)[0].shape[0], len(tree.nodes)

    def all_rows(array):
      return jnp.broadcast_to(array, (batch_size, *array.shape))

    start = decoder.start_few or decoder.start
    cache = start(self.params, encoded, nodes)
    positions, places = all_rows(tree.positions), all_rows(jnp.arange(nodes))
    context = CachedPositions(all_rows(tree.read)) if nodes > 1 else None
    hidden = decoder.embed(self.params, all_rows(tree.inputs), positions)
    for number in range(decoder.num_layers):
      cache = decoder.fill_layer(self.params, number, hidden, places, cache)
      hidden = decoder.attend(
        self.params, number, hidden, positions, cache, context
      )
      hidden = decoder.feed_forward(self.params, number, hidden)
    return hidden
