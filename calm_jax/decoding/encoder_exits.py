"""Encoder exits: how many encoder layers a request runs before it is decoded.

The `encoder_exit` slot of a policy. A decoder that shares its rows with others
reads each source as its row left it: the normed states of its exit layer.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from calm_jax.array_types import Array, PyTree
from calm_jax.encoding import (
  CompactedLayers,
  Heads,
  LayerLoop,
  UnrolledLayers,
  exit_checks,
)
from calm_jax.encoding import encoding as encoding_lib
from calm_jax.interfaces import (
  BoundDecoder,
  ExitRule,
  LayeredDecoder,
  LayeredEncoder,
  StatelessSlot,
)
from calm_jax.pytrees import register_pytree
from calm_jax.source_heads import SourceHeads


@register_pytree
@dataclasses.dataclass(frozen=True)
class WholeEncoder(StatelessSlot):
  """Runs all of the encoder. The null object: it is in no program."""

  whole = True

  def encode(
    self, state: PyTree, bound: BoundDecoder, inputs: Array
  ) -> tuple[PyTree, Array]:
    """Returns the encoded sources, and all layers for each."""
    del state
    encoder = _encoder_of(bound.decoder)
    depths = jnp.full(inputs.shape[:1], encoder.num_layers, jnp.int32)
    return bound.encode(inputs), depths


@register_pytree
@dataclasses.dataclass(frozen=True)
class StoppedEncoder:
  """Lets a source leave the encoder by an exit rule; decodes from where it did.

  The rule reads a row's mean state (`encoding.encode`), and the decoder the
  normed states of the row's exit layer: with `StateSimilarity`, the encoder of
  MuE (arXiv 2211.11152). Worth having for a model that was trained with cut
  encoders (`training.SampledEncoderDepth`). At a threshold of 1 it is the whole
  encoder.

  Attributes:
    rule: which sources leave; any exit rule that reads states, or logits of
      `heads`.
    heads: `heads(pooled, layer)` -> [B, C], for rules that read logits; a
      registered dataclass, so that certificates can name it.
    loop: how the layers are looped over: `encoding.UnrolledLayers()`, or
      `encoding.CompactedLayers()` where large batches are encoded together.
  """

  rule: ExitRule
  heads: Heads | SourceHeads | None = None
  loop: LayerLoop = dataclasses.field(
    default=UnrolledLayers(), metadata=dict(static=True)
  )

  whole = False

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> 'StoppedEncoder':
    """Returns itself with its numbers as arrays.

    Raises:
      TypeError: for what is no exit rule, or no such loop.
      ValueError: for bad numbers, and for a decoder whose encoder is whole.
    """
    del max_length
    encoder = _encoder_of(decoder)
    exit_checks.check_loop(self.loop)
    if not isinstance(self.loop, (UnrolledLayers, CompactedLayers)):
      raise TypeError(
        f'loop of StoppedEncoder is {self.loop!r}, and the encoder of a decode '
        'has each layer by itself; give encoding.UnrolledLayers() or '
        'encoding.CompactedLayers()'
      )
    if self.heads is not None and not dataclasses.is_dataclass(self.heads):
      raise ValueError(
        f'heads of StoppedEncoder is {self.heads!r}, and a certificate could '
        'not say which; give a registered dataclass with its weights'
      )
    heads = exit_checks.as_pytree(self.heads)
    rule = exit_checks.check_rule(self.rule, encoder, heads, batch_size)
    return StoppedEncoder(rule, heads, self.loop)

  def at_output_length(self, max_length: int) -> 'StoppedEncoder':
    """Returns the same: to its rule a source is one position, whatever T is."""
    del max_length
    rule: Any = self.rule
    if not hasattr(rule, 'at_output_length'):
      return self
    return dataclasses.replace(self, rule=rule.at_output_length(1))

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns the state of the rule, before the first encoder layer."""
    del max_length
    sizes: Any = _encoder_of(decoder)
    return self.rule.init(sizes, batch_size, 1)

  def encode(
    self, state: PyTree, bound: BoundDecoder, inputs: Array
  ) -> tuple[PyTree, Array]:
    """Returns sources as they left, and after how many layers."""
    result = encoding_lib.run(
      _encoder_of(bound.decoder),
      bound.params,
      inputs,
      state,
      self.rule,
      heads=self.heads,
      loop=self.loop,
    )
    return result.encoded, result.exit_layers


def _encoder_of(decoder: LayeredDecoder) -> LayeredEncoder:
  if decoder.encoder is None:
    raise ValueError(
      'this decoder has no encoder that is taken apart, so no source can leave '
      'it early: give its LayeredDecoder an `encoder`, or take '
      'decoding.WholeEncoder()'
    )
  return decoder.encoder
