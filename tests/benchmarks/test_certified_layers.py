"""Certified layers on published scores: what is read, and what comes out."""

import pickle

import numpy as np
import pytest

from calm_jax.benchmarks import certified_layers, measured_rows


def scores(number=400, seed=0):
  """Returns thresholds, layers and scores: gains and losses about even out."""
  rng = np.random.default_rng(seed)
  thresholds = np.linspace(1.0, 0.0, 6)
  full = rng.beta(4, 4, number)
  changes = rng.normal(0, 0.06, (6, number)) * np.linspace(0, 1, 6)[:, None]
  changes -= 0.03 * np.linspace(0, 1, 6)[:, None] ** 2
  layers = np.linspace(12.0, 2.0, 6)
  return thresholds, layers, np.clip(full + changes, 0, 1)


def write(path, content):
  path.write_bytes(pickle.dumps(content))
  return str(path)


def test_signed_and_betting_certify_more(tmp_path, capsys):
  path, output = write(tmp_path / 'scores.p', scores()), tmp_path / 'rows.json'
  certified_layers.main(
    [
      f'--scores={path}',
      '--tolerances=0.03',
      '--sizes=200',
      '--draws=12',
      '--num_layers=12',
      f'--output={output}',
    ]
  )
  read = measured_rows.read(output, certified_layers.LayersRow)
  paper, clipped, signed = read.rows
  assert [(row.loss, row.p_value) for row in read.rows] == [
    *certified_layers.TESTS
  ]
  assert 12 >= paper.mean_layers > clipped.mean_layers > signed.mean_layers
  assert signed.mean_layers >= signed.best_layers - 1
  assert clipped.best_layers > signed.best_layers
  assert '| 0.03 | 200 |' in capsys.readouterr().out


def test_losses_are_those_of_the_scores():
  thresholds, layers, values = scores()
  found = certified_layers.populations(
    thresholds, layers, values, num_layers=12
  )
  np.testing.assert_allclose(
    found['signed'].losses[:, 2], values[0] - values[3]
  )
  np.testing.assert_array_equal(
    found['risk'].losses, np.maximum(found['signed'].losses, 0)
  )
  assert found['risk'].num_layers == 12 and len(found['risk'].settings) == 5


class Command:
  """What a pickle could do if it were let."""

  def __reduce__(self):
    return print, ('called',)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (Command(), 'builtins.print, which is no array'),
    ((1, 2), 'not enough values'),
    ((np.ones(3), np.ones(2), np.ones((3, 5))), r'expected \[J\]'),
  ],
)
def test_other_pickles_are_refused(tmp_path, capsys, content, message):
  path = write(tmp_path / 'other.p', content)
  with pytest.raises(SystemExit, match=message):
    certified_layers.main([f'--scores={path}'])
  assert 'called' not in capsys.readouterr().out
  with pytest.raises(SystemExit, match='nowhere'):
    certified_layers.main(['--scores=/nowhere.p'])
