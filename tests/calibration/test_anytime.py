"""Rows in blocks: what is asked for and certified, and how often wrongly."""

import numpy as np
import pytest

from calm_jax import calibration
from calm_jax.calibration import anytime, multiple_testing, p_values

SETTINGS = (0.9, 0.5, 0.1)
DRAWS = 3000
TEXTUAL = calibration.Bound(loss='textual', tolerance=0.1)
SIGNED = calibration.Bound(loss='signed', tolerance=0.1, loss_range=(-1.0, 1.0))
ABOUT = dict(
  promises=[TEXTUAL], procedure=calibration.AnytimeSequence(block=32)
)


def losses(risks=(0.01, 0.04, 0.3), number=300, seed=0):
  """Losses of 0 and 1, rows in the order of the bets."""
  rng = np.random.default_rng(seed)
  return (rng.random((number, len(risks))) < risks).astype(float)


def fill(full, **about):
  """Gives what is asked for, and nothing else; returns tables and blocks."""
  tables, asked = [np.full_like(table, np.nan) for table in full], []
  while (block := calibration.next_block(tables, **about)) is not None:
    column, start, stop = block
    for table, known in zip(tables, full, strict=True):
      table[start:stop, column] = known[start:stop, column]
    asked.append(tuple(block))
  return tables, asked


def test_blocks_are_asked_for_until_it_is_decided():
  full = losses()
  (table,), asked = fill([full], **ABOUT)
  columns = [column for column, _, _ in asked]
  assert columns == sorted(columns) and set(columns) == {0, 1, 2}
  for column in range(3):
    starts = [start for number, start, _ in asked if number == column]
    assert starts == list(range(0, 32 * len(starts), 32))
  # As soon as the bets have won, and no row later.
  for column, passed in ((0, True), (1, True), (2, False)):
    path = calibration.Betting().path(
      full[np.newaxis, :, column], tolerance=0.1, number=300
    )[0]
    seen = np.isfinite(table[:, column]).sum()
    if passed:
      won = np.argmax(np.exp(-np.maximum(path, 0)) <= 0.05) + 1
      assert seen - 32 < won <= seen < 300
    else:
      assert path[seen - 1] <= np.log(0.1) and (path[: seen - 32] < 3).all()
  certificate = calibration.calibrate_in_blocks([table], SETTINGS, **ABOUT)
  rows = np.isfinite(table).sum(axis=0)
  assert certificate.index == 1 and certificate.num_examples == rows.max()
  assert certificate.context['anytime_rows'] == {
    'there': 300,
    'looked_at': rows.tolist(),
  }
  assert f'given up after {rows[2]}' in certificate.describe()
  np.testing.assert_allclose(certificate.risks, np.nanmean(table, axis=0))


def test_what_was_not_asked_for_changes_nothing(tmp_path):
  full = losses()
  (table,), _ = fill([full], **ABOUT)
  lazy = calibration.calibrate_in_blocks([table], SETTINGS, **ABOUT)
  assert calibration.calibrate_in_blocks([full], SETTINGS, **ABOUT) == lazy
  cut = table[: lazy.num_examples]
  found = calibration.calibrate_in_blocks([cut], SETTINGS, number=300, **ABOUT)
  assert found == lazy
  lazy.save(tmp_path / 'certificate.json')
  assert calibration.Certificate.load(tmp_path / 'certificate.json') == lazy


@pytest.mark.parametrize('seed', range(4))
def test_it_certifies_what_all_rows_would(seed):
  """Never giving up, the same as a fixed sequence with the same bets."""
  full = losses((0.02, 0.05, 0.07, 0.3), 400, seed)
  p_value, settings = calibration.Betting(seed=3), (0.9, 0.7, 0.5, 0.1)
  order = p_value.order(400)
  about = dict(p_value=p_value, error_rate=0.1)
  whole = calibration.calibrate(full, settings, tolerance=0.1, **about)
  found = calibration.calibrate_in_blocks(
    [full[order]],
    settings,
    [TEXTUAL],
    procedure=calibration.AnytimeSequence(block=7, give_up=0),
    **about,
  )
  assert found.index == whole.index and found.index is not None
  looked_at = found.context['anytime_rows']['looked_at']
  assert looked_at[0] < 400 and looked_at[found.index + 1] == 400


