"""Certificates on the clock: the policies are the certificates' own."""

import argparse
import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from calm_jax import checkpoints, decoding, exits, model, training
from calm_jax.benchmarks import (
  ablations,
  certified_policies,
  certified_speed,
  certified_table,
  measured_rows,
  token_inputs,
)
from calm_jax.calibration import calibrate

CONFIG = model.T5Config(
  vocab_size=32,
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=4,
)
MARGIN = exits.ConfidenceExit(
  exits.SoftmaxMargin(),
  exits.DecayingThreshold(1.0, temperature=4.0, max_length=6),
  minimum_exit_layer=2,
)


def certify(path, policy, *, losses=0.0, threshold=0.5, **context):
  """Writes a certificate of a threshold for a policy."""
  certificate = calibrate(
    np.full((200, 1), losses),
    [threshold],
    tolerance=0.1,
    error_rate=0.05,
    context={
      'policy': decoding.describe(policy),
      'loss': 'textual',
      **context,
    },
  )
  certificate.save(path)
  return str(path)


@pytest.mark.parametrize(
  'policy',
  [
    decoding.ComputePolicy(exit_rule=MARGIN),
    decoding.ComputePolicy(
      exit_rule=exits.LayerBudget(MARGIN, per_request=64, per_token=7)
    ),
    decoding.ComputePolicy(
      exit_rule=exits.ConfidenceExit(
        exits.StateSimilarity(), exits.ConstantThreshold(1.0), interval=2
      ),
      readout=decoding.PrunedVocabulary(num_blocks=3, final='full'),
      cache_fill=decoding.ProjectFirstExitState(),
    ),
    decoding.ComputePolicy(exit_rule=MARGIN, cache_fill=decoding.CatchUp()),
  ],
)
def test_policies_are_made_again_from_certificates(tmp_path, policy):
  path = certify(tmp_path / 'certificate.json', policy)
  made = certified_policies.read_policies('nowhere', [path])
  (name, (certificate, one)), *twins = made.items()
  assert certificate.threshold == 0.5
  assert decoding.describe(one) == decoding.describe(policy)
  assert one == decoding.with_setting(policy, 0.5)
  # Deferring says what projecting says, and what no other fill does.
  fill = type(policy.cache_fill)
  if fill is not decoding.ProjectExitState:
    assert not twins
    assert ('exact' in name) == (fill is decoding.CatchUp)
    return
  ((_, (same, deferred)),) = twins
  assert same is certificate
  assert isinstance(deferred.cache_fill, decoding.DeferredExitState)


def test_certificates_of_one_policy_are_told_apart(tmp_path):
  policy = decoding.ComputePolicy(exit_rule=MARGIN)
  paths = [
    certify(tmp_path / f'{threshold}.json', policy, threshold=threshold)
    for threshold in (0.7, 0.2)
  ]
  made = certified_policies.read_policies('nowhere', paths)
  assert [(name, given.threshold) for name, (given, _) in made.items()] == [
    ('SoftmaxMargin', 0.7),
    ('SoftmaxMargin, deferred fill', 0.7),
    ('SoftmaxMargin at 0.2', 0.2),
    ('SoftmaxMargin at 0.2, deferred fill', 0.2),
  ]


def test_weights_are_part_of_the_name(tmp_path):
  exact = decoding.ComputePolicy(
    exit_rule=MARGIN, cache_fill=decoding.CatchUp()
  )
  int8 = {'type': 'int8'}
  paths = [
    certify(tmp_path / f'{name}.json', exact, weights=weights)
    for name, weights in (('float', 'float'), ('int8', int8))
  ]
  assert list(certified_policies.read_policies('nowhere', paths)) == [
    'SoftmaxMargin, exact K/V',
    'SoftmaxMargin, exact K/V, in 8 bits',
  ]


def test_what_cannot_be_made_again_is_refused(tmp_path):
  policy = decoding.ComputePolicy(exit_rule=MARGIN)
  nothing = certify(tmp_path / 'nothing.json', policy, losses=0.9)
  with pytest.raises(ValueError, match='certifies nothing; leave it out'):
    certified_policies.read_policies('nowhere', [nothing])
  rule = dataclasses.replace(
    MARGIN, measure=exits.Classifier(np.ones(16, np.float32), 0.0)
  )
  other = certify(
    tmp_path / 'other.json', decoding.ComputePolicy(exit_rule=rule)
  )
  with pytest.raises(FileNotFoundError):
    certified_policies.read_policies(str(tmp_path), [other])


@pytest.mark.slow
def test_shares_are_of_a_whole_and_parts_are_left_out():
  bound = decoding.bind(
    model.as_layered_decoder(CONFIG),
    model.init_params(CONFIG, jax.random.key(0)),
    depth_loop=decoding.WhileDepthLoop(),
  )
  inputs = np.random.default_rng(0).integers(2, 32, (2, 5))
  policy = decoding.with_setting(decoding.ComputePolicy(exit_rule=MARGIN), 0.1)
  result = decoding.generate(bound, inputs, policy=policy, max_length=6)
  exit_layers = np.asarray(result.exit_layers)
  shares = ablations.measure_shares(
    bound,
    inputs,
    exit_layers,
    policy=policy,
    num_repeats=1,
  )
  assert math.isclose(sum(dataclasses.astuple(shares)), 1.0, abs_tol=1e-6)
  depths = np.maximum(exit_layers, 1)
  replays = ablations._replays(policy, depths)
  decodes = {
    name: decoding.generate(
      bound, inputs, policy=replay, max_length=6, eos_id=-1
    )
    for name, replay in replays.items()
  }
  for name, decode in decodes.items():
    np.testing.assert_array_equal(decode.exit_layers, depths, err_msg=name)
  # Only the whole looks at confidences, and only it says what was said.
  assert np.isfinite(decodes['whole'].confidences).all()
  assert np.isnan(decodes['unchecked'].confidences).all()
  tokens = np.asarray(result.tokens)
  for name in ('whole', 'unchecked'):
    alike = np.asarray(decodes[name].tokens) == tokens
    assert alike[exit_layers > 0].all()
  assert (np.asarray(decodes['unread'].tokens) == 0).all()


