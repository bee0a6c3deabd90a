"""Encoder layers beside the tokens', wherever results of a decode go."""

import dataclasses
import math
import types

import numpy as np
import pytest
from cases import encoding_cases as cases
from cases import example_result, tuning_cases
from fakes.decoded_fakes import decoded_dataset, same_text

from calm_jax import (
  calibration,
  decoding,
  evaluation,
  exits,
  model,
  records,
  reporting,
)
from calm_jax.evaluation import comparison, loss_table, tuning_words
from calm_jax.evaluation.calibration_cost import CostMeter
from calm_jax.evaluation.setting_grid import SettingGrid

SIMILARITY = exits.ConfidenceExit(exits.StateSimilarity(), 1.0)
ALONE = decoding.ComputePolicy(encoder_exit=decoding.StoppedEncoder(SIMILARITY))
BOTH = dataclasses.replace(
  ALONE, exit_rule=exits.ConfidenceExit(exits.SoftmaxMargin(), 1.0)
)
SOURCES, TOKENS = 'encoder_exit.rule.threshold', 'exit_rule.threshold'


@pytest.fixture(scope='module')
def calibrated(tmp_path_factory):
  """Calibrates a tiny model; what was said, and where decodes are kept."""
  decoder = model.as_layered_decoder(cases.CONFIG)
  inputs, folder = cases.inputs(), tmp_path_factory.mktemp('decodes')
  decode = evaluation.DatasetDecoder(
    bound=decoding.bind(decoder, cases.params()),
    detokenize=lambda ids: ' '.join(map(str, ids)),
    max_length=3,
    eos_id=-1,
    keep_in=str(folder),
  )
  said = []

  def run(policy, settings):
    plan = evaluation.CalibrationPlan(
      settings=settings, metric=same_text, tolerance=0.99, error_rate=0.4
    )
    return evaluation.run_calibration(
      decode,
      [{'encoder_input_tokens': inputs}],
      policy,
      plan,
      full_grid=True,
      progress=said.append,
    )

  return run, said, folder


def test_a_threshold_of_the_encoder_says_nothing_of_a_lower_one():
  """Rows are not taken over, as they are of a threshold of tokens."""
  asked = []

  def decode(batches, *, policy, earlier, traces):
    asked.append((decoding.threshold_of(policy), earlier is not None))
    return decoded_dataset(['a'], [4])

  for policy in (ALONE, BOTH):
    meter = CostMeter()
    grid = SettingGrid(decode, [], policy, meter)
    for threshold in (0.9, 0.5):
      grid.at(threshold)
  assert asked == [(0.9, False), (0.5, False), (0.9, False), (0.5, True)]
  assert decoding.rule_of_threshold(ALONE) is SIMILARITY
  assert decoding.rule_of_threshold(BOTH) is BOTH.exit_rule


@pytest.mark.slow
def test_a_threshold_of_the_encoder_is_calibrated(calibrated):
  run, said, folder = calibrated
  found = run(ALONE, (1.0, 0.0))
  layers = found.table.mean_encoder_layers.tolist()
  assert layers[0] == cases.L > layers[1]
  np.testing.assert_array_equal(found.table.mean_exit_layers, [3.0, 3.0])
  assert found.table.losses[:, 0].sum() == 0 < found.table.losses[:, 1].sum()
  context = found.certificate.context
  assert context['num_encoder_layers'] == cases.L
  assert context['mean_encoder_layers'] == layers
  words = f'mean encoder layer {layers[1]:.2f}'
  assert any(words in line for line in said)
  # What is kept of a row says it again.
  again = run(ALONE, (1.0, 0.0))
  assert again.table.mean_encoder_layers.tolist() == layers
  assert len(list(folder.iterdir())) == 3


@pytest.mark.slow
def test_a_path_along_both_thresholds(calibrated):
  run, _, _ = calibrated
  path = (
    {SOURCES: 1.0, TOKENS: 1.0},
    {SOURCES: 0.0, TOKENS: 1.0},
    {SOURCES: 0.0, TOKENS: 0.0},
  )
  table = run(BOTH, path).table
  first, *others = table.mean_encoder_layers.tolist()
  assert first == cases.L > others[0] == others[1]
  np.testing.assert_array_equal(table.mean_exit_layers, [3.0, 3.0, 1.0])


def test_paths_go_down_in_one_threshold_at_least():
  high, low, lowest = (
    {SOURCES: 0.9, TOKENS: 0.9},
    {SOURCES: 0.9, TOKENS: 0.5},
    {SOURCES: 0.5, TOKENS: 0.5},
  )
  path = [high, low, lowest]
  assert calibration.check_settings(path) == path
  for bad in ([low, high], [high, high], [lowest, low, high]):
    with pytest.raises(ValueError, match='out of order'):
      calibration.check_settings(bad)
  with pytest.raises(ValueError, match='has threshold 2, not in'):
    calibration.check_settings([{SOURCES: 0.9, TOKENS: 2}])
  certificate = calibration.calibrate(np.zeros((100, 1)), [low], tolerance=0.1)
  assert certificate.threshold == 0.5


