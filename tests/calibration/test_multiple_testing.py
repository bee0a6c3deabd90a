"""Multiple testing: what is rejected, and what is asked for next."""

import math

import numpy as np
import pytest

from calm_jax.calibration import corrections, multiple_testing

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
  assert multiple_testing.find_procedure(procedure.name) == procedure


ALL = [
  multiple_testing.fixed_sequence(),
  multiple_testing.fixed_sequence(num_starts=3),
  multiple_testing.fixed_sequence(starts=(0, 2, 5)),
  corrections.Bonferroni(),
  corrections.Holm(),
]


@pytest.mark.parametrize('procedure', ALL, ids=lambda item: item.name)
def test_what_is_asked_for_settles_the_certificate(procedure):
  """The last rejected index of the whole table, from part of it."""
  rng = np.random.default_rng(4)
  asked = []
  for _ in range(300):
    p_values = rng.uniform(0, 0.3, size=7) ** 2
    seen = np.full(7, NAN)
    while (column := procedure.next_test(seen, 0.05)) is not None:
      assert math.isnan(seen[column])
      seen[column] = p_values[column]
    whole = procedure(p_values, 0.05)
    assert max(procedure(seen, 0.05), default=None) == max(whole, default=None)
    needed = multiple_testing.needed_tests(procedure, p_values, 0.05)
    np.testing.assert_array_equal(needed, ~np.isnan(seen))
    asked.append(needed.sum())
  assert np.mean(asked) < 7, 'asks for everything'


@pytest.mark.parametrize('procedure', ALL, ids=lambda item: item.name)
def test_names_lead_back_to_the_procedure(procedure):
  assert multiple_testing.find_procedure(procedure.name) == procedure


@pytest.mark.parametrize(
  'name',
  [
    'none_such',
    'holm(starts=0,1)',
    'fixed_sequence()',
    'fixed_sequence(starts=0)',
    'fixed_sequence(starts=2,1)',
    'fixed_sequence(num_starts=0)',
    'fixed_sequence(starts=0,5) ',
  ],
)
def test_other_names_are_refused(name):
  with pytest.raises(ValueError, match='pass the object'):
    multiple_testing.find_procedure(name)


def test_several_starts_share_the_error_rate():
  p_values = [0.02, 0.9, 0.9, 0.02, 0.024, 0.03]
  procedure = multiple_testing.fixed_sequence(num_starts=2)
  assert procedure.indices(6) == (0, 3)
  assert procedure(p_values, 0.05) == (0, 3, 4)
  assert multiple_testing.fixed_sequence()(p_values, 0.05) == (0,)


def test_holm_rejects_what_bonferroni_does_and_more():
  rng = np.random.default_rng(5)
  more = 0
  for _ in range(200):
    p_values = rng.uniform(0, 0.1, size=6) ** 2
    few = set(corrections.Bonferroni()(p_values, 0.05))
    many = set(corrections.Holm()(p_values, 0.05))
    assert few <= many
    more += len(many - few)
    # In any order.
    order = rng.permutation(6)
    turned = corrections.Holm()(p_values[order], 0.05)
    assert {int(order[i]) for i in turned} == many
  assert more


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'starts': ()}, 'at least one'),
    ({'starts': (0, 0)}, 'greater than the one before'),
    ({'starts': (-1,)}, 'from 0 on'),
    ({'num_starts': 0}, 'positive number, not 0'),
    ({'starts': (0, 1), 'num_starts': 2}, 'not both'),
  ],
)
def test_bad_starts_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    multiple_testing.fixed_sequence(**arguments)


def test_starts_beyond_the_settings_are_named():
  for procedure in (
    multiple_testing.fixed_sequence(starts=(0, 4)),
    multiple_testing.fixed_sequence(num_starts=5),
  ):
    with pytest.raises(ValueError, match='the 4 settings'):
      procedure([0.0] * 4, 0.05)


@pytest.mark.parametrize(
  ('procedure', 'theirs'),
  [
    (multiple_testing.fixed_sequence(), 'fixed_sequence'),
    (corrections.Bonferroni(), 'bonferroni'),
    (corrections.Holm(), 'bonferroni_holm'),
    (multiple_testing.fixed_sequence(num_starts=2), 2),
    (multiple_testing.fixed_sequence(num_starts=4), 4),
  ],
  ids=str,
)
def test_rejects_what_mapie_rejects(procedure, theirs):
  control = pytest.importorskip('mapie.risk_control.fwer_control')
  rng = np.random.default_rng(6)
  several = 0
  for _ in range(300):
    p_values = rng.uniform(0, 0.2, size=8) ** 2
    method = theirs
    if isinstance(theirs, int):
      method = control.FWERFixedSequenceTesting(n_starts=theirs)
    expected = control.control_fwer(p_values, 0.05, method)
    rejected = procedure(p_values, 0.05)
    assert rejected == tuple(expected)
    several += len(rejected) > 1
  assert several > 50


def test_a_procedure_that_asks_twice_is_named():
  class Stubborn:
    def __call__(self, p_values, error_rate):
      return ()

    def next_test(self, p_values, error_rate):
      return 0

  with pytest.raises(ValueError, match='asks for test 0 a second time'):
    multiple_testing.needed_tests(Stubborn(), [0.5], 0.05)


def test_the_last_start_is_asked_first_and_spares_the_others():
  procedure = multiple_testing.fixed_sequence(starts=(0, 3))
  seen = np.full(5, NAN)
  assert procedure.next_test(seen, 0.05) == 3
  seen[3] = 0.01
  assert procedure.next_test(seen, 0.05) == 4
  seen[4] = 0.9
  assert procedure.next_test(seen, 0.05) is None
  seen[3] = 0.9
  assert procedure.next_test(seen, 0.05) == 0


def test_corrections_ask_from_the_end():
  seen = np.full(4, NAN)
  seen[3] = 0.9
  for procedure in (corrections.Bonferroni(), corrections.Holm()):
    assert procedure.next_test(seen, 0.05) == 2
  # Holm may still reject the last one: 0.02 is below 0.05 / 2.
  seen[3] = 0.02
  seen[2] = 0.001
  assert corrections.Bonferroni().next_test(seen, 0.05) is None
  assert corrections.Holm().next_test(seen, 0.05) == 1
