"""Reasons: true sentences, whatever the procedure and the p-value."""

import functools
import math

import numpy as np
import pytest

from calm_jax import calibration

SETTINGS = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]


def table(risks, number=500):
  """Returns losses [N, J] of 0 and 1 with the given column means."""
  return np.stack(
    [np.arange(number) < round(risk * number) for risk in risks], axis=1
  ).astype(np.float64)


def reason(risks, procedure, **arguments):
  return calibration.calibrate(
    table(risks),
    SETTINGS[: len(risks)],
    **{'procedure': procedure, **arguments},
  ).reason


def test_a_later_start_that_passes():
  found = reason(
    (0.3, 0.0, 0.0, 0.02, 0.04, 0.3), calibration.fixed_sequence(num_starts=2)
  )
  assert found.startswith('The next setting did not pass: threshold 0.4 ')
  assert 'at error rate 0.05, of which one test gets 0.025' in found


def test_an_earlier_start_names_the_later_failure():
  """Setting 2 of 6 passed; 3 failed, and so did the second start, 4."""
  found = reason(
    (0.01, 0.02, 0.3, 0.3, 0.0, 0.0), calibration.fixed_sequence(num_starts=2)
  )
  assert 'The next setting did not pass: threshold 0.7 ' in found
  assert found.endswith('Nor did the more aggressive one.')


@pytest.mark.parametrize(
  'procedure', [calibration.Bonferroni(), calibration.Holm()]
)
def test_corrections_name_what_failed_beyond(procedure):
  found = reason((0.3, 0.0, 0.3, 0.3, 0.3, 0.3), procedure)
  assert 'The next setting did not pass: threshold 0.7 ' in found
  assert 'Nor did the 3 more aggressive ones.' in found
  found = reason((0.3, 0.0, 0.3, 0.3, 0.3, 0.01), procedure)
  assert found.startswith('The last of the 6 settings passed')


@pytest.mark.parametrize(
  ('procedure', 'tested'),
  [
    (calibration.fixed_sequence(num_starts=2), 2),
    (calibration.fixed_sequence(starts=(0, 2, 4)), 3),
    (calibration.Bonferroni(), 6),
    (calibration.Holm(), 6),
  ],
)
def test_nothing_certified_names_the_nearest_of_those_tested(procedure, tested):
  found = reason((0.096, 0.2, 0.3, 0.4, 0.5, 0.6), procedure)
  assert f'None of the {tested} settings tested passed' in found
  assert 'the nearest: threshold 0.9 has mean loss 0.096' in found
  assert 'not surely so' in found
  needed = int(found.rstrip('.').split()[-1])
  losses = np.full((needed, 6), 0.096)
  assert calibration.calibrate(losses, SETTINGS, procedure=procedure).certified


def test_one_start_elsewhere_is_not_called_the_first():
  found = reason((0.0,) * 3 + (0.3,) * 3, calibration.fixed_sequence((3,)))
  assert found.startswith('The one setting tested did not pass: threshold 0.6')


def test_too_few_counts_with_the_share_of_one_test():
  """(1 - 0.1)^N <= 0.05 at 29, <= 0.05 / 2 at 36 examples."""
  for number, certified in ((35, False), (36, True)):
    certificate = calibration.calibrate(
      np.zeros((number, 2)),
      [0.9, 0.8],
      procedure=calibration.Bonferroni(),
      p_value=calibration.hoeffding_bentkus,
    )
    assert certificate.certified is certified
    if not certified:
      assert '35 calibration examples are too few' in certificate.reason
      assert 'it would take 36' in certificate.reason


@functools.wraps(calibration.exact_binomial)
def wrapped(losses, *, tolerance):
  """As gin hands a function over."""
  return calibration.exact_binomial(losses, tolerance=tolerance)


@pytest.mark.parametrize(
  'p_value', [calibration.betting, calibration.exact_binomial, wrapped]
)
def test_more_examples_than_there_were_are_asked_for(p_value):
  """Losses that vary, not N times their mean, which these take for easier."""
  losses = table((0.075,), number=200)
  certificate = calibration.calibrate(losses, [0.9], p_value=p_value)
  assert not certificate.certified
  needed = int(certificate.reason.rstrip('.').split()[-1])
  assert needed > 200
  more = np.resize(losses, (needed, 1))
  assert calibration.calibrate(more, [0.9], p_value=p_value).certified


def test_a_risk_that_only_a_million_examples_would_do_for():
  certificate = calibration.calibrate(
    np.full((500, 1), 0.0999999), [0.9], p_value=calibration.betting
  )
  assert 'more than a million' in certificate.reason


def test_a_procedure_that_says_nothing_of_its_levels():
  class Last:
    name = 'last'

    def __call__(self, p_values, error_rate):
      last = len(p_values) - 1
      return (last,) if p_values[last] <= error_rate else ()

    def next_test(self, p_values, error_rate):
      del error_rate
      last = len(p_values) - 1
      return last if math.isnan(p_values[last]) else None

  assert 'The last of the 2 settings passed' in reason((0.3, 0.0), Last())
  assert 'The one setting tested did not pass' in reason((0.0, 0.3), Last())
