"""What the layer plan has to do with one layer of one position.

It is asked before the layer's K/V are written, and told after the layer ran.
`layer_steps.Layers` calls these where the plan's turn is.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from calm_jax import row_masks
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding import feed_forwards
from calm_jax.decoding.layer_rows import Memory, Rows
from calm_jax.interfaces import LayerPlan, LayerWork, PlanView
from calm_jax.small_twins import OWN, TWIN


def ask(plan: LayerPlan, view: PlanView, rows: Rows) -> tuple[Rows, LayerWork]:
  """Returns rows as the question leaves them, and what is asked of a layer.

  Args:
    plan: the layer plan.
    view: what it sees of the layer, which will run.
    rows: before it.
  """
  state, asked = plan.before(rows.policy.layer_plan, view)
  if plan.products:
    done = view.alive * jnp.int32(plan.products)
    rows = dataclasses.replace(rows, work=rows.work.plus(extra_products=done))
  everywhere = plan.prunes_context
  return _keep(rows, state, None if everywhere else rows.active), asked


def fill(
  plan: LayerPlan,
  asked: LayerWork,
  write: Callable[..., tuple[Rows, Memory]],
  *,
  alive: Array,
  rows: Rows,
  memory: Memory,
) -> tuple[Rows, Memory]:
  """Writes a layer's K/V for the rows that want them, if there are any.

  Args:
    plan: the layer plan.
    asked: what it asks of the layer.
    write: `(rows, memory, wanted=bool [B]) -> (rows, memory)`.
    alive: bool [B], rows whose sequence has not ended.
    rows: before the layer.
    memory: what is written to.
  """
  if asked.fill is None:
    return write(rows, memory, wanted=alive)
  wanted = alive & asked.fill
  if not plan.may_skip_for_all:
    return write(rows, memory, wanted=wanted)

  def fill_once(carry):
    _, rows, memory = carry
    return jnp.zeros((), bool), *write(rows, memory, wanted=wanted)

  # A loop of one turn or none: a branch would copy the cache.
  _, rows, memory = lax.while_loop(
    lambda carry: carry[0], fill_once, (wanted.any(), rows, memory)
  )
  return rows, memory


def tell(
  plan: LayerPlan, view: PlanView, rows: Rows, *, work: LayerWork
) -> Rows:
  """Returns rows once the plan knows how a layer ran.

  Args:
    plan: the layer plan.
    view: what it sees of the layer, with the states it left.
    rows: after it.
    work: what was asked of it.
  """
  state = plan.after(rows.policy.layer_plan, view, work)
  return _keep(rows, state, view.active)


def done(plan: LayerPlan, active: Array, work: LayerWork) -> dict[str, Array]:
  """Returns what the ledger says of a layer that has run.

  Args:
    plan: the layer plan.
    active: bool [B], rows that had not stopped before it.
    work: what was asked of it.
  """
  counts = {
    'attention': row_masks.wanted_rows(active, work.attention),
    'feed_forward': feed_forwards.rows_of(active, work.feed_forward, OWN),
  }
  if (twins := plan.twins) is not None:
    ran = feed_forwards.rows_of(active, work.feed_forward, TWIN)
    counts['extra_products'] = ran * twins.products
  return counts


def _keep(rows: Rows, state: PyTree, where: Array | None) -> Rows:
  """Returns rows with the plan's state replaced in some, bool [B], or all."""
  if where is not None:
    state = row_masks.keep_rows(where, state, rows.policy.layer_plan)
  policy = dataclasses.replace(rows.policy, layer_plan=state)
  return dataclasses.replace(rows, policy=policy)
