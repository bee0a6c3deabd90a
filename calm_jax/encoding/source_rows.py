"""How far sources have come in an encoder, and what a layer does to them.

The rows of an encoder are whole sources; they leave one by one, and a row that
has left keeps its states whatever is computed for the others.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from calm_jax import row_masks
from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import ExitRule, LayeredEncoder, LayerView
from calm_jax.pytrees import register_pytree
from calm_jax.source_heads import SourceHeads, read_heads


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
    logits: float32 [B, C], of the heads at the exit layer, where the rule read
      them there, else NaN; None without heads.
  """

  hidden: Array
  mask: Array
  active: Array
  exit_layers: Array
  confidences: Array
  state: PyTree
  logits: Array | None = None

  @classmethod
  def start(
    cls,
    hidden: Array,
    mask: Array,
    state: PyTree,
    num_classes: int | None = None,
  ) -> 'SourceRows':
    """Returns rows before the first layer, of C classes if there are heads."""
    batch_size = hidden.shape[0]
    return cls(
      hidden=hidden,
      mask=mask,
      active=jnp.ones((batch_size,), bool),
      exit_layers=jnp.full((batch_size,), -1, jnp.int32),
      confidences=jnp.full((batch_size,), jnp.nan, jnp.float32),
      state=state,
      logits=None
      if num_classes is None
      else jnp.full((batch_size, num_classes), jnp.nan, jnp.float32),
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
  heads: Heads | SourceHeads | None

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
    state, stops, confidences, logits = row_masks.when(
      self.exit_rule.looks(layer),
      lambda nothing: self._look(layer, rows, entering, nothing[-1]),
      (
        rows.state,
        jnp.zeros(rows.active.shape, bool),
        jnp.full(rows.active.shape, jnp.nan, jnp.float32),
        jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), rows.logits),
      ),
    )
    stops = rows.active & (stops | (layer == self.num_layers - 1))
    return dataclasses.replace(
      rows,
      active=rows.active & ~stops,
      exit_layers=jnp.where(stops, layer + 1, rows.exit_layers),
      confidences=jnp.where(stops, confidences, rows.confidences),
      state=state,
      logits=row_masks.keep_rows(stops, logits, rows.logits),
    )

  def logits(self, rows: SourceRows) -> Array | None:
    """Returns what the heads say of each row at its exit layer.

    Args:
      rows: which have all left.
    """
    if self.heads is None or rows.logits is None:
      return None
    unread = jnp.isnan(rows.logits).any(axis=-1)

    def read(logits):
      encoded = self.encoder.finish(self.params, rows.hidden, rows.mask)
      found = read_heads(
        self.heads, self.encoder, encoded, rows.exit_layers - 1
      )
      return row_masks.keep_rows(unread, found, logits)

    if not self.exit_rule.needs_logits:
      return read(rows.logits)
    return row_masks.when(unread.any(), read, rows.logits)

  def _look(
    self,
    layer: Array | int,
    rows: SourceRows,
    entering: Array,
    unread: Array | None,
  ) -> tuple[PyTree, Array, Array, Array | None]:
    """Asks the exit rule: its state, who stops, confidences, and logits."""
    encoded = self.encoder.finish(self.params, rows.hidden, rows.mask)
    pooled, _ = self.encoder.pool(encoded)
    previous = self.encoder.pooled(self.params, entering, rows.mask)
    logits = None
    if self.exit_rule.needs_logits:
      assert self.heads is not None
      logits = read_heads(self.heads, self.encoder, encoded, layer)
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
    said = unread if logits is None else logits
    return state, stops, confidences.astype(jnp.float32), said