def test_tables_keep_encoder_layers(tmp_path):
  table = records.LossTable(
    losses=np.zeros((2, 2)),
    settings=(0.9, 0.5),
    mean_exit_layers=np.full(2, 3.0),
    example_ids=('a', 'b'),
    loss='textual',
    mean_encoder_layers=np.array([2.5, math.nan]),
  )
  path = tmp_path / 'table.npz'
  records.write_loss_table(path, table)
  read = records.read_loss_table(path)
  np.testing.assert_array_equal(read.mean_encoder_layers, [2.5, math.nan])
  assert 'encoder layer 2.50' in loss_table.result_line(read, 0)
  assert 'encoder' not in loss_table.result_line(read, 1)


def test_the_certificate_says_where_sources_left():
  certificate = calibration.calibrate(
    np.zeros((100, 2)),
    [0.9, 0.5],
    tolerance=0.1,
    context={'num_encoder_layers': 8, 'mean_encoder_layers': [6.0, 3.25]},
  )
  words = 'Sources left the encoder after 3.25 of 8 layers'
  assert words in certificate.describe()
  plain = dataclasses.replace(certificate, context={})
  assert 'encoder' not in plain.describe()


def test_a_row_of_the_table_has_encoder_layers():
  full = dataclasses.replace(
    decoded_dataset(['a', 'b'], [4, 4], references=[('a',), ('b',)]),
    num_encoder_layers=8,
  )
  early = dataclasses.replace(full, encoder_exit_layers=np.array([3, 4]))
  scoring = evaluation.Scoring(
    quality={}, textual=evaluation.textual_loss(same_text)
  )
  entry = evaluation.ComparedDecode('early exit', 'early_exit', 0.9, early)
  row = comparison.score(entry, full=full, scoring=scoring)
  assert row.mean_encoder_layer == 3.5
  copies = comparison.baseline_row(
    'copies', ['a', 'b'], full=early, scoring=scoring
  )
  assert math.isnan(copies.mean_encoder_layer)
  static = [
    (name, policy.encoder_exit.rule.exit_layer, policy.exit_rule)
    for name, _, policy in comparison._static_rows(ALONE, early)
  ]
  assert static == [
    ('static, encoder layer 1', 1, exits.NeverExit()),
    ('static, encoder layer 4', 4, exits.NeverExit()),
  ]
  assert len(comparison._static_rows(BOTH, early)) == 3


def test_reports_show_encoder_layers_where_sources_leave():
  whole = example_result.evaluation_result()
  assert 'encoder layers' not in reporting.comparison_table(whole).header
  rows = list(whole.rows)
  rows[1] = dataclasses.replace(rows[1], mean_encoder_layer=2.25)
  timings = tuple(
    dataclasses.replace(row, mean_encoder_layer=2.25) for row in whole.timings
  )
  result = dataclasses.replace(
    whole, rows=tuple(rows), timings=timings, num_encoder_layers=6
  )
  table = reporting.comparison_table(result)
  column = table.header.index('encoder layers')
  shown = [line[column] for line in table.rows]
  assert (shown[0], shown[1], shown[-1]) == ('6.00', '2.25', '-')
  assert 'encoder layers: per input, of 6.' in table.notes
  clock = reporting.timing_table(result)
  assert clock.rows[0][clock.header.index('encoder layers')] == '2.25'
  assert '2.25 of 6' in reporting.render_page(result)
  figure = reporting.quality_figure(result)
  assert 'decoder layers per token' in figure.axes[0].get_xlabel()
  # Where tokens stay, depth is the encoder's.
  rows[1] = dataclasses.replace(rows[1], mean_exit_layer=result.num_layers)
  alone = dataclasses.replace(result, rows=tuple(rows))
  (axes,) = reporting.quality_figure(alone).axes
  assert axes.get_xlabel() == 'encoder layers per input, mean (of 6)'
  assert any(2.25 in line.get_xdata() for line in axes.lines)


def test_a_tuning_says_it():
  tuning = tuning_cases.tuning()
  candidates = list(tuning.candidates)
  candidates[1] = dataclasses.replace(candidates[1], mean_encoder_layer=2.5)
  tuning = dataclasses.replace(
    tuning, candidates=tuple(candidates), num_encoder_layers=8
  )
  words = 'with 2.50 of 8 encoder layers per input'
  assert words in tuning_words.sentence(tuning)
  shown = reporting.render_tuning_text(tuning)
  assert 'encoder layers' in shown and '2.50' in shown


def test_what_is_compared_is_named():
  measure = evaluation.evaluating._measure
  assert measure(ALONE) == 'StateSimilarity in the encoder'
  assert measure(BOTH) == 'SoftmaxMargin, StateSimilarity in the encoder'
  assert measure(decoding.ComputePolicy()) == 'NeverExit'


def test_drafts_that_are_checked_are_refused_before_anything_is_decoded():
  drafts = dataclasses.replace(
    BOTH,
    cache_fill=decoding.CatchUp(),
    verification=decoding.VerifyEvery(2),
  )
  words = 'StoppedEncoder leaves parts of its encoder out'
  with pytest.raises(ValueError, match=f"policy 'both' of the space.*{words}"):
    evaluation.Candidates(name='both', policy=drafts, settings=())
  plan = evaluation.CalibrationPlan(settings=(0.5,))
  decode = types.SimpleNamespace(max_length=3)
  with pytest.raises(ValueError, match=words):
    evaluation.run_calibration(decode, [], drafts, plan)
