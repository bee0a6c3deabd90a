"""A decode compiled ahead of time, from shapes alone.

Nothing is allocated and nothing runs: a model that fits no device here can be
compiled for the mesh that it will run on, and asked what memory each device
will need.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from calm_jax import sharding
from calm_jax.array_types import PyTree
from calm_jax.decoding import starting, token_loop
from calm_jax.interfaces import LayeredDecoder


@dataclasses.dataclass(frozen=True)
class CompiledDecode:
  """The programs of a decode.

  Attributes:
    encode: the encoder, and the keys and values of the sources.
    advance: the token loop.
  """

  encode: jax.stages.Compiled
  advance: jax.stages.Compiled

  @property
  def device_bytes(self) -> int:
    """What the token loop takes on each device: arguments and temporaries."""
    memory = self.advance.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def compile_decode(
  decoder: LayeredDecoder,
  params: PyTree,
  *,
  batch_size: int,
  source_length: int,
  mesh: Mesh,
  strategy: str = 'data_parallel',
  **options: Any,
) -> CompiledDecode:
  """Compiles a decode over a mesh.

  Args:
    decoder: the decoder.
    params: its parameters, not prepared, or their shapes.
    batch_size: B.
    source_length: S.
    mesh: of `sharding.make_mesh`.
    strategy: of `sharding.RULES`, how parameters lie.
    **options: those of `generate`; `max_length` is one that must be there.
  """
  depth_loop = options.setdefault(
    'depth_loop', starting.default_depth_loop(params)
  )
  prepared = jax.eval_shape(
    functools.partial(decoder.prepare, traced_layers=depth_loop.traced_layers),
    params,
  )
  prepared = _laid_out(
    prepared, sharding.param_shardings(prepared, mesh, strategy)
  )
  rows = NamedSharding(mesh, PartitionSpec(sharding.DATA))
  inputs = jax.ShapeDtypeStruct(
    (batch_size, source_length), jnp.int32, sharding=rows
  )
  start = functools.partial(starting.start, decoder, mesh=mesh, **options)
  state = jax.eval_shape(lambda *given: start(*given), prepared, inputs)
  encode = starting.encode.lower(
    prepared,
    inputs,
    decoder=decoder,
    max_length=options['max_length'],
    num_rows=state.rows_per_request,
    mesh=mesh,
  ).compile()
  carry = dataclasses.replace(
    _laid_out_alike(state.carry, rows),
    # As the encoder's program leaves it: heads lie over 'model'.
    cache=_laid_out(state.carry.cache, encode.output_shardings),
  )
  whole = sharding.replicated(mesh)
  state = dataclasses.replace(
    state,
    params=prepared,
    carry=carry,
    policy=_laid_out_alike(state.policy, whole),
    sampler=_laid_out_alike(state.sampler, whole),
  )
  return CompiledDecode(encode, token_loop.lower_advance(state).compile())


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
