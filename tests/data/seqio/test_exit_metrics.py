"""The Task that reports its exits: one decode, depth beside quality."""

import json

import numpy as np
import pytest

seqio = pytest.importorskip('seqio')

from calm_jax import data
from calm_jax.data.seqio import exit_metrics


@pytest.fixture(scope='module')
def task(jsonl_files):
  paths, vocabulary = jsonl_files
  return data.JsonlTask('depths', paths, vocabulary, metrics=('exact_match',))


def test_the_evaluator_decodes_once_and_logs_depth_and_quality(task, tmp_path):
  made = exit_metrics.with_exit_metrics(task)
  assert made.name == 'depths_exits'
  assert exit_metrics.with_exit_metrics(task) is made
  evaluator = seqio.Evaluator(
    made.name,
    feature_converter=seqio.EncDecFeatureConverter(pack=False),
    eval_split='validation',
    logger_cls=[seqio.JSONLogger],
    log_dir=str(tmp_path),
    async_compute_metrics=False,
  )
  calls = []

  def predict_with_aux(dataset):
    calls.append(len(dataset))
    rows = list(dataset.as_numpy_iterator())
    tokens = [
      (int(i), row['decoder_target_tokens'].tolist()) for i, row in rows
    ]
    # Two layers and four by turns; the padding must not count.
    layers = [[2, 4, -1]] * len(rows)
    return tokens, {'exit_layers': layers}

  def no_second_decode(dataset):
    raise AssertionError('decoded without auxiliary values')

  metrics, _ = evaluator.evaluate(
    compute_metrics=True,
    step=3,
    predict_fn=no_second_decode,
    predict_with_aux_fn=predict_with_aux,
  )
  assert calls == [30]
  found = metrics.result()['depths_exits']
  assert found['mean_exit_layer'] == 3.0
  assert found['exact_match'] == 100.0
  lines = (tmp_path / 'depths_exits-000003.jsonl').read_text('utf-8')
  assert json.loads(lines.splitlines()[0])['aux_exit_layers'] == [2, 4, -1]


def test_nothing_decoded_has_no_depth():
  layers = {'exit_layers': [[-1, -1]]}
  depth = exit_metrics.mean_exit_layer([], [], layers)['mean_exit_layer']
  assert np.isnan(depth)


def test_a_mixture_stays_as_it_is(task):
  mixture = data.MixtureTask('depth_mixture', [task]).register()
  assert exit_metrics.with_exit_metrics(mixture) is mixture
