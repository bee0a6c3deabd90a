"""How far sources have come in an encoder, and what a layer does to them.

The rows of an encoder are whole sources; they leave one by one, and a row that
has left keeps its states whatever is computed for the others.
"""

import dataclasses
from typing import Protocol

import jax.numpy as jnp

from calm_jax import row_masks
from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import ExitRule, LayeredEncoder, LayerView
from calm_jax.pytrees import register_pytree


class Heads(Protocol):
  """Logits of pooled states, for rules that read some; a pytree or a function.

  Every layer may have a head of its own. A row's logits depend on no other.
  """

  def __call__(self, pooled: Array, layer: Array | int, /) -> Array:
    """Returns float32 [B, C] of states float32 [B, D] after a layer, 0..L-1."""
    ...


@register_pytree
@dataclasses.dataclass(frozen=True)
class SourceRows:
  """How far the rows have come; every leaf leads with B.

  Attributes:
    hidden: [B, S, D], the residual stream; frozen once a row has left.
    mask: bool [B, S], True where a source is not padding.
    active: bool [B], rows that have not left.
    exit_layers: int32 [B], layers used, 1..L; -1 while a row is active.
    confidences: float32 [B], at the exit layer; NaN where nothing looked.
    state: of the exit rule.
  """

  hidden: Array
  mask: Array
  active: Array
  exit_layers: Array
  confidences: Array
  state: PyTree

  @classmethod
  def start(cls, hidden: Array, mask: Array, state: PyTree) -> 'SourceRows':
    """Returns rows before the first layer."""
    batch_size = hidden.shape[0]
    return cls(
      hidden=hidden,
      mask=mask,
      active=jnp.ones((batch_size,), bool),
      exit_layers=jnp.full((batch_size,), -1, jnp.int32),
      confidences=jnp.full((batch_size,), jnp.nan, jnp.float32),
      state=state,
    )


@dataclasses.dataclass(frozen=True)
class EncoderLayers:
  """The layers of an encoder: what any loop may do with them.

  Attributes:
    encoder: the encoder.
    params: its parameters, laid out for the loop.
    shared: of `LayeredEncoder.shared`.
    exit_rule: the rule, checked.
    heads: what logits are made with; None for none.
  """

  encoder: LayeredEncoder
  params: PyTree
  shared: PyTree
  exit_rule: ExitRule
  heads: Heads | None

  @property
  def num_layers(self) -> int:
    """L."""
    return self.encoder.num_layers

  def run(
    self, layer: Array | int, rows: SourceRows, *, all_active: bool = False
  ) -> SourceRows:
    """Runs a layer, lets the exit rule look and ends every row at the last.

    Args:
      layer: 0..L-1.
      rows: the rows.
      all_active: whether none can have left, static; nothing is masked then.
    """
    entering = rows.hidden
    hidden = self.encoder.layer(
      self.params, layer, entering, rows.mask, self.shared
    )
    if not all_active:
      hidden = row_masks.keep_rows(rows.active, hidden, entering)
    rows = dataclasses.replace(rows, hidden=hidden)
    state, stops, confidences = row_masks.when(
      self.exit_rule.looks(layer),
      lambda nothing: self._look(layer, rows, entering),
      (
        rows.state,
        jnp.zeros(rows.active.shape, bool),
        jnp.full(rows.active.shape, jnp.nan, jnp.float32),
      ),
    )
    stops = rows.active & (stops | (layer == self.num_layers - 1))
    return dataclasses.replace(
      rows,
      active=rows.active & ~stops,
      exit_layers=jnp.where(stops, layer + 1, rows.exit_layers),
      confidences=jnp.where(stops, confidences, rows.confidences),
      state=state,
    )

  def _look(
    self, layer: Array | int, rows: SourceRows, entering: Array
  ) -> tuple[PyTree, Array, Array]:
    """Asks the exit rule: its state, who stops, and confidences."""
    pooled, previous = (
      self.encoder.pooled(self.params, hidden, rows.mask)
      for hidden in (rows.hidden, entering)
    )
    logits = None
    if self.exit_rule.needs_logits:
      assert self.heads is not None
      logits = self.heads(pooled, layer).astype(jnp.float32)
    view = LayerView(
      layer=layer,
      positions=jnp.zeros(rows.active.shape, jnp.int32),
      hidden=pooled,
      previous_hidden=previous,
      logits=logits,
      token_ids=None,
      log_total=None,
      active=rows.active,
    )
    state, stops, confidences = self.exit_rule.step(rows.state, view)
    state = row_masks.keep_rows(rows.active, state, rows.state)
    return state, stops, confidences.astype(jnp.float32)
