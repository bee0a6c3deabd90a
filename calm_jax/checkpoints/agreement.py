"""Whether a checkpoint fits what the caller has: errors name the difference.

The three things that can differ are the shapes of parameters, the configuration
of the model and the vocabulary that token ids belong to.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from calm_jax.array_types import PyTree
from calm_jax.model.config import T5Config


def _flat(tree: PyTree) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def check_shapes(found, expected, path: str, hint: str = '') -> None:
  """Raises ValueError naming parameters that are missing or misshapen."""
  found = {name: tuple(leaf.shape) for name, leaf in _flat(found).items()}
  expected = {name: tuple(leaf.shape) for name, leaf in _flat(expected).items()}
  wrong = [
    f'{name}: expected {expected.get(name, "nothing")}, '
    f'found {found.get(name, "nothing")}'
    for name in sorted(found.keys() | expected.keys())
    if found.get(name) != expected.get(name)
  ]
  if wrong:
    more = f' (and {len(wrong) - 5} more)' if len(wrong) > 5 else ''
    raise ValueError(
      f'{path} does not fit the model: {"; ".join(wrong[:5])}{more}. '
      f'{hint or "Load it with the configuration it was saved with."}'
    )


def check_depth(path: str, config: T5Config, num_tensors: int) -> None:
  """Raises ValueError if a model has more layers than there are tensors.

  Looked at first, as the names of a billion layers would fill the memory.
  """
  layers = config.num_encoder_layers + config.num_decoder_layers
  if layers > num_tensors:
    raise ValueError(
      f'{path} does not fit the model: it is said to have {layers} layers, and '
      f'holds {num_tensors} tensors. The files were altered; get them again'
    )


def things_of_shapes(
  shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns what `check_shapes` takes, for shapes by name."""
  return {
    name: jax.ShapeDtypeStruct(shape, np.float32)
    for name, shape in shapes.items()
  }


# Fields that may change without touching a parameter.
_FREE_FIELDS = ('dropout_rate', 'dtype')


def check_config(path: str, saved: T5Config, wanted: T5Config) -> None:
  """Raises ValueError, naming the fields, if a checkpoint has another shape."""
  different = [
    f'{field.name}: expected {getattr(wanted, field.name)!r}, found '
    f'{getattr(saved, field.name)!r}'
    for field in dataclasses.fields(T5Config)
    if field.name not in _FREE_FIELDS
    and getattr(saved, field.name) != getattr(wanted, field.name)
  ]
  if different:
    raise ValueError(
      f'{path} holds another model: {"; ".join(different)}. Take the saved '
      'configuration, or another directory.'
    )


def check_vocabulary(path, metadata, expected: str | None) -> None:
  """Raises ValueError if a checkpoint was trained with another vocabulary."""
  context = metadata.get('context', {})
  found = context.get('vocabulary_fingerprint')
  if expected is None or found == expected:
    return
  raise ValueError(
    f'{path} was trained with the vocabulary '
    f'{context.get("vocabulary_file", "(file not recorded)")} of fingerprint '
    f'{found}, the one in use has {expected}: token ids would mean other '
    "things. Use the checkpoint's vocabulary file."
  )
