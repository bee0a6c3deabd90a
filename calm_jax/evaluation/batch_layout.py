"""How rows are decoded together, and on which devices of a process."""

import dataclasses

import jax

from calm_jax import checks, decoding, interfaces, quantisation, sharding
from calm_jax.array_types import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLayout:
  """Rows of a batch, and the devices that share them.

  Of several processes each decodes its share of the data by itself, so that no
  host waits for another.

  Attributes:
    batch_size: rows that a process decodes together, 1 or more; shared out over
      its devices.
    model_parallel: devices of a process that share every row, and the
      parameters, 1 or more.
    depth_loop: how the program walks the layers; `default_depth_loop()` if
      None.
    weights: which matrices are in 8 bits, as `decoding.bind` takes it.
  """

  batch_size: int = 32
  model_parallel: int = 1
  depth_loop: interfaces.DepthLoop | None = None
  weights: quantisation.Int8Weights | str | None = None

  def __post_init__(self):
    """Raises ValueError for numbers that are none."""
    checks.check_whole(self.batch_size, 'batch_size', low=1)
    checks.check_whole(self.model_parallel, 'model_parallel', low=1)
    quantisation.as_weights(self.weights)

  def mesh(self) -> jax.sharding.Mesh | None:
    """Returns a mesh of this process's devices; None for a single one."""
    devices = jax.local_devices()
    if len(devices) == 1 and self.model_parallel == 1:
      return None
    return sharding.make_mesh(model=self.model_parallel, devices=devices)

  def bind(
    self, decoder: interfaces.LayeredDecoder, params: PyTree
  ) -> interfaces.BoundDecoder:
    """Returns the decoder bound to its parameters, laid out like this."""
    return decoding.bind(
      decoder,
      params,
      depth_loop=self.depth_loop,
      mesh=self.mesh(),
      weights=self.weights,
    )
