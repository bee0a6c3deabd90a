"""calibrate: what it certifies, what it refuses, and how it says so."""

import functools
import itertools
import math

import numpy as np
import pytest

from calm_jax import calibration

SETTINGS = [0.9, 0.7, 0.5, 0.3]


def table(risks, number=500):
  """Returns losses [N, J] that are 0 or 1, with the given column means."""
  return np.stack(
    [np.arange(number) < round(risk * number) for risk in risks], axis=1
  ).astype(np.float64)


def test_certifies_the_last_setting_before_the_first_failure():
  losses = table([0.01, 0.05, 0.2, 0.0])
  certificate = calibration.calibrate(losses, SETTINGS, tolerance=0.1)
  assert certificate.certified
  assert certificate.index == 1
  assert certificate.setting == certificate.threshold == 0.7
  assert certificate.risks == (0.01, 0.05, 0.2, 0.0)
  assert certificate.p_values[1] <= 0.05 < certificate.p_values[2]
  assert certificate.num_examples == 500
  assert certificate.p_value == 'betting(seed=0)'
  papers = calibration.calibrate(
    losses, SETTINGS, tolerance=0.1, p_value=calibration.hoeffding_bentkus
  )
  assert (papers.index, papers.p_value) == (1, 'hoeffding_bentkus')
  assert certificate.procedure == 'fixed_sequence'
  assert 'threshold 0.5 has mean loss 0.2' in certificate.reason


def test_nothing_is_hard_coded_to_numbers():
  settings = [
    {'measure': 'state', 'threshold': 0.5},
    {'measure': 'margin', 'threshold': 0.9},
    {'patience': 3},
    {'patience': 2},
  ]
  losses = table([0.0, 0.01, 0.02, 0.5])
  certificate = calibration.calibrate(losses, settings)
  assert certificate.setting == {'patience': 3}
  assert certificate.threshold is None
  certificate = calibration.calibrate(losses[:, :2], settings[:2])
  assert certificate.threshold == 0.9


@pytest.mark.parametrize('loss_range', [(0, 1), (-1, 1), (0, 100), (-3, -1)])
def test_losses_and_tolerance_are_mapped_alike(loss_range):
  low, high = loss_range
  unit = np.random.default_rng(0).beta([1, 2, 4], 20, size=(800, 3))
  expected = calibration.calibrate(unit, SETTINGS[:3], tolerance=0.12)
  certificate = calibration.calibrate(
    low + (high - low) * unit,
    SETTINGS[:3],
    tolerance=low + (high - low) * 0.12,
    loss_range=loss_range,
  )
  assert certificate.index == expected.index == 1
  np.testing.assert_allclose(certificate.p_values, expected.p_values, rtol=1e-6)
  np.testing.assert_allclose(
    certificate.risks, low + (high - low) * unit.mean(0)
  )


def test_columns_after_the_stop_may_be_missing_and_are_not_asked_for():
  losses = table([0.01, 0.05, 0.2, 0.0])
  expected = calibration.calibrate(losses, SETTINGS)
  partial = np.full_like(losses, math.nan)
  asked = []
  while (column := calibration.next_column(partial)) is not None:
    asked.append(column)
    partial[:, column] = losses[:, column]
  assert asked == [0, 1, 2]
  certificate = calibration.calibrate(partial, SETTINGS)
  assert certificate.index == expected.index
  assert certificate.p_values[:3] == expected.p_values[:3]
  assert math.isnan(certificate.p_values[3])
  assert math.isnan(certificate.risks[3])


def test_certificates_are_nested():
  """More tolerance, more error rate or more of the same data: no less."""
  losses = table([0.01, 0.04, 0.08, 0.15], number=300)
  chosen = functools.partial(calibration.calibrate, settings=SETTINGS)

  def index(certificate):
    return -1 if certificate.index is None else certificate.index

  grids = [
    [chosen(losses, tolerance=t) for t in (0.01, 0.05, 0.1, 0.3)],
    [chosen(losses, error_rate=e) for e in (0.001, 0.05, 0.3)],
    [chosen(np.tile(losses, (k, 1))) for k in (1, 3, 9)],
    [
      chosen(losses, p_value=p)
      for p in (calibration.hoeffding, calibration.hoeffding_bentkus)
    ],
  ]
  for certificates in grids:
    indices = [index(certificate) for certificate in certificates]
    assert indices == sorted(indices)
  assert index(grids[0][0]) < index(grids[0][-1])


def test_too_few_examples_says_how_many_it_takes():
  certificate = calibration.calibrate(np.zeros((28, 4)), SETTINGS)
  assert not certificate.certified
  assert certificate.threshold == 1.0
  assert certificate.setting is None
  assert '28 calibration examples are too few' in certificate.reason
  assert 'it would take 29' in certificate.reason
  assert calibration.calibrate(np.zeros((29, 4)), SETTINGS).index == 3


