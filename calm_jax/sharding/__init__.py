"""How arrays lie on several devices: one mesh, one table of logical axes.

Compilation does the rest: a step that gets sharded arguments under
`jax.set_mesh` is partitioned by XLA, and a decode runs under `map_rows`, each
part of the mesh by itself.
"""

from calm_jax.sharding.inside_jit import map_rows, share_heads, share_rows
from calm_jax.sharding.layout import place_params, put, shard_batch
from calm_jax.sharding.logical_axes import (
  LOGICAL_AXES,
  RULES,
  logical_axes,
  param_shardings,
  partition_spec,
  path_name,
  replicated,
  rules_of,
  state_shardings,
  undivided,
)
from calm_jax.sharding.mesh import DATA, MODEL, is_row_mesh, make_mesh

__all__ = [
  'DATA',
  'LOGICAL_AXES',
  'MODEL',
  'RULES',
  'is_row_mesh',
  'logical_axes',
  'make_mesh',
  'map_rows',
  'param_shardings',
  'partition_spec',
  'path_name',
  'place_params',
  'put',
  'replicated',
  'rules_of',
  'shard_batch',
  'share_heads',
  'share_rows',
  'state_shardings',
  'undivided',
]
