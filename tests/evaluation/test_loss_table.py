"""The loss table: which columns are decoded, kept, and taken up again."""

import functools

import numpy as np
import pytest
from fakes.decoded_fakes import decoded_dataset, same_text

from calm_jax import calibration, evaluation, records
from calm_jax.evaluation import loss_table

NUM_EXAMPLES = 200
SETTINGS = (1.0, 0.9, 0.7, 0.5, 0.1)
# How many of the inputs come out differently at each setting.
NUM_DIFFERENT = (0, 2, 8, 60, 150)
REFERENCES = [('a',)] * NUM_EXAMPLES


def make_decode(calls=None):
  """Returns a decode whose outputs get worse as settings go on."""

  def decode(setting):
    if calls is not None:
      calls.append(setting)
    number = NUM_DIFFERENT[SETTINGS.index(setting)]
    texts = ['b'] * number + ['a'] * (NUM_EXAMPLES - number)
    layer = 4 - min(SETTINGS.index(setting), 3)
    return decoded_dataset(texts, [layer] * NUM_EXAMPLES, references=REFERENCES)

  return decode


def build(decode, **arguments):
  return evaluation.build_loss_table(
    decode,
    SETTINGS,
    **{
      'loss': evaluation.textual_loss(same_text),
      'loss_name': 'textual',
      'full': make_decode()(1.0),
      **arguments,
    },
  )


next_column = functools.partial(
  calibration.next_column, tolerance=0.1, error_rate=0.05
)


def test_every_column_is_decoded_without_a_question():
  table = build(make_decode())
  assert table.losses.shape == (NUM_EXAMPLES, len(SETTINGS))
  np.testing.assert_allclose(
    table.losses.mean(axis=0), np.array(NUM_DIFFERENT) / NUM_EXAMPLES
  )
  np.testing.assert_array_equal(table.mean_exit_layers, [4, 3, 2, 1, 1])
  # As many layers are caught up later as are run at once.
  np.testing.assert_array_equal(table.mean_layers_run, [8, 6, 4, 2, 2])
  assert table.computed.all()


def test_decoding_stops_where_testing_stops():
  calls = []
  table = build(make_decode(calls), next_column=next_column)
  assert calls == [1.0, 0.9, 0.7, 0.5]
  assert table.computed.tolist() == [True] * 4 + [False]
  assert np.isnan(table.mean_exit_layers[4])


def test_the_lazy_table_certifies_what_the_full_grid_does():
  lazy = build(make_decode(), next_column=next_column)
  calls = []
  whole = build(make_decode(calls), next_column=next_column, full_grid=True)
  assert calls == list(SETTINGS) and whole.computed.all()
  certificates = [
    calibration.calibrate(
      table.losses, SETTINGS, tolerance=0.1, error_rate=0.05
    )
    for table in (lazy, whole)
  ]
  assert [item.threshold for item in certificates] == [0.7, 0.7]


def test_the_table_on_disk_grows_with_each_column(tmp_path):
  path = tmp_path / 'table.npz'
  decode = make_decode()

  def interrupted(setting):
    if setting == 0.7:
      raise KeyboardInterrupt
    return decode(setting)

  with pytest.raises(KeyboardInterrupt):
    build(interrupted, path=path)
  assert (
    records.read_loss_table(path).computed.tolist() == [True] * 2 + [False] * 3
  )
  whole = build(decode, path=path, fingerprint={'params': 'some'})
  saved = records.read_loss_table(path)
  np.testing.assert_array_equal(saved.losses, whole.losses)
  np.testing.assert_array_equal(saved.mean_exit_layers, whole.mean_exit_layers)
  assert saved.fingerprint['params'] == 'some'


def test_settings_may_be_dicts(tmp_path):
  settings = ({'threshold': 0.9, 'steps': (1, 2)}, {'threshold': 0.5})
  path = tmp_path / 'table.npz'
  calls = []

  def decode(setting):
    calls.append(setting)
    return make_decode()(0.9)

  evaluation.build_loss_table(
    decode,
    settings,
    loss=evaluation.textual_loss(same_text),
    loss_name='textual',
    full=make_decode()(1.0),
    path=path,
  )
  assert calls == list(settings)
  saved = records.read_loss_table(path)
  assert saved.settings[0] == {'threshold': 0.9, 'steps': [1, 2]}


def test_bad_arguments_are_named():
  decode = make_decode()
  full = decode(1.0)
  build_with = functools.partial(
    evaluation.build_loss_table,
    loss=evaluation.textual_loss(same_text),
    loss_name='textual',
  )
  with pytest.raises(ValueError, match='settings is empty'):
    build_with(decode, [], full=full)
  with pytest.raises(ValueError, match='0.9 occurs twice'):
    build_with(decode, [1.0, 0.9, 0.9], full=full)
  twice = decoded_dataset('aab', [4] * 3, ids=['same', 'same', 'other'])
  with pytest.raises(ValueError, match='1 of 3 inputs occur more than once'):
    build_with(decode, [1.0], full=twice)
  other = decoded_dataset('ab', [4] * 2, ids=['first', 'second'])
  with pytest.raises(ValueError, match='other inputs'):
    build_with(decode, [1.0], full=other)
  with pytest.raises(ValueError, match='1 values that are not finite'):
    build_with(
      decode,
      [1.0],
      full=full,
      loss=lambda early, full: np.r_[np.nan, np.zeros(NUM_EXAMPLES - 1)],
    )
  with pytest.raises(ValueError, match='second time'):
    build_with(decode, [1.0], full=full, next_column=lambda losses: 0)


@pytest.mark.parametrize(
  ('layers_run', 'words'),
  [
    (5.001, 'mean exit layer 5.00'),
    (7.0, 'mean exit layer 5.00, 7.00 layers run with those caught up later'),
    (3.5, 'mean exit layer 5.00, 3.50 layers run, the others left out'),
  ],
)
def test_layers_in_words(layers_run, words):
  assert loss_table.layers_in_words(5.0, layers_run) == words
