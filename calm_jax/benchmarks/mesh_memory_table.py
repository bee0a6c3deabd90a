"""What each device of a mesh holds while it decodes: the rows, their table."""

import dataclasses

from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.reporting import tables


@dataclasses.dataclass(frozen=True)
class MemoryRow:
  """One model on one mesh.

  Attributes:
    shape: the model, for example 't5_v1_1_xl'.
    num_parameters: of all devices.
    data: devices that share the rows.
    model: devices that share the parameters.
    batch_size: B, rows on the whole mesh.
    parameter_bytes: per device.
    cache_bytes: per device, of everything that goes through the token loop.
    temporary_bytes: per device, beside these, of a program for the CPU.
    compile_seconds: of the program.
  """

  shape: str
  num_parameters: int
  data: int
  model: int
  batch_size: int
  parameter_bytes: int
  cache_bytes: int
  temporary_bytes: int
  compile_seconds: float


def table(measured: Measured) -> tables.Table:
  """Returns the table."""
  flags = measured.flags
  rows = [
    (
      row.shape,
      f'{row.num_parameters / 1e9:.2f} billion',
      f'{row.data} x {row.model}',
      str(row.batch_size),
      f'{row.parameter_bytes / 1e9:.2f}',
      f'{row.cache_bytes / 1e9:.3f}',
      f'{row.temporary_bytes / 1e9:.2f}',
      f'{row.compile_seconds:.0f}',
    )
    for row in measured.rows
  ]
  return tables.Table(
    header=(
      'shape',
      'parameters',
      'data x model',
      'batch',
      'parameters, GB',
      'caches, GB',
      'temporaries, GB',
      'compile s',
    ),
    rows=tuple(rows),
    notes=(
      f'GB: per device, for {flags["source_length"]} source and '
      f'{flags["target_length"]} target tokens, softmax margin, '
      f'{measured.context.dtype}.',
      'temporaries: those of programs for the CPU, which computes bfloat16 in '
      'float32.',
    ),
  )
