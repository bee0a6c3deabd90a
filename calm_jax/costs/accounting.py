"""What a decode costs in arithmetic and memory traffic, from its ledger.

An early-exit decode is worth what it need not read: at small batches every step
is bound by the bytes of the weights it uses. `decode_cost` adds up both, term
by term, of what the ledger says was done, whatever policy it was done for;
`speed_up_ceiling` holds two decodes against each other. Nothing is measured
here, and bytes are those of a program that reads nothing twice.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from calm_jax import checks
from calm_jax.costs.weight_bytes import WeightBytes
from calm_jax.decoding import (
  ComputePolicy,
  KeepLayers,
  PrunedContext,
  PrunedSource,
)
from calm_jax.interfaces import Work
from calm_jax.model import T5Config
from calm_jax.quantisation import Int8Weights, as_weights

# The ledger of a batch, [B, T] each, the weights it was decoded with, the
# encoder layers of its sources, [B] or None for all, and the policy -> bytes
# moved once per batch, and by all steps of the token loop together.
BytesOf = Callable[
  [Work, Int8Weights | None, Any, ComputePolicy], tuple[float, float]
]


@dataclasses.dataclass(frozen=True)
class Cost:
  """FLOPs and bytes of a decode, each as term -> amount.

  A multiplication with its addition is two FLOPs. Bytes are those of weights
  and of cached keys and values; activations of one position are small and left
  out. Steps are positions that were decoded, all rows of the batch together.

  The terms:
    encoder: the encoder's weights once per batch; all source positions.
    cross_fill: keys and values of the source for every decoder layer that is in
      the program, once per batch: weights read, K/V written.
    layers: the weights of a decoder layer but for its own K/V projection, once
      for each step in which some row runs it. Earlier positions that run it as
      well are arithmetic alone: they can run beside the present one. (Those
      that no block of `CatchUp` holds run before it, in passes of their own.)
    fill: the K/V projections of self-attention, once for each step in which
      some row uses them, for as many positions as were projected.
    self_attention: the K/V of all T positions, for each row and layer run. (The
      program reads the whole cache and masks what is not there yet, or is not
      there any more.)
    cross_attention: the K/V of the source positions that are read, likewise.
    head: the output matrix once per step: some logits choose the token.
    checks: further reads of the output matrix, by an exit rule that wants
      logits after more layers than the one a row leaves at; with a pruned
      vocabulary, of the rows of each request's candidates.
    extra: parts that the model does not have, such as a draft head, once for
      each time that some row went through them.

  Attributes:
    flops: term -> floating-point operations.
    bytes: term -> bytes read or written.
    num_steps: steps of the token loop.
  """

  flops: dict[str, float]
  bytes: dict[str, float]
  num_steps: int

  @property
  def total_flops(self) -> float:
    """All terms together."""
    return sum(self.flops.values())

  @property
  def total_bytes(self) -> float:
    """All terms together."""
    return sum(self.bytes.values())

  @property
  def stepping_bytes(self) -> float:
    """All terms but those that are paid once per batch of requests."""
    once = self.bytes['encoder'] + self.bytes['cross_fill']
    return self.total_bytes - once


def decode_cost(
  config: T5Config,
  work: Work,
  *,
  source_length: int,
  source_kept: int | None = None,
  encoder_exit_layers: Any = None,
  context_room: int | None = None,
  layers_kept: int | None = None,
  weights: Int8Weights | str | None = None,
) -> Cost:
  """Adds up what a decode with this ledger costs.

  Weights that several rows use at a position are read once for all of them, as
  if the row that uses the most used all that the others do: so it is where
  rows run their layers in order and move in step. With a layer plan by row,
  bytes of a batch are a lower bound. With verification rows do not move in
  step, and bytes of a batch are those of rows that did: an estimate. Those of a
  single row need neither. A position whose drafts were dropped is one step with
  all that was done there, and drafts dropped behind the last token are steps of
  their own: divide by tokens instead.

  A check is a read of the whole output matrix, shared by the rows, where it
  computes V logits. Where a row computed fewer for its checks than that, as
  many of them were whole as have room, and the rest are rows of the matrix that
  it reads alone.

  Args:
    config: the model.
    work: `DecodeResult.work`, int [B, T] each. A position of a row with no
      checks was not decoded.
    source_length: S, padding included.
    source_kept: positions of it that the decoder reads, where a source plan
      prunes, 1..S; None for all.
    encoder_exit_layers: `DecodeResult.encoder_exit_layers`, int [B], where
      sources leave the encoder early: arithmetic is that of each source's own
      layers, weights are read as deep as the deepest one goes. None for all.
    context_room: positions that a layer's self-attention cache has room for,
      where a layer plan prunes the context, 1..T; None for T.
    layers_kept: decoder layers that are in the program, where a layer plan
      leaves the others out, 1..L; None for all. Only these have keys and values
      of the source; what a token costs is in `work` already.
    weights: what the model was bound with (`BoundDecoder.weights`). A number of
      a matrix in 8 bits is one byte, with 4 for the scale of each output
      channel; where only some layers are in 8 bits, a layer has the bytes of
      the mean layer. Arithmetic is counted alike, in whichever units it is
      done.

  Raises:
    ValueError: for a ledger of another shape, or of nothing; for more positions
      kept, places, layers kept, or encoder layers run, than there are; for
      weights that `decoding.bind` would not take.
  """
  work = _checked(work)
  read = source_length if source_kept is None else source_kept
  checks.check_whole(read, 'source_kept', low=1, high=source_length)
  sizes = _Sizes(config, as_weights(weights))
  held = sizes.held
  batch_size, length = work.checks.shape
  room = length if context_room is None else context_room
  checks.check_whole(room, 'context_room', low=1, high=length)
  layers = config.num_decoder_layers
  if layers_kept is not None:
    checks.check_whole(layers_kept, 'layers_kept', low=1, high=layers)
    layers = layers_kept

  def deepest(amounts):
    """Returns the sum over positions of what the row with the most has."""
    return int(amounts.max(axis=0).sum())

  attention, feed_forward = (
    int((own + work.caught_up).sum())
    for own in (work.attention, work.feed_forward)
  )
  attended = int(work.attention.sum())
  projected = int(work.projections.sum())
  whole = np.minimum(work.checks, work.outputs // config.vocab_size)
  some = work.outputs - whole * config.vocab_size
  some = int(some[work.outputs < work.checks * config.vocab_size].sum())
  chosen = np.minimum(work.outputs, config.vocab_size)
  checked = int((work.outputs - chosen).sum())

  extra = work.extra_products
  terms = {
    'encoder': sizes.encoder(
      _encoder_depths(encoder_exit_layers, config, batch_size), source_length
    ),
    'cross_fill': sizes.cross_fill(layers, batch_size, read),
    'layers': (
      2 * (sizes.projections * attention + sizes.mlp * feed_forward),
      held.projections * deepest(work.attention)
      + held.mlp * deepest(work.feed_forward),
    ),
    'fill': (
      2 * sizes.kv * projected,
      held.self_kv * deepest(work.fills) + sizes.kv_bytes * projected,
    ),
    'self_attention': sizes.attention(attention, attended, room),
    'cross_attention': sizes.attention(attention, attended, read),
    'head': (
      2 * config.embed_dim * int(chosen.sum()),
      held.head * deepest(np.minimum(whole, 1)),
    ),
    'checks': (
      2 * config.embed_dim * checked,
      held.head * deepest(np.maximum(whole - 1, 0)) + held.head_row * some,
    ),
    'extra': (
      2 * config.embed_dim * int(extra.sum()),
      sizes.itemsize * config.embed_dim * deepest(extra),
    ),
  }
  return Cost(
    flops={name: float(flops) for name, (flops, _) in terms.items()},
    bytes={name: float(moved) for name, (_, moved) in terms.items()},
    num_steps=deepest(work.checks > 0),
  )


def bytes_of(config: T5Config, source_length: int) -> BytesOf:
  """Returns a function from what a decode did, and with what, to bytes moved.

  Once per batch, and in all steps together; see `decode_cost`. A policy says
  how much of the source, the past and the layers it keeps; all if None.

  Args:
    config: the model.
    source_length: S, padding included.
  """

  def moved(
    work: Work,
    weights: Int8Weights | None = None,
    encoder_exit_layers: Any = None,
    policy: ComputePolicy | None = None,
  ) -> tuple[float, float]:
    rooms = {}
    if policy is not None:
      rooms = rooms_of(policy, source_length, work.checks.shape[1])
    cost = decode_cost(
      config,
      work,
      source_length=source_length,
      encoder_exit_layers=encoder_exit_layers,
      weights=weights,
      **rooms,
    )
    return cost.total_bytes - cost.stepping_bytes, cost.stepping_bytes

  return moved


def rooms_of(
  policy: ComputePolicy, source_length: int, max_length: int
) -> dict[str, int]:
  """Returns how much of the source, the past and the layers a policy keeps.

  Args:
    policy: what decodes.
    source_length: S, padding included.
    max_length: T.

  Returns:
    `source_kept`, `context_room` and `layers_kept` of `decode_cost`, where they
    are not all.
  """
  found = {}
  if isinstance(policy.source_plan, PrunedSource):
    found['source_kept'] = min(policy.source_plan.keep, source_length)
  if isinstance(policy.layer_plan, PrunedContext):
    found['context_room'] = policy.layer_plan.room(max_length)
  if isinstance(policy.layer_plan, KeepLayers):
    found['layers_kept'] = policy.layer_plan.num_layers
  return found


def speed_up_ceiling(full: Cost, early: Cost) -> float:
  """Returns how much faster `early` can be where memory traffic is the bound.

  The ratio of the bytes per step of their token loops, without what is paid
  once per batch.

  Args:
    full: the decode that is compared with.
    early: the other decode, of the same model and batch size.
  """
  return (full.stepping_bytes / full.num_steps) / (
    early.stepping_bytes / early.num_steps
  )


class _Sizes:
  """Numbers of weights in the parts of a model, for arithmetic, and bytes."""

  def __init__(self, config: T5Config, weights: Int8Weights | None):
    inner = config.num_heads * config.head_dim
    self.config = config
    self.held = WeightBytes(config, weights)
    self.itemsize = config.activation_dtype.itemsize
    # One projection between the residual stream and the heads.
    self.projection = config.embed_dim * inner
    self.mlp = (1 + len(config.mlp_activations)) * (
      config.embed_dim * config.mlp_dim
    )
    self.kv = 2 * self.projection
    # Query and output of both attentions; K/V are counted where they are made.
    self.projections = 4 * self.projection
    self.kv_of_position = 2 * inner
    self.kv_bytes = self.kv_of_position * self.itemsize

  def encoder(self, depths: np.ndarray, length: int) -> tuple[float, float]:
    weights = self.projections + self.mlp
    attention = 2 * self.kv_of_position * length
    flops = (2 * weights + attention) * int(depths.sum()) * length
    share = int(depths.max()) / self.config.num_encoder_layers
    return flops, share * self.held.encoder

  def cross_fill(
    self, layers: int, batch_size: int, length: int
  ) -> tuple[float, float]:
    tokens = batch_size * length
    written = self.kv_bytes * tokens
    return layers * 2 * self.kv * tokens, layers * (
      self.held.cross_kv + written
    )

  def attention(
    self, positions: int, passes: int, length: int
  ) -> tuple[float, float]:
    return (
      2 * self.kv_of_position * length * positions,
      self.kv_bytes * length * passes,
    )


def _encoder_depths(
  exit_layers: Any, config: T5Config, batch_size: int
) -> np.ndarray:
  """Returns the encoder layers of every source, int64 [B], checked."""
  layers = config.num_encoder_layers
  if exit_layers is None:
    return np.full(batch_size, layers, np.int64)
  depths = np.asarray(exit_layers)
  whole = depths.shape == (batch_size,) and depths.dtype.kind in 'iu'
  if not whole or (depths < 1).any() or (depths > layers).any():
    raise ValueError(
      f'encoder_exit_layers is {exit_layers!r}; give whole numbers in '
      f'1..{layers}, one for each of {batch_size} sources'
    )
  return depths.astype(np.int64)


def _checked(work: Work) -> Work:
  """Returns the ledger as int64, so that sums have room."""
  work = jax.tree.map(lambda column: np.asarray(column, np.int64), work)
  shapes = {column.shape for column in jax.tree.leaves(work)}
  if len(shapes) > 1 or work.checks.ndim != 2 or not work.checks.any():
    raise ValueError(
      f'the ledger has columns of shape {sorted(shapes)} and '
      f'{work.checks.sum()} checks; give the [B, T] of a decode of something'
    )
  return work
