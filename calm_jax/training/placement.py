"""Where the training state and the batches lie: on one device, or on a mesh.

A placement makes the state, describes it for restoring, lays out batches and
adapts the step. With a mesh the state is sharded from its first moment: no
device, and no host, ever holds all of it when its parameters are sharded.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax import sharding
from calm_jax.array_types import Params, PyTree
from calm_jax.training.state import TrainState

# From given parameters, or None for fresh ones, to the state at step 0.
MakeState = Callable[[Params | None], TrainState]


class OneDevice:
  """Everything lies on the default device."""

  strategy = None

  def __init__(self):
    if jax.process_count() > 1:
      raise ValueError(
        f'{jax.process_count()} processes train together only over a mesh: '
        'pass mesh=sharding.make_mesh()'
      )
    (self._device,) = jnp.zeros(()).devices()

  def scope(self) -> contextlib.AbstractContextManager:
    """Returns the context in which the run takes place."""
    return contextlib.nullcontext()

  def create(self, make_state: MakeState, params: Params | None) -> TrainState:
    """Returns the state at step 0.

    All of it is committed to the device, as what a step returns of parameters
    that were read from a file is: else the second step would be compiled again.
    """
    return jax.device_put(make_state(params), self._device)

  def shapes(self, make_state: MakeState, params: Params | None) -> TrainState:
    """Returns the state's shapes, with shardings where there are any."""
    return jax.eval_shape(make_state, params)

  def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Lays out a batch."""
    return batch

  def constants(self, tree: PyTree) -> PyTree:
    """Lays out parameters that steps only read; None stays None."""
    return jax.tree.map(jnp.asarray, tree)

  def step(self, train_step, state: TrainState):
    """Returns the step for states like this one."""
    del state
    return train_step

  def description(self) -> dict[str, Any]:
    """Returns what the log says about it."""
    return {'num_devices': 1}


class OnMesh:
  """Rows are shared over 'data', parameters lie as the strategy says."""

  def __init__(self, mesh: jax.sharding.Mesh, strategy: str):
    """Checks the arguments; they are those of `train`."""
    sharding.rules_of(strategy)
    if not sharding.is_row_mesh(mesh):
      raise ValueError(
        f'mesh must come from sharding.make_mesh, got {mesh!r}: the axes are '
        'data and model, of type Auto'
      )
    if mesh.shape[sharding.DATA] % jax.process_count():
      raise ValueError(
        f'the mesh axis data has size {mesh.shape[sharding.DATA]}, which '
        f'{jax.process_count()} processes cannot share: rows that belong to '
        'several processes would differ between them; make the axis model '
        'smaller'
      )
    self.mesh = mesh
    self.strategy = strategy

  def scope(self) -> contextlib.AbstractContextManager:
    """As for `OneDevice`."""
    return jax.set_mesh(self.mesh)

  def create(self, make_state: MakeState, params: Params | None) -> TrainState:
    """As for `OneDevice`; every device computes its own part."""
    shardings = self._shardings(jax.eval_shape(make_state, params))
    if params is not None:
      params = sharding.put(params, shardings.params)
    return jax.jit(make_state, out_shardings=shardings)(params)

  def shapes(self, make_state: MakeState, params: Params | None) -> TrainState:
    """As for `OneDevice`."""
    shapes = jax.eval_shape(make_state, params)
    return jax.tree.map(
      lambda leaf, where: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=where
      ),
      shapes,
      self._shardings(shapes),
    )

  def batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """As for `OneDevice`; every process gives its own rows."""
    return sharding.shard_batch(batch, self.mesh)

  def constants(self, tree: PyTree) -> PyTree:
    """As for `OneDevice`; they lie as parameters do."""
    return sharding.put(
      tree, sharding.param_shardings(tree, self.mesh, self.strategy)
    )

  def step(self, train_step, state: TrainState):
    """As for `OneDevice`; what the step returns lies as what it was given."""
    return jax.jit(
      train_step,
      donate_argnums=0,
      out_shardings=(
        self._shardings(state),
        sharding.replicated(self.mesh),
      ),
    )

  def description(self) -> dict[str, Any]:
    """As for `OneDevice`."""
    return {
      'num_devices': self.mesh.size,
      'num_processes': jax.process_count(),
      'mesh': dict(self.mesh.shape),
      'partitioning': self.strategy,
    }

  def _shardings(self, state: TrainState) -> TrainState:
    return sharding.state_shardings(
      state, state.params, self.mesh, self.strategy
    )


Placement = OneDevice | OnMesh
