"""Heads of encoder layers: frozen model or trained with it, and a gate."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import checkpoints, encoding, exits, model, runs, training
from calm_jax.data.class_labels import ClassLabels
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.training import encoder_gate_states, encoder_head_losses
from calm_jax.training.encoder_head_evaluation import ClassLogits

CONFIG = dataclasses.replace(
  training_cases.CONFIG, num_encoder_layers=3, dropout_rate=0.0
)
L = CONFIG.num_encoder_layers
LABELS = ClassLabels(('a', 'b', 'c'), ((2, 1), (3, 1), (4, 1)))
# One object for all runs, so that each step is compiled once.
OPTIMIZER = training.adamw(0.03)


def batch(seed=1, *, rows=8):
  """The class is that of the first token, modulo 3; a row is padding."""
  found = training_cases.batch(seed, rows=rows)
  classes = found['encoder_input_tokens'][:, 0] % 3
  targets = np.zeros((rows, 5), np.int32)
  targets[:, 0], targets[:, 1] = classes + 2, 1
  targets[-1] = 0
  return {
    **found,
    'decoder_target_tokens': targets,
    'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    'decoder_loss_weights': (targets > 0).astype(np.float32),
  }


BATCH = batch()


@pytest.fixture(scope='module')
def params():
  """Returns random parameters, without compiling a program to draw them."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: model.init_params(CONFIG, jax.random.key(0)))

  def draw(shape):
    if len(shape.shape) == 1:
      return np.ones(shape.shape, np.float32)
    scale = 1.0 / np.sqrt(shape.shape[0])
    return (rng.normal(size=shape.shape) * scale).astype(np.float32)

  return jax.tree.map(draw, shapes)


def stage_of(params, **changes):
  return training.encoder_head_stage(
    CONFIG, params, OPTIMIZER, labels=LABELS, **changes
  )


def train(params, model_dir, *, num_steps, **changes):
  return training.train(
    stage_of(params, **changes),
    lambda skip: itertools.repeat(BATCH),
    plan=training.Plan(num_steps=num_steps, log_every=100),
    model_dir=training.encoder_head_directory(model_dir),
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory, params):
  folder = tmp_path_factory.mktemp('run')
  checkpoints.save(folder, 7, params=params, config=CONFIG)
  before = jax.tree.map(np.array, params)
  result = train(params, folder, num_steps=60)
  jax.tree.map(np.testing.assert_array_equal, before, params)
  return folder, result


@pytest.mark.slow
def test_heads_learn_and_leave_the_model_alone(trained, params):
  folder, result = trained
  assert set(result.params) == {'encoder_heads'}
  heads = runs.load_encoder_heads(folder)
  jax.tree.map(
    np.testing.assert_array_equal,
    heads,
    training.encoder_heads_of(result.params),
  )
  assert runs.load_class_labels(folder) == LABELS
  found = training.class_logits(CONFIG, params, heads, [BATCH], labels=LABELS)
  assert found.classes.tolist() == [
    int(token) % 3 for token in BATCH['encoder_input_tokens'][:7, 0]
  ]
  # It has seen these; a row of padding does not count.
  assert found.accuracies.shape == (L,) and (found.accuracies > 0.6).all()
  assert found.agreements[-1] == 1.0
  with pytest.raises(ValueError, match='encoder_head_shape: expected'):
    train(
      params,
      folder,
      num_steps=61,
      shape=training.EncoderHeadShape(hidden_units=4),
    )


@pytest.mark.slow
def test_heads_read_what_encoding_reads(trained, params):
  folder, _ = trained
  heads = runs.load_encoder_heads(folder)
  encoder = model.as_layered_encoder(CONFIG)
  inputs = BATCH['encoder_input_tokens']
  found = encoding.all_layers(encoder, params, inputs, heads)
  pooled = training.pooled_layers(CONFIG, params, inputs)
  np.testing.assert_allclose(found.pooled[1:], pooled, atol=1e-5)
  logits = training.class_logits(
    CONFIG, params, heads, [BATCH], labels=LABELS
  ).logits
  np.testing.assert_allclose(found.logits[:, :7], logits, atol=1e-4)
  states = np.asarray(model.encode(CONFIG, params, inputs).hidden)
  row = int(np.argmin((inputs > 0).sum(axis=1)))
  length = int((inputs[row] > 0).sum())
  mean = states[row, :length].mean(axis=0)
  np.testing.assert_allclose(pooled[-1, row], mean, atol=1e-5)
  said = encoding.classify(encoder, params, inputs, heads)
  np.testing.assert_allclose(said.logits[:7], logits[-1], atol=1e-4)


@pytest.mark.slow
def test_the_encoder_is_trained_with_them(params):
  config = dataclasses.replace(CONFIG, dropout_rate=0.1)
  stage = training.encoder_head_stage(
    config, params, OPTIMIZER, labels=LABELS, with_encoder=True
  )
  state, losses = stage.init(None), []
  for _ in range(30):
    state, metrics = stage.step(state, stage.check_batch(BATCH), {})
    losses.append(float(metrics.loss))
  assert losses[0] == pytest.approx(np.log(3.0), rel=1e-4)
  assert losses[-1] < losses[0] - 0.3
  joint = training.with_trained_encoder(params, state.params)
  assert joint['decoder'] is params['decoder']
  kernel = ('encoder', 'layers_0', 'attention', 'query', 'kernel')

  def at(tree):
    for name in kernel:
      tree = tree[name]
    return np.asarray(tree)

  assert np.abs(at(joint) - at(params)).max() > 1e-3
  assert not stage.inside and stage_of(params).inside


