"""How many calibration examples a certificate takes, before any are decoded."""

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from calm_jax.calibration import inputs, p_values

# Above these `required_examples` gives up: nobody decodes as many, or waits for
# as many to be simulated.
_MOST_EXAMPLES = 1_000_000
_MOST_SIMULATED = 100_000
_SIMULATIONS = 1000
# Losses held in memory at once by a simulation.
_MOST_LOSSES = 4_000_000


class TooManyExamples(ValueError):
  """It would take more examples than anybody decodes."""


# Is N enough? A sample of a shape [M, N].
Enough = Callable[[int], bool]
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def required_examples(
  tolerance: float,
  error_rate: float,
  *,
  expected_risk: float = 0.0,
  power: float | None = 0.8,
  p_value: p_values.PValue = p_values.hoeffding_bentkus,
  loss_range: tuple[float, float] = (0, 1),
  pilot_losses: ArrayLike | None = None,
  seed: int = 0,
) -> int:
  """Returns how many examples it takes to certify a setting of known risk.

  That is an N at which P(p <= error_rate) >= power, while at N - 1 it is not.
  As p-values of counts jump, a slightly smaller N may do as well, and a
  slightly larger one may not. The losses that are drawn for it are

  - by default those of the most variable law of that risk, which puts all of it
    on the two ends of the range: losses of 0 and 1. The power then follows from
    the binomial law: the largest count whose p-value is at most error_rate is
    reached with probability P(Binomial(N, risk) <= count). For p-values that
    depend on the order of the losses it is simulated. Almost any other law
    takes fewer, most of all signed losses near 0;
  - `pilot_losses`, where some are known: of validation rows, which the
    certificate is not made of. They are drawn from with replacement;
  - with power=None none: `expected_risk` N times. It is what p-values of the
    mean take if it comes out as expected, which happens about half the time.

  Of zero losses all of them give the smallest N with (1 - tolerance)^N <=
  error_rate, for hoeffding_bentkus and exact_binomial.

  Args:
    tolerance: in the units of the losses, strictly inside loss_range.
    error_rate: in (0, 1); a procedure that shares it between k settings or
      starts needs the number for error_rate / k.
    expected_risk: in the units of the losses, below the tolerance.
    power: how likely a certificate shall be, in (0, 1); None: see above.
    p_value: the one that will be calibrated with; the paper's if not given,
      for which nothing has to be simulated.
    loss_range: see `calibrate`.
    pilot_losses: [M], in the units of the losses; their mean takes the place of
      expected_risk, which must then be left out.
    seed: of the simulations.

  Raises:
    ValueError: for numbers outside their range.
    TooManyExamples: a ValueError: if a million (100,000 where it has to be
      simulated) do not suffice.

  >>> required_examples(0.1, 0.05), required_examples(0.02, 0.05)
  (29, 149)
  >>> required_examples(0.1, 0.05, expected_risk=0.05)
  274
  >>> required_examples(0.1, 0.05, expected_risk=0.05, power=None)
  160
  >>> required_examples(0.1, 0.05, pilot_losses=[0.0, 0.0, 0.1, 0.1])
  199
  """
  low, high = inputs.check_range(loss_range, tolerance)
  inputs.check_error_rate(error_rate)
  if power is not None and not 0 < power < 1:
    raise ValueError(
      f'power must be in (0, 1) or None, not {power}; 0.8 asks for a '
      'certificate in four calibrations of five'
    )

  def to_unit(number):
    return (number - low) / (high - low)

  pilot = _check_pilot(pilot_losses, expected_risk, power, (low, high))
  if pilot is not None:
    expected_risk = pilot.mean()
  if not low <= expected_risk < tolerance:
    raise ValueError(
      f'expected_risk {expected_risk} must be at least {low:g} and below the '
      f'tolerance {tolerance}: a risk that is not below it is never certified'
    )
  test = _Test(p_value, to_unit(tolerance), error_rate)
  risk = to_unit(expected_risk)
  most = _MOST_EXAMPLES
  if power is None:
    enough = _given_losses(test, [risk])
  elif pilot is None and not getattr(p_value, 'depends_on_order', False):
    enough = _binary_losses(test, risk, power)
  else:
    draw = _draw_binary(risk) if pilot is None else _draw_from(to_unit(pilot))
    enough = _drawn_losses(test, draw, power, seed)
    most = _MOST_SIMULATED
  number = _smallest(enough, most)
  if number is None:
    raise TooManyExamples(
      f'not even {most} examples certify tolerance {tolerance} at expected '
      f'risk {expected_risk}; raise the tolerance'
    )
  return number


