"""Depth loops: the layers of one position, until every row has stopped.

What is done to a layer is the same for all of them (`layer_steps.Layers`). They
differ in how they find the weights and in how the program skips what nobody
needs: `WhileDepthLoop` is a `lax.while_loop` over stacked weights and the
reference; `UnrolledDepthLoop` has one piece of program per layer, with static
weights.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import lax

from calm_jax.decoding.layer_rows import Memory, Rows
from calm_jax.decoding.layer_steps import Layers
from calm_jax.row_masks import when


@dataclasses.dataclass(frozen=True)
class WhileDepthLoop:
  """Loops over layers with `lax.while_loop`: the reference.

  One piece of program whatever the depth, indexing stacked weights by the
  layer. A second loop fills the layers that no row ran.
  """

  traced_layers: ClassVar[bool] = True

  def __call__(
    self, layers: Layers, rows: Rows, memory: Memory
  ) -> tuple[Rows, Memory]:
    """Runs the layers until every row has stopped; returns rows and memory."""
    walked = layers.walked

    def layer_of(step):
      if len(walked) == layers.num_layers:
        return step
      return jnp.array(walked, jnp.int32)[step]

    def run_layer(carry):
      step, rows, memory = carry
      layer = layer_of(step)
      rows, memory, work = layers.fill(layer, rows, memory)
      rows = layers.run(layer, rows, memory.cache, work)
      return step + 1, rows, memory

    def fill_layer(carry):
      step, rows, memory = carry
      rows, memory, _ = layers.fill(layer_of(step), rows, memory)
      return step + 1, rows, memory

    step, rows, memory = lax.while_loop(
      lambda carry: carry[1].active.any(),
      run_layer,
      (jnp.int32(0), rows, memory),
    )
    if not layers.policy.cache_fill.fills_left_over:
      return rows, memory
    _, rows, memory = lax.while_loop(
      lambda carry: carry[0] < len(walked),
      fill_layer,
      (step, rows, memory),
    )
    return rows, memory


@dataclasses.dataclass(frozen=True)
class UnrolledDepthLoop:
  """Writes the layers out one by one, each in a `lax.cond`.

  Weights are static, so no layer is copied out of a stack. The K/V of every
  layer are filled outside the branch, which is also the propagation; the rest
  of the layer runs only if some row needs it. Where the cache fill leaves alone
  what no row runs, all of the layer does. Layers before the first check have no
  branch at all.
  """

  traced_layers: ClassVar[bool] = False

  def __call__(
    self, layers: Layers, rows: Rows, memory: Memory
  ) -> tuple[Rows, Memory]:
    """Runs the layers until every row has stopped; returns rows and memory."""
    may_have_stopped = False
    fills_left_over = layers.policy.cache_fill.fills_left_over
    for layer in layers.walked:
      if may_have_stopped and not fills_left_over:
        rows, memory = _run_if_needed(layers, layer, rows, memory)
        continue
      rows, memory, work = layers.fill(layer, rows, memory)
      needed = rows.active.any() if may_have_stopped else True

      def run_layer(rows, layer=layer, cache=memory.cache, work=work):
        return layers.run(layer, rows, cache, work)

      rows = when(needed, run_layer, rows)
      if layers.policy.exit_rule.looks(layer) is not False:
        may_have_stopped = True
    return rows, memory


def _run_if_needed(
  layers: Layers, layer: int, rows: Rows, memory: Memory
) -> tuple[Rows, Memory]:
  """Fills and runs a layer if a row is active."""

  def fill_and_run(carry):
    _, rows, memory = carry
    rows, memory, work = layers.fill(layer, rows, memory)
    rows = layers.run(layer, rows, memory.cache, work)
    return jnp.zeros((), bool), rows, memory

  # A loop of one turn or none: a branch would copy the cache.
  _, rows, memory = lax.while_loop(
    lambda carry: carry[0], fill_and_run, (rows.active.any(), rows, memory)
  )
  return rows, memory
