"""Routes: which decoder layers run, the same ones for every token of an output.

A route is the tuple of their indices, rising. Three families of them for each
number of layers: the first n (early exit), n that lie evenly between the first
and the last (Unified Layer Skipping, arXiv 2404.06954, but rounded, since its
whole steps leave the layers side by side at mild ratios), and random ones.
"""

import math
from collections.abc import Iterable

import numpy as np

from calm_jax import checks

Route = tuple[int, ...]


def early_exit(number: int) -> Route:
  """Returns the first n layers.

  >>> early_exit(3)
  (0, 1, 2)
  """
  return tuple(range(number))


def uniform(number: int, num_layers: int) -> Route:
  """Returns n of L layers, as evenly as they can lie.

  >>> uniform(3, 8), uniform(7, 8)
  ((0, 4, 7), (0, 1, 2, 4, 5, 6, 7))
  """
  # Rounded up from halves: NumPy's rounding to even ones is not symmetric.
  places = np.floor(np.linspace(0, num_layers - 1, number) + 0.5)
  return tuple(int(place) for place in places)


def random_routes(
  number: int, num_layers: int, *, count: int, seed: int = 0
) -> list[Route]:
  """Draws routes of n of L layers, all of them if there are no more.

  Args:
    number: n.
    num_layers: L.
    count: how many, no two alike.
    seed: of the draw; each n has one of its own.

  Returns:
    Routes in rising order.
  """
  possible = math.comb(num_layers, number)
  rng = np.random.default_rng([seed, number])
  found: set[Route] = set()
  while len(found) < min(count, possible):
    drawn = rng.choice(num_layers, number, replace=False)
    found.add(tuple(sorted(drawn.tolist())))
  return sorted(found)


def all_families(
  num_layers: int, *, depths: Iterable[int], count: int, seed: int = 0
) -> list[Route]:
  """Returns the routes of all families, each once; the full model's is last.

  Args:
    num_layers: L.
    depths: numbers of layers, 1..L.
    count: random routes per number.
    seed: of them.

  Raises:
    ValueError: for a number of layers that there is not.
  """
  found: set[Route] = {early_exit(num_layers)}
  for number in depths:
    checks.check_whole(number, 'depth', low=1, high=num_layers)
    found |= {early_exit(number), uniform(number, num_layers)}
    found |= set(random_routes(number, num_layers, count=count, seed=seed))
  return sorted(found, key=lambda route: (len(route), route))
