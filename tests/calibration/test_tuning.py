"""Pareto testing on tables: fronts, orders, what is certified and chosen."""

import numpy as np
import pytest

from calm_jax import calibration
from calm_jax.calibration import pareto
from calm_jax.calibration.choices import Statistics
from calm_jax.calibration.population import Population

TEXTUAL = calibration.Bound(loss='textual', tolerance=0.2)


def test_a_front_is_what_no_other_beats():
  generator = np.random.default_rng(3)
  risks = generator.integers(0, 12, 60) / 10
  times = generator.integers(1, 12, 60).astype(float)
  front = calibration.pareto_front(risks, times)
  no_worse = (risks[:, None] <= risks) & (times[:, None] <= times)
  better = (risks[:, None] < risks) | (times[:, None] < times)
  beaten = (no_worse & better).any(axis=0)
  # Of equals the first.
  kept = {(risks[c], times[c]): c for c in np.flatnonzero(~beaten)[::-1]}
  assert sorted(front) == sorted(kept.values())
  assert (np.diff(risks[front]) > 0).all() and (np.diff(times[front]) < 0).all()


def test_who_is_no_faster_than_what_needs_no_certificate_is_not_tested():
  losses = np.tile([0.0, 0.05, 0.1, 0.5], (60, 1))
  found = calibration.screen([losses], [9, 5, 3, 1], [TEXTUAL], time_to_beat=5)
  assert found.front == (0, 1, 2, 3)
  assert found.sequence == (2, 3)
  slow = calibration.screen([losses], [9, 5, 3, 1], [TEXTUAL], time_to_beat=1)
  assert slow.sequence == ()


def test_a_promise_that_is_broken_alone_decides_the_order():
  textual = np.tile([0.0, 0.1], (80, 1))
  signed = np.tile([0.5, 0.0], (80, 1))
  promises = [
    TEXTUAL,
    calibration.Bound(loss='signed', tolerance=0.1, loss_range=(-1, 1)),
  ]
  found = calibration.screen([textual, signed], [2.0, 1.0], promises)
  assert found.safest_first == (1, 0) and found.front == (1,)
  assert calibration.screen([textual], [2.0, 1.0], [TEXTUAL]).safest_first == (
    0,
    1,
  )


def test_testing_ends_with_the_first_failure():
  """Rows that test say other things than rows that screened."""
  screening = np.tile([0.0, 0.05, 0.1], (100, 1))
  test = np.tile([0.0, 0.5, 0.0], (100, 1))
  found = calibration.tune_on_table(
    [np.concatenate([screening, test])],
    [3, 2, 1],
    [TEXTUAL],
    screening_rows=np.arange(100),
  )
  assert found.screening.sequence == (0, 1, 2)
  assert len(found.p_values) == 2 and found.p_values[1] == 1
  assert (found.certified, found.chosen) == ((0,), 0)
  nothing = calibration.tune_on_table(
    [np.full((100, 1), 0.3)], [1], [TEXTUAL], screening_rows=np.arange(50)
  )
  assert (nothing.certified, nothing.chosen) == ((), None)


def test_a_sequence_that_time_ends_certifies_what_passed():
  screening = pareto.Screening((0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 0, 0))
  found = calibration.certified_of(screening, (0.01, 0.02), 0.05)
  assert (found.certified, found.chosen) == ((0, 1), 1)
  assert calibration.certified_of(screening, (), 0.05).chosen is None


def test_rows_are_split_by_the_seed_alone():
  rows = calibration.split_rows(101, seed=4)
  assert rows.size == 50 and (np.diff(rows) > 0).all()
  np.testing.assert_array_equal(rows, calibration.split_rows(101, seed=4))
  assert set(rows) != set(calibration.split_rows(101, seed=5))
  assert calibration.split_rows(2, share=0.99).size == 1


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: calibration.split_rows(1), 'cannot screen and test'),
    (lambda: calibration.split_rows(9, share=1.0), r'not in \(0, 1\)'),
    (lambda: calibration.pareto_front([], []), 'at least one'),
    (lambda: calibration.pareto_front([0, np.nan], [1, 2]), 'finite'),
    (lambda: calibration.pareto_front([0], [1, 2]), 'equally many'),
    (lambda: _tune(screening_rows=[]), '0 of 9 rows screen'),
    (lambda: _tune(screening_rows=range(9)), '9 of 9 rows screen'),
    (lambda: _tune(screening_rows=[1], error_rate=0), 'error_rate must be'),
    (lambda: _tune(screening_rows=[1], times=[1]), 'equally many'),
  ],
)
def test_bad_input_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def _tune(times=(2, 1), **keywords):
  losses = [np.zeros((9, 2))]
  return calibration.tune_on_table(losses, times, [TEXTUAL], **keywords)


