"""The report on 8 bits: planted outliers are found, and left out where told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import text_cases

from calm_jax import model, training
from calm_jax.benchmarks import (
  measured_rows,
  quantisation,
  quantisation_captures,
  quantisation_outputs,
  quantisation_report,
  quantisation_table,
  smoothing,
)
from calm_jax.benchmarks.quantisation_captures import Batch
from calm_jax.model import int8_params
from calm_jax.quantisation import Int8Weights

# Long checks, and twins of cheaper ones: for `scripts/test.sh --all`.
pytestmark = pytest.mark.slow

CONFIG = model.T5Config(
  vocab_size=64,
  embed_dim=32,
  num_heads=2,
  head_dim=16,
  mlp_dim=48,
  num_encoder_layers=1,
  num_decoder_layers=2,
)
BAD = 'decoder/layers_1/mlp/wo'


@pytest.fixture(scope='module')
def batches():
  """Two batches of different shapes, padded on both sides."""
  rng = np.random.default_rng(0)
  made = []
  for rows, source, target in ((3, 7, 5), (2, 4, 6)):
    inputs = rng.integers(2, 64, (rows, source))
    outputs = rng.integers(2, 64, (rows, target))
    inputs[0, 2:] = 0
    outputs[-1, 3:] = 0
    made.append(Batch(inputs, outputs))
  return made


@pytest.fixture(scope='module')
def params():
  return model.init_params(CONFIG, jax.random.key(0))


def scaled(params, path, change):
  """Returns parameters with another leaf at a path."""
  name, _, rest = path.partition('/')
  child = scaled(params[name], rest, change) if rest else change(params[name])
  return {**params, name: child}


@pytest.fixture(scope='module')
def planted(params):
  """The same function, but one channel that `BAD` reads is a giant."""
  gate = BAD.replace('wo', 'wi_1')
  with_giant = scaled(
    params, f'{gate}/kernel', lambda kernel: kernel.at[:, 5].mul(200.0)
  )
  return scaled(
    with_giant, f'{BAD}/kernel', lambda kernel: kernel.at[5].mul(1 / 200)
  )


@pytest.mark.slow
def test_what_is_captured_is_what_matrices_multiply(params, batches):
  for tied in (False, True):
    config = dataclasses.replace(CONFIG, tied_embeddings=tied)
    tree = params
    if tied:
      decoder = {**params['decoder']}
      del decoder['logits_dense']
      tree = {**params, 'decoder': decoder}
    captured = quantisation_captures.captured_states(config, tree, *batches[0])
    paths = {path for path, _ in int8_params._matrices('', params)}
    assert set(captured) == paths
    for path, states in captured.items():
      where = quantisation_captures.where_real(path, batches[0])
      kernel = quantisation_captures.matrix_at(config, tree, path)
      assert states.shape == (*where.shape, kernel.shape[0])
    np.testing.assert_allclose(
      captured[int8_params.OUTPUT]
      @ quantisation_captures.matrix_at(config, tree, int8_params.OUTPUT),
      quantisation_captures.teacher_forced_logits(config, tree, *batches[0]),
      atol=1e-4,
    )


def test_errors_are_those_of_real_positions(params, batches):
  """The first layer's query reads embeddings: worked out beside the model."""
  errors, largest = quantisation_report.matrix_errors(CONFIG, params, batches)
  path = 'decoder/layers_0/self_attention/query'
  found = next(error for error in errors if error.path == path)
  layer = params['decoder']['layers_0']
  table = np.asarray(params['token_embedder']['embedding'], np.float64)
  rows = []
  for _, outputs in batches:
    shifted = np.pad(outputs, ((0, 0), (1, 0)))[:, :-1]
    rows.append(table[shifted][outputs > 0])
  states = np.concatenate(rows)
  states /= np.sqrt((states**2).mean(-1, keepdims=True) + 1e-6)
  kernel = np.asarray(layer['self_attention']['query']['kernel'], np.float64)

  def rounded(values, axis):
    step = np.abs(values).max(axis, keepdims=True) / 127
    return np.round(values / step) * step

  whole = states @ kernel
  size = np.linalg.norm(whole)
  few, less = rounded(states, 1), rounded(kernel, 0)
  # A number halfway between two steps may fall on either side.
  close = {'rel': 0.01}
  assert found.both == pytest.approx(
    np.linalg.norm(whole - few @ less) / size, **close
  )
  assert found.weights_alone == pytest.approx(
    np.linalg.norm(whole - states @ less) / size, **close
  )
  assert found.states_alone == pytest.approx(
    np.linalg.norm(whole - few @ kernel) / size, **close
  )
  sizes = np.sqrt((states**2).mean(-1))
  assert found.outlier == pytest.approx(
    np.abs(states).max() / np.median(sizes), rel=1e-4
  )
  np.testing.assert_allclose(
    largest[path], np.abs(states).max(axis=0), rtol=1e-4
  )


