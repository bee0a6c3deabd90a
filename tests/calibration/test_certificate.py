"""Certificates: stored whole, read back equal, and not to be tampered with."""

import dataclasses
import json
import math

import numpy as np
import pytest

from calm_jax import calibration
from calm_jax.calibration import certificate as certificates

SETTINGS = [0.9, 0.7, 0.5, 0.3]


def make(risks=(0.01, 0.05, 0.3, math.nan), **arguments):
  losses = np.stack(
    [
      np.full(400, math.nan)
      if math.isnan(risk)
      else np.arange(400) < risk * 400
      for risk in risks
    ],
    axis=1,
  )
  arguments = {
    'context': {
      'loss': 'textual consistency',
      'seed': np.int64(3),
      'shapes': (2, np.float32(0.5)),
    },
    **arguments,
  }
  return calibration.calibrate(losses, SETTINGS, **arguments)


def rewrite(path, sign=False, **changes):
  content = json.loads(path.read_text())
  content.update(changes)
  if sign:
    del content['checksum']
    content['checksum'] = certificates._checksum(content)
  path.write_text(json.dumps(content))


@pytest.mark.parametrize('risks', [(0.01, 0.05, 0.3, math.nan), (0.5,) * 4])
def test_reads_back_what_was_saved(tmp_path, risks):
  certificate = make(risks)
  path = tmp_path / 'new' / 'certificate.json'
  certificate.save(path)
  loaded = calibration.Certificate.load(path)
  assert loaded == certificate
  assert loaded.describe() == certificate.describe()
  assert loaded.context == {
    'loss': 'textual consistency',
    'seed': 3,
    'shapes': [2, 0.5],
  }


def test_dict_settings_read_back(tmp_path):
  settings = [{'measure': 'state', 'threshold': np.float64(0.5)}, {'k': 2}]
  certificate = calibration.calibrate(np.zeros((100, 2)), settings)
  certificate.save(tmp_path / 'c.json')
  assert calibration.Certificate.load(tmp_path / 'c.json') == certificate
  assert certificate.setting == {'k': 2}


def test_the_file_is_strict_json_that_states_the_result(tmp_path):
  path = tmp_path / 'c.json'
  make().save(path)

  def refuse(constant):
    raise AssertionError(constant)

  content = json.loads(path.read_text(), parse_constant=refuse)
  assert content['format'] == 'calm_jax.certificate'
  assert content['version'] == 1
  assert content['threshold'] == 0.7
  assert content['certified'] is True
  assert content['p_values'][3] is None


def test_describes_the_guarantee():
  text = make().describe()
  assert 'P(E[loss] <= 0.1) >= 0.95' in text
  assert 'threshold 0.7' in text
  assert 'expected loss (textual consistency, between 0 and 1)' in text
  assert '400 calibration examples' in text


def test_describes_that_nothing_was_certified():
  certificate = make((0.5,) * 4)
  text = certificate.describe()
  assert certificate.threshold == 1.0
  assert 'Nothing was certified' in text
  assert 'the full model is used' in text
  assert 'P(E[loss]' not in text


@pytest.mark.parametrize(
  'changes',
  [
    {'index': 2},
    {'threshold': 0.3},
    {'tolerance': 0.2},
    {'error_rate': 0.5},
    {'p_values': [0.0, 0.0, 0.0, 0.0]},
    {'context': {'loss': 'risk consistency'}},
    {'num_examples': 4000},
    {'reason': 'because'},
    {'checksum': 'sha256:0'},
  ],
)
def test_an_edited_file_is_refused(tmp_path, changes):
  path = tmp_path / 'c.json'
  make().save(path)
  rewrite(path, **changes)
  with pytest.raises(ValueError, match=r'c\.json: .*calibrate again'):
    calibration.Certificate.load(path)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'index': 0}, 'index 0 does not follow from the p-values'),
    ({'index': None}, 'index None does not follow'),
    ({'index': 9}, 'index 9 is none of the 4 settings'),
    ({'error_rate': 1e-30}, 'gives None'),
    ({'threshold': 0.3}, r'threshold 0\.3 does not follow'),
    ({'certified': False}, 'certified False does not follow'),
    ({'setting': 0.9}, r'setting 0\.9 does not follow'),
    ({'risks': [0.0]}, 'should be equally many'),
    ({'p_values': 3}, 'malformed'),
    ({'procedure': 'mine'}, "procedure 'mine' is none of"),
    ({'version': 2}, 'missing or unknown: promises'),
    ({'version': 3}, 'version 3'),
    ({'format': 'something'}, 'not a certificate'),
    ({'surprise': 1}, 'missing or unknown: surprise'),
  ],
)
def test_an_inconsistent_file_is_refused_even_if_signed(
  tmp_path, changes, message
):
  path = tmp_path / 'c.json'
  make().save(path)
  rewrite(path, sign=True, **changes)
  with pytest.raises(ValueError, match=message):
    calibration.Certificate.load(path)


def test_reformatting_a_file_is_no_edit(tmp_path):
  path = tmp_path / 'c.json'
  make().save(path)
  content = json.loads(path.read_text())
  path.write_text(json.dumps(dict(sorted(content.items())), indent=4))
  assert calibration.Certificate.load(path) == make()


def test_missing_and_truncated_files(tmp_path):
  path = tmp_path / 'c.json'
  with pytest.raises(FileNotFoundError):
    calibration.Certificate.load(path)
  make().save(path)
  path.write_text(path.read_text()[:100])
  with pytest.raises(ValueError, match=r'c\.json is not valid JSON'):
    calibration.Certificate.load(path)
  path.write_text('[]')
  with pytest.raises(ValueError, match='not a certificate'):
    calibration.Certificate.load(path)


def test_is_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    make().index = 3


@dataclasses.dataclass(frozen=True)
class FromOutside:
  """A procedure from outside, as a user would write one."""

  name = 'from_outside'

  def __call__(self, p_values, error_rate):
    # Written for arrays: a tuple would have no size.
    return tuple(
      np.flatnonzero(p_values <= error_rate / p_values.size).tolist()
    )

  def next_test(self, p_values, error_rate):
    del error_rate
    return next((j for j, p in enumerate(p_values) if math.isnan(p)), None)


def test_another_procedure_needs_no_change_here(tmp_path):
  path = tmp_path / 'c.json'
  certificate = make((0.2, 0.01, 0.3, 0.02), procedure=FromOutside())
  assert certificate.index == 3
  certificate.save(path)
  with pytest.raises(ValueError, match='pass the object'):
    calibration.Certificate.load(path)
  assert certificate == calibration.Certificate.load(
    path, procedure=FromOutside()
  )
