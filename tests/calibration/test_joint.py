"""Several losses in one certificate: all of them or nothing."""

import dataclasses
import functools

import numpy as np
import pytest

from calm_jax import calibration, records
from calm_jax.calibration import choices, violations
from calm_jax.calibration.population import Population

SETTINGS = (0.9, 0.6, 0.3)
TEXTUAL = calibration.Bound(loss='textual', metric='rouge_l', tolerance=0.1)
SIGNED = calibration.Bound(
  loss='signed', metric='rouge_l', tolerance=0.05, loss_range=(-1, 1)
)


def tables(seed=0, number=300):
  """Returns textual and signed losses [N, 3] that rise."""
  rng = np.random.default_rng(seed)
  textual = rng.random((number, 3)) * [0.04, 0.1, 0.5]
  signed = np.clip(rng.normal([0.0, 0.01, 0.1], 0.05, (number, 3)), -1, 1)
  return textual, signed


def jointly(losses=None, promises=(TEXTUAL, SIGNED), **arguments):
  losses = tables() if losses is None else losses
  return calibration.calibrate_jointly(losses, SETTINGS, promises, **arguments)


def alone(losses, bound, **arguments):
  return calibration.calibrate(
    losses,
    SETTINGS,
    tolerance=bound.tolerance,
    loss_range=bound.loss_range,
    **arguments,
  )


def test_the_p_value_is_the_largest_of_the_losses():
  found = jointly()
  each = [
    alone(losses, bound)
    for losses, bound in zip(tables(), (TEXTUAL, SIGNED), strict=True)
  ]
  assert found.index == 1
  np.testing.assert_array_equal(
    found.p_values, np.max([one.p_values for one in each], axis=0)
  )
  for promise, one in zip(found.promises, each, strict=True):
    assert (promise.p_values, promise.risks) == (one.p_values, one.risks)
  assert found.bounds == found.promises
  # What reads one promise alone reads one that holds.
  assert (found.tolerance, found.context['loss']) == (0.1, 'textual')
  assert each[0].bounds[0].risks == each[0].risks


@pytest.mark.parametrize('seed', range(6))
def test_never_less_careful_than_each_loss_alone(seed):
  rng = np.random.default_rng([7, seed])
  losses = tables(seed, number=60 + 40 * seed)
  promises = [
    dataclasses.replace(TEXTUAL, tolerance=rng.uniform(0.03, 0.3)),
    dataclasses.replace(SIGNED, tolerance=rng.uniform(0.01, 0.2)),
  ]
  for procedure in (calibration.fixed_sequence(), calibration.Holm()):
    each = [
      alone(table, bound, procedure=procedure).index
      for table, bound in zip(losses, promises, strict=True)
    ]
    found = jointly(losses, promises, procedure=procedure).index
    assert found is None or all(
      index is not None and found <= index for index in each
    )


def test_order_means_nothing():
  textual, signed = tables()
  assert jointly() == jointly((signed, textual), (SIGNED, TEXTUAL))


def test_one_promise_twice_is_one():
  textual, _ = tables()
  found = jointly((textual, textual), (TEXTUAL, TEXTUAL))
  context = {'loss': 'textual', 'metric': 'rouge_l'}
  assert found == alone(textual, TEXTUAL, context=context)
  assert found.promises == ()


def test_one_promise_with_two_tables_is_refused():
  textual, _ = tables()
  with pytest.raises(ValueError, match='textual loss .* tables .* that differ'):
    jointly((textual, textual / 2), (TEXTUAL, TEXTUAL))


def test_what_decided_is_what_was_tested_and_not_what_was_only_decoded():
  """A more aggressive setting that would pass is no reason: nobody asked."""
  textual, signed = np.zeros((2, 300, 3))
  signed[:, 0] = np.resize([0.9, -0.9], 300)
  textual[:27, 1:] = 1.0
  signed[:, 1:] = -0.5
  found = jointly((textual, signed))
  assert found.index is None
  assert found.reason.startswith('The signed loss')
  assert 'threshold 0.9 has mean loss 0 ' in found.reason


