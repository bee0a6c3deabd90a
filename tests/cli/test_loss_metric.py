"""The metric behind the losses, named from gin in all of its three forms."""

import pytest

gin = pytest.importorskip('gin')
pytest.importorskip('seqio')

from calm_jax.cli import command_line, gin_runner
from calm_jax.evaluation import text_metrics

MODULE = """
def closeness(prediction, references):
  return max(float(len(prediction) == len(text)) for text in references)

def power(prediction, references, exponent=1):
  return 0.5**exponent
"""
FILE = """
from __gin__ import dynamic_registration
import metrics_of_a_user
from calm_jax.evaluation import text_metrics
LOSS_METRIC = @{metric}
"""
GIVEN = ["MODEL_DIR = 'm'", 'TASK = @gin.singleton', 'POLICY = @gin.singleton']


@pytest.fixture
def loss_of(monkeypatch, tmp_path):
  """Returns the loss that the plan of `calibrate` has by a configuration."""
  (tmp_path / 'metrics_of_a_user.py').write_text(MODULE, encoding='utf-8')
  monkeypatch.syspath_prepend(tmp_path)

  def call(*bindings, file=None):
    files = ['runs/calibrate.gin']
    if file is not None:
      (tmp_path / 'own.gin').write_text(file, encoding='utf-8')
      files.append(str(tmp_path / 'own.gin'))
    arguments = command_line.rewrite_gin_arguments(bindings)
    flags = [text.removeprefix('--gin_bindings=') for text in arguments]
    gin_runner.parse(files, [*GIVEN, *flags])
    plan = gin.config.query_parameter('calibrate.run.plan')
    return plan.scoped_configurable_fn().loss

  yield call
  gin.clear_config()


def test_a_known_metric_is_named_on_the_command_line(loss_of):
  loss = loss_of('--gin.LOSS_METRIC=chrf', '--gin.LOSS=risk')
  assert (loss.name, loss.metric) == ('risk', text_metrics.chrf)


def test_a_metric_of_ones_own_is_recorded_so_that_it_is_found_again(loss_of):
  name = 'metrics_of_a_user:closeness'
  by_name = loss_of(f'--gin.LOSS_METRIC={name}')
  by_reference = loss_of(file=FILE.format(metric='metrics_of_a_user.closeness'))
  for loss in (by_name, by_reference):
    assert loss.metric_name == name
    assert loss.metric is text_metrics.get_metric(loss.metric_name)
    assert loss.of_texts(['ab', 'a'], ['cd', 'cd']).tolist() == [0.0, 1.0]


def test_a_reference_to_a_known_metric_is_recorded_by_its_short_name(loss_of):
  loss = loss_of(file=FILE.format(metric='text_metrics.token_f1'))
  assert loss.metric_name == 'token_f1'


def test_what_gin_binds_would_be_lost_and_is_refused(loss_of):
  file = FILE.format(metric='metrics_of_a_user.power')
  file += 'metrics_of_a_user.power.exponent = 3'
  with pytest.raises(ValueError, match='takes exponent besides prediction'):
    loss_of(file=file)
