"""Compiles a decode for a mesh and says what memory each device will need.

  python -m calm_jax.benchmarks.mesh_memory --shapes=t5_v1_1_xl,t5_v1_1_xxl

Nothing is allocated: parameters are shapes, devices are made up on the CPU, and
the compiler says what a device holds while the token loop runs (softmax margin,
bfloat16). Temporaries are those of programs for the CPU, where weights are
copied and bfloat16 is computed in float32: accelerators need less.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import jax

from calm_jax import decoding, exits, model, sharding
from calm_jax.benchmarks import measured_rows, mesh_memory_table
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.mesh_memory_table import MemoryRow


def measure(
  shape: str,
  mesh: jax.sharding.Mesh,
  *,
  batch_size: int,
  source_length: int,
  target_length: int,
) -> MemoryRow:
  """Compiles one shape; returns what each device holds.

  Args:
    shape: a name of `T5Config.named`.
    mesh: of `sharding.make_mesh`.
    batch_size: B, rows on the whole mesh.
    source_length: S.
    target_length: T.
  """
  config = model.T5Config.named(shape, dtype='bfloat16')
  params = jax.eval_shape(lambda: model.init_params(config, jax.random.key(0)))
  policy = decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(exits.SoftmaxMargin(), 0.9)
  )
  start = time.perf_counter()
  compiled = decoding.compile_decode(
    decoding.bind(
      model.as_layered_decoder(config),
      params,
      depth_loop=decoding.WhileDepthLoop(),
      mesh=mesh,
    ),
    batch_size=batch_size,
    source_length=source_length,
    max_length=target_length,
    policy=policy,
  )
  seconds = time.perf_counter() - start
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  held = compiled.device_bytes()
  return MemoryRow(
    shape=shape,
    num_parameters=count,
    data=mesh.shape['data'],
    model=mesh.shape['model'],
    batch_size=batch_size,
    parameter_bytes=held['params'],
    cache_bytes=held['carry'],
    temporary_bytes=held['temporaries'],
    compile_seconds=seconds,
  )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('mesh_memory', __doc__)
  add = parser.add
  add('shapes', 't5_v1_1_xl,t5_v1_1_xxl', 'models, separated by commas')
  add('data', 1, 'devices that share the rows', type=int)
  add('model', 8, 'devices that share the parameters', type=int)
  add('batch_size', 8, 'rows on the whole mesh', type=int)
  add('source_length', 512, 'tokens of a source', type=int)
  add('target_length', 128, 'tokens decoded', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Compiles, writes and prints."""
  flags = _parse(arguments)
  rows = []
  try:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', flags.data * flags.model)
    mesh = sharding.make_mesh(data=flags.data, model=flags.model)
    for shape in flags.shapes.split(','):
      print(f'{shape} is being compiled', file=sys.stderr, flush=True)
      row = measure(
        shape,
        mesh,
        batch_size=flags.batch_size,
        source_length=flags.source_length,
        target_length=flags.target_length,
      )
      rows.append(row)
  except ValueError as error:
    sys.exit(f'mesh_memory: {error}')
  measured = measured_rows.of_this_process(
    rows, flags, device=jax.devices()[0].device_kind, dtype='bfloat16'
  )
  measured_rows.publish(measured, mesh_memory_table.table, flags.output)


if __name__ == '__main__':
  main()
