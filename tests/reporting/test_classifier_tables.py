"""The classifier's table, from its record."""

import dataclasses
import math

import pytest

from calm_jax import records, reporting


def evaluation():
  layers = (
    records.ClassifierLayer(1, 0.5, 0.625, 0.75, 0.6875, 0.5, 0.25),
    records.ClassifierLayer(2, 1.0, math.nan, math.nan, math.nan, 0.9, 0.1),
  )
  return records.ClassifierEvaluation(
    task='counting',
    split='validation',
    num_tokens=1234,
    num_layers=3,
    loss='balanced',
    steps=1000,
    layers=layers,
    context=records.RunContext(device='cpu', dtype='float32'),
  )


def test_the_record_survives_its_file(tmp_path):
  path = tmp_path / 'evaluation.json'
  records.write_json(path, evaluation())
  read = records.read_record(path, records.ClassifierEvaluation)
  assert read.layers[0] == evaluation().layers[0]
  assert math.isnan(read.layers[1].f1)


def test_rows_hold_the_rates_and_what_never_exiting_would_have():
  table = reporting.classifier_table(evaluation())
  first, second = table.rows
  # Holding everything back: precision 0.5, recall 1, so F1 = 2/3.
  assert first[:6] == ('layer 1', '50.0', '0.625', '0.750', '0.688', '0.667')
  # Nothing was to be held back, and nothing was.
  assert second[:6] == ('layer 2', '100.0', '-', '-', '-', '0.000')
  assert all(len(row) == len(table.header) for row in table.rows)


def test_classifiers_of_the_same_tokens_stand_side_by_side():
  one = evaluation()
  table = reporting.classifier_table(
    one, dataclasses.replace(one, loss='independent')
  )
  rates = ('precision', 'recall', 'F1')
  assert table.header[2:8] == (
    *(f'balanced: {rate}' for rate in rates),
    *(f'independent: {rate}' for rate in rates),
  )
  assert table.rows[0][2:9] == (*('0.625', '0.750', '0.688') * 2, '0.667')
  with pytest.raises(ValueError, match="split is 'validation' and 'test'"):
    reporting.classifier_table(one, dataclasses.replace(one, split='test'))


def test_columns_without_any_number_are_left_out():
  one = evaluation()
  layers = tuple(
    dataclasses.replace(layer, cross_entropy=math.nan) for layer in one.layers
  )
  table = reporting.classifier_table(dataclasses.replace(one, layers=layers))
  assert 'cross-entropy' not in table.header
  assert 'F1' in table.header


def test_both_forms_say_the_same():
  text = reporting.render_classifier_text(evaluation())
  markdown = reporting.render_classifier_markdown(evaluation())
  for form in (text, markdown):
    assert 'balanced loss, 1,000 steps, counting validation' in form
    assert '0.688' in form and 'of 1,234' in form
  assert '| layer 1 |' in markdown