def test_batches_are_whole_and_of_one_length():
  sources = [np.arange(1, size + 1) for size in (3, 17, 5, 9, 2)]
  batches = token_inputs.whole_batches(sources, 2)
  assert [batch.shape for batch in batches] == [(2, 32), (2, 32)]
  rows = np.concatenate(batches)
  for row, source in zip(rows, sources, strict=False):
    assert row[row > 0].tolist() == source.tolist()
  with pytest.raises(ValueError, match='5 inputs do not fill a batch of 6'):
    token_inputs.whole_batches(sources, 6)


def test_inputs_are_cut_as_the_run_cuts_them(tmp_path):
  path = str(tmp_path / 'test.npz')
  texts = [[5, 6, 7, 8, 9, 1], [5, 1], [6, 7, 8, 1], [9, 1]]
  training.write_npz(path, [dict(inputs=ids, targets=[1]) for ids in texts])
  about = {'context': {'feature_lengths': {'inputs': 4, 'targets': 8}}}
  for metadata, first in ((about, [5, 6, 7, 1]), ({}, texts[0])):
    sources = token_inputs.read_sources(path, 3, metadata)
    assert [ids.tolist() for ids in sources] == [first, *texts[1:3]]


@pytest.mark.slow
def test_it_measures_a_run_by_its_certificates(tmp_path, capsys):
  params = model.init_params(CONFIG, jax.random.key(3))
  checkpoints.save(tmp_path / 'run', 1, params=params, config=CONFIG)
  path, in_8_bits = (
    certify(tmp_path / f'{name}.json', policy, weights=weights)
    for name, policy, weights in (
      ('float', decoding.ComputePolicy(exit_rule=MARGIN), 'float'),
      (
        'int8',
        decoding.ComputePolicy(exit_rule=MARGIN, cache_fill=decoding.CatchUp()),
        {'type': 'int8'},
      ),
    )
  )
  rng = np.random.default_rng(0)
  tokens = str(tmp_path / 'test.npz')
  training.write_npz(
    tokens,
    [
      {'inputs': [*rng.integers(2, 32, 6), 1], 'targets': [2, 1]}
      for _ in range(3)
    ],
  )
  output = tmp_path / 'rows.json'
  arguments = [f'--run_dir={tmp_path / "run"}', f'--tokens={tokens}']
  arguments += [f'--certificates={path},{in_8_bits}', f'--output={output}']
  arguments += ['--num_inputs=3', '--max_length=6', '--num_repeats=1']
  certified_speed.main([*arguments, '--batch_sizes=1,2'])
  table = capsys.readouterr().out
  rows = json.loads(output.read_text())['rows']
  names = ['full model', 'SoftmaxMargin', 'SoftmaxMargin, deferred fill']
  names.append('SoftmaxMargin, exact K/V, in 8 bits')
  assert [row['name'] for row in rows] == names * 2
  for row in rows:
    assert f'| {row["milliseconds_per_step"]:.2f} |' in table
    assert 1.0 <= row['mean_exit_layer'] <= 4.0
    assert row['ceiling'] > 0.0
  assert rows[0]['same_tokens'] == rows[0]['speed_up'] == 1.0
  promised = [(row['loss'], row['tolerance']) for row in rows]
  assert promised == [('', None), *[('textual', 0.1)] * 3] * 2
  # Deferring changes no token.
  assert rows[1]['same_tokens'] == rows[2]['same_tokens']
  with pytest.raises(SystemExit, match='do not fill a batch of 4'):
    certified_speed.main([*arguments, '--batch_sizes=4'])
  with pytest.raises(SystemExit, match='There is no file'):
    certified_speed.main([arguments[0], '--tokens=none.npz'])


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--batch_sizes=a', "batch_sizes 'a' must be whole numbers"),
    ('--depth_loops=compacting', 'nothing to compact at batch size 1'),
    ('--depth_loops=no', "'no'"),
  ],
)
def test_what_cannot_be_timed_is_refused_first(flag, message):
  arguments = ['--run_dir=nowhere', '--tokens=nowhere', '--batch_sizes=1,2']
  with pytest.raises(SystemExit, match=message):
    certified_speed.main([*arguments, flag])


def test_a_certificate_without_a_threshold_is_a_row():
  certificate = calibrate(
    np.zeros((400, 1)), [{'layer_plan.num_layers': 2}], tolerance=0.1
  )
  assert certificate.certified and certificate.threshold is None
  found = certified_speed._promised(certificate)
  assert math.isnan(found['threshold']) and found['tolerance'] == 0.1
  assert certified_table._number(found['threshold'], 'g') == '-'


def test_rows_are_written_before_a_table_that_fails(tmp_path):
  measured = measured_rows.of_this_process(
    [], argparse.Namespace(seed=0), device='cpu', dtype='float32', libraries=()
  )

  def broken(measured):
    raise TypeError('a table that fails')

  with pytest.raises(TypeError, match='a table that fails'):
    measured_rows.publish(measured, broken, str(tmp_path / 'rows.json'))
  assert (tmp_path / 'rows.json').exists()
