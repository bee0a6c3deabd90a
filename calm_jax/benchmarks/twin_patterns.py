"""Patterns of feed-forwards: which block runs in each layer, and what it costs.

None, the layer's own, its small twin (`decoding.ChosenFeedForward.choices`).
NumPy only.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from calm_jax import checks

Pattern = tuple[int, ...]
OPTIONS = (0, 1, 2)
# All patterns of so many layers are tried; of more some are drawn.
EXHAUSTIVE_LAYERS = 6


def patterns_of(num_layers: int, *, count: int, seed: int = 0) -> list[Pattern]:
  """Returns all patterns of up to 6 layers; of more, drawn ones.

  Those with the same option in all layers are always among them.

  Args:
    num_layers: L.
    count: how many, where they are drawn.
    seed: of the draw.

  >>> len(patterns_of(3, count=3)), len(patterns_of(9, count=50))
  (27, 50)
  """
  checks.check_whole(num_layers, 'num_layers', low=1)
  checks.check_whole(count, 'the number of patterns', low=len(OPTIONS))
  if num_layers <= EXHAUSTIVE_LAYERS:
    return list(itertools.product(OPTIONS, repeat=num_layers))
  rng = np.random.default_rng(seed)
  found: set[Pattern] = {(option,) * num_layers for option in OPTIONS}
  while len(found) < min(count, len(OPTIONS) ** num_layers):
    # Shares of options of its own, so that budgets far from the mean have some.
    shares = rng.dirichlet(np.ones(len(OPTIONS)))
    drawn = rng.choice(len(OPTIONS), num_layers, p=shares)
    found.add(tuple(drawn.tolist()))
  return sorted(found)


def costs_of(
  patterns: Sequence[Pattern], *, own_units: int, twin_units: int
) -> tuple[np.ndarray, int]:
  """Returns what patterns cost, whole [R], and what an own block costs.

  In hidden units over the greatest common divisor of both kinds of blocks.

  >>> costs_of([(0, 0), (1, 2)], own_units=64, twin_units=16)
  (array([0, 5]), 4)
  """
  divisor = math.gcd(own_units, twin_units)
  of_option = np.array([0, own_units, twin_units]) // divisor
  return of_option[np.array(patterns)].sum(axis=1), own_units // divisor
