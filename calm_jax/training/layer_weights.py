"""How much each exit counts in the loss.

The paper's weights grow linearly with depth (Eq. 6). They are a choice: early
exits that count much can cost the last layer quality, so others are here too.
"""

from collections.abc import Callable, Sequence

import numpy as np

from calm_jax import checks

# From the number of decoder layers to one weight per layer.
LayerWeightsFn = Callable[[int], Sequence[float]]


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


def quadratic_weights(num_layers: int) -> tuple[float, ...]:
  """Returns weights that grow with the square of the depth and sum to 1.

  Between the paper's linear weights and last-layer training.

  >>> [round(weight * 30) for weight in quadratic_weights(4)]
  [1, 4, 9, 16]
  """
  _check_num_layers(num_layers)
  total = sum(layer**2 for layer in range(1, num_layers + 1))
  return tuple(layer**2 / total for layer in range(1, num_layers + 1))


def last_heavy_weights(share: float = 0.5) -> LayerWeightsFn:
  """Returns a builder of weights of which the last layer has a fixed share.

  The other layers divide the rest among them in proportion to their depth. A
  single layer has everything.

  Args:
    share: of the last layer, in (0, 1]; 1 is an ordinary model.

  Raises:
    ValueError: if the share lies outside its range.

  >>> last_heavy_weights(0.25)(3)
  (0.25, 0.5, 0.25)
  """
  if isinstance(share, bool) or not (
    isinstance(share, (int, float)) and 0 < share <= 1
  ):
    raise ValueError(
      f'share of the last layer must be a number in (0, 1], got {share!r}'
    )

  def weights(num_layers: int) -> tuple[float, ...]:
    _check_num_layers(num_layers)
    if num_layers == 1:
      return (1.0,)
    total = num_layers * (num_layers - 1) // 2
    others = ((1 - share) * layer / total for layer in range(1, num_layers))
    return (*others, float(share))

  return weights


def layer_skip_weights(scale: float = 0.1) -> LayerWeightsFn:
  """Returns a builder of LayerSkip's weights, which sum to 1.

  Counted from 0, layer l has e(l) = scale (0 + 1 + ... + l), and the last one
  L-1 more than scale (0 + 1 + ... + L-2): it dominates, for scales well below
  1. The first layer has none, and must not be decoded from.

  Source: arXiv 2404.16710, its early-exit loss.

  Args:
    scale: of the exits below the last, at least 0.

  Raises:
    ValueError: if the scale lies outside its range.

  >>> [round(weight, 3) for weight in layer_skip_weights(0.2)(4)]
  [0.0, 0.045, 0.136, 0.818]
  """
  if isinstance(scale, bool) or not (
    isinstance(scale, (int, float)) and 0 <= scale < np.inf
  ):
    raise ValueError(f'scale must be a finite number >= 0, got {scale!r}')

  def weights(num_layers: int) -> tuple[float, ...]:
    _check_num_layers(num_layers)
    if num_layers == 1:
      return (1.0,)
    sums = [scale * layer * (layer + 1) / 2 for layer in range(num_layers - 1)]
    raw = [*sums, num_layers - 1 + sums[-1]]
    return tuple(weight / sum(raw) for weight in raw)

  return weights


def subset_weights(
  exit_layers: Sequence[int], base: LayerWeightsFn = linear_weights
) -> LayerWeightsFn:
  """Returns a builder of weights for some exits only, rescaled to sum to 1.

  The other exits are left out of the training program; do not decode from them.

  Args:
    exit_layers: which layers have an exit, counted from 1, the last layer among
      them.
    base: weights of all layers, of which those of the chosen ones are taken.

  Raises:
    ValueError: if `exit_layers` is empty, repeats a layer or holds something
      that is no layer number; when called with a number of layers, if a layer
      lies beyond it, the last one is missing or the chosen weights are zero.

  >>> subset_weights([2, 4], uniform_weights)(4)
  (0.0, 0.5, 0.0, 0.5)
  """
  chosen = _check_exit_layers(exit_layers)

  def weights(num_layers: int) -> tuple[float, ...]:
    _check_num_layers(num_layers)
    if max(chosen) > num_layers:
      raise ValueError(
        f'exit_layers {chosen} go beyond the {num_layers} layers of the decoder'
      )
    if num_layers not in chosen:
      raise ValueError(
        f'exit_layers {chosen} lack the last layer, {num_layers}: every token '
        'that no other exit takes is decoded there, so it must be trained'
      )
    taken = [
      weight if layer in chosen else 0.0
      for layer, weight in enumerate(base(num_layers), start=1)
    ]
    if not sum(taken) > 0:
      raise ValueError(f'base gives no weight to any of exit_layers {chosen}')
    return tuple(weight / sum(taken) for weight in taken)

  return weights


def _check_exit_layers(exit_layers: Sequence[int]) -> tuple[int, ...]:
  if isinstance(exit_layers, str) or not isinstance(exit_layers, Sequence):
    raise ValueError(
      f'exit_layers must be a list such as [4, 8, 12], got {exit_layers!r}'
    )
  chosen = tuple(exit_layers)
  for layer in chosen:
    checks.check_whole(layer, f'in exit_layers {chosen}:', low=1)
  if not chosen or len(set(chosen)) < len(chosen):
    raise ValueError(
      f'exit_layers must name at least one layer, each once, got {chosen}'
    )
  return chosen


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
      f'layer_weights needs one weight per layer ({num_layers}), got '
      f'{len(weights)}: {weights}'
    )
  if not all(np.isfinite(weight) and weight >= 0 for weight in weights):
    raise ValueError(f'layer_weights must be finite and >= 0, got {weights}')
  if not any(weights):
    raise ValueError('layer_weights are all zero: nothing would be trained')
  return weights
