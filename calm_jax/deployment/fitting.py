"""Whether the parameters beside a program are those that it takes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.export

from calm_jax import quantisation
from calm_jax.checkpoints.stored_tensors import StoredTensor

_REMEDY = 'the files are not of one artifact: export again'


def check_parameters(
  path: str,
  tensors: Mapping[str, StoredTensor],
  exported: jax.export.Exported,
  weights: Any,
) -> None:
  """Checks names, shapes and dtypes, and the scales of matrices in 8 bits.

  Args:
    path: the file of parameters, for messages.
    tensors: what it holds.
    exported: the program.
    weights: what the manifest says of them.

  Raises:
    ValueError: naming what the program takes and what is there.
  """
  (wanted, _), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
  wrong = [
    f'{name}: the program takes {_written(wanted.get(name))}, the file holds '
    f'{_written(tensors.get(name))}'
    for name in sorted(wanted.keys() | tensors.keys())
    if _written(wanted.get(name)) != _written(tensors.get(name))
  ]
  if wrong:
    more = f' (and {len(wrong) - 5} more)' if len(wrong) > 5 else ''
    raise ValueError(f'{path}: {"; ".join(wrong[:5])}{more}; {_REMEDY}')
  integers = {n: t for n, t in tensors.items() if t.dtype.name == 'int8'}
  if bool(integers) != (quantisation.as_weights(weights) is not None):
    raise ValueError(
      f'{path} holds {len(integers)} matrices in 8 bits, and its manifest says '
      f'of its weights {weights!r}; {_REMEDY}'
    )
  _check_matrices(path, integers, tensors)


def _check_matrices(
  path: str,
  integers: Mapping[str, StoredTensor],
  tensors: Mapping[str, StoredTensor],
) -> None:
  """Checks scales, one matrix in memory at a time."""
  for name, tensor in integers.items():
    scales = name.removesuffix(quantisation.VALUES) + quantisation.SCALES
    arrays = {name: tensor.read()}
    if scales in tensors:
      arrays[scales] = tensors[scales].read()
    quantisation.check_stored(path, arrays)


def _written(array: Any) -> str:
  """Returns dtype and shape of an array, as messages say them."""
  if array is None:
    return 'nothing'
  return f'{array.dtype.name} {list(array.shape)}'