def test_several_losses_wait_for_the_slowest_and_one_gives_up():
  both = dict(ABOUT, promises=[TEXTUAL, SIGNED])
  easy = losses((0.0, 0.0, 0.3))
  signed = np.random.default_rng(1).normal((0.0, 0.0, 0.3), 0.1, (300, 3))
  tables, _ = fill([easy, signed.clip(-1, 1)], **both)
  found = calibration.calibrate_in_blocks(tables, SETTINGS, **both)
  assert found.index == 1 and len(found.promises) == 2
  alone = {
    name: calibration.calibrate_in_blocks(
      [table], SETTINGS, [bound], procedure=ABOUT['procedure']
    ).context['anytime_rows']['looked_at'][0]
    for name, table, bound in (
      ('textual', easy, TEXTUAL),
      ('signed', signed.clip(-1, 1), SIGNED),
    )
  }
  rows = found.context['anytime_rows']['looked_at'][0]
  assert rows == max(alone.values()) > min(alone.values())
  assert found.reason.startswith('The ')


@pytest.mark.parametrize('give_up', [0.1, 0.0])
def test_the_error_rate_is_kept_wherever_it_stops(give_up):
  """At the tolerance, looking after every row."""
  sequence = calibration.AnytimeSequence(block=1, give_up=give_up)
  rng = np.random.default_rng(5)
  for samples, tolerance in (
    ((rng.random((DRAWS, 150)) < 0.2).astype(float), 0.2),
    (rng.beta(0.3, 2.7, (DRAWS, 150)), 0.1),
  ):
    paths = calibration.Betting().path(samples, tolerance=tolerance, number=150)
    wrong = (sequence.stops(paths, 0.05)[1] == anytime.REJECTED).mean()
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / DRAWS)


def test_peeking_at_a_p_value_of_all_rows_breaks_it():
  """What the check above would see of a test for one number of rows."""
  samples = np.random.default_rng(5).random((DRAWS, 150)) < 0.2
  tests = p_values.exact_binomial_of_total(
    np.cumsum(samples, axis=1), np.arange(1, 151), 0.2
  )
  assert (tests.min(axis=1) <= 0.05).mean() > 0.1


def test_a_sequence_of_bad_settings_is_wrong_no_more_often():
  """Two good settings, then bad ones on the same rows, all alike."""
  rng, draws = np.random.default_rng(6), 150
  sequence = calibration.AnytimeSequence(block=8)
  wrong = 0
  for _ in range(draws):
    uniform = rng.random((80, 1))
    table = (uniform < (0.02, 0.05, 0.2, 0.201)).astype(float)
    found = calibration.calibrate_in_blocks(
      [table],
      (0.9, 0.7, 0.5, 0.1),
      [calibration.Bound(loss='textual', tolerance=0.2 - 1e-9)],
      procedure=sequence,
    )
    wrong += found.index is not None and found.index >= 2
  assert wrong <= draws * 0.05 + 3 * np.sqrt(draws * 0.05 * 0.95)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(block=0), 'block'),
    (dict(block=2.5), 'block'),
    (dict(give_up=1.0), 'give_up'),
    (dict(give_up=-0.1), 'give_up'),
    (dict(give_up=True), 'give_up'),
    (dict(give_up=float('nan')), 'give_up'),
  ],
)
def test_numbers_that_are_none_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    calibration.AnytimeSequence(**arguments)


def hole():
  table = losses()
  table[10, 0] = np.nan
  return table


@pytest.mark.parametrize(
  'table, changes, message',
  [
    (losses(), dict(error_rate=1.5), 'error_rate'),
    (losses() * 2, {}, r'row \d+, column \d is 2.0, not within'),
    (losses()[:, 0], {}, r'\[N examples, J settings\]'),
    (hole(), {}, 'row 10, column 0 is NaN'),
    (losses(), dict(p_value=calibration.hoeffding), 'use calibration.betting'),
    (losses()[:, :2], {}, '2 columns for 3 settings'),
    (np.full((300, 3), np.nan), {}, 'up to row 31: next_block'),
  ],
)
def test_bad_tables_are_refused(table, changes, message):
  with pytest.raises(ValueError, match=message):
    calibration.calibrate_in_blocks([table], SETTINGS, **{**ABOUT, **changes})


def test_losses_lack_the_same_rows():
  first, second = losses(), losses()
  second[200:, 2] = np.nan
  with pytest.raises(ValueError, match='one decode of a block serves them'):
    calibration.next_block(
      [first, second], **dict(ABOUT, promises=[TEXTUAL, SIGNED])
    )


def test_certificates_know_it_by_name():
  sequence = calibration.AnytimeSequence(block=20, give_up=0.25)
  assert multiple_testing.find_procedure(sequence.name) == sequence
  for name in ('anytime_sequence', 'anytime_sequence(block=0, give_up=0.1)'):
    with pytest.raises(ValueError, match='anytime_sequence'):
      multiple_testing.find_procedure(name)
  with pytest.raises(ValueError, match='at most 3 losses each'):
    calibration.Betting().path(np.zeros((1, 4)), tolerance=0.1, number=3)
