"""What version 0.1.0 wrote is read: a run, a certificate, a program.

tests/golden/run_0_1_0.tar.xz holds a run directory (three layers, 150 steps of
the counting task), its classifier and certificate, and an exported program, all
written by that version; run_0_1_0.json what it decoded with them. That training
goes on is in tests/training/test_stored_run.py.
"""

import json
import tarfile

import numpy as np
import pytest
from tools.paths import GOLDEN

import calm_jax
from calm_jax import deployment, exits, records, runs

EXPECTED = json.loads((GOLDEN / 'run_0_1_0.json').read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
  """The folder with `run` and `exported`."""
  folder = tmp_path_factory.mktemp('stored')
  with tarfile.open(GOLDEN / 'run_0_1_0.tar.xz') as archive:
    archive.extractall(folder, filter='data')
  return folder


def test_the_certificate_gives_the_policy_and_the_tokens(stored):
  generator = calm_jax.load(str(stored / 'run'))
  texts = [row['inputs'] for row in EXPECTED['generated']]
  for row, output in zip(
    EXPECTED['generated'], generator.generate(texts), strict=True
  ):
    assert output.certified
    assert output.text == row['text']
    assert list(output.tokens) == row['tokens']
    assert list(output.exit_layers) == row['exit_layers']


def test_the_classifier_and_the_rows_seen_are_read(stored):
  classifier = runs.load_classifier(str(stored / 'run'))
  assert isinstance(classifier, exits.Classifier)
  assert classifier.kernel.shape == (16,)
  rows = records.read_training_rows(stored / 'run' / records.TRAINING_ROWS_NAME)
  assert len(rows.trained) == 700


def test_the_exported_program_decodes(stored):
  program = deployment.load_artifact(stored / 'exported')
  wanted = EXPECTED['exported']
  result = program(wanted['inputs'])
  np.testing.assert_array_equal(result['tokens'], wanted['tokens'])
  np.testing.assert_array_equal(result['exit_layers'], wanted['exit_layers'])