def tables(kind, *, rows=4000, candidates=12, tolerance=0.2):
  """Losses [rows, C] of 0 and 1 whose column means are their risks, and times.

  Half of the candidates are barely too risky, the others barely not; the
  riskier, the faster.
  """
  risks = tolerance + np.linspace(-0.04, 0.04, candidates)
  quantiles = (np.arange(rows) + 0.5) / rows
  losses = (quantiles[:, None] < risks).astype(float)
  generator = np.random.default_rng(7)
  if kind == 'anti-correlated':
    losses[:, 1::2] = losses[::-1, 1::2]
  elif kind == 'independent':
    losses = generator.permuted(losses, axis=0)
  times = np.linspace(2, 1, candidates)
  if kind == 'adversarial':
    # All but one are too risky, and luck of the screening alone orders them.
    losses = (quantiles[:, None] < tolerance + 0.004).repeat(candidates, axis=1)
    losses = generator.permuted(losses.astype(float), axis=0)
    times = np.ones(candidates) + 1e-3 * np.arange(candidates)
  return losses, times


@pytest.mark.parametrize(
  'kind',
  [
    'correlated',
    'anti-correlated',
    pytest.param('independent', marks=pytest.mark.slow),
    'adversarial',
  ],
)
def test_the_error_rate_is_kept_with_the_selection_included(kind):
  count = counted(kind, p_value=calibration.exact_binomial)
  limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / count.num_draws)
  assert count.num_violations / count.num_draws <= limit
  if kind == 'correlated':
    # The check is not idle: what is barely too risky is certified now and then.
    assert count.num_certified > 300 and count.num_violations > 10


def test_testing_on_the_rows_that_screened_breaks_the_law():
  """What the halves are for: the same count can fail."""
  losses, times = tables('adversarial')
  population = _population(losses)
  rows = np.random.default_rng(0).integers(len(losses), size=(400, 200))
  rows[:, 100:] = rows[:, :100]
  chosen = calibration.choose_tuned(
    [population],
    rows,
    times,
    [TEXTUAL],
    statistics=Statistics(p_value=calibration.exact_binomial),
  )
  assert (chosen >= 0).mean() > 0.15


def counted(kind, *, p_value, tolerance=0.2, num_draws=2000):
  losses, times = tables(kind, tolerance=tolerance)
  return calibration.count_tuned(
    [_population(losses)],
    times,
    [calibration.Bound(loss='textual', tolerance=tolerance)],
    statistics=Statistics(p_value=p_value),
    num_draws=num_draws,
    draw_size=200,
  )


def _population(losses, loss_range=(0.0, 1.0)):
  settings = [{'candidate': n} for n in range(losses.shape[1])]
  return Population(
    losses, settings, np.ones(len(settings)), loss_range=loss_range
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(calibration.P_VALUES))
@pytest.mark.parametrize(
  'kind', ['correlated', 'anti-correlated', 'independent', 'adversarial']
)
def test_the_error_rate_is_kept_by_every_p_value(kind, name):
  count = counted(kind, p_value=calibration.P_VALUES[name], tolerance=0.1)
  limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / count.num_draws)
  assert count.num_violations / count.num_draws <= limit