@pytest.mark.parametrize(
  ('promises', 'message'),
  [
    ((), r'there are no promises.*at least one'),
    (
      (TEXTUAL, dataclasses.replace(TEXTUAL, tolerance=0.2)),
      r'textual loss by rouge_l is promised twice.*0\.1 and at most 0\.2',
    ),
    ((TEXTUAL,), '2 tables of losses for 1 promises'),
  ],
)
def test_promises_that_are_none_are_refused(promises, message):
  with pytest.raises(ValueError, match=message):
    jointly(tables()[: len(promises)] if not promises else None, promises)


@pytest.mark.parametrize(
  ('tolerance', 'loss_range'), [(1.0, (0, 1)), (0.0, (0, 1)), (-1.0, (-1, 1))]
)
def test_a_tolerance_outside_the_range_of_the_loss_is_refused(
  tolerance, loss_range
):
  with pytest.raises(ValueError, match=r'risk loss: tolerance .* between'):
    calibration.Bound(loss='risk', tolerance=tolerance, loss_range=loss_range)


def test_tables_that_do_not_go_together_are_refused():
  textual, signed = tables()
  hole = signed.copy()
  hole[:, 1] = np.nan
  for losses, message in (
    ((textual, signed[1:]), 'of the same examples'),
    ((textual, hole), 'column 1 lacks the signed loss by rouge_l'),
    ((textual, signed - 2), 'signed loss by rouge_l: the loss of row 0'),
    ((textual[:, :2], signed[:, :2]), '2 columns for 3 settings'),
  ):
    with pytest.raises(ValueError, match=message):
      jointly(losses)


def test_columns_are_asked_for_until_a_promise_fails():
  losses = np.stack(tables())
  seen = np.full_like(losses, np.nan)
  ask = functools.partial(
    calibration.next_column_jointly, promises=(TEXTUAL, SIGNED)
  )
  asked = []
  while (column := ask(list(seen))) is not None:
    asked.append(column)
    seen[..., column] = losses[..., column]
  assert asked == [0, 1, 2]
  assert jointly(list(seen)) == jointly()
  # A signed tolerance that fails at once: textual losses do not go on alone.
  tight = dataclasses.replace(SIGNED, tolerance=1e-4)
  seen[..., 1:] = np.nan
  stops = calibration.next_column_jointly(list(seen), promises=(TEXTUAL, tight))
  assert stops is None


def test_it_says_all_that_is_promised(tmp_path):
  found = jointly()
  words = found.describe()
  for part in (
    'keep all of 2 promises: textual loss by rouge_l (between 0 and 1) at most',
    'signed loss by rouge_l (between -1 and 1) at most 0.05',
    'gains on some inputs offset losses on others',
    'The textual loss by rouge_l decides. The next setting did not pass',
  ):
    assert part in words
  tight = dataclasses.replace(SIGNED, tolerance=1e-4)
  nothing = jointly(promises=(TEXTUAL, tight)).describe()
  assert 'signed loss by rouge_l 0.0001 together' in nothing
  assert 'The signed loss by rouge_l decides. The first setting did' in nothing
  # Only of losses that may be negative is that said.
  assert 'offset' not in alone(tables()[0], TEXTUAL).describe()
  assert 'offset' in alone(tables()[1], SIGNED).describe()


def test_a_certificate_is_read_back_and_not_adjusted(tmp_path):
  path = tmp_path / 'certificate.json'
  found = jointly(context={'task': 'counting'})
  found.save(path)
  assert calibration.Certificate.load(path) == found
  content = records.read_json(path)
  assert content['version'] == 2 and len(content['promises']) == 2
  content['promises'][1]['tolerance'] = 0.5
  records.write_json(path, content)
  with pytest.raises(ValueError, match='edited'):
    calibration.Certificate.load(path)
  for changes, message in (
    ({'p_values': (0.0, 0.0, 0.0)}, 'must be the largest'),
    ({'tolerance': 0.3}, 'those of the first promise'),
    ({'promises': found.promises[:1]}, 'must be several'),
    ({'promises': found.promises[::-1]}, 'in the order'),
  ):
    with pytest.raises(ValueError, match=message):
      dataclasses.replace(found, **changes)


