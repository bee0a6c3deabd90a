"""How large a gate is, and what it reads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks, model
from calm_jax.array_types import Array

# What a gate may read.
INPUTS = ('state', 'previous', 'logits', 'power', 'layer')


@dataclasses.dataclass(frozen=True)
class GateShape:
  """The size and the inputs of a gate.

  Attributes:
    hidden_units: U of one hidden layer; 0 for a linear gate.
    inputs: of 'state' (after the layer), 'previous' (the state that entered
      it), 'logits' (three features; a check then multiplies by the output
      matrix), 'power' (a fourth one beside them, as JEI-DNN has it) and 'layer'
      (a bias of the hidden units per layer).
    per_layer: whether every exit has weights of its own.
  """

  hidden_units: int = 64
  inputs: tuple[str, ...] = ('state', 'layer')
  per_layer: bool = False

  def __post_init__(self):
    if isinstance(self.inputs, list):
      object.__setattr__(self, 'inputs', tuple(self.inputs))
    checks.check_whole(self.hidden_units, 'hidden_units', low=0)
    if not isinstance(self.inputs, tuple) or any(
      name not in INPUTS for name in self.inputs
    ):
      raise ValueError(
        f'inputs {self.inputs!r} of the gate: give a tuple of {INPUTS}'
      )
    if 'power' in self.inputs and 'logits' not in self.inputs:
      raise ValueError(
        f"inputs {self.inputs!r} of the gate: 'power' is a fourth feature of "
        "logits; add 'logits'"
      )
    if not set(self.inputs) - {'layer'}:
      raise ValueError(
        f'a gate that reads {self.inputs!r} sees nothing of a token; add '
        "'state'"
      )

  def init(self, config: model.T5Config, key: Array) -> dict[str, Array]:
    """Returns the arrays of an `exits.Gate` that answers 1/2 everywhere."""
    exits = config.num_decoder_layers - 1
    own = exits if self.per_layer else 1
    units = max(self.hidden_units, 1)
    sizes = {
      'state': config.embed_dim,
      'previous': config.embed_dim,
      'logits': 4 if 'power' in self.inputs else 3,
    }
    sizes = {name: sizes[name] for name in sizes if name in self.inputs}
    shapes = {name: (own, size, units) for name, size in sizes.items()}
    shapes['layer_bias'] = (exits if 'layer' in self.inputs else 1, units)
    shapes['bias'] = (own,)
    if not self.hidden_units:
      return {name: jnp.zeros(shape) for name, shape in shapes.items()}
    # Hidden units differ from the start; what they are worth begins at 0.
    arrays = {'out': jnp.zeros((own, units))}
    scale = 1.0 / np.sqrt(sum(sizes.values()))
    for number, (name, shape) in enumerate(shapes.items()):
      draw = jax.random.normal(jax.random.fold_in(key, number), shape)
      arrays[name] = scale * draw if name in sizes else jnp.zeros(shape)
    return arrays
