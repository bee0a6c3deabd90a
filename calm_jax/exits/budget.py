"""A hard cap on the layers that tokens and requests may use.

A threshold bounds what early exit loses and not what it costs: an input on
which no layer is confident takes every layer of every token. `LayerBudget`
wraps any other rule and stops a row, confident or not, before it would use more
than it was given. It is part of the policy, so that certificates are made with
it and hold for it alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import (
  ExitRule,
  LayeredDecoder,
  LayerView,
  reads_source,
)
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class BudgetState:
  """What a budget keeps of each row.

  Attributes:
    rule: the state of the other rule.
    spare: int32 [B], layers that the row may still use beyond the first stop of
      each position, >= 0; None without a cap per request.
    per_token: int32 [B], the cap per token, 1..L; None without one.
    next_stops: int32 [B, L], in 1..L: where a row that goes on after a layer
      may stop next. The same in all rows, which may be gathered.
  """

  rule: PyTree
  spare: Array | None
  per_token: Array | None
  next_stops: Array


@dataclasses.dataclass(frozen=True)
class PerPosition:
  """Layers of an output by its longest length, for `LayerBudget.per_request`.

  Attributes:
    layers: how many for each position, whether the output gets there or not.

  >>> PerPosition(4).of(64)
  256
  """

  layers: float

  def of(self, max_length: int) -> int:
    """Returns the layers of an output of at most so many tokens."""
    return int(self.layers * max_length)


@register_pytree
@dataclasses.dataclass(frozen=True)
class LayerBudget:
  """Fires as another rule does, and where going on would exceed a budget.

  Every position keeps as many layers as it takes to the first place where it
  may stop (one, for rules that look after every layer); what a request has
  beyond these goes to its tokens as they come, until there is none left. So no
  output exceeds `per_request`, however long it gets, and a short one does not
  get at what is kept for the positions it never reaches.

  A check of a rule that reads logits costs a vocabulary matmul. A budget adds
  none: around such a rule it stops rows only where the rule looks, earlier if
  its number lies between two looks. Around others it stops them anywhere. Where
  it looks and the other rule does not, the confidence is NaN.

  What is counted are layers that run for an output. Where earlier positions
  catch up beside a token (`decoding.CatchUp`), its going on is charged for
  them, too. The tokens are those that the model chose. A forced prefix
  runs at full depth because the caller said so, and is not counted. Each row
  has a budget of its own: each of n samples gets `per_request`. With a beam
  search `per_request` caps the layers of each hypothesis, not of those that it
  was preferred to; `per_token` caps them all.

  Attributes:
    rule: the other rule.
    per_request: int [] or [B], the most layers of all tokens of an output
      together, at least one for each of `max_length` positions; `PerPosition`
      for so many times `max_length`; None for no such cap.
    per_token: int [] or [B], in 1..L, the most layers of one token; None for no
      such cap.
    max_length: int [], the longest output in tokens that `per_request` is for,
      at least the decode's; None for the decode's. Give it where decodes of
      several lengths should do the same.
  """

  rule: ExitRule
  per_request: Array | int | PerPosition | None = None
  per_token: Array | int | None = None
  max_length: Array | int | None = None

  @property
  def needs_logits(self) -> bool:
    """Whether the other rule reads logits."""
    return self.rule.needs_logits

  @property
  def reads_source(self) -> bool:
    """Whether the other rule sees the encoded source."""
    return reads_source(self.rule)

  @property
  def measure(self) -> Any:
    """The other rule's measure; there is none if it has none."""
    rule: Any = self.rule
    return rule.measure

  @property
  def threshold(self) -> Any:
    """The other rule's threshold; there is none if it has none."""
    rule: Any = self.rule
    return rule.threshold

  @property
  def thresholds(self) -> Callable[[int], Array]:
    """The other rule's `thresholds`; there are none if it has none.

    Raises:
      ValueError: if budgets differ by row.
    """
    rule: Any = self.rule
    thresholds = rule.thresholds
    if any(map(jnp.ndim, jax.tree.leaves((self.per_request, self.per_token)))):
      raise ValueError(
        'the budget has a number per row; thresholds() gives those of a rule '
        'that treats all rows alike'
      )
    return thresholds

  def at_output_length(self, max_length: int) -> 'LayerBudget':
    """Returns itself for outputs of a length, if it left the length open."""
    length = self.max_length
    length = max_length if length is None else length
    per_request = self.per_request
    if isinstance(per_request, PerPosition):
      per_request = per_request.of(int(length))
    rule: Any = self.rule
    if hasattr(rule, 'at_output_length'):
      rule = rule.at_output_length(max_length)
    return LayerBudget(rule, per_request, self.per_token, length)

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself with int32 leaves; raises ValueError on bad numbers."""
    if isinstance(self.rule, type) or not hasattr(self.rule, 'looks'):
      raise ValueError(
        f'rule {self.rule!r} is not an exit rule; give an object such as '
        'ConfidenceExit(SoftmaxMargin(), 0.8)'
      )
    if self.per_request is None and self.per_token is None:
      raise ValueError(
        'the layer budget has neither per_request nor per_token; give one of '
        f'them, or use {type(self.rule).__name__} without it'
      )
    rule = self.rule.check(decoder, batch_size, max_length)
    stops = dataclasses.replace(self, rule=rule).stops(decoder.num_layers)
    where = f'{type(rule).__name__} lets rows stop after {stops} layers'
    longest = length = self.max_length
    if length is None:
      longest = max_length
    else:
      length = longest = checks.checked_array(
        length,
        'max_length of the layer budget',
        low=max_length,
        dtype=jnp.int32,
        remedy=f'outputs may have {max_length} tokens here',
      )
    least = stops[0]
    if checks.is_concrete(longest):
      least *= int(longest)
    rows: dict[str, Any] = dict(shapes=((), (batch_size,)), dtype=jnp.int32)
    per_request, per_token = self.per_request, self.per_token
    if isinstance(per_request, PerPosition):
      per_request = per_request.of(int(longest))
    if per_request is not None:
      per_request = checks.checked_array(
        per_request,
        'per_request',
        low=least,
        remedy=f'each of {longest} tokens takes at least {stops[0]}: {where}',
        high=np.iinfo(np.int32).max,
        **rows,
      )
    if per_token is not None:
      per_token = checks.checked_array(
        per_token,
        'per_token',
        low=stops[0],
        high=decoder.num_layers,
        remedy=where,
        **rows,
      )
    return LayerBudget(rule, per_request, per_token, length)

  def stops(self, num_layers: int) -> list[int]:
    """Returns after how many of L layers a row may stop, ascending."""
    stops = [layer + 1 for layer in range(num_layers - 1) if self.looks(layer)]
    return [*stops, num_layers]

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> BudgetState:
    """Returns the whole budget of each row, and the other rule's state."""
    stops = self.stops(decoder.num_layers)
    following = [
      next(stop for stop in stops if stop > layer + 1)
      for layer in range(decoder.num_layers - 1)
    ]
    spare: Any = self.per_request
    if spare is not None:
      length = max_length if self.max_length is None else self.max_length
      spare = jnp.broadcast_to(spare - stops[0] * length, (batch_size,))
    per_token = self.per_token
    if per_token is not None:
      per_token = jnp.broadcast_to(per_token, (batch_size,))
    return BudgetState(
      rule=self.rule.init(decoder, batch_size, max_length),
      spare=spare,
      per_token=per_token,
      next_stops=jnp.tile(
        jnp.array([*following, decoder.num_layers], jnp.int32), (batch_size, 1)
      ),
    )

  def see_source(
    self, state: BudgetState, pooled: Array, lengths: Array
  ) -> BudgetState:
    """Returns the state once the other rule has seen the sources."""
    rule: Any = self.rule
    seen = rule.see_source(state.rule, pooled, lengths)
    return dataclasses.replace(state, rule=seen)

  def looks(self, layer: Array | int) -> Array | bool:
    """Returns whether the other rule looks, or True if looking is free."""
    return self.rule.looks(layer) if self.needs_logits else True

  def step(
    self, state: BudgetState, view: LayerView
  ) -> tuple[BudgetState, Array, Array]:
    """Stops rows that the other rule stops or that cannot pay to go on."""
    rule_state, stops, confidence = self._ask(state.rule, view)
    next_stops = state.next_stops[:, view.layer]
    price = next_stops - (view.layer + 1)
    if view.lacking is not None:
      layers = jnp.arange(view.lacking.shape[1])
      ahead = (layers > view.layer) & (layers < next_stops[:, None])
      price += jnp.where(ahead, view.lacking, 0).sum(axis=1)
    if state.per_token is not None:
      stops |= next_stops > state.per_token
    spare = state.spare
    if spare is not None:
      stops |= price > spare
      # Paid when a row goes on: the last layer ends rows without being asked.
      spare = jnp.where(stops, spare, spare - price)
    state = dataclasses.replace(state, rule=rule_state, spare=spare)
    return state, stops, confidence

  def _ask(self, state: PyTree, view: LayerView) -> tuple[PyTree, Array, Array]:
    """Steps the other rule if it looks at this layer."""
    looks = True if self.needs_logits else self.rule.looks(view.layer)
    shape = view.active.shape
    unseen = (
      state,
      jnp.zeros(shape, bool),
      jnp.full(shape, jnp.nan, jnp.float32),
    )

    def ask(_):
      new, stops, confidence = self.rule.step(state, view)
      return new, stops, confidence.astype(jnp.float32)

    if isinstance(looks, bool):
      return ask(unseen) if looks else unseen
    return lax.cond(looks, ask, lambda unseen: unseen, unseen)
