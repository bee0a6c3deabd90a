"""What a decode costs in arithmetic and memory traffic, from its exit layers.

An early-exit decode is worth what it need not read: at small batches every step
is bound by the bytes of the weights it uses. `decode_cost` adds up both, term
by term, for the exit layers that a decode really had; `speed_up_ceiling` holds
two decodes against each other. Nothing is measured here, and everything is
counted for a program that does no more than it must.
"""

import dataclasses
from typing import Any

import numpy as np

from calm_jax.model import T5Config

FILLS = ('eager', 'deferred')


@dataclasses.dataclass(frozen=True)
class Cost:
  """FLOPs and bytes of a decode, each as term -> amount.

  A multiplication with its addition is two FLOPs. Bytes are those of weights
  and of cached keys and values; activations of one position are small and left
  out. Steps are those of the token loop, one token of every row that is alive.

  The terms:
    encoder: the encoder's weights once per batch; all source positions.
    cross_fill: keys and values of the source for every decoder layer, once per
      batch: weights read, K/V written.
    layers: the weights of a decoder layer but for its own K/V projection, once
      for each step in which some row runs it.
    fill: the K/V projections of self-attention. Eager: of every layer in every
      step. Deferred: of the layers that run, for positions that are missing.
    self_attention: the K/V of all T positions, for each row and layer run. (The
      program reads the whole cache and masks what is not there yet.)
    cross_attention: the K/V of the S source positions, likewise.
    head: the output matrix once per step: some logits choose the token.
    checks: further reads of the output matrix, by an exit rule that wants
      logits after more layers than the one a row leaves at; with a pruned
      vocabulary, of the rows of each request's candidates.

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
  exit_layers: Any,
  *,
  source_length: int,
  fill: str = 'eager',
  looks: Any = (),
  num_candidates: int | None = None,
) -> Cost:
  """Adds up what a decode of these exit layers costs.

  Args:
    config: the model.
    exit_layers: int [B, T], layers used by each token, 1..L; less than 1 where
      nothing was decoded. Row b is alive in step t where it is decoded at
      position t.
    source_length: S, padding included.
    fill: 'eager' or 'deferred'.
    looks: bool [L], the layers after which the exit rule computes logits; ()
      for a rule that needs none.
    num_candidates: C, of a vocabulary pruned after the first look; None for all
      of V.

  Raises:
    ValueError: for exit layers or looks that do not fit the model, or an
      unknown fill.
  """
  depth = np.atleast_2d(np.asarray(exit_layers))
  looks = np.asarray(looks, bool)
  _check(config, depth, fill, looks)
  sizes = _Sizes(config)
  layers = np.arange(config.num_decoder_layers)
  # [L, T]: how many rows run the layer at the step.
  rows = (depth[None] > layers[:, None, None]).sum(axis=1)
  alive = (depth > 0).sum(axis=0)
  batch_size, length = depth.shape
  num_steps = int(np.count_nonzero(alive))
  runs, passes = int(rows.sum()), int(np.count_nonzero(rows))

  terms = {
    'encoder': sizes.encoder(batch_size, source_length),
    'cross_fill': sizes.cross_fill(batch_size, source_length),
    'layers': (2 * sizes.layer * runs, sizes.layer * passes),
    'fill': _fill(sizes, fill, depth, passes, num_steps),
    'self_attention': sizes.attention(runs, length),
    'cross_attention': sizes.attention(runs, source_length),
    'head': (2 * sizes.head * int(alive.sum()), sizes.head * num_steps),
    'checks': _checks(sizes, rows, looks, num_candidates),
  }
  return Cost(
    flops={name: float(flops) for name, (flops, _) in terms.items()},
    bytes={
      name: float(values) * config.activation_dtype.itemsize
      for name, (_, values) in terms.items()
    },
    num_steps=num_steps,
  )


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
  """Numbers of weights in the parts of a model."""

  def __init__(self, config: T5Config):
    inner = config.num_heads * config.head_dim
    self.config = config
    # One projection between the residual stream and the heads.
    self.projection = config.embed_dim * inner
    self.mlp = (1 + len(config.mlp_activations)) * (
      config.embed_dim * config.mlp_dim
    )
    self.kv = 2 * self.projection
    # Query and output of both attentions; K/V are counted where they are made.
    self.layer = 4 * self.projection + self.mlp
    self.head = config.vocab_size * config.embed_dim
    self.kv_of_position = 2 * inner

  def encoder(self, batch_size: int, length: int) -> tuple[float, float]:
    weights = 4 * self.projection + self.mlp
    attention = 2 * self.kv_of_position * length
    number = self.config.num_encoder_layers
    flops = (2 * weights + attention) * batch_size * length
    return number * flops, number * weights

  def cross_fill(self, batch_size: int, length: int) -> tuple[float, float]:
    number, tokens = self.config.num_decoder_layers, batch_size * length
    written = self.kv_of_position * tokens
    return number * 2 * self.kv * tokens, number * (self.kv + written)

  def attention(self, runs: int, length: int) -> tuple[float, float]:
    values = self.kv_of_position * length * runs
    return 2 * values, values


def _fill(sizes: _Sizes, fill, depth, passes, num_steps):
  """Returns FLOPs and values of the K/V projections of self-attention."""
  num_layers = sizes.config.num_decoder_layers
  if fill == 'eager':
    positions = num_layers * int((depth > 0).sum())
    reads = num_layers * num_steps
  else:
    # A row fills a layer up to the last position at which it runs it.
    steps = np.arange(1, depth.shape[1] + 1)
    positions = sum(
      int(((depth > layer) * steps).max(axis=1).sum())
      for layer in range(num_layers)
    )
    reads = passes
  written = sizes.kv_of_position * positions
  return 2 * sizes.kv * positions, sizes.kv * reads + written


def _checks(sizes: _Sizes, rows, looks, num_candidates):
  """Returns FLOPs and values of logits beyond those that choose a token."""
  if not looks.any():
    return 0, 0
  # The last layer's logits choose where nothing was looked at before.
  looked = rows * looks[:, None]
  looked[-1] = rows[-1]
  alive = rows[0]
  if num_candidates is None:
    reads = int(np.count_nonzero(looked)) - int(np.count_nonzero(alive))
    return (
      2 * sizes.head * int(looked.sum() - alive.sum()),
      sizes.head * reads,
    )
  values = num_candidates * sizes.config.embed_dim
  number = int(looked.sum() - alive.sum())
  return 2 * values * number, values * number


def _check(config, depth, fill, looks) -> None:
  if fill not in FILLS:
    raise ValueError(f'fill is {fill!r}; use one of {FILLS}')
  num_layers = config.num_decoder_layers
  if depth.ndim != 2 or not (depth > 0).any() or depth.max() > num_layers:
    raise ValueError(
      f'exit_layers have shape {depth.shape} and a maximum of '
      f'{depth.max(initial=-1)}; give [B, T] in 1..{num_layers}, less than 1 '
      'where nothing was decoded'
    )
  if looks.size and looks.shape != (num_layers,):
    raise ValueError(
      f'looks have shape {looks.shape}; give one for each of the {num_layers} '
      'layers, or none'
    )