@pytest.mark.slow
def test_errors_lie_where_8_bits_put_them(params, batches):
  errors, _ = quantisation_report.matrix_errors(
    CONFIG, params, batches, weights=Int8Weights(encoder=True)
  )
  assert len(errors) == 2 * 11 + 1 + 7
  assert [error.both for error in errors] == sorted(
    (error.both for error in errors), reverse=True
  )
  for error in errors:
    assert 0.002 < error.weights_alone < 0.02, error
    assert 0.002 < error.states_alone < 0.05, error
    together = np.hypot(error.weights_alone, error.states_alone)
    assert error.both == pytest.approx(together, rel=0.25), error
  decoder, _ = quantisation_report.matrix_errors(CONFIG, params, batches)
  # As they are printed: from Python 3.13 on, NaN is not equal to itself here.
  assert repr(decoder) == repr(
    [error for error in errors if error.path.startswith('decoder/')]
  )


@pytest.mark.slow
def test_a_planted_outlier_comes_first_and_can_be_kept(planted, batches):
  report = quantisation.measure(
    'tiny', CONFIG, planted, batches, rules=[[r'.*/wi_0']], keep_above=0.1
  )
  first, second, *_ = report.matrices
  assert first.path == BAD
  assert first.both > 0.1 > 2 * second.both
  assert first.outlier > 3 * second.outlier
  assert report.num_positions == sum((b.outputs > 0).sum() for b in batches)
  every, gates, kept = report.models
  assert (every.keep, every.num_kept) == ((), 0)
  assert (gates.keep, gates.num_kept) == ((r'.*/wi_0',), 2)
  assert (kept.keep, kept.num_kept) == ((BAD,), 1)
  assert kept.logits < every.logits / 2
  assert gates.logits > every.logits / 2
  assert 0 < kept.logits < 0.05
  for one in report.models:
    assert 0 <= one.other_argmax <= 1


def test_whole_models_are_compared_at_real_positions(params, batches):
  """Against other logits everywhere, and the float model itself."""
  turned = scaled(params, 'decoder/logits_dense/kernel', lambda kernel: -kernel)
  same, other = quantisation_report.model_errors(
    CONFIG, params, {'same': params, 'turned': turned}, batches
  )
  assert same == ('same', 0.0, 0.0)
  assert other == ('turned', pytest.approx(2.0), 1.0)


def test_whole_outputs_are_compared_with_those_in_float(params, batches):
  """Against a model that says the least likely token, and the same one."""
  turned = scaled(params, 'decoder/logits_dense/kernel', lambda kernel: -kernel)
  weights = Int8Weights()
  trees = {
    name: int8_params.quantise_params(CONFIG, tree, weights)
    for name, tree in {'same': params, 'turned': turned}.items()
  }
  same, other = quantisation_outputs.compare_outputs(
    CONFIG,
    params,
    trees,
    dict.fromkeys(trees, weights),
    batches,
    quantisation_outputs.ids_as_words,
  )
  assert 0 <= same.distance <= same.others < 1
  assert other.others == 1.0 and other.distance > 0.8


@pytest.mark.slow
def test_smoothing_changes_nothing_in_float_and_helps_norms(params, batches):
  """A norm with a giant channel, and matrices that make up for it."""
  layer = 'decoder/layers_0'
  giant = scaled(
    params, f'{layer}/pre_mlp_layer_norm/scale', lambda s: s.at[3].mul(100.0)
  )
  for name in ('wi_0', 'wi_1'):
    giant = scaled(
      giant, f'{layer}/mlp/{name}/kernel', lambda k: k.at[3].mul(0.01)
    )
  errors, largest = quantisation_report.matrix_errors(CONFIG, giant, batches)
  tree = smoothing.smoothed(CONFIG, giant, largest, share=0.5)
  np.testing.assert_allclose(
    quantisation_captures.teacher_forced_logits(CONFIG, tree, *batches[0]),
    quantisation_captures.teacher_forced_logits(CONFIG, giant, *batches[0]),
    atol=1e-3,
  )
  report = quantisation.measure(
    'tiny', CONFIG, giant, batches, smoothing_share=0.5
  )
  before = {error.path: error for error in report.matrices}
  assert [one.path for one in report.matrices] == [one.path for one in errors]
  for name in ('wi_0', 'wi_1'):
    one = before[f'{layer}/mlp/{name}']
    assert one.smoothed < one.both / 3
  # No norm stands before it: nothing is moved.
  out = before[f'{layer}/self_attention/out']
  assert out.smoothed == pytest.approx(out.both, rel=0.1)
  every, smooth = report.models
  assert smooth.logits < every.logits
  with pytest.raises(ValueError, match=r'smoothing is 2.*0\.5'):
    smoothing.smoothed(CONFIG, params, largest, share=2)


