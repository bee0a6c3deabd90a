"""The rows of the evaluation table."""

import functools
import math

import numpy as np
import pytest
from fakes import toy_decoder
from fakes.decoded_fakes import decoded_dataset, same_text

from calm_jax import decoding, evaluation, exits


def percent_same(predictions, references):
  scores = map(same_text, predictions, references)
  return 100 * sum(scores) / len(predictions)


SCORING = evaluation.Scoring(
  quality={'same': percent_same},
  textual=evaluation.textual_loss(same_text),
  risk=evaluation.risk_loss(same_text),
)
REFERENCES = [('a',), ('b',), ('c',), ('d',)]


def entry(kind, texts, layers, **arguments):
  decoded = decoded_dataset(
    texts, layers, **{'references': REFERENCES, **arguments}
  )
  return evaluation.ComparedDecode(kind, kind, None, decoded)


def test_rows_hold_quality_losses_and_depth():
  full = entry('full', 'abxy', [4] * 4)
  early = entry('certified', 'aqcy', [1, 2, 2, 4])
  rows = evaluation.compare([full, early], scoring=SCORING)
  assert [row.kind for row in rows] == ['full', 'certified']
  assert rows[0].quality == {'same': 50.0}
  assert rows[0].textual_consistency == rows[0].risk_consistency == 0
  assert rows[1].quality == {'same': 50.0}
  assert rows[1].textual_consistency == 0.5
  assert rows[1].risk_consistency == 0.25
  assert rows[1].textual_standard_error == pytest.approx(
    np.std([0, 1, 1, 0], ddof=1) / 2
  )
  assert rows[1].mean_exit_layer == 2.25
  assert rows[1].exit_layer_histogram == (1, 2, 0, 1)
  assert rows[1].num_tokens == 4


def test_without_references_only_consistency_is_left():
  full = entry('full', 'ab', [4] * 2, references=[(), ()])
  early = entry('certified', 'ac', [1] * 2, references=[(), ()])
  row = evaluation.compare([full, early], scoring=SCORING)[1]
  assert row.quality == {}
  assert math.isnan(row.risk_consistency)
  assert row.textual_consistency == 0.5


def test_a_baseline_uses_no_layers():
  full = entry('full', 'abxy', [4] * 4).decoded
  row = evaluation.baseline_row('copy', 'aaaa', full=full, scoring=SCORING)
  assert row.kind == 'baseline'
  assert row.quality == {'same': 25.0}
  assert math.isnan(row.mean_exit_layer)
  assert row.num_tokens == 0
  assert not any(row.work.values())
  assert math.isnan(row.layers_run)


def test_decodes_of_other_inputs_are_refused():
  full = entry('full', 'ab', [4] * 2, references=REFERENCES[:2])
  other = entry(
    'certified', 'ab', [4] * 2, references=REFERENCES[:2], ids=['x', 'y']
  )
  with pytest.raises(ValueError, match="'certified' was decoded on other"):
    evaluation.compare([full, other], scoring=SCORING)
  with pytest.raises(ValueError, match='got 2'):
    evaluation.compare([full, full], scoring=SCORING)
  with pytest.raises(ValueError, match='got 0'):
    evaluation.compare([other], scoring=SCORING)


def test_static_layers_are_1_and_the_rounded_up_mean():
  for mean in np.linspace(1, 6, 51):
    layers = evaluation.static_layers(mean, 6)
    assert layers[0] == 1
    assert all(1 <= layer < 6 for layer in layers)
    assert len(layers) == (2 if 1 < math.ceil(mean) < 6 else 1)
    assert len(layers) == 1 or 0 <= layers[1] - mean < 1


def test_the_five_decodes_of_the_table():
  inputs = np.array([[1, 2], [3, 4], [9, 1]], np.int32)
  decode = functools.partial(
    evaluation.decode_dataset,
    toy_decoder.toy_bound(),
    [{'encoder_input_tokens': inputs}],
    detokenize=lambda ids: ' '.join(map(str, ids)),
    max_length=4,
    eos_id=-1,
  )
  policy = decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(
      measure=exits.SoftmaxMargin(), threshold=exits.ConstantThreshold(0.5)
    )
  )
  lines = []
  compared = evaluation.decode_for_comparison(
    decode, policy, setting=0.5, progress=lines.append
  )
  assert [item.kind for item in compared] == [
    'full',
    'certified',
    'static',
    'static',
    'oracle',
  ]
  assert [item.setting for item in compared] == [None, 0.5, 1, 2, None]
  assert len(lines) == 5
  rows = evaluation.compare(compared, scoring=SCORING)
  assert rows[0].mean_exit_layer == 3
  assert rows[2].mean_exit_layer == 1
  assert rows[4].textual_consistency == 0
  # Depths 3, 2, 1, 2, 1; K/V of all layers are projected.
  for row in rows:
    assert row.layers_run == row.mean_exit_layer
    assert row.layers_projected == 3
  # The full decode can be handed over.
  again = evaluation.decode_for_comparison(
    decode, policy, setting=0.5, full=compared[0].decoded, certified=False
  )
  assert again[0].decoded is compared[0].decoded
  assert again[1].kind == 'early_exit'


@pytest.mark.slow
@pytest.mark.parametrize(
  'verifies', [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_rows_say_what_ran_and_not_only_what_was_used(verifies):
  """Layers that are caught up later, and drafts that were not to stay."""
  verification = decoding.VerifyEvery(2) if verifies else decoding.NeverVerify()
  policy = decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(
      exits.SoftmaxMargin(), exits.ConstantThreshold(0.5)
    ),
    cache_fill=decoding.CatchUp(),
    verification=verification,
  )
  compared = evaluation.decode_for_comparison(
    functools.partial(
      evaluation.decode_dataset,
      toy_decoder.toy_bound(),
      [{'encoder_input_tokens': np.array([[1, 2], [3, 4]], np.int32)}],
      detokenize=str,
      max_length=6,
      eos_id=-1,
    ),
    policy,
    setting=0.5,
  )
  full, early = evaluation.compare(compared, scoring=SCORING)[:2]
  assert full.layers_run == full.layers_projected == 3
  assert math.isnan(full.accepted_per_check)
  assert early.layers_run == early.layers_projected
  if verifies:
    assert early.layers_run > 3
    assert early.accepted_per_check == (
      compared[1].decoded.total_work()['accepted'] / early.work['cycles']
    )
  else:
    assert early.mean_exit_layer <= early.layers_run <= 3


@pytest.mark.slow
def test_points_of_a_policy_without_a_threshold_are_its_static_exits():
  """All layers in 8 bits, such as a tuning may choose."""
  decode = functools.partial(
    evaluation.decode_dataset,
    toy_decoder.toy_bound(),
    [{'encoder_input_tokens': np.array([[1, 2], [3, 4]], np.int32)}],
    detokenize=str,
    max_length=6,
    eos_id=-1,
  )
  compared = evaluation.decode_for_comparison(
    decode, decoding.ComputePolicy(), setting={}
  )
  rows = evaluation.sweep(
    decode,
    decoding.ComputePolicy(),
    (0.9, 0.5),
    compared,
    scoring=SCORING,
  )
  assert {row.kind for row in rows} <= {'static'}
