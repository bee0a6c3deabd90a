"""How much each exit counts in the loss.

The paper's weights grow linearly with depth (Eq. 6). They are a choice: early
exits that count much can cost the last layer quality, so others are here too.
"""

from collections.abc import Sequence

import numpy as np


def linear_weights(num_layers: int) -> tuple[float, ...]:
  """Returns the paper's weights, w_i = i / (1 + ... + L).

  Source: Schuster et al., arXiv 2207.07061, Eq. 6.

  >>> linear_weights(4)
  (0.1, 0.2, 0.3, 0.4)
  """
  _check_num_layers(num_layers)
  total = num_layers * (num_layers + 1) // 2
  return tuple(layer / total for layer in range(1, num_layers + 1))


def uniform_weights(num_layers: int) -> tuple[float, ...]:
  """Returns equal weights that sum to 1 (a deeply supervised model)."""
  _check_num_layers(num_layers)
  return (1.0 / num_layers,) * num_layers


def last_layer_weights(num_layers: int) -> tuple[float, ...]:
  """Returns weights of an ordinary model: everything on the last layer."""
  _check_num_layers(num_layers)
  return (0.0,) * (num_layers - 1) + (1.0,)


def _check_num_layers(num_layers: int) -> None:
  if num_layers < 1:
    raise ValueError(f'num_layers must be at least 1, got {num_layers!r}')


def check_layer_weights(
  weights: Sequence[float], num_layers: int
) -> tuple[float, ...]:
  """Returns the weights as floats.

  Raises:
    ValueError: if there is not one finite, non-negative weight per layer, or if
      all are zero.
  """
  weights = tuple(float(weight) for weight in weights)
  if len(weights) != num_layers:
    raise ValueError(
      f'layer_weights needs one weight per decoder layer ({num_layers}), got '
      f'{len(weights)}: {weights}'
    )
  if not all(np.isfinite(weight) and weight >= 0 for weight in weights):
    raise ValueError(f'layer_weights must be finite and >= 0, got {weights}')
  if not any(weights):
    raise ValueError('layer_weights are all zero: nothing would be trained')
  return weights