def test_a_certificate_of_one_loss_is_written_as_ever(tmp_path):
  path = tmp_path / 'certificate.json'
  alone(tables()[0], TEXTUAL).save(path)
  content = records.read_json(path)
  assert content['version'] == 1 and 'promises' not in content


ROWS = 2000
DEPENDENCE = ('same', 'opposite', 'none')


def populations(dependence):
  """Returns two losses whose risks are known, dependent in some way.

  At the second setting the one loss is just too high, at the third the other
  one, too; the first is good. So a certificate of more than the first setting
  breaks a promise.
  """
  quantiles = (np.arange(ROWS) + 0.5) / ROWS
  first = np.stack([0.3 * (quantiles < r) for r in (0.05, 0.1, 0.4)], axis=1)
  second = np.stack(
    [np.where(quantiles < r, 0.5, -0.1) for r in (0.1, 0.3, 0.5)], axis=1
  )
  if dependence == 'opposite':
    second = second[::-1]
  elif dependence == 'none':
    second = np.random.default_rng(3).permutation(second)
  layers = np.array([3.0, 2.0, 1.0])
  return {
    ('textual', ''): Population(first, SETTINGS, layers),
    ('signed', ''): Population(second, SETTINGS, layers, loss_range=(-1, 1)),
  }


@pytest.mark.parametrize('dependence', DEPENDENCE)
@pytest.mark.parametrize('broken', ['textual', 'signed', 'both'])
@pytest.mark.parametrize('p_value', ['betting', 'hoeffding_bentkus'])
def test_the_error_rate_is_kept_by_all_losses_together(
  dependence, broken, p_value
):
  """On draws from tables whose means are the risks, as correlated as can be."""
  tables_of = populations(dependence)
  textual, signed = (table.risks for table in tables_of.values())
  # Just below the risk of the second setting where the promise is to break.
  bounds = [
    calibration.Bound(
      loss='textual',
      tolerance=textual[1] - 1e-9 if broken != 'signed' else 0.2,
    ),
    calibration.Bound(
      loss='signed',
      tolerance=signed[1] - 1e-9 if broken != 'textual' else 0.4,
      loss_range=(-1, 1),
    ),
  ]
  simulations, error_rate = 400, 0.1
  count = violations.count_joint_violations(
    tables_of,
    promises=bounds,
    statistics=choices.Statistics(
      error_rate=error_rate, p_value=calibration.P_VALUES[p_value]
    ),
    num_draws=simulations,
    draw_size=400,
  )
  slack = 3 * (error_rate * (1 - error_rate) / simulations) ** 0.5
  assert count.rate <= error_rate + slack
  assert count.num_certified > 0, 'nothing passes, so nothing can go wrong'
  assert [one.loss for one in count.promises] == ['textual', 'signed']


def test_a_smallest_p_value_would_be_caught():
  """What the test above is for: one promise that is kept hides none."""
  tables_of = populations('opposite')
  textual, signed = tables_of.values()
  rows = np.random.default_rng(0).integers(ROWS, size=(200, 400))
  chosen = [
    choices.choose(
      table, rows, tolerance=tolerance, statistics=choices.Statistics()
    )
    for table, tolerance in ((textual, textual.risks[1] - 1e-9), (signed, 0.4))
  ]
  best = np.max(chosen, axis=0)
  risks, _ = textual.of_choices(best)
  assert textual.above(risks, textual.risks[1] - 1e-9).mean() > 0.5


def test_draws_are_calibrated_as_one_by_one():
  tables_of = populations('none')
  bounds = [
    calibration.Bound(loss='textual', tolerance=0.06),
    calibration.Bound(loss='signed', tolerance=0.13, loss_range=(-1, 1)),
  ]
  rows = np.random.default_rng(5).integers(ROWS, size=(20, 200))
  chosen = choices.choose_jointly(
    list(tables_of.values()),
    rows,
    tolerances=[bound.tolerance for bound in bounds],
    statistics=choices.Statistics(),
  )
  for sample, column in zip(rows, chosen, strict=True):
    losses = [table.losses[sample] for table in tables_of.values()]
    index = jointly(losses, bounds).index
    assert column == (-1 if index is None else index)
  assert len(set(chosen)) > 1, 'all draws say the same'
