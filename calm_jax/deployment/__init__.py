"""Decoders that leave the library: one program for cpu, cuda and tpu.

`export_artifact` writes a directory that holds a `jax.export` program of any
batch size, its parameters and a manifest; `load_artifact` reads it back as an
`ExportedDecoder`, on a machine that needs neither the model's code nor its
configuration. Any `LayeredDecoder` can be exported.
"""

from calm_jax.deployment.artifacts import (
  check_free,
  export_artifact,
  load_artifact,
)
from calm_jax.deployment.comparison import Comparison, compare_with_decoder
from calm_jax.deployment.exported_decoder import ExportedDecoder
from calm_jax.deployment.program_plans import ProgramPlan, describe_program
from calm_jax.deployment.programs import (
  PLATFORMS,
  ProgramSpec,
  lower_decoder,
  named_leaves,
)

__all__ = [
  'PLATFORMS',
  'Comparison',
  'ExportedDecoder',
  'ProgramPlan',
  'ProgramSpec',
  'check_free',
  'compare_with_decoder',
  'describe_program',
  'export_artifact',
  'load_artifact',
  'lower_decoder',
  'named_leaves',
]