def required_of_this_kind(
  losses: np.ndarray,
  *,
  tolerance: float,
  error_rate: float,
  p_value: p_values.PValue,
) -> int | None:
  """Returns how many losses it would have taken, had they gone on like these.

  Args:
    losses: [M] in [0, 1]; their p-value is above error_rate.
    tolerance: in (0, 1).
    error_rate: in (0, 1).
    p_value: see `calibrate`.

  Returns:
    An N > M at which the losses, repeated up to N, have a p-value of at most
    error_rate; None if a million do not suffice.

  >>> required_of_this_kind(
  ...   np.tile([0.0, 0.1], 20),
  ...   tolerance=0.1, error_rate=0.05, p_value=p_values.hoeffding_bentkus,
  ... )
  173
  """
  enough = _given_losses(_Test(p_value, tolerance, error_rate), losses)
  return _smallest(enough, _MOST_EXAMPLES, above=len(losses))


def _check_pilot(losses, expected_risk, power, loss_range) -> np.ndarray | None:
  """Returns pilot losses [M], None if there are none."""
  if losses is None:
    return None
  if expected_risk != 0 or power is None:
    raise ValueError(
      'pilot_losses bring their own risk, and power=None takes all losses for '
      'equal: leave out expected_risk and give a power, or leave out the pilot'
    )
  losses = np.asarray(losses, np.float64)
  low, high = loss_range
  if losses.ndim != 1 or not losses.size:
    raise ValueError(f'pilot_losses must be [M], M >= 1, not {losses.shape}')
  bad = np.flatnonzero(~((losses >= low) & (losses <= high)))
  if bad.size:
    raise ValueError(
      f'pilot loss {bad[0]} is {losses[bad[0]]}, not within the loss_range '
      f'{low:g} to {high:g}'
    )
  return losses


@dataclasses.dataclass(frozen=True)
class _Test:
  """A p-value and what it is asked for, in [0, 1]."""

  p_value: p_values.PValue
  tolerance: float
  error_rate: float

  def passes(self, losses) -> bool:
    return self.p_value(losses, tolerance=self.tolerance) <= self.error_rate


def _given_losses(test: _Test, losses: ArrayLike) -> Enough:
  """Do these losses pass, repeated up to N?"""
  return lambda number: test.passes(np.resize(losses, number))


def _binary_losses(test: _Test, risk: float, power: float) -> Enough:
  """Do N losses of 0 and 1 pass often enough? By the binomial law."""

  def passes(count, number):
    return test.passes((np.arange(number) < count).astype(np.float64))

  def enough(number):
    if not passes(0, number):
      return False
    most, above = 0, number + 1
    while above - most > 1:
      middle = (most + above) // 2
      if passes(middle, number):
        most = middle
      else:
        above = middle
    return special.bdtr(most, number, risk) >= power

  return enough


def _drawn_losses(test: _Test, draw: Draw, power: float, seed: int) -> Enough:
  """Do N drawn losses pass often enough? By simulation."""

  def enough(number):
    rng = np.random.default_rng([seed, number])
    rows = max(1, min(_MOST_LOSSES // number, _SIMULATIONS // 5))
    passed = 0
    for start in range(0, _SIMULATIONS, rows):
      if passed + _SIMULATIONS - start < power * _SIMULATIONS:
        break  # the rest cannot make up for it
      samples = draw(rng, (min(rows, _SIMULATIONS - start), number))
      tests = p_values.apply_rows(
        test.p_value, samples, tolerance=test.tolerance
      )
      passed += int((tests <= test.error_rate).sum())
    return passed >= power * _SIMULATIONS

  return enough


def _draw_binary(risk: float) -> Draw:
  return lambda rng, shape: (rng.random(shape) < risk).astype(np.float64)


def _draw_from(losses: np.ndarray) -> Draw:
  return lambda rng, shape: losses[rng.integers(losses.size, size=shape)]


def _smallest(enough: Enough, most: int, above: int = 0) -> int | None:
  """Returns an N that is enough while N - 1 is not, None above `most`."""
  lower, upper = above, above + 1
  while not enough(upper):
    if upper == most:
      return None
    lower, upper = upper, min(2 * upper, most)
  while upper - lower > 1:
    middle = (lower + upper) // 2
    lower, upper = (lower, middle) if enough(middle) else (middle, upper)
  return upper