def test_a_risky_first_setting_is_told_from_too_few_examples():
  risky = calibration.calibrate(table([0.2, 0.3, 0.4, 0.5]), SETTINGS)
  assert 'mean loss is not below the tolerance' in risky.reason
  assert 'too few' not in risky.reason
  unsure = calibration.calibrate(table([0.09, 0.3, 0.4, 0.5]), SETTINGS)
  assert 'not surely so' in unsure.reason
  needed = int(unsure.reason.rstrip('.').split()[-1])
  assert needed > 500
  more = np.full((needed, 4), 0.09)
  assert calibration.calibrate(more, SETTINGS).certified
  hopeless = calibration.calibrate(
    np.full((500, 1), 0.09999),
    [0.9],
    p_value=calibration.hoeffding_bentkus,
  )
  assert 'more than a million' in hopeless.reason


def test_the_last_setting_passing_is_said():
  certificate = calibration.calibrate(table([0.0, 0.0, 0.0, 0.0]), SETTINGS)
  assert certificate.index == 3
  assert 'All 4 settings passed' in certificate.reason


@pytest.mark.parametrize(
  ('tolerance', 'number'), [(0.02, 149), (0.05, 59), (0.1, 29), (0.25, 11)]
)
def test_required_examples_at_zero_risk(tolerance, number):
  assert calibration.required_examples(tolerance, 0.05) == number
  assert (1 - tolerance) ** number <= 0.05 < (1 - tolerance) ** (number - 1)


@pytest.mark.parametrize(
  'p_value',
  [
    calibration.hoeffding,
    calibration.bentkus,
    calibration.hoeffding_bentkus,
  ],
)
@pytest.mark.parametrize('risk', [0.0, 0.03, 0.08])
def test_required_examples_is_a_boundary(p_value, risk):
  number = calibration.required_examples(
    0.1, 0.05, expected_risk=risk, power=None, p_value=p_value
  )
  assert p_value(np.full(number, risk), tolerance=0.1) <= 0.05
  assert p_value(np.full(number - 1, risk), tolerance=0.1) > 0.05


def test_required_examples_of_signed_losses():
  """Mapped to [0, 1] a zero difference is 0.5, which costs many examples."""
  number = calibration.required_examples(
    0.05, 0.05, power=None, loss_range=(-1, 1)
  )
  # From 1,782 on some pass, from 1,820 on all do (by enumeration).
  assert 1782 <= number <= 1820
  assert calibration.calibrate(
    np.zeros((1820, 1)), [0.5], tolerance=0.05, loss_range=(-1, 1)
  ).certified


@pytest.mark.slow
def test_required_examples_refuses_the_impossible():
  with pytest.raises(ValueError, match=r'expected_risk 0\.1 must be'):
    calibration.required_examples(0.1, 0.05, expected_risk=0.1)
  with pytest.raises(ValueError, match='1000000 examples'):
    calibration.required_examples(0.1, 0.05, expected_risk=0.09999)
  with pytest.raises(ValueError, match='error_rate'):
    calibration.required_examples(0.1, 0.0)
  with pytest.raises(ValueError, match='tolerance 1.5'):
    calibration.required_examples(1.5, 0.05)


def spoilt(row, column, value):
  losses = table([0.01, 0.02, 0.03, 0.04])
  losses[row, column] = value
  return losses


@pytest.mark.parametrize(
  ('losses', 'message'),
  [
    (spoilt(3, 2, 1.25), r'row 3, column 2 is 1\.25'),
    (spoilt(0, 0, -0.5), r'row 0, column 0 is -0\.5'),
    (spoilt(7, 1, math.nan), 'row 7, column 1 is nan'),
    (spoilt(7, 1, math.inf), 'row 7, column 1 is inf'),
    (spoilt(slice(None), 1, math.nan), 'column 1 are NaN from row 0'),
    (spoilt(slice(None), 0, math.nan), 'column 0 are NaN from row 0'),
    (spoilt(slice(None), 3, math.nan), 'column 3 are NaN from row 0'),
    (np.zeros((0, 4)), 'N, J >= 1'),
    (np.zeros(4), 'N, J >= 1'),
    (np.zeros((4, 3)), '3 columns for 4 settings'),
    (np.full((4, 4), 'a'), 'must be numbers'),
  ],
)
def test_bad_losses_are_named(losses, message):
  with pytest.raises(ValueError, match=message):
    calibration.calibrate(losses, SETTINGS)


