"""Weights in fewer bits: what they are and how states are multiplied by them.

See README.md of this folder.
"""

from calm_jax.quantisation.int8_matrices import (
  RULE_VERSION,
  Int8Matrix,
  has_int8_products,
  join_matrices,
  quantise,
  rounded,
)
from calm_jax.quantisation.plans import (
  Int8Weights,
  as_weights,
  describe_weights,
  is_quantised,
)
from calm_jax.quantisation.stored_matrices import SCALES, VALUES, check_stored

__all__ = [
  'RULE_VERSION',
  'SCALES',
  'VALUES',
  'Int8Matrix',
  'Int8Weights',
  'as_weights',
  'check_stored',
  'describe_weights',
  'has_int8_products',
  'is_quantised',
  'join_matrices',
  'quantise',
  'rounded',
]