@pytest.mark.slow
def test_weights_of_layers_count(params):
  stage = stage_of(params, layer_weights=(0.0, 0.0, 1.0))
  state, _ = stage.step(stage.init(None), stage.check_batch(BATCH), params)
  kernel = np.asarray(training.encoder_heads_of(state.params).kernel)
  assert np.abs(kernel[:2]).max() == 0.0 < np.abs(kernel[2]).max()
  with pytest.raises(ValueError, match='one weight per layer'):
    stage_of(params, layer_weights=(1.0,))


@pytest.mark.slow
@pytest.mark.parametrize(
  'target,inputs',
  [('quantile', ('state', 'previous')), ('cost_aware', ('logits', 'layer'))],
)
def test_a_gate_learns_for_frozen_heads(trained, params, target, inputs):
  folder, _ = trained
  heads = runs.load_encoder_heads(folder)
  stage = training.encoder_gate_stage(
    CONFIG,
    params,
    heads,
    OPTIMIZER,
    labels=LABELS,
    target=target,
    shape=training.GateShape(hidden_units=8, inputs=inputs),
  )
  state, losses = stage.init(None), []
  for _ in range(30):
    state, metrics = stage.step(
      state, stage.check_batch(BATCH), stage.constants
    )
    losses.append(float(metrics.loss))
  assert losses[-1] < losses[0]
  gate = training.gate_of(state.params)
  encoder = model.as_layered_encoder(CONFIG)
  inputs = BATCH['encoder_input_tokens']
  layers = encoding.all_layers(encoder, params, inputs, heads)
  # Training and inference read the same.
  frozen = {**params, 'encoder_heads': heads}
  examples = encoder_gate_states.encoder_states(
    CONFIG, frozen, stage.check_batch(BATCH)
  )
  scores = np.asarray(jax.nn.sigmoid(examples.scores(gate)))[..., 0]
  _, confidences = encoding.replay(
    encoder, exits.ConfidenceExit(gate, 0.0), layers
  )
  np.testing.assert_allclose(confidences, scores[0], atol=1e-4)


def test_losses_and_examples_by_hand():
  heads = EncoderHeads(
    kernel=jnp.array([[[1.0, 0.0]], [[0.0, 2.0]]]), bias=jnp.zeros((2, 2))
  )
  pooled = jnp.array([[[1.0], [2.0], [9.0]], [[1.0], [2.0], [9.0]]])
  found = encoder_head_losses.head_losses(heads, pooled, jnp.array([0, 1, -1]))
  by_hand = [
    (np.log1p(np.exp(-1.0)) + np.log1p(np.exp(2.0))) / 2,
    (np.log1p(np.exp(2.0)) + np.log1p(np.exp(-4.0))) / 2,
  ]
  np.testing.assert_allclose(found.losses, by_hand, rtol=1e-5)
  assert found.accuracies.tolist() == [0.5, 0.5]
  assert float(found.num_tokens) == 2.0


def test_temperatures_find_what_was_planted():
  rng = np.random.default_rng(0)
  calibrated = rng.normal(size=(2, 4000, 5)).astype(np.float32) * 2
  odds = np.exp(calibrated[0].astype(np.float64))
  shares = (odds / odds.sum(axis=1, keepdims=True)).cumsum(axis=1)
  classes = (rng.random((4000, 1)) > shares).sum(axis=1)
  # The first head is four times too sure of itself, the second knows nothing.
  found = ClassLogits(np.stack([4 * calibrated[0], calibrated[1]]), classes)
  fitted = training.fit_class_temperatures(found)
  assert fitted.temperatures[0] == pytest.approx(4.0, rel=0.1)
  assert fitted.temperatures[1] == 8.0
  assert (np.array(fitted.after) <= fitted.before).all()
  assert fitted.after[0] < fitted.before[0] - 0.5
  for logits, temperature in zip(
    found.logits, fitted.temperatures, strict=True
  ):
    np.testing.assert_array_equal(
      (logits / np.float32(temperature)).argmax(axis=1), logits.argmax(axis=1)
    )


def test_bad_input_is_refused(tmp_path, params):
  ids = np.ones((8, 5), np.int32)
  packed = {**BATCH, 'encoder_segment_ids': ids, 'decoder_segment_ids': ids}
  check = stage_of(params).check_batch
  with pytest.raises(ValueError, match='several inputs in a row'):
    check(packed)
  with pytest.raises(ValueError, match='none of the 3 classes'):
    check({**BATCH, 'decoder_target_tokens': 5 * ids})
  with pytest.raises(ValueError, match='hidden_units'):
    training.EncoderHeadShape(hidden_units=-1)
  heads = EncoderHeads(np.zeros((L, 16, 3), 'f4'), np.zeros((L, 3), 'f4'))
  with pytest.raises(ValueError, match='no input with a class'):
    training.class_logits(CONFIG, params, heads, [], labels=LABELS)
  shallow = dataclasses.replace(CONFIG, num_encoder_layers=2)
  with pytest.raises(ValueError, match='encoder heads have shapes'):
    training.class_logits(shallow, params, heads, [], labels=LABELS)
  one = dataclasses.replace(CONFIG, num_encoder_layers=1)
  with pytest.raises(ValueError, match='num_encoder_layers = 1'):
    training.encoder_gate_stage(one, params, heads, OPTIMIZER, labels=LABELS)
  two = ClassLabels(('a', 'b'), ((2, 1), (3, 1)))
  with pytest.raises(ValueError, match='heads say 3 classes, and there are 2'):
    training.encoder_gate_stage(CONFIG, params, heads, OPTIMIZER, labels=two)
  for load in (runs.load_class_labels, runs.load_class_temperatures):
    with pytest.raises(FileNotFoundError, match='train_encoder_heads'):
      load(tmp_path)
  with pytest.raises(ValueError, match='folder of its own'):
    training.encoder_head_directory(tmp_path, '../heads')
