"""A model of some of another's decoder layers, with the same parameters.

Every layer of the decoder hands the residual stream on, and the table of
relative positions, the final norm and the output matrix belong to all of them,
so that any of them make a model: the first n one that always leaves after layer
n, others one that skips the rest. What the smaller model computes is what the
larger one does where the same layers run for every token
(`decode_with_layer_mask`); keys and values of the others are never read then.
"""

import dataclasses
import numbers
from collections.abc import Sequence

import numpy as np

from calm_jax import checks
from calm_jax.array_types import Params
from calm_jax.model.config import T5Config
from calm_jax.model.decode_params import DecodeParams

_PREFIX = 'layers_'


def truncate(
  config: T5Config, params: Params, layers: int | Sequence[int]
) -> tuple[T5Config, Params]:
  """Returns the model of some decoder layers; no array is copied.

  Args:
    config: the model's shape.
    params: its parameters, T5X's names; those of all layers of `config`.
    layers: n, 1..L, keeps the first n. A sequence keeps the layers of these
      indices, 0..L-1, in rising order, each once; they are numbered anew.

  Returns:
    The shape of the smaller model and its parameters, whose leaves are those
    that were given. With all layers, that is the same model.

  Raises:
    ValueError: for layers that there are not, that repeat or are out of order,
      for none, or for parameters that lack some.
    TypeError: for what is neither a number nor indices, or for parameters that
      were laid out for decoding.
  """
  if isinstance(params, DecodeParams):
    raise TypeError(
      'these parameters were laid out for decoding (prepare, decoding.bind); '
      'truncate the original tree, then bind that'
    )
  kept = _kept(layers, config.num_decoder_layers)
  if 'decoder' not in params:
    raise ValueError(
      f'the parameters have {", ".join(sorted(params))} and no decoder; give '
      "all of the model's"
    )
  decoder = dict(params['decoder'])
  found = sorted(
    (name for name in decoder if name.startswith(_PREFIX)), key=_index
  )
  if [_index(name) for name in found] != [*range(config.num_decoder_layers)]:
    raise ValueError(
      f'the parameters have the decoder layers {found}, the configuration says '
      f'there are {config.num_decoder_layers}; give those that go together'
    )
  every = {name: decoder.pop(name) for name in found}
  decoder |= {
    f'{_PREFIX}{place}': every[f'{_PREFIX}{layer}']
    for place, layer in enumerate(kept)
  }
  return (
    dataclasses.replace(config, num_decoder_layers=len(kept)),
    {**params, 'decoder': decoder},
  )


def _index(name: str) -> int:
  return int(name.removeprefix(_PREFIX))


def _kept(layers: int | Sequence[int], num_layers: int) -> list[int]:
  """Returns the indices of the layers that stay, checked."""
  if getattr(layers, 'ndim', None) == 0:
    layers = np.asarray(layers)[()]
  if isinstance(layers, (numbers.Number, np.bool_)):
    checks.check_whole(layers, 'layers', low=1, high=num_layers)
    return list(range(int(layers)))
  if isinstance(layers, str) or not hasattr(layers, '__iter__'):
    raise TypeError(
      f'layers is {layers!r}; give how many of the first, or their indices'
    )
  kept = list(layers)
  if not kept:
    raise ValueError('layers is empty; a decoder has at least one layer')
  if any(isinstance(layer, (bool, np.bool_)) for layer in kept):
    raise ValueError(
      f'layers is a mask, {kept}; give the indices of those that stay, '
      'np.flatnonzero(mask)'
    )
  for layer in kept:
    checks.check_whole(layer, 'layer', low=0, high=num_layers - 1)
  if sorted(set(kept)) != kept:
    raise ValueError(
      f'layers {[int(layer) for layer in kept]} must rise, each named once: '
      f'give {sorted({int(layer) for layer in kept})}'
    )
  return [int(layer) for layer in kept]
