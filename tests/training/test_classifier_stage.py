"""Training the classifier of a frozen model, and where it is kept."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import (
  checkpoints,
  exits,
  model,
  records,
  runs,
  training,
)
from calm_jax.training import classifier_evaluation, step
from calm_jax.training.stages import classifier

CONFIG = dataclasses.replace(training_cases.CONFIG, num_decoder_layers=3)
# One object for all runs, so that each step is compiled once.
OPTIMIZER = training.adamw(0.02)


@pytest.fixture(scope='module')
def params():
  return training_cases.random_params(CONFIG)


@pytest.fixture
def run_directory(tmp_path, params):
  """A directory as stage 1 leaves it."""
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  return tmp_path


def train(params, model_dir, batches=training_cases.batches, **changes):
  plan = dict(num_steps=6, log_every=2, checkpoint_every=3)
  plan |= {key: changes.pop(key) for key in plan if key in changes}
  folder = training.classifier_directory(
    model_dir, changes.pop('name', 'classifier')
  )
  context = changes.pop('context', None)
  return training.train(
    training.classifier_stage(CONFIG, params, OPTIMIZER, **changes),
    batches,
    plan=training.Plan(**plan),
    model_dir=folder,
    context=context,
  )


def log(model_dir, name='classifier'):
  return list(records.read_jsonl(model_dir / name / 'train_log.jsonl'))


def same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_only_the_classifier_is_trained(tmp_path, params, capsys):
  before = jax.tree.map(np.array, params)
  result = train(
    params,
    tmp_path,
    lambda skip: (training_cases.batch(n % 3) for n in itertools.count(skip)),
    num_steps=150,
    log_every=50,
    checkpoint_every=100,
  )
  same(before, params)
  assert (result.step, result.stopped_because) == (150, 'num_steps')
  kernel = training.classifier_of(result.params).kernel
  assert kernel.shape == (CONFIG.embed_dim,)
  assert np.abs(kernel).max() > 0.1
  rows = [row for row in log(tmp_path) if row['kind'] == 'train']
  assert rows[-1]['loss'] < rows[0]['loss'] < np.log(2)
  accuracies = np.array([row['exit_accuracies'] for row in rows])
  assert (accuracies[-1] > accuracies[0]).all()
  assert len(rows[-1]['exit_losses']) == 2
  printed = capsys.readouterr().out
  assert 'step 150/150  loss' in printed
  assert '17 parameters, a classifier of 2 exits, independent loss' in printed
  state = classifier.init_classifier_state(CONFIG, OPTIMIZER)
  sizes = {leaf.size for leaf in jax.tree.leaves(state.opt_state)}
  assert sizes == {1, CONFIG.embed_dim}


def test_a_saved_classifier_decodes(run_directory, params):
  trained = training.classifier_of(train(params, run_directory).params)
  loaded = runs.load_classifier(run_directory)
  assert isinstance(loaded, exits.Classifier)
  same(loaded, trained)
  # The run directory is still the model's.
  same(checkpoints.load_params(run_directory).params, params)


def test_another_backbone_is_refused(run_directory, params):
  train(params, run_directory, num_steps=1)
  other = jax.tree.map(lambda leaf: leaf * 1.01, params)
  with pytest.raises(ValueError, match='backbone_parameters: expected'):
    train(other, run_directory)
  path = checkpoints.save(run_directory, 8, params=other, config=CONFIG)
  fingerprint = checkpoints.parameter_fingerprint(params)
  with pytest.raises(
    ValueError, match=f'trained for parameters {fingerprint}, but {path}'
  ):
    runs.load_classifier(run_directory)


def test_another_run_in_the_directory_is_refused(tmp_path, params):
  train(params, tmp_path, num_steps=1, context={'task': 'a'})
  rows = log(tmp_path)
  with pytest.raises(
    ValueError, match="classifier_loss: expected 'balanced', found 'indep"
  ):
    train(params, tmp_path, loss='balanced', context={'task': 'a'})
  with pytest.raises(ValueError, match="task: expected 'b', found 'a'"):
    train(params, tmp_path, context={'task': 'b'})
  assert log(tmp_path) == rows
  train(params, tmp_path, num_steps=1, name='another')
  assert checkpoints.latest_step(tmp_path / 'another') == 1


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(loss='bce'), "'bce'; known: balanced, geometric, independent"),
    (dict(name='best'), "'best'"),
    (dict(name=''), 'folder of its own'),
    (dict(name='../other'), 'folder of its own'),
    (dict(name='checkpoint_9'), 'folder of its own'),
    (dict(batches=lambda skip: [{}]), 'the batch lacks'),
  ],
)
def test_bad_arguments_are_named(tmp_path, params, changes, message):
  with pytest.raises(ValueError, match=message):
    train(params, tmp_path, **changes)
  assert checkpoints.latest_step(tmp_path / 'classifier') is None


def test_a_model_of_one_layer_has_no_exit(tmp_path, params):
  with pytest.raises(ValueError, match='num_decoder_layers = 1'):
    training.classifier_stage(
      dataclasses.replace(CONFIG, num_decoder_layers=1), params, OPTIMIZER
    )


@pytest.mark.slow
def test_memory_holds_the_logits_of_one_exit_at_a_time():
  batch, length = 4, 16

  def peak(layers):
    config = dataclasses.replace(
      CONFIG, vocab_size=32128, embed_dim=8, num_decoder_layers=layers
    )
    params = jax.eval_shape(
      lambda: model.init_params(config, jax.random.key(0))
    )
    state = jax.eval_shape(
      lambda: classifier.init_classifier_state(config, OPTIMIZER)
    )
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    arrays = dict.fromkeys(step.BATCH_KEYS, tokens)
    lowered = classifier.make_classifier_step(
      config, OPTIMIZER, loss=training.get_classifier_loss('balanced')
    ).lower(state, arrays, params)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  few, many = peak(2), peak(6)
  logits_of_one_exit = batch * length * 32128 * 4
  assert few >= logits_of_one_exit, 'the measure must see the logits'
  assert many < 1.2 * few


def test_a_missing_or_wrong_folder_is_named(run_directory, params):
  with pytest.raises(FileNotFoundError, match='train_classifier'):
    runs.load_classifier(run_directory)
  checkpoints.save(run_directory / 'other', 1, params=params, config=CONFIG)
  with pytest.raises(ValueError, match='other is no classifier'):
    runs.load_classifier(run_directory, name='other')


# Evaluation.


def test_rates_are_those_of_a_count_by_hand():
  """Layer 1: held back tokens 1, 2, 3 of 5, of which 2 and 3 should be."""
  scores = np.array([[[1, -1, -1, 2, -1, 9]], [[1, 1, 1, 1, 1, 9]]], np.float32)
  labels = np.array([[[0, 0, 0, 1, 1, 0]], [[1, 1, 1, 1, 0, 0]]], bool)
  weights = np.array([[1, 1, 1, 1, 1, 0]], np.float32)
  counts = jax.device_get(
    jax.jit(classifier_evaluation.count_decisions)(scores, labels, weights)
  )
  first, second = counts.layers()
  assert (first.exit_layer, second.exit_layer) == (1, 2)
  # Held back: 3; inconsistent: 3; both: 2.
  rates = (first.precision, first.recall, first.f1, first.agreement)
  np.testing.assert_allclose(rates, (2 / 3, 2 / 3, 2 / 3, 2 / 5), rtol=1e-6)
  np.testing.assert_array_equal(counts.right, [3, 4])
  # Nothing is held back at layer 2, where one token should be.
  assert np.isnan(second.precision)
  assert (second.recall, second.f1) == (0, 0)
  confidence = 1 / (1 + np.exp(-scores[0, 0, :5]))
  np.testing.assert_allclose(
    first.mean_confidence, confidence.mean(), rtol=1e-6
  )
  right = np.where(labels[0, 0, :5], confidence, 1 - confidence)
  np.testing.assert_allclose(
    first.cross_entropy, -np.log(right).mean(), rtol=1e-6
  )


def test_a_set_is_counted_over_batches_without_dropout(params):
  assert CONFIG.dropout_rate > 0
  random = np.random.default_rng(0)
  judge = exits.Classifier(random.normal(size=16), 0.1)
  batches = [training_cases.batch(seed) for seed in (1, 2)]
  counts = training.evaluate_classifier(CONFIG, params, judge, batches)
  held_back = inconsistent = both = np.zeros(2)

  @jax.jit
  def states_and_logits(inputs, tokens):
    states = model.layer_states(CONFIG, params, inputs, tokens)
    return states, model.output_logits(CONFIG, params, states)

  for batch in batches:
    states, logits = states_and_logits(
      batch['encoder_input_tokens'], batch['decoder_input_tokens']
    )
    best = np.asarray(logits).argmax(-1)
    apart = (best[:-1] != best[-1]) & (batch['decoder_loss_weights'] > 0)
    low = np.asarray(states[:-1]) @ judge.kernel + judge.bias < 0
    low &= batch['decoder_loss_weights'] > 0
    held_back = held_back + low.sum((1, 2))
    inconsistent = inconsistent + apart.sum((1, 2))
    both = both + (low & apart).sum((1, 2))
  np.testing.assert_array_equal(counts.held_back, held_back)
  np.testing.assert_array_equal(counts.inconsistent, inconsistent)
  np.testing.assert_array_equal(counts.rightly_held_back, both)
  assert both.all() and counts.num_tokens.dtype == np.float64


@pytest.mark.parametrize('batches', [[], [training_cases.batch(1)]])
def test_an_empty_validation_set_is_named(params, batches):
  for batch in batches:
    batch['decoder_loss_weights'] = np.zeros_like(batch['decoder_loss_weights'])
  judge = exits.Classifier(np.zeros(16), 0.0)
  with pytest.raises(ValueError, match='no target token'):
    training.evaluate_classifier(CONFIG, params, judge, iter(batches))


def test_packed_examples_are_judged_as_if_alone(params):
  """Two examples in one row give the labels and scores of two rows."""
  tokens = np.random.default_rng(0).integers(2, 16, (8, 5)).astype(np.int32)
  rows = {
    'encoder_input_tokens': tokens,
    'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
    'decoder_target_tokens': tokens,
    'decoder_loss_weights': np.ones((8, 5), np.float32),
  }
  packed = {key: value.reshape(4, 10) for key, value in rows.items()}
  ids = np.tile(np.repeat([1, 2], 5), (4, 1)).astype(np.int32)
  packed |= {'encoder_segment_ids': ids, 'decoder_segment_ids': ids}
  judge = exits.Classifier(np.random.default_rng(1).normal(size=16), 0.1)
  one, other = (
    training.evaluate_classifier(CONFIG, params, judge, [batch])
    for batch in (rows, packed)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other
  )
