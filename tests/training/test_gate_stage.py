"""Training gates of a frozen model, and what they come to."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import checkpoints, exits, model, runs, training
from calm_jax.training import gate_states
from calm_jax.training.stages import gate

CONFIG = dataclasses.replace(training_cases.CONFIG, num_decoder_layers=3)
# One object for all runs, so that each step is compiled once.
OPTIMIZER = training.adamw(0.02)
SHAPE = training.GateShape(hidden_units=8)
ALL = training.GateShape(
  hidden_units=4, inputs=('state', 'previous', 'logits', 'layer')
)
LINEAR = training.GateShape(hidden_units=0, per_layer=True)
BATCHES = [training_cases.batch(seed) for seed in (1, 2)]


@pytest.fixture(scope='module')
def params():
  return training.init_train_state(CONFIG, OPTIMIZER).params


def train(params, model_dir, *, num_steps=6, name='gate', **changes):
  return training.train(
    training.gate_stage(
      CONFIG, params, OPTIMIZER, **{'shape': SHAPE, **changes}
    ),
    lambda skip: (training_cases.batch(n % 3) for n in itertools.count(skip)),
    plan=training.Plan(num_steps=num_steps, log_every=100),
    model_dir=training.gate_directory(model_dir, name),
  )


def same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def random_gate(shape, seed=0):
  """A gate of a shape that says something."""
  arrays = shape.init(CONFIG, jax.random.key(0))
  random = np.random.default_rng(seed)
  return exits.Gate(
    **{
      name: jnp.asarray(random.normal(size=array.shape), jnp.float32)
      for name, array in arrays.items()
    }
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory, params):
  """A run with a gate, long enough trained to beat knowing nothing."""
  folder = tmp_path_factory.mktemp('run')
  checkpoints.save(folder, 7, params=params, config=CONFIG)
  before = jax.tree.map(np.array, params)
  result = train(params, folder, num_steps=120)
  same(before, params)
  return folder, result


def test_a_trained_gate_is_loaded_and_leaves_the_model_alone(trained, params):
  folder, result = trained
  loaded = runs.load_gate(folder)
  same(loaded, training.gate_of(result.params))
  same(checkpoints.load_params(folder).params, params)
  assert loaded.state.shape == (1, CONFIG.embed_dim, 8)
  assert loaded.layer_bias.shape == (2, 8)
  assert abs(loaded.out).max() > 0.05


def test_a_gate_of_another_backbone_is_refused(tmp_path, params):
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  train(params, tmp_path, num_steps=1)
  other = jax.tree.map(lambda leaf: leaf * 1.01, params)
  with pytest.raises(ValueError, match='backbone_parameters: expected'):
    train(other, tmp_path)
  with pytest.raises(ValueError, match='gate_target: expected'):
    train(params, tmp_path, target='balanced')
  path = checkpoints.save(tmp_path, 8, params=other, config=CONFIG)
  with pytest.raises(ValueError, match=f'trained for parameters .* but {path}'):
    runs.load_gate(tmp_path)
  with pytest.raises(FileNotFoundError, match='train_gates'):
    runs.load_gate(tmp_path, name='another')
  with pytest.raises(ValueError, match='folder of its own'):
    training.gate_directory(tmp_path, '../gate')


def test_training_lowers_the_loss_of_held_out_tokens(trained, params):
  folder, _ = trained
  untrained = exits.Gate(**SHAPE.init(CONFIG, jax.random.key(0)))
  before, after = (
    training.evaluate_gate(CONFIG, params, one, BATCHES)
    for one in (untrained, runs.load_gate(folder))
  )
  for old, new in zip(before.layers, after.layers, strict=True):
    np.testing.assert_allclose(old.cross_entropy, np.log(2.0), rtol=1e-5)
    assert new.cross_entropy < old.cross_entropy


@pytest.mark.parametrize(
  ('target', 'states', 'shape'),
  [
    ('quantile', 'own_exits', ALL),
    ('cost_aware', 'exact', LINEAR),
    pytest.param('geometric', 'own_exits', LINEAR, marks=pytest.mark.slow),
    pytest.param('balanced', 'exact', ALL, marks=pytest.mark.slow),
  ],
)
def test_every_shape_is_trained(params, target, states, shape):
  """The loss falls on the batch that it is taken of, and it fits the model."""
  stage = training.gate_stage(
    CONFIG, params, OPTIMIZER, target=target, states=states, shape=shape
  )
  state, losses = stage.init(None), []
  for _ in range(40):
    state, metrics = stage.step(state, stage.check_batch(BATCHES[0]), params)
    losses.append(float(metrics.loss))
  assert losses[-1] < losses[0]
  found = training.gate_of(state.params)
  found.check(model.as_layered_decoder(CONFIG), 1, 1)
  assert found.state.shape[0] == (2 if shape.per_layer else 1)
  assert found.needs_logits == ('logits' in shape.inputs)
  assert (found.out is None) == (shape.hidden_units == 0)


@pytest.mark.parametrize('states', ['exact', 'own_exits'])
def test_no_gradient_reaches_the_backbone(params, states):
  judge = random_gate(ALL)
  look = gate_states.get_gate_states(states)

  @jax.jit
  @jax.grad
  def gradient(params):
    examples = look(CONFIG, params, BATCHES[0], judge, jax.random.key(0))
    target = training.Quantile()
    return target.loss(examples.scores(judge), examples)

  for leaf in jax.tree.leaves(gradient(params)):
    assert (np.asarray(leaf) == 0).all()


def test_the_gate_gets_a_gradient_in_every_input(params):
  examples = gate_states.exact_states(CONFIG, params, BATCHES[0])
  target = training.Consistency()
  gradient = jax.grad(lambda one: target.loss(examples.scores(one), examples))(
    random_gate(ALL)
  )
  assert all(abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_states_are_those_that_decoding_sees(params):
  """The confidences of a decode with exact K/V, at all exits on the way."""
  judge = random_gate(ALL, seed=3)
  seam = model.as_layered_decoder(CONFIG)
  weights = seam.prepare(params, traced_layers=True)
  batch = BATCHES[0]
  length = batch['decoder_input_tokens'].shape[1]
  examples = gate_states.exact_states(CONFIG, params, batch)
  expected = jax.nn.sigmoid(examples.scores(judge))
  cache = seam.start(
    weights, seam.encode(weights, batch['encoder_input_tokens']), length
  )
  positions = jnp.arange(length)
  hidden = seam.embed(weights, batch['decoder_input_tokens'], positions)
  for layer in range(2):
    entering = hidden
    cache = seam.fill_layer(weights, layer, hidden, positions, cache)
    hidden = seam.attend(weights, layer, hidden, positions, cache)
    hidden = seam.feed_forward(weights, layer, hidden)
    logits = seam.logits(weights, hidden)
    features = exits.features_of(logits.reshape(-1, CONFIG.vocab_size))
    features = features.reshape(*logits.shape[:2], 3)
    score = judge.score(layer, hidden, entering, features)
    np.testing.assert_allclose(
      jax.nn.sigmoid(score), expected[layer], atol=1e-4
    )


def test_own_exits_leave_their_kv_behind(params):
  """Where all leave after layer 1 the states are those of that mask."""
  eager = dataclasses.replace(random_gate(SHAPE), bias=jnp.full((1,), 1e4))
  batch = BATCHES[0]
  tokens = batch['decoder_input_tokens'], batch['encoder_input_tokens']
  exact = gate_states.exact_states(CONFIG, params, batch)
  own = gate_states.own_exit_states(
    CONFIG, params, batch, eager, jax.random.key(0)
  )
  same(own, exact)
  # Layer 2 is run by those tokens alone that no row's threshold stops.
  half = dataclasses.replace(eager, bias=jnp.zeros((1,)))
  own = gate_states.own_exit_states(
    CONFIG, params, batch, half, jax.random.key(0)
  )
  scores = jax.nn.sigmoid(exact.scores(half))
  thresholds = jax.random.uniform(jax.random.key(0), (8,))[:, None]
  runs_second = np.asarray(scores[0] < thresholds)
  assert 0 < runs_second.mean() < 1
  mask = np.stack(
    [np.ones_like(runs_second), runs_second, runs_second], axis=-1
  )
  states = model.layer_states(
    CONFIG, params, *reversed(tokens), layer_mask=jnp.asarray(mask)
  )
  np.testing.assert_allclose(
    own.hidden[1][runs_second], states[1][runs_second], atol=1e-5
  )
  np.testing.assert_array_equal(
    own.hidden[1][~runs_second], exact.hidden[1][~runs_second]
  )
  assert abs(own.hidden[1] - exact.hidden[1]).max() > 1e-3


def test_a_gate_is_measured_beside_margin_and_oracle(params):
  judge = random_gate(SHAPE, seed=2)
  measured = training.evaluate_gate(CONFIG, params, judge, BATCHES)
  weights = [batch['decoder_loss_weights'] > 0 for batch in BATCHES]
  assert measured.num_tokens == sum(one.sum() for one in weights)
  names = {depth.measure for depth in measured.depths}
  assert names == {'gate', 'gate, accumulated', 'softmax margin'}
  assert len(measured.depths) == 9
  parts = [gate_states.exact_states(CONFIG, params, batch) for batch in BATCHES]
  for layer, rates in enumerate(measured.layers):
    agrees = np.concatenate(
      [
        np.asarray(part.consistent[layer])[where]
        for part, where in zip(parts, weights, strict=True)
      ]
    )
    np.testing.assert_allclose(rates.agreement, agrees.mean(), rtol=1e-6)
  assert 1 <= measured.first_agreeing <= measured.settled <= 3
  for depth in measured.depths:
    assert measured.first_agreeing - 1e-6 <= depth.mean_exit_layer + 3 * 0.05


@pytest.mark.parametrize('batches', [[], [training_cases.batch(1)]])
def test_an_empty_validation_set_is_named(params, batches):
  for batch in batches:
    batch['decoder_loss_weights'] = np.zeros_like(batch['decoder_loss_weights'])
  with pytest.raises(ValueError, match='no target token'):
    training.evaluate_gate(CONFIG, params, random_gate(SHAPE), batches)
  with pytest.raises(ValueError, match='no target token'):
    training.fit_temperatures(CONFIG, params, batches)


def test_gates_of_other_models_are_refused(params):
  wider = dataclasses.replace(CONFIG, num_decoder_layers=5)
  with pytest.raises(ValueError, match='layer_bias of the gate has shape'):
    training.evaluate_gate(wider, params, random_gate(SHAPE), BATCHES)
  with pytest.raises(ValueError, match='num_decoder_layers = 1'):
    training.gate_stage(
      dataclasses.replace(CONFIG, num_decoder_layers=1), params, OPTIMIZER
    )


def test_the_first_answer_is_one_half():
  for shape in (SHAPE, ALL, LINEAR):
    state = gate.init_gate_state(CONFIG, OPTIMIZER, shape=shape, seed=1)
    judge = training.gate_of(state.params)
    ones = jnp.ones((2, 4, CONFIG.embed_dim))
    np.testing.assert_array_equal(
      judge.scores(ones, ones, jnp.ones((2, 4, 3))), 0.0
    )


# Temperatures.


@pytest.mark.parametrize('of', ['last_layer', 'targets'])
def test_temperatures_never_make_tokens_less_likely(params, of):
  fitted = training.fit_temperatures(CONFIG, params, BATCHES, of=of)
  before, after = np.array(fitted.before), np.array(fitted.after)
  assert (after <= before).all() and (after < before - 1e-3).any()
  assert len(fitted.temperatures) == 3
  if of == 'last_layer':
    assert fitted.temperatures[-1] == 1.0
  tempered = exits.Tempered(exits.SoftmaxMargin(), fitted.temperatures)
  tempered.check(model.as_layered_decoder(CONFIG), 1, 1)
  # By hand, of one layer: nothing near the temperature found does better.
  losses = {}
  for factor in (0.9, 1.0, 1.1):
    total = count = 0.0
    for batch in BATCHES:
      states = model.layer_states(
        CONFIG,
        params,
        batch['encoder_input_tokens'],
        batch['decoder_input_tokens'],
      )
      logits = model.output_logits(CONFIG, params, states)
      tokens = batch['decoder_target_tokens']
      if of == 'last_layer':
        tokens = logits[-1].argmax(axis=-1)
      logs = jax.nn.log_softmax(logits[0] / (fitted.temperatures[0] * factor))
      right = np.take_along_axis(logs, np.asarray(tokens)[..., None], -1)[
        ..., 0
      ]
      total -= (right * batch['decoder_loss_weights']).sum()
      count += batch['decoder_loss_weights'].sum()
    losses[factor] = total / count
  np.testing.assert_allclose(losses[1.0], fitted.after[0], rtol=1e-5)
  assert losses[1.0] <= min(losses.values()) + 1e-6


def test_tokens_of_nobody_are_refused(params):
  with pytest.raises(ValueError, match="'gold'; give 'last_layer' or 'tar"):
    training.fit_temperatures(CONFIG, params, BATCHES, of='gold')
