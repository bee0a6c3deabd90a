"""Tables of a validation: every count is there, and is not flattered."""

import dataclasses

import numpy as np
import pytest
from cases import validation_cases

from calm_jax import reporting
from calm_jax.reporting import validation_tables


@pytest.fixture(scope='module')
def validation(tmp_path_factory):
  return validation_cases.validation(
    tmp_path_factory.mktemp('tables'),
    p_values=('hoeffding_bentkus', 'betting'),
    curve_points=0,
  )


def _with_count(validation, **changes):
  """Changes the first count of the first table."""
  table = validation.tables[0]
  counts = (dataclasses.replace(table.counts[0], **changes), *table.counts[1:])
  table = dataclasses.replace(table, counts=counts)
  return dataclasses.replace(validation, tables=(table, *validation.tables[1:]))


def test_there_is_a_line_per_table_p_value_and_tolerance(validation):
  table = validation_tables.violation_table(validation)
  assert [row[:2] for row in table.rows] == [
    (f'{measure}, {p_value}', tolerance)
    for measure in ('SoftmaxMargin', 'StateSimilarity')
    for p_value in ('hoeffding_bentkus', 'betting(seed=0)')
    for tolerance in ('0.1', '0.25')
  ]
  assert all(len(row) == len(table.header) for row in table.rows)


def test_numbers_are_those_of_the_record(validation):
  changed = _with_count(
    validation,
    num_draws=1000,
    num_violations=23,
    rate_low=0.0146,
    rate_high=0.0343,
    num_certified=870,
    mean_risk=0.0712,
    mean_exit_layer=3.456,
  )
  row = validation_tables.violation_table(changed).rows[0]
  assert row[2:6] == ('2.3 % (1.5 to 3.4)', '87 %', '0.0712', '3.46')
  table = validation.tables[0]
  certificate = table.certificates[0]
  place = table.settings.index(certificate.setting)
  assert row[6:] == (
    f'threshold {certificate.setting:g}',
    f'{table.risks[place]:.4f}',
    f'{table.mean_exit_layers[place]:.2f}',
  )


def test_nothing_certified_is_said(tmp_path):
  losses = validation_cases.losses() * 0 + 0.6
  validation = validation_cases.validation(
    tmp_path, validation_cases.loss_table(losses=losses), curve_points=0
  )
  row = validation_tables.violation_table(validation).rows[0]
  assert row[3] == '0 %' and row[6:] == ('nothing', '-', '-')
  assert row[5] == f'{validation_cases.NUM_LAYERS:.2f}'


def test_near_risks_the_worst_is_shown(validation):
  table = validation_tables.near_table(validation)
  assert len(table.rows) == 4
  for row, entry in zip(table.rows[::2], validation.tables, strict=True):
    counts = [c for c in entry.near_counts if c.p_value == 'hoeffding_bentkus']
    # The first setting of the first table has no risk.
    assert row[1] == str(len(counts)) == str(np.sum(np.array(entry.risks) > 0))
    worst = max(count.rate for count in counts)
    assert row[2].startswith(f'{100 * worst:.1f} %')
  bare = dataclasses.replace(
    validation,
    tables=tuple(
      dataclasses.replace(t, near_counts=()) for t in validation.tables
    ),
  )
  assert validation_tables.near_table(bare) is None
  assert len(validation_tables.sections(bare)) == 2


def test_splits_are_labelled_as_noisy(validation):
  table = validation_tables.split_table(validation)
  study = validation.tables[0].splits[0]
  assert table.rows[0][2] == f'{study.num_above} of 10'
  (note,) = table.notes
  assert 'noisy estimate and no violation rate' in note


def test_violations_beyond_chance_are_not_hidden(validation):
  fine = validation_tables.verdict(validation)
  assert 'none lies above the error rate of 5 %' in fine
  bad = _with_count(
    validation, num_violations=39, rate_low=0.86, rate_high=0.999
  )
  verdict = validation_tables.verdict(bad)
  assert '1 LIES ABOVE the error rate of 5 %' in verdict
  assert 'The largest is 97.5 % (86.0 to 99.9): SoftmaxMargin' in verdict


@pytest.mark.parametrize(
  'render',
  [reporting.render_validation_text, reporting.render_validation_markdown],
)
def test_the_whole_says_what_was_done(validation, render):
  text = render(validation)
  for expected in (
    '2 tables of the textual loss (ROUGE-L), 200 inputs of counting',
    'fixed_sequence at error rate 0.05',
    '40 draws of 200 rows with replacement (seed 0)',
    'Where violations are likeliest',
    'a noisy estimate, not a violation rate',
  ):
    assert expected in text


def test_error_rates_are_not_rounded_away(validation):
  finer = dataclasses.replace(validation, error_rate=0.025)
  assert 'error rate of 2.5 %' in validation_tables.verdict(finer)
