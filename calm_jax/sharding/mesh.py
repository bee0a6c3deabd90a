"""The mesh: the axes 'data', for rows, and 'model', for parameters."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from calm_jax import checks

DATA, MODEL = 'data', 'model'


def make_mesh(
  *,
  data: int | None = None,
  model: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh of the axes 'data' and 'model', for `jax.set_mesh`.

  Args:
    data: devices that share the rows of a batch; None for all that are left.
    model: devices that share every row, each holding a part of the heads, of
      the feed-forward layer and of the vocabulary.
    devices: which ones; all devices of all processes by default.

  Raises:
    ValueError: if data x model is not the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  for name, size in (('data', data), ('model', model)):
    if size is not None or name == 'model':
      checks.check_whole(size, name, low=1)
  if data is None:
    data = max(len(devices) // model, 1)
  if data * model != len(devices):
    raise ValueError(
      f'a mesh of data={data} x model={model} wants {data * model} devices, '
      f'and there are {len(devices)}: choose sizes whose product is '
      f'{len(devices)}, or pass the devices to use'
    )
  # Auto: XLA chooses the layout of everything that is not said here.
  return jax.make_mesh(
    (data, model),
    (DATA, MODEL),
    axis_types=(AxisType.Auto,) * 2,
    devices=devices,
  )


def is_row_mesh(mesh: Any) -> bool:
  """Whether this is a mesh of `make_mesh`."""
  return (
    isinstance(mesh, Mesh)
    and mesh.axis_names == (DATA, MODEL)
    and all(kind == AxisType.Auto for kind in mesh.axis_types)
  )