def test_samples_are_tuned_as_tables_are():
  """And of two promises, one of them signed."""
  generator = np.random.default_rng(1)
  textual = generator.beta(0.2, [3, 2, 1.5, 1], (300, 4))
  signed = generator.uniform(-0.5, [0.45, 0.55, 0.5, 0.7], (300, 4))
  times = [4.0, 2.0, 3.0, 1.0]
  promises = [
    calibration.Bound(loss='textual', tolerance=0.15),
    calibration.Bound(loss='signed', tolerance=0.1, loss_range=(-1, 1)),
  ]
  rows = generator.integers(300, size=(12, 160))
  chosen = calibration.choose_tuned(
    [_population(textual), _population(signed, (-1.0, 1.0))],
    rows,
    times,
    promises,
    statistics=Statistics(),
  )
  alone = [
    calibration.tune_on_table(
      [textual[sample], signed[sample]],
      times,
      promises,
      screening_rows=np.arange(80),
    ).chosen
    for sample in rows
  ]
  assert chosen.tolist() == [-1 if one is None else one for one in alone]
  assert len({*chosen.tolist()}) > 2


def test_by_hand_is_each_policy_certified_by_itself():
  """By fixed sequence at the error rate over their number, on all rows."""
  generator = np.random.default_rng(2)
  losses = generator.beta(0.2, [9, 3, 1, 6, 2], (300, 5))
  times = [5.0, 3.0, 1.0, 4.0, 2.0]
  policies = ['a', 'a', 'a', 'b', 'b']
  rows = generator.integers(300, size=(30, 160))

  def by_hand(**options):
    return calibration.choose_by_hand(
      [_population(losses)],
      rows,
      times,
      [calibration.Bound(loss='textual', tolerance=0.1)],
      policies,
      statistics=Statistics(),
      **options,
    )

  expected = []
  for sample in rows:
    found = []
    for columns in ([0, 1, 2], [3, 4]):
      result = calibration.calibrate(
        losses[np.ix_(sample, columns)],
        [0.9, 0.8, 0.7][: len(columns)],
        tolerance=0.1,
        error_rate=0.025,
        p_value=calibration.betting,
      )
      settings = [0.9, 0.8, 0.7]
      if result.setting in settings:
        found += columns[: settings.index(result.setting) + 1]
    expected.append(min(found, key=lambda column: times[column], default=-1))
  assert by_hand().tolist() == expected
  assert len({*expected}) > 2
  # The columns may come in any order, where the settings' own is said.
  mixed = np.array([3, 2, 4, 0, 1])
  chosen = calibration.choose_by_hand(
    [_population(losses[:, mixed])],
    rows,
    np.array(times)[mixed],
    [calibration.Bound(loss='textual', tolerance=0.1)],
    [policies[column] for column in mixed],
    statistics=Statistics(),
    order=np.argsort(mixed),
  )
  assert [-1 if one < 0 else mixed[one] for one in chosen] == expected
  # What is no faster than what needs no certificate is not taken.
  hurried = by_hand(time_to_beat=2.5)
  assert hurried.tolist() == [
    one if one >= 0 and times[one] < 2.5 else -1 for one in expected
  ]


def test_by_hand_keeps_the_error_rate():
  losses, times = tables('correlated')
  population = _population(losses)
  rows = np.random.default_rng(0).integers(len(losses), size=(2000, 200))
  chosen = calibration.choose_by_hand(
    [population],
    rows,
    times,
    [calibration.Bound(loss='textual', tolerance=0.2)],
    ['even', 'odd'] * 6,
    statistics=Statistics(p_value=calibration.exact_binomial),
  )
  risks = np.append(population.risks, 0.0)[chosen]
  assert (risks > 0.2).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
  assert (chosen >= 0).any()
  # A policy that passes on no draw has nothing left to test.
  nothing = calibration.choose_by_hand(
    [population],
    rows[:5],
    times,
    [calibration.Bound(loss='textual', tolerance=0.01)],
    ['even', 'odd'] * 6,
    statistics=Statistics(p_value=calibration.exact_binomial),
  )
  assert nothing.tolist() == [-1] * 5
  with pytest.raises(ValueError, match='3 policies should be one for each of'):
    calibration.choose_by_hand(
      [population], rows, times, [TEXTUAL], 'abc', statistics=Statistics()
    )
  with pytest.raises(ValueError, match='give each of 0..11 once'):
    calibration.choose_by_hand(
      [population],
      rows,
      times,
      [TEXTUAL],
      'ab' * 6,
      statistics=Statistics(),
      order=[0, 1],
    )
