"""What training would hold on each device; see `sharding.memory`."""

import jax

from calm_jax import model
from calm_jax.sharding import memory
from calm_jax.training import parameter_table, placement
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.step import init_train_state


def describe_training(
  config: model.T5Config,
  optimizer: Optimizer,
  *,
  mesh: jax.sharding.Mesh | None,
  partitioning: str,
  batch_size: int,
) -> str:
  """Returns the mesh, the table of parameters and the memory of training.

  Args:
    config: the model.
    optimizer: the optimizer.
    mesh: as for `training.train`.
    partitioning: as for `training.train`.
    batch_size: rows of a batch of all processes together.

  Raises:
    ValueError: for what `training.train` would refuse, and for a batch that
      the devices cannot share.
  """
  place = (
    placement.OneDevice()
    if mesh is None
    else placement.OnMesh(mesh, partitioning)
  )
  rows = memory.rows_per_device(batch_size, mesh)
  state = place.shapes(
    lambda params: init_train_state(config, optimizer, params=params),
    None,
  )
  params = memory.bytes_per_device(state.params)
  parts = {
    'parameters': params,
    'optimizer state': memory.bytes_per_device(state.opt_state),
    # Frozen ones have none: at most.
    'gradients': params,
  }
  return '\n'.join(
    [
      memory.describe_mesh(mesh),
      parameter_table.parameter_table(state.params, place),
      memory.describe_memory(parts),
      f'activations of {rows} rows per device come on top',
    ]
  )
