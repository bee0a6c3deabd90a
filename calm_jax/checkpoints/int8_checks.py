"""Whether a file of parameters in 8 bits is what it is taken for."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import quantisation
from calm_jax.array_types import PyTree
from calm_jax.checkpoints import agreement, parameter_names
from calm_jax.model.config import T5Config
from calm_jax.model.int8_params import quantise_params
from calm_jax.quantisation import Int8Weights

REMEDY = 'runs.int8_params makes it again'
# What a header says, and how a sentence goes on that names it.
_MADE_FOR = {
  'rule': 'by the rule of rounding',
  'weights': 'for the weights',
  'parameter_fingerprint': 'of the parameters',
}


def describe(weights: Int8Weights, fingerprint: str | None) -> dict[str, Any]:
  """Returns what a file says that it was made of.

  Args:
    weights: which matrices are in 8 bits.
    fingerprint: of the float parameters.
  """
  return {
    'rule': quantisation.RULE_VERSION,
    'weights': weights.describe(),
    'parameter_fingerprint': fingerprint,
  }


def check_made_of(path: str, header: str, wanted: Mapping[str, Any]) -> str:
  """Returns the fingerprint of what a file holds, by its own account.

  Args:
    path: the file, for messages.
    header: what it says, JSON.
    wanted: from `describe`.

  Raises:
    ValueError: if it is of something else, or says nothing.
  """
  try:
    about = json.loads(header)
    for name, what in _MADE_FOR.items():
      if about[name] != wanted[name]:
        raise ValueError(
          f'{path} was made {what} {about[name]}, not {wanted[name]}; {REMEDY}'
        )
    return about['own_fingerprint']
  except (KeyError, TypeError, json.JSONDecodeError) as error:
    raise ValueError(
      f'{path} does not say what it was made of ({error!r}): it is no file of '
      f'parameters in 8 bits; {REMEDY}'
    ) from error


def check_tensors(
  path: str, found: Mapping[str, Any], config: T5Config, weights: Int8Weights
) -> None:
  """Raises ValueError naming what is missing, misshapen or of another kind."""
  expected = _expected(config, weights)
  agreement.check_shapes(dict(found), expected, path, hint=REMEDY)
  for name, tensor in found.items():
    wanted = expected[name].dtype
    if (tensor.dtype == np.int8) != (wanted == np.int8):
      raise ValueError(
        f'{path} holds {name} as {tensor.dtype.name}, not {wanted.name}; '
        f'{REMEDY}'
      )


def _expected(config: T5Config, weights: Int8Weights) -> PyTree:
  """Returns shapes and dtypes of a model in 8 bits, by names."""
  shapes = {
    parameter.name: jax.ShapeDtypeStruct(parameter.shape, jnp.float32)
    for parameter in parameter_names.parameters(config)
  }
  return parameter_names.flattened(
    jax.eval_shape(
      lambda params: quantise_params(config, params, weights),
      parameter_names.nested(shapes),
    )
  )
