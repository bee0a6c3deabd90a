"""Fixed sequence testing: what is rejected, and what is asked for next."""

import math

import numpy as np
import pytest

from calm_jax.calibration import multiple_testing

NAN = math.nan


@pytest.mark.parametrize(
  ('p_values', 'rejected'),
  [
    ([0.01, 0.02, 0.03], (0, 1, 2)),
    ([0.01, 0.05, 0.06, 0.01], (0, 1)),  # equal to the error rate rejects
    ([0.06, 0.0, 0.0], ()),
    ([0.0, NAN, 0.0], (0,)),
    ([NAN, NAN], ()),
  ],
)
def test_rejects_up_to_the_first_failure(p_values, rejected):
  assert multiple_testing.fixed_sequence()(p_values, 0.05) == rejected


def test_nothing_after_the_first_failure_matters():
  rng = np.random.default_rng(0)
  procedure = multiple_testing.fixed_sequence()
  for _ in range(200):
    p_values = rng.uniform(0, 0.12, size=8)
    rejected = procedure(p_values, 0.05)
    changed = p_values.copy()
    changed[len(rejected) + 1 :] = rng.uniform(size=8)[len(rejected) + 1 :]
    assert procedure(changed, 0.05) == rejected
    # And a larger error rate rejects no less.
    assert set(rejected) <= set(procedure(p_values, 0.08))


def test_asking_column_by_column_gives_the_same():
  rng = np.random.default_rng(1)
  procedure = multiple_testing.fixed_sequence()
  for _ in range(200):
    p_values = rng.uniform(0, 0.1, size=6)
    seen = np.full(6, NAN)
    while (column := procedure.next_test(seen, 0.05)) is not None:
      assert math.isnan(seen[column])
      seen[column] = p_values[column]
    rejected = procedure(p_values, 0.05)
    assert procedure(seen, 0.05) == rejected
    # One more than was rejected is looked at, and no other.
    assert (~np.isnan(seen)).sum() == min(6, len(rejected) + 1)


def test_bad_input_is_named():
  procedure = multiple_testing.fixed_sequence()
  for p_value in (-0.1, 1.1):
    with pytest.raises(ValueError, match=f'number 1 is {p_value}'):
      procedure([0.0, p_value], 0.05)
  for error_rate in (0.0, 1.0, NAN):
    with pytest.raises(ValueError, match='error_rate must be in'):
      procedure([0.0], error_rate)
  with pytest.raises(ValueError, match='J >= 1'):
    procedure([], 0.05)


def test_is_a_value():
  procedure = multiple_testing.fixed_sequence()
  assert procedure == multiple_testing.fixed_sequence()
  assert hash(procedure) == hash(multiple_testing.fixed_sequence())
  assert multiple_testing.PROCEDURES[procedure.name]() == procedure