def test_a_hole_after_the_stop_is_refused():
  losses = table([0.2, 0.1, 0.1, 0.1])
  losses[:, 2] = math.nan
  with pytest.raises(ValueError, match='column 2 are NaN'):
    calibration.calibrate(losses, SETTINGS)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ([0.3, 0.5, 0.7, 0.9], r'settings 0 and 1, 0\.3 and 0\.5'),
    ([0.9, 0.7, 0.7, 0.3], 'settings 1 and 2'),
    ([1.5, 0.7, 0.5, 0.3], r'setting 0 has threshold 1\.5'),
    ([0.9, 0.7, 0.5, math.nan], 'setting 3 has threshold nan'),
    ([0.9, 'low', 0.5, 0.3], "setting 1 is 'low'"),
    ([0.9, True, 0.5, 0.3], 'setting 1 is True'),
    ([{'threshold': t, 'k': 1} for t in (0.1, 0.2, 0.3, 0.4)], 'out of order'),
    ([{'patience': 1}] * 4, 'out of order'),
    ([], 'settings are empty'),
  ],
)
def test_bad_settings_are_named(settings, message):
  with pytest.raises(ValueError, match=message):
    calibration.calibrate(table([0.0] * 4), settings)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'tolerance': 0.0}, 'tolerance 0.0'),
    ({'tolerance': 1}, 'tolerance 1'),
    ({'tolerance': math.nan}, 'tolerance nan'),
    ({'tolerance': -1, 'loss_range': (-1, 1)}, 'tolerance -1'),
    ({'error_rate': 0.0}, 'error_rate'),
    ({'error_rate': 5}, 'error_rate.*not 5'),
    ({'loss_range': (1, 0)}, 'loss_range'),
    ({'loss_range': (0, math.inf)}, 'loss_range'),
    ({'p_value': lambda losses, tolerance: 1.5}, 'is no p-value'),
    ({'p_value': lambda losses, tolerance: math.nan}, 'is no p-value'),
    ({'context': {'dtype': np.float32}}, 'context must be'),
  ],
)
def test_bad_numbers_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    calibration.calibrate(table([0.0] * 4), SETTINGS, **arguments)


def test_float_noise_at_the_ends_of_the_range_is_no_error():
  losses = table([0.01, 0.02, 0.03, 0.04])
  losses += np.where(losses > 0.5, 1e-15, -1e-15)
  assert calibration.calibrate(losses, SETTINGS).certified
  assert calibration.calibrate(losses.astype(np.float32), SETTINGS).certified


def test_a_p_value_of_the_losses_themselves_gets_them_in_order():
  seen = []

  def record(losses, *, tolerance):
    seen.append((losses.copy(), tolerance))
    return 0.0

  losses = np.linspace(-1, 1, 7)[:, None]
  certificate = calibration.calibrate(
    losses, [0.5], tolerance=0.5, loss_range=(-1, 1), p_value=record
  )
  assert certificate.p_value == 'record'
  np.testing.assert_allclose(seen[0][0], (losses[:, 0] + 1) / 2)
  assert seen[0][1] == 0.75


@pytest.mark.parametrize('risk', [0.0, 0.02, 0.05])
@pytest.mark.parametrize('power', [0.5, 0.8, 0.95])
def test_the_planned_power_is_reached(risk, power):
  """Counted: certificates of as many Bernoulli losses as were planned."""
  number = calibration.required_examples(
    0.1, 0.05, expected_risk=risk, power=power
  )
  counts = np.random.default_rng(0).binomial(number, risk, size=2000)
  passed = [
    calibration.hoeffding_bentkus(np.arange(number) < count, tolerance=0.1)
    <= 0.05
    for count in counts
  ]
  slack = 3 * (power * (1 - power) / 2000) ** 0.5
  assert np.mean(passed) >= power - slack


def test_pilot_losses_plan_for_what_they_look_like():
  calm = [0.05] * 50
  wild = [0.0] * 95 + [1.0] * 5
  few, many = (
    calibration.required_examples(
      0.1, 0.05, p_value=calibration.betting, pilot_losses=pilot
    )
    for pilot in (calm, wild)
  )
  assert few * 2 < many
  with pytest.raises(ValueError, match='leave out expected_risk'):
    calibration.required_examples(
      0.1, 0.05, expected_risk=0.05, pilot_losses=calm
    )
  with pytest.raises(ValueError, match='pilot loss 1 is 2'):
    calibration.required_examples(0.1, 0.05, pilot_losses=[0.0, 2.0])
  with pytest.raises(ValueError, match='power must be in'):
    calibration.required_examples(0.1, 0.05, power=1.0)


