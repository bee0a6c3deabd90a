"""Matrices in 8 bits among arrays that were read from a file, checked.

Values without their scales, or with those of something else, still multiply;
what comes of it means nothing.
"""

from collections.abc import Mapping

import numpy as np

# How the two arrays of an `Int8Matrix` end, where a tree is written by names.
VALUES, SCALES = '/values', '/scales'


def check_stored(where: str, arrays: Mapping[str, np.ndarray]) -> None:
  """Checks that integers are matrices whose scales fit.

  Args:
    where: the file, for messages.
    arrays: all arrays of the file by name, or of its matrices in 8 bits.

  Raises:
    ValueError: naming a matrix without scales, or with scales of another shape
      or dtype, or that are not finite numbers above 0.
  """
  for name, values in arrays.items():
    if values.dtype != np.int8:
      continue
    path = name.removesuffix(VALUES)
    if path == name:
      raise ValueError(
        f'{where}: {name} is int8, and no matrix in 8 bits, whose names end in '
        f'{VALUES}; the file was altered. Write it again'
      )
    if path + SCALES not in arrays:
      raise ValueError(
        f'{where}: the matrix {path} has no scales: {path}{SCALES} is missing; '
        'the file was altered. Write it again'
      )
    _check_scales(f'{where}: the matrix {path}', values, arrays[path + SCALES])


def _check_scales(what: str, values: np.ndarray, scales: np.ndarray) -> None:
  """Raises ValueError unless scales are those of a matrix of such a shape."""
  if scales.dtype != np.float32 or scales.shape != values.shape[:-1]:
    raise ValueError(
      f'{what} has values {list(values.shape)} and scales '
      f'{scales.dtype.name} {list(scales.shape)}, which do not fit each other: '
      f'there is one float32 for each channel, {list(values.shape[:-1])}. '
      'Write the file again'
    )
  wrong = scales[~(np.isfinite(scales) & (scales > 0))]
  if wrong.size:
    raise ValueError(
      f'{what} has {wrong.size} scales that are not finite numbers above 0, '
      f'such as {wrong[0]}: they are no steps between 8-bit integers. Write '
      'the file again'
    )
