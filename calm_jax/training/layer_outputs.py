"""The model's own decoder pass, with what its layers give replaced.

The model knows nothing of it, and its parameters stay where they are.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.model import layers
from calm_jax.training import forward

# From a layer, the states [B, T, D] that enter it, those behind its attention
# and those that it gives, to those that it is to give. K/V are of what enters.
Replace = Callable[[int, Array, Array, Array], Array]


def replaced_states(
  config: model.T5Config,
  params: Params,
  batch: Mapping[str, Any],
  replace: Replace,
) -> Array:
  """Returns the states after every decoder layer, [L, B, T, D], replaced.

  Args:
    config: the model.
    params: its parameters.
    batch: a batch with T5X's keys, packed or not.
    replace: called once for each layer, in their order.
  """
  entering = {}

  def intercept(run, args, kwargs, context):
    if not isinstance(context.module, layers.DecoderLayer):
      return run(*args, **kwargs)
    layer = int(context.module.name.removeprefix('layers_'))
    if context.method_name == 'attend':
      entering[layer] = args[0]
    if context.method_name != 'feed_forward':
      return run(*args, **kwargs)
    given = run(*args, **kwargs)
    return replace(layer, entering.pop(layer), args[0], given)

  with nn.intercept_methods(intercept):
    return forward.batch_states(config, params, batch)
