"""A decode compiled ahead of time, from shapes alone.

Nothing is allocated and nothing runs: a model that fits no device here can be
compiled for the mesh that it will run on, and asked what memory each device
will need.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from calm_jax import sharding
from calm_jax.array_types import PyTree
from calm_jax.decoding import starting, token_loop
from calm_jax.decoding.states import DecodeState
from calm_jax.interfaces import BoundDecoder


@dataclasses.dataclass(frozen=True)
class CompiledDecode:
  """The programs of a decode.

  Attributes:
    encode: the encoder, and the keys and values of the sources.
    advance: the token loop.
    state: what `advance` takes: shapes with shardings.
  """

  encode: jax.stages.Compiled
  advance: jax.stages.Compiled
  state: DecodeState

  def device_bytes(self) -> dict[str, int]:
    """Returns what each device holds while tokens are decoded.

    That is 'params', 'carry' (caches and results) and 'temporaries'.

    Raises:
      NotImplementedError: on a backend that does not say it.
    """
    memory = self.advance.memory_analysis()
    if memory is None:
      raise NotImplementedError(
        f'the backend {jax.default_backend()} does not say what memory a '
        'program takes'
      )
    return {
      'params': _device_bytes(self.state.bound.params),
      'carry': _device_bytes(self.state.carry),
      'temporaries': memory.temp_size_in_bytes,
    }


def compile_decode(
  bound: BoundDecoder,
  *,
  batch_size: int,
  source_length: int,
  strategy: str = 'data_parallel',
  **options: Any,
) -> CompiledDecode:
  """Compiles a decode over a mesh.

  Args:
    bound: of `bind`, to a mesh; the shapes of parameters are enough.
    batch_size: B.
    source_length: S.
    strategy: of `sharding.RULES`, how parameters lie.
    **options: those of `generate`; `max_length` is one that must be there.

  Raises:
    ValueError: if the decoder is bound to no mesh, or as `generate`.
  """
  mesh = bound.mesh
  if mesh is None:
    raise ValueError(
      'a decode is compiled for a mesh, and this decoder is bound to none: '
      'decoding.bind(decoder, params, mesh=sharding.make_mesh())'
    )
  shardings = sharding.param_shardings(bound.params, mesh, strategy)
  bound = dataclasses.replace(bound, params=_laid_out(bound.params, shardings))
  rows = NamedSharding(mesh, PartitionSpec(sharding.DATA))
  inputs = jax.ShapeDtypeStruct(
    (batch_size, source_length), jnp.int32, sharding=rows
  )
  state = jax.eval_shape(
    functools.partial(starting.start, **options), bound, inputs
  )
  encode = starting.encode.lower(
    bound,
    inputs,
    *_laid_out_alike(
      (state.policy.source_plan, state.policy.encoder_exit),
      sharding.replicated(mesh),
    ),
    max_length=state.policy.layer_plan.room(options['max_length']),
    num_rows=state.rows_per_request,
    layers=starting.layers_that_run(
      state.policy, bound.num_layers, options['max_length']
    ),
    pooled=state.policy.reads_source,
  ).compile()
  carry = dataclasses.replace(
    _laid_out_alike(state.carry, rows),
    # As the encoder's program leaves it: heads lie over 'model'.
    cache=_laid_out(state.carry.cache, encode.output_shardings[0]),
  )
  whole = sharding.replicated(mesh)
  state = dataclasses.replace(
    state,
    bound=bound,
    carry=carry,
    policy=_laid_out_alike(state.policy, whole),
    sampler=_laid_out_alike(state.sampler, whole),
  )
  advance = token_loop.lower_advance(state).compile()
  return CompiledDecode(encode, advance, state)


def _device_bytes(shapes: PyTree) -> int:
  """Returns the bytes of the largest part that a device gets of each leaf."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(shapes)
  )


def _laid_out(shapes: PyTree, shardings: PyTree) -> PyTree:
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    shapes,
    shardings,
  )


def _laid_out_alike(shapes: PyTree, where: NamedSharding) -> PyTree:
  return _laid_out(shapes, jax.tree.map(lambda leaf: where, shapes))
