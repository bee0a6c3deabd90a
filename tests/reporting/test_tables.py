"""Tables: every number is there, in every form."""

import dataclasses
import math

import pytest
from cases import example_result

from calm_jax import records, reporting
from calm_jax.reporting import tables


def test_the_comparison_has_a_line_per_row_and_all_metrics():
  result = example_result.evaluation_result()
  table = reporting.comparison_table(result)
  assert len(table.rows) == len(result.rows)
  assert all(len(line) == len(table.header) for line in table.rows)
  assert table.header[1:3] == ('ROUGE-L %', 'exact match %')
  certified = table.rows[1]
  assert certified[0] == 'early exit, certified (threshold 0.7)'
  assert certified[1:] == (
    '85.1',
    '76.1',
    '0.082 ±0.004',
    '0.027 ±0.002',
    '3.18',
    '40 %',
    '31 22 14 10 8 6 5 4',
  )
  # The baseline has no depth.
  assert table.rows[-1][-3:] == ('-', '-', '-')


def test_columns_without_numbers_are_left_out():
  result = example_result.evaluation_result(timings=())
  rows = tuple(
    dataclasses.replace(row, risk_consistency=math.nan) for row in result.rows
  )
  result = dataclasses.replace(result, rows=rows)
  assert 'quality lost' not in reporting.comparison_table(result).header
  assert reporting.timing_table(result) is None
  full = example_result.evaluation_result()
  timings = tuple(
    dataclasses.replace(row, ceiling=math.nan) for row in full.timings
  )
  table = reporting.timing_table(dataclasses.replace(full, timings=timings))
  assert 'ceiling' not in table.header


def test_work_that_exit_layers_do_not_tell_has_columns():
  result = example_result.evaluation_result()
  eager, exact, lossless = (
    {
      'attention': layers * row.num_tokens,
      'caught_up': caught_up * row.num_tokens,
      'projections': projected * row.num_tokens,
      'cycles': cycles,
      'accepted': accepted,
    }
    for row, layers, caught_up, projected, cycles, accepted in (
      (result.rows[0], 8, 0, 8, 0, 0),
      (result.rows[1], 3, 2, 5, 0, 0),
      (result.rows[1], 4, 3, 7, 100, 450),
    )
  )

  def table(*work):
    rows = [
      dataclasses.replace(row, work=of)
      for row, of in zip(result.rows[:2], work, strict=True)
    ]
    changed = dataclasses.replace(result, rows=(*rows, *result.rows[2:]))
    return reporting.comparison_table(changed)

  # Nothing was counted, and nothing but exit layers.
  for work in ({}, eager):
    assert table(eager, work).header == table({}, {}).header
  shown = table(eager, exact)
  assert shown.header[-3:-1] == ('layers run', 'K/V made')
  assert [row[-3:-1] for row in shown.rows[:3]] == [
    ('8.00', '8.00'),
    ('5.00', '5.00'),
    ('-', '-'),
  ]
  assert 'layers run: per token' in shown.notes[-2]
  shown = table(eager, lossless)
  assert shown.header[-4:-1] == ('layers run', 'K/V made', 'drafts kept')
  assert shown.rows[0][-2] == '-'
  assert shown.rows[1][-4:-1] == ('7.00', '7.00', '4.50')


def test_text_columns_are_aligned():
  text = tables.as_text(
    reporting.comparison_table(example_result.evaluation_result())
  )
  header, rule, *lines = text.split('\n')
  ends = [index for index, letter in enumerate(rule + ' ') if letter == ' ']
  for line in (header, *lines):
    # Between columns every line has a space.
    gaps = [index for index in ends if rule[index - 1 : index] == '-']
    assert all(line[index : index + 1] in (' ', '') for index in gaps)


def test_markdown_keeps_its_columns_whatever_the_names():
  table = tables.Table(('a|b', 'c'), (('x|y\nz', '1'),))
  for line in tables.as_markdown(table).split('\n'):
    assert line.replace('\\|', '').count('|') == 3


@pytest.mark.parametrize(
  'render', [reporting.render_text, reporting.render_markdown]
)
def test_the_whole_says_certificate_outcome_and_timing(render):
  text = render(example_result.evaluation_result())
  assert 'Certified: setting 7 of 21' in text
  assert '0.082 ±0.004, within the tolerance of 0.1' in text
  assert '1.66x' in text and '2.10x' in text
  assert 'on cpu in float32' in text


def test_a_loss_above_the_tolerance_is_not_hidden():
  result = example_result.evaluation_result()
  certificate = dataclasses.replace(result.certificate, tolerance=0.05)
  result = dataclasses.replace(result, certificate=certificate)
  assert 'ABOVE the tolerance of 0.05' in reporting.render_text(result)
  risk = dataclasses.replace(certificate, loss='risk')
  result = dataclasses.replace(result, certificate=risk)
  assert '0.027 ±0.002, within' in reporting.render_text(result)


def test_several_promises_come_out_one_by_one():
  result = example_result.evaluation_result()
  outcomes = [
    records.PromiseOutcome(
      loss=loss,
      metric='rouge_l',
      tolerance=tolerance,
      mean=mean,
      standard_error=0.002,
    )
    for loss, tolerance, mean in (
      ('textual', 0.1, 0.05),
      ('signed', 0.02, 0.01),
    )
  ]

  def said(*promises):
    return tables.realised_consistency(
      dataclasses.replace(result, promises=promises)
    )

  assert '0.050 ±0.002, within its tolerance of 0.1; signed by' in said(
    *outcomes
  )
  assert said(*outcomes).endswith('All of them hold here.')
  broken = dataclasses.replace(outcomes[1], mean=0.03)
  assert 'ABOVE its tolerance of 0.02' in said(outcomes[0], broken)
  assert said(outcomes[0], broken).endswith('1 of them IS BROKEN here.')
  unknown = dataclasses.replace(outcomes[1], mean=math.nan)
  assert 'not measured' in said(outcomes[0], unknown)
  assert said(outcomes[0], unknown).endswith('that were measured hold here.')


def test_of_a_signed_loss_it_is_said_what_it_bounds():
  result = example_result.evaluation_result()
  signed = dataclasses.replace(
    result, certificate=dataclasses.replace(result.certificate, loss='signed')
  )
  assert 'gains on some inputs offset losses' in tables.render_text(signed)
  assert 'offset' not in tables.render_text(result)


def test_nothing_certified_is_said():
  result = example_result.evaluation_result()
  certificate = dataclasses.replace(
    result.certificate, certified=False, description='Nothing was certified.'
  )
  rows = tuple(row for row in result.rows if row.kind != 'certified')
  result = dataclasses.replace(result, certificate=certificate, rows=rows)
  assert 'Nothing was certified.' in reporting.render_text(result)
  assert tables.realised_consistency(result) is None


def test_the_use_of_a_budget_is_said():
  result = example_result.evaluation_result()
  assert 'Layer budget' not in reporting.render_page(result)
  use = records.BudgetUse(
    per_request=256,
    per_token=7,
    largest_request=192,
    mean_request=64.0,
    largest_token=7,
    capped_requests=0.125,
  )
  result = dataclasses.replace(result, budget=use)
  said = (
    'Layer budget: an output took 64.0 layers of 256 (25%) and at most 192 '
    '(75%); a token took at most 7 layers of 7; it stopped tokens of 12.5% of '
    'the outputs.'
  )
  for render in (
    reporting.render_text,
    reporting.render_markdown,
    reporting.render_page,
  ):
    assert said in render(result)
