"""Files: what is written is read back, and half a file is never met."""

import dataclasses
import math
import os
import types

import numpy as np
import pytest
from cases import example_result

from calm_jax import records


def loss_table(**changes):
  fields = {
    'losses': np.array([[0.0, 0.5, np.nan], [0.25, 1.0, np.nan]]),
    'settings': (0.9, {'threshold': 0.5}, 0.1),
    'mean_exit_layers': np.array([3.5, 2.0, np.nan]),
    'mean_layers_run': np.array([4.5, 3.25, np.nan]),
    'example_ids': ('a', 'b'),
    'loss': 'textual',
    'fingerprint': {'params': 'x', 'max_length': 8},
  }
  return records.LossTable(**{**fields, **changes})


def equal(first, second):
  """Compares records, NaN equal to NaN."""
  return records.to_jsonable(first) == records.to_jsonable(second)


def test_an_evaluation_is_read_back_as_it_was(tmp_path):
  path = tmp_path / 'folder' / 'result.json'
  result = example_result.evaluation_result()
  records.write_json(path, result)
  read = records.read_record(path, records.EvaluationResult)
  assert equal(read, result)
  assert isinstance(read.rows, tuple)
  assert read.rows[0].exit_layer_histogram == (0,) * 7 + (5000,)
  assert isinstance(read.samples[0].early, records.DecodedText)
  assert math.isnan(read.rows[-1].mean_exit_layer)
  assert read.certificate == result.certificate
  assert os.listdir(path.parent) == ['result.json']
  # Without its certificate too.
  records.write_json(path, dataclasses.replace(result, certificate=None))
  assert records.read_record(path, records.EvaluationResult).certificate is None


def test_an_evaluation_of_a_version_without_ledger_is_read(tmp_path):
  path = tmp_path / 'result.json'
  written = records.to_jsonable(example_result.evaluation_result())
  for row in (*written['rows'], *written['sweep']):
    del row['work']
  records.write_json(path, written)
  row = records.read_record(path, records.EvaluationResult).rows[1]
  assert row.work == {} and row.mean_exit_layer == 3.18
  for value in (row.layers_run, row.layers_projected, row.accepted_per_check):
    assert math.isnan(value)


def test_unknown_keys_are_ignored_and_missing_ones_named(tmp_path):
  path = tmp_path / 'context.json'
  records.write_json(path, {'device': 'cpu', 'dtype': 'float32', 'later': 1})
  assert records.read_record(path, records.RunContext).device == 'cpu'
  records.write_json(path, {'device': 'cpu'})
  with pytest.raises(ValueError, match="context.json has no 'dtype'"):
    records.read_record(path, records.RunContext)


@pytest.mark.parametrize(
  ('kind', 'value'),
  [
    (int, 'three'),
    (str, 3),
    (float, 'x'),
    (tuple[int, ...], 3),
    (tuple[int, ...], ['x']),
    (dict[str, float], [1]),
    (records.RunContext, 3),
  ],
)
def test_values_of_another_kind_are_named(kind, value):
  with pytest.raises(ValueError, match='record.* is .*, expected'):
    records.from_jsonable(kind, value)


def test_null_is_nan_only_where_a_float_is_expected():
  assert math.isnan(records.from_jsonable(float, None))
  assert records.from_jsonable(float | None, None) is None
  with pytest.raises(ValueError, match='None'):
    records.from_jsonable(str, None)


def test_json_has_no_nan(tmp_path):
  path = tmp_path / 'values.json'
  records.write_json(
    path, {'a': np.float32('nan'), 'b': np.array([1.0, np.inf]), 3: (1, 2)}
  )
  assert records.read_json(path) == {'a': None, 'b': [1.0, None], '3': [1, 2]}


def test_a_truncated_json_file_is_named(tmp_path):
  path = tmp_path / 'half.json'
  path.write_text('{"a": 1')
  with pytest.raises(ValueError, match='half.json is not valid JSON'):
    records.read_json(path)


def test_jsonl_names_the_bad_line(tmp_path):
  path = tmp_path / 'rows.jsonl'
  records.write_jsonl(path, [{'a': 1}])
  records.append_jsonl(path, {'a': 2})
  assert [row['a'] for row in records.read_jsonl(path)] == [1, 2]
  path.write_text(path.read_text() + '{"a"')
  with pytest.raises(ValueError, match='line 3'):
    list(records.read_jsonl(path))


def test_a_loss_table_is_read_back(tmp_path):
  path = tmp_path / 'deep' / 'table.npz'
  table = loss_table()
  records.write_loss_table(path, table)
  read = records.read_loss_table(path)
  np.testing.assert_array_equal(read.losses, table.losses)
  for name in ('mean_exit_layers', 'mean_layers_run'):
    np.testing.assert_array_equal(getattr(read, name), getattr(table, name))
  for name in ('settings', 'example_ids', 'loss', 'fingerprint'):
    assert getattr(read, name) == getattr(table, name)
  assert read.num_examples == 2
  assert read.computed.tolist() == [True, True, False]
  assert os.listdir(path.parent) == ['table.npz']


def test_a_loss_table_of_earlier_versions_has_no_ledger(tmp_path):
  path = tmp_path / 'table.npz'
  records.write_loss_table(path, loss_table())
  with np.load(path) as arrays:
    earlier = dict(arrays)
  del earlier['mean_layers_run']
  np.savez(path, **earlier)
  assert np.isnan(records.read_loss_table(path).mean_layers_run).all()
  with pytest.raises(ValueError, match='mean_layers_run have shape'):
    loss_table(mean_layers_run=np.ones(2))


def test_a_truncated_loss_table_is_named(tmp_path):
  path = tmp_path / 'table.npz'
  records.write_loss_table(path, loss_table())
  content = path.read_bytes()
  for length in (0, 10, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match='table.npz is not a complete'):
      records.read_loss_table(path)
  np.savez(path, losses=np.zeros((1, 1)))
  with pytest.raises(ValueError, match='not a complete loss table'):
    records.read_loss_table(path)
  with pytest.raises(FileNotFoundError):
    records.read_loss_table(tmp_path / 'none.npz')


def test_loss_tables_of_odd_shapes_are_refused():
  with pytest.raises(ValueError, match='losses have shape'):
    loss_table(settings=(0.9,))
  with pytest.raises(ValueError, match='mean_exit_layers have shape'):
    loss_table(mean_exit_layers=np.zeros(2))


@pytest.mark.parametrize('index', [None, 1])
def test_a_certificate_is_summarised(index):
  certificate = types.SimpleNamespace(
    index=index,
    certified=index is not None,
    setting=None if index is None else 0.5,
    threshold=1.0 if index is None else 0.5,
    tolerance=0.1,
    error_rate=0.05,
    num_examples=100,
    risks=(0.01, 0.04),
    describe=lambda: 'in words',
    promises=(),
  )
  summary = records.CertificateSummary.of(
    certificate, loss='textual', metric='rouge_l', measure='SoftmaxMargin'
  )
  assert summary.description == 'in words'
  assert summary.certified == (index is not None)
  if index is None:
    assert summary.threshold == 1.0 and math.isnan(summary.calibration_loss)
  else:
    assert summary.threshold == 0.5 and summary.calibration_loss == 0.04
