"""What a search for delaying inputs tries next: at random, or by gradients.

`RandomSearch` sees what a client sees, outputs and what they took.
`GradientGuided` is SAME (arXiv 2305.12228): it knows the model, and tries the
replacements by which, to first order, exits disagree most and are least sure.
Both change tokens one by one, within the same `delaying_edits.Edits`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from calm_jax import checks
from calm_jax.evaluation.delaying_edits import Edits

Sources = list[np.ndarray]


@dataclasses.dataclass(eq=False)
class Climb:
  """How far the search from one real input has come.

  Attributes:
    real: int [S], the input that it started from.
    best: int [S], the dearest one found so far.
    cost: what that costs.
    tokens: int32 [T], its output.
    exit_layers: int32 [T], where the output's tokens left, -1 behind its end.
    tried: what variants were made of this input, as bytes.
  """

  real: np.ndarray
  best: np.ndarray = dataclasses.field(init=False)
  cost: float = -np.inf
  tokens: np.ndarray | None = None
  exit_layers: np.ndarray | None = None
  tried: set[bytes] = dataclasses.field(default_factory=set)

  def __post_init__(self):
    """Starts at the real input."""
    self.best = self.real

  def offer(
    self,
    found: np.ndarray,
    cost: float,
    *,
    tokens: np.ndarray,
    exit_layers: np.ndarray,
  ) -> None:
    """Goes on from an input if it is dearer.

    Args:
      found: int [S].
      cost: what it costs.
      tokens: int32 [T], its output.
      exit_layers: int32 [T].
    """
    if cost > self.cost:
      self.best, self.cost = found, cost
      self.tokens, self.exit_layers = tokens, exit_layers


class Search(Protocol):
  """Proposes variants of inputs."""

  @property
  def evaluations(self) -> int:
    """What it computes for each input and round, counted in decodes."""
    ...

  def variants(
    self, climbs: Sequence[Climb], number: int, rng: np.random.Generator
  ) -> list[Sources]:
    """Returns so many variants of every input's best.

    Args:
      climbs: how far each input has come.
      number: how many variants of each are tried, at least 1.
      rng: for what is drawn.
    """
    ...


@dataclasses.dataclass(frozen=True)
class RandomSearch:
  """Replaces a token at a place and by a token that are drawn evenly.

  Attributes:
    edits: what may be replaced by what.
  """

  edits: Edits
  evaluations: int = dataclasses.field(default=0, init=False)

  def variants(
    self, climbs: Sequence[Climb], number: int, rng: np.random.Generator
  ) -> list[Sources]:
    """Returns so many variants of every input's best, the input if no other.

    Args:
      climbs: how far each input has come.
      number: how many variants of each.
      rng: for the draws.
    """
    return [
      [self._replace_one(climb, rng) for _ in range(number)] for climb in climbs
    ]

  def _replace_one(self, climb: Climb, rng) -> np.ndarray:
    """Returns a copy of the best with another token somewhere."""
    changed = climb.best.copy()
    places = self.edits.places(climb.real, climb.best)
    if len(places):
      place = places[rng.integers(len(places))]
      choices = self.edits.choices(climb.real[place])
      changed[place] = choices[rng.integers(len(choices))]
    return changed


# From what climbs have found to the gradients of a loss that falls as exits are
# delayed, by the embedded tokens of each input's best, float [S, D].
Gradients = Callable[[Sequence[Climb]], Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class GradientGuided:
  """Tries the replacements by which a loss falls most, to first order.

  Of token x at a place whose embedding has gradient g, replaced by token v the
  loss changes by g . (e_v - e_x). What was tried before is not tried again, so
  that after a round without success the next best follow.

  Attributes:
    edits: what may be replaced by what.
    gradients: of the loss, such as `delay_gradients.TokenExitGradients`.
    table: float [V, D], how tokens are embedded.
    evaluations: what a gradient counts as, in decodes. A forward and a backward
      pass take the arithmetic of about three forward passes.
  """

  edits: Edits
  gradients: Gradients
  table: np.ndarray
  evaluations: int = 3

  def __post_init__(self):
    """Raises ValueError for a bad number of evaluations."""
    checks.check_whole(self.evaluations, 'evaluations', low=0)

  def variants(
    self, climbs: Sequence[Climb], number: int, rng: np.random.Generator
  ) -> list[Sources]:
    """Returns so many variants of every input's best, the input if no other.

    Args:
      climbs: how far each input has come.
      number: how many variants of each.
      rng: not used: nothing is drawn.
    """
    del rng
    return [
      self._steepest(climb, slopes, number)
      for climb, slopes in zip(climbs, self.gradients(climbs), strict=True)
    ]

  def _steepest(self, climb: Climb, slopes, number: int) -> Sources:
    """Returns the variants of one input by which the loss falls most."""
    falls: list[np.ndarray] = []
    changes: list[np.ndarray] = []
    losses = self.table @ slopes.T
    for place in self.edits.places(climb.real, climb.best):
      choices = self.edits.choices(climb.real[place])
      falls.append(losses[choices, place] - losses[climb.best[place], place])
      changes.append(np.stack([np.full_like(choices, place), choices], axis=1))
    found: Sources = []
    if falls:
      ranked = np.concatenate(changes)
      for place, token in ranked[np.argsort(np.concatenate(falls))]:
        changed = climb.best.copy()
        changed[place] = token
        if token == climb.best[place] or changed.tobytes() in climb.tried:
          continue
        climb.tried.add(changed.tobytes())
        found.append(changed)
        if len(found) == number:
          break
    return found + [climb.best] * (number - len(found))
