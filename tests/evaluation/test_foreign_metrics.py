"""A file's word has no code imported: only the user names modules."""

import sys

import numpy as np
import pytest

from calm_jax import calibration, evaluation
from calm_jax.evaluation import evaluating, text_metrics

CODE = """
import pathlib
pathlib.Path(__file__).with_name('it_ran').touch()
def metric(prediction, references):
  return 1.0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  (tmp_path / 'of_the_run.py').write_text(CODE, encoding='utf-8')
  monkeypatch.syspath_prepend(str(tmp_path))
  yield tmp_path
  sys.modules.pop('of_the_run', None)


def scoring(metric, **plan):
  certificate = calibration.calibrate(
    np.zeros((100, 1)), [0.5], context={'metric': metric, 'loss': 'textual'}
  )
  return evaluating._scoring(evaluation.ComparisonPlan(**plan), certificate)


@pytest.mark.parametrize('plan', [{}, {'loss_metric': 'rouge_l'}])
def test_a_certificate_names_no_module_that_is_imported(folder, plan):
  with pytest.raises(ValueError, match='LOSS_METRIC=of_the_run:metric'):
    scoring('of_the_run:metric', **plan)
  assert 'of_the_run' not in sys.modules
  assert not (folder / 'it_ran').exists()


def test_what_the_user_names_is(folder):
  name = 'of_the_run:metric'
  found = scoring(name, loss_metric=name).textual.metric
  assert text_metrics.metric_name(found) == name
  assert scoring('chrf', loss_metric=name).textual.metric is text_metrics.chrf


def test_of_several_promises_every_metric_has_to_be_named(folder):
  tables = [np.zeros((100, 1))] * 2
  bounds = [
    calibration.Bound(loss='textual', metric=metric, tolerance=0.1)
    for metric in ('of_the_run:metric', 'rouge_l')
  ]
  certificate = calibration.calibrate_jointly(tables, [0.5], bounds)
  with pytest.raises(ValueError, match='LOSS_METRIC=of_the_run:metric'):
    evaluating._scoring(evaluation.ComparisonPlan(), certificate)
  assert not (folder / 'it_ran').exists()
