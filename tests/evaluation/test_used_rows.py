"""Rows that are used again: noted, told, and counted where asked."""

import dataclasses
import json

import numpy as np
import pytest

from calm_jax import records
from calm_jax.calibration import p_values
from calm_jax.evaluation import used_rows
from calm_jax.processes import collectives

USE = records.RowUse(
  rows='sha256:1',
  example_ids=('a', 'b', 'c'),
  settings=(0.9, 0.5),
  loss='textual',
  metric='rouge_l',
  tolerance=0.1,
  error_rate=0.05,
  p_value='betting(seed=3)',
  procedure='fixed_sequence',
)


def variant(**changes):
  return dataclasses.replace(USE, **changes)


def history(folder, use=USE, spent='told', share=None):
  return used_rows.history_of(
    use, folder, spent=spent, share=share or collectives.Share()
  )


def test_uses_are_noted_and_told_with_grid_loss_tolerance_and_seed(tmp_path):
  first = history(tmp_path)
  assert (first.others, first.spent, first.level) == ((), 0, 0.05)
  assert first.describe() == 'No other use of its rows was noted.'
  second = history(tmp_path, variant(settings=(0.7, 0.6), p_value='hoeffding'))
  (line,) = second.others
  for part in (
    'textual',
    'rouge_l',
    '0.1',
    '0.9 to threshold 0.5',
    'betting(seed=3)',
  ):
    assert part in line
  assert (second.spent, second.level) == (0.05, 0.05), 'told, not counted'
  assert 'at least 0.9' in second.describe()
  assert len(list(tmp_path.glob('*.json'))) == 2


@pytest.mark.parametrize(
  'changes',
  [
    {'settings': (0.95, 0.9)},
    {'loss': 'risk'},
    {'metric': 'chrf'},
    {'tolerance': 0.25},
    {'error_rate': 0.1},
    {'p_value': 'betting(seed=4)'},
    {'procedure': 'holm'},
    {'about': {'policy': 'another'}},
    {'example_ids': ('c', 'd'), 'rows': 'sha256:2'},
  ],
)
def test_whatever_is_tested_otherwise_on_some_of_the_rows_counts(
  tmp_path, changes
):
  history(tmp_path)
  assert len(history(tmp_path, variant(**changes)).others) == 1


def test_the_same_again_and_other_rows_do_not_count(tmp_path):
  history(tmp_path)
  assert history(tmp_path).others == ()
  others = variant(example_ids=('d', 'e'), rows='sha256:3')
  assert history(tmp_path, others).others == ()
  assert len(list(tmp_path.glob('*.json'))) == 2


def test_what_was_spent_is_taken_off(tmp_path):
  """0.02, then of 0.05 what is left, then nothing."""
  history(tmp_path, variant(error_rate=0.02), spent='counted')
  second = history(tmp_path, spent='counted')
  assert (second.spent, second.level, second.counted) == (0.02, 0.03, True)
  third = variant(tolerance=0.3)
  with pytest.raises(
    ValueError, match=r'nothing is left.*rows not used so far'
  ):
    history(tmp_path, third, spent='counted')
  # It tested nothing, so it is no use; and the second one is what it was.
  assert len(list(tmp_path.glob('*.json'))) == 2
  assert history(tmp_path, spent='counted').level == 0.03
  assert history(tmp_path, third).level == 0.05, 'told'
  assert history(tmp_path, spent='counted').level == 0.03
  assert history(None, spent=0.01).level == 0.04


def test_a_calibration_under_way_counts_with_all_of_its_error_rate(tmp_path):
  """Killed or not: it may have looked at losses."""
  records.note_row_use(tmp_path, variant(error_rate=0.02))
  found = history(tmp_path, spent='counted')
  assert (found.spent, found.level) == (0.02, 0.03)
  # What is left to it when it is started again is settled then.
  with pytest.raises(ValueError, match='nothing is left'):
    history(tmp_path, variant(error_rate=0.02), spent='counted')


@pytest.mark.parametrize('spent', [-0.1, 0.05, 'ledger', True, None])
def test_what_is_none_of_them_is_refused(spent):
  with pytest.raises(ValueError, match='spent is'):
    used_rows.check_spent(spent, 0.05)


def test_the_first_process_speaks_for_all(tmp_path, monkeypatch):
  """The others neither read nor write, and take what it found."""
  history(tmp_path, variant(tolerance=0.3))
  said = []

  def gather(self, payload):
    said.append(payload)
    return [said[0], payload]

  monkeypatch.setattr(collectives.Share, 'gather', gather)
  first = history(tmp_path, share=collectives.Share(0, 2))
  other = history(tmp_path / 'not shared', share=collectives.Share(1, 2))
  assert first == other and len(first.others) == 1
  assert said[1] == b'' and not (tmp_path / 'not shared').exists()


def test_a_damaged_note_is_named(tmp_path):
  history(tmp_path)
  (path,) = tmp_path.glob('*.json')
  path.write_text(json.dumps({'rows': 1}), encoding='utf-8')
  with pytest.raises(ValueError, match=path.name):
    history(tmp_path, variant(loss='risk'))


def test_counting_keeps_the_error_rate_that_testing_again_breaks():
  """Two settings on the same rows, each at the tolerance; 4,000 draws."""
  rng = np.random.default_rng(7)
  totals = rng.binomial(200, 0.1, size=(4000, 2))
  tests = p_values.exact_binomial_of_total(totals, 200, 0.1)
  told, counted = (
    records.RowHistory(
      others=('one',), spent=spent, error_rate=0.05, counted=spent < 0.05
    ).level
    for spent in (0.05, 0.03)
  )
  assert (told, counted) == (0.05, 0.02)

  def wrong(first, second):
    """Share of draws with a certificate: of the first or else the second."""
    return ((tests[:, 0] <= first) | (tests[:, 1] <= second)).mean()

  assert wrong(0.05, 0) <= 0.05 and wrong(0.03, counted) <= 0.05
  assert wrong(0.05, told) > 0.06


def test_several_promises_are_another_use_and_one_is_what_it_was():
  """Files of earlier versions are named by what they hold."""
  assert USE.key == '040189824bffd76c'
  both = tuple(
    records.PromisedLoss(loss=loss, metric='rouge_l', tolerance=0.1)
    for loss in ('textual', 'signed')
  )
  joint = variant(promises=both)
  assert joint.key != USE.key
  assert 'textual loss by rouge_l at most 0.1 and signed' in joint.describe()