def test_channels_of_nothing_survive_smoothing(params, batches):
  dead = scaled(
    params,
    'decoder/layers_0/pre_mlp_layer_norm/scale',
    lambda scale: jnp.zeros_like(scale),
  )
  errors, largest = quantisation_report.matrix_errors(CONFIG, dead, batches)
  assert np.isfinite([error.both for error in errors]).all()
  tree = smoothing.smoothed(CONFIG, dead, largest, share=0.5)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_it_reads_a_run_and_a_token_file(tmp_path, capsys):
  config = text_cases.CONFIG
  run = text_cases.save_run(
    tmp_path / 'run', params=model.init_params(config, jax.random.key(3))
  )
  rng = np.random.default_rng(0)
  tokens = str(tmp_path / 'test.npz')
  sizes = rng.integers(2, 7, 5)
  training.write_npz(
    tokens,
    [
      {'inputs': [*rng.integers(2, 264, size), 1], 'targets': [2, 1]}
      for size in sizes
    ],
  )
  output = tmp_path / 'report.json'
  flags = [f'--run_dir={run}', f'--tokens={tokens}', '--num_inputs=4']
  flags += ['--max_length=6', '--keep_above=0.001', '--smoothing=0.5']
  quantisation.main([*flags, '--encoder', f'--output={output}'])
  printed = capsys.readouterr().out
  (report,) = measured_rows.read(output, quantisation_table.Report).rows
  assert report.model == 'run' and 0 < report.num_positions <= 4 * 6
  assert len(report.matrices) == 2 * 11 + 1 + 7
  assert [one.name for one in report.models] == [
    'all',
    'all but .*/mlp/wo',
    'all but decoder/logits_dense',
    'all but those above 0.1 %',
    'all, smoothed by 0.5',
  ]
  # Everything is above: the float model.
  above = report.models[3]
  assert above.num_kept == 30 and above.logits < 1e-5
  assert (above.other_outputs, above.distance) == (0, 0)
  keep = quantisation_report.matrices_above(report.matrices, 0.001)
  assert f'above 0.001: Int8Weights(encoder=True, keep={keep})' in printed
  quantisation.main([f'--show={output}'])
  assert capsys.readouterr().out == printed


@pytest.mark.slow
def test_random_weights_take_no_run(monkeypatch, capsys):
  monkeypatch.setattr(
    model.T5Config, 'named', classmethod(lambda cls, name: CONFIG)
  )
  quantisation.main(['--shape=tiny', '--num_inputs=9', '--max_length=4'])
  printed = capsys.readouterr().out
  assert '| tiny: all | 0 |' in printed and 'over 36 positions' in printed
  assert '| decoder/layers_1/mlp/wo |' in printed
  with pytest.raises(SystemExit, match='matches no matrix'):
    quantisation.main(['--shape=tiny', '--num_inputs=1', '--rules=mlp'])
  with pytest.raises(SystemExit, match=r'no regular expression'):
    quantisation.main(['--shape=tiny', '--num_inputs=1', '--rules=*'])


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'give either --run_dir with --tokens, or --shape'),
    (['--run_dir=x', '--shape=t5_v1_1_small'], 'give either'),
    (['--run_dir=x'], 'give --tokens'),
    (['--shape=t5_huge'], 'unknown configuration'),
    (['--shape=t5_v1_1_small', '--num_inputs=0'], 'num_inputs is 0'),
    (['--run_dir=nowhere', '--tokens=none.npz'], 'nowhere'),
  ],
)
def test_bad_flags_end_in_one_line(arguments, message):
  with pytest.raises(SystemExit, match=message):
    quantisation.main(arguments)