def test_a_path_through_two_parameters_is_calibrated():
  path = calibration.staircase_path(
    threshold=[0.9, 0.7, 0.5], vocabulary_size=[1000, 100]
  )
  assert len(path) == 4
  losses = table([0.0, 0.01, 0.02, 0.3])
  certificate = calibration.calibrate(losses, path)
  assert certificate.setting == path[2]
  for first, second in itertools.pairwise(path):
    changed = [key for key in first if first[key] != second[key]]
    assert len(changed) == 1
  with pytest.raises(ValueError, match='two parameters, not 1'):
    calibration.staircase_path(threshold=[0.9])
  with pytest.raises(ValueError, match='different values'):
    calibration.staircase_path(threshold=[0.9], size=[5, 5])


PROCEDURES = [
  calibration.fixed_sequence(num_starts=2),
  calibration.fixed_sequence(starts=(0, 3)),
  calibration.Bonferroni(),
  calibration.Holm(),
]


@pytest.mark.parametrize('procedure', PROCEDURES, ids=lambda item: item.name)
def test_what_a_procedure_does_not_need_may_be_missing(procedure, tmp_path):
  losses = table([0.3, 0.3, 0.02, 0.01])
  whole = calibration.calibrate(losses, SETTINGS, procedure=procedure)
  assert whole.index == 3
  partial = np.full_like(losses, math.nan)
  ask = functools.partial(calibration.next_column, procedure=procedure)
  while (column := ask(partial)) is not None:
    partial[:, column] = losses[:, column]
  assert np.isnan(partial[:, 0]).all()
  certificate = calibration.calibrate(partial, SETTINGS, procedure=procedure)
  assert certificate.index == whole.index
  assert certificate.reason == whole.reason
  for number, item in enumerate((certificate, whole)):
    item.save(tmp_path / f'{number}.json')
    assert calibration.Certificate.load(tmp_path / f'{number}.json') == item
  # Without one that it needs it is refused.
  partial[:, 3] = math.nan
  with pytest.raises(ValueError, match='column 3 are NaN from row 0.*needs'):
    calibration.calibrate(partial, SETTINGS, procedure=procedure)


def test_a_hole_among_what_several_starts_do_not_need_is_refused():
  procedure = calibration.fixed_sequence(starts=(0, 3))
  losses = table([0.0, 0.0, 0.0, 0.01])
  losses[:, 1] = math.nan
  with pytest.raises(ValueError, match='column 1 are NaN.*column 2 are not'):
    calibration.calibrate(losses, SETTINGS, procedure=procedure)
  losses[:, 2] = math.nan
  assert calibration.calibrate(losses, SETTINGS, procedure=procedure).index == 3


@pytest.mark.slow
def test_planning_for_any_p_value_and_range():
  exact, bets, mean = (
    calibration.required_examples(
      0.1, 0.05, expected_risk=0.05, p_value=p_value
    )
    for p_value in (
      calibration.exact_binomial,
      calibration.betting,
      calibration.hoeffding_bentkus,
    )
  )
  assert exact == 191 and mean == 274
  assert exact < bets < mean
  # The same losses in other units, and the same seed.
  assert bets == calibration.required_examples(
    10, 0.05, expected_risk=5, p_value=calibration.betting, loss_range=(0, 100)
  )
  with pytest.raises(calibration.TooManyExamples, match='not even 100000'):
    calibration.required_examples(
      0.1,
      0.05,
      pilot_losses=[0.0, 0.1999],
      p_value=calibration.hoeffding,
    )


@pytest.mark.parametrize(
  ('pilot', 'message'),
  [
    ([], 'M >= 1'),
    ([[0.0]], 'M >= 1'),
    ([0.0, math.nan], 'pilot loss 1 is nan'),
    ([0.2, 0.3], 'expected_risk 0.25'),
  ],
)
def test_bad_pilots_are_named(pilot, message):
  with pytest.raises(ValueError, match=message):
    calibration.required_examples(0.1, 0.05, pilot_losses=pilot)
  with pytest.raises(ValueError, match='power=None takes all losses'):
    calibration.required_examples(0.1, 0.05, pilot_losses=[0.0], power=None)


def test_a_path_is_fixed_and_bad_lists_are_named():
  path = calibration.staircase_path(
    size=[8, 4, 2, 1], threshold=[0.9, 0.5, 0.3]
  )
  assert path[0] == {'size': 8, 'threshold': 0.9}
  assert path[-1] == {'size': 1, 'threshold': 0.3}
  assert len(path) == 6
  assert calibration.check_settings(path) == path
  assert calibration.staircase_path(a=[1], b=[2]) == [{'a': 1, 'b': 2}]
  for lists, message in (
    (dict(threshold=[0.3, 0.9], size=[1]), 'out of order'),
    (dict(threshold=[], size=[1]), 'threshold must be a list of different'),
    (dict(threshold=[1.5], size=[1]), r'threshold 1\.5'),
    (dict(a=[1], b=[1], c=[1]), 'two parameters, not 3'),
  ):
    with pytest.raises(ValueError, match=message):
      calibration.staircase_path(**lists)
