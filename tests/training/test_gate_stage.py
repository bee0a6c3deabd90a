"""Training gates of a frozen model, and what they come to."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import checkpoints, exits, model, runs, training
from calm_jax.training import gate_states, temperatures
from calm_jax.training.stages import gate

CONFIG = dataclasses.replace(training_cases.CONFIG, num_decoder_layers=4)
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
  return training_cases.random_params(CONFIG)


def train(params, model_dir, *, num_steps=6, name='gate', **changes):
  return training.train(
    training.gate_stage(
      CONFIG, params, OPTIMIZER, **{'shape': SHAPE, **changes}
    ),
    lambda skip: (training_cases.batch(n % 3) for n in itertools.count(skip)),
    plan=training.Plan(num_steps=num_steps, log_every=100),
    model_dir=training.gate_directory(model_dir, name),
  )


exact_states = jax.jit(functools.partial(gate_states.exact_states, CONFIG))


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
  result = train(params, folder, num_steps=60)
  same(before, params)
  return folder, result


def test_a_trained_gate_is_loaded_and_leaves_the_model_alone(trained, params):
  folder, result = trained
  loaded = runs.load_gate(folder)
  same(loaded, training.gate_of(result.params))
  same(checkpoints.load_params(folder).params, params)
  assert loaded.state.shape == (1, CONFIG.embed_dim, 8)
  assert loaded.layer_bias.shape == (3, 8)
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


@pytest.mark.slow
@pytest.mark.parametrize(
  ('target', 'states', 'shape'),
  [
    ('quantile', 'own_exits', ALL),
    pytest.param('cost_aware', 'exact', LINEAR, marks=pytest.mark.slow),
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
  assert found.state.shape[0] == (3 if shape.per_layer else 1)
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
  examples = exact_states(params, BATCHES[0])
  target = training.Consistency()
  gradient = jax.jit(
    jax.grad(lambda one: target.loss(examples.scores(one), examples))
  )(random_gate(ALL))
  assert all(abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_states_are_those_that_decoding_sees(params):
  """What a layered decoder hands to a rule, layer by layer."""
  judge = random_gate(ALL, seed=3)
  seam = model.as_layered_decoder(CONFIG)
  batch = BATCHES[0]
  length = batch['decoder_input_tokens'].shape[1]

  @jax.jit
  def confidences(params):
    weights = seam.prepare(params, traced_layers=False)
    encoded = seam.encode(weights, batch['encoder_input_tokens'])
    cache = seam.start(weights, encoded, length)
    positions = jnp.arange(length)
    hidden = seam.embed(weights, batch['decoder_input_tokens'], positions)
    found = []
    for layer in range(3):
      entering = hidden
      cache = seam.fill_layer(weights, layer, hidden, positions, cache)
      hidden = seam.attend(weights, layer, hidden, positions, cache)
      hidden = seam.feed_forward(weights, layer, hidden)
      logits = seam.logits(weights, hidden)
      features = exits.features_of(logits.reshape(-1, CONFIG.vocab_size))
      features = features.reshape(*logits.shape[:2], 3)
      found.append(judge.score(layer, hidden, entering, features))
    return jax.nn.sigmoid(jnp.stack(found))

  examples = exact_states(params, batch)
  expected = jax.nn.sigmoid(jax.jit(examples.scores)(judge))
  np.testing.assert_allclose(confidences(params), expected, atol=1e-4)


@jax.jit
def own_exit_states(params, batch, judge, key):
  return gate_states.own_exit_states(CONFIG, params, batch, judge, key)


@jax.jit
def masked_states(params, batch, mask):
  return model.layer_states(
    CONFIG,
    params,
    batch['encoder_input_tokens'],
    batch['decoder_input_tokens'],
    layer_mask=mask,
  )


@pytest.mark.slow
def test_own_exits_leave_their_kv_behind(params):
  """Later tokens see the K/V of exit states, from the third layer on."""
  batch, key = BATCHES[0], jax.random.key(0)
  judge = random_gate(dataclasses.replace(SHAPE, inputs=('state',)))
  exact = exact_states(params, batch)
  # Where all leave after layer 1, nothing else is seen.
  eager = dataclasses.replace(judge, bias=jnp.full((1,), 1e4))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    own_exit_states(params, batch, eager, key),
    exact,
  )
  own = own_exit_states(params, batch, judge, key)
  thresholds = jax.random.uniform(key, (8,))[:, None]
  left = np.asarray(jax.nn.sigmoid(exact.scores(judge)) >= thresholds)
  left = np.logical_or.accumulate(left, axis=0)
  runs_third = ~left[1]
  assert 0 < runs_third.mean() < 1
  mask = np.moveaxis(np.stack([left[0] | True, *~left]), 0, -1)
  states = masked_states(params, batch, mask)
  np.testing.assert_allclose(
    own.hidden[2][runs_third], states[2][runs_third], atol=1e-5
  )
  np.testing.assert_allclose(
    own.hidden[2][~runs_third], exact.hidden[2][~runs_third], atol=1e-5
  )
  np.testing.assert_allclose(own.hidden[:2], exact.hidden[:2], atol=1e-5)
  assert abs(own.hidden[2] - exact.hidden[2]).max() > 1e-3


def test_a_gate_is_measured_beside_margin_and_oracle(params):
  judge = random_gate(SHAPE, seed=2)
  measured = training.evaluate_gate(CONFIG, params, judge, BATCHES)
  weights = [batch['decoder_loss_weights'] > 0 for batch in BATCHES]
  assert measured.num_tokens == sum(one.sum() for one in weights)
  names = {depth.measure for depth in measured.depths}
  assert names == {'gate', 'gate, accumulated', 'softmax margin'}
  assert len(measured.depths) == 9
  parts = [exact_states(params, batch) for batch in BATCHES]
  for layer, rates in enumerate(measured.layers):
    agrees = np.concatenate(
      [
        np.asarray(part.consistent[layer])[where]
        for part, where in zip(parts, weights, strict=True)
      ]
    )
    np.testing.assert_allclose(rates.agreement, agrees.mean(), rtol=1e-6)
  assert 1 <= measured.first_agreeing <= measured.settled <= 4
  for depth in measured.depths:
    # A token that leaves before it agrees is one that disagrees.
    least = measured.first_agreeing - 3 * depth.disagreement
    assert least - 1e-6 <= depth.mean_exit_layer <= 4
    assert depth.disagreement <= depth.allowed


def test_thresholds_are_those_of_the_rules_that_read_them(params):
  """A gate that always says 1/2: `QuantileExit` wants more than its q."""
  untrained = exits.Gate(**SHAPE.init(CONFIG, jax.random.key(0)))
  measured = training.evaluate_gate(
    CONFIG, params, untrained, BATCHES, allowed=(1.0,)
  )
  found = {depth.measure: depth for depth in measured.depths}
  for name in ('gate', 'gate, accumulated'):
    assert found[name].mean_exit_layer == 1.0
  assert found['gate'].threshold == 0.5
  assert 0.499 < found['gate, accumulated'].threshold < 0.5


@pytest.mark.parametrize('batches', [[], [training_cases.batch(1)]])
def test_an_empty_validation_set_is_named(params, batches):
  for batch in batches:
    batch['decoder_loss_weights'] = np.zeros_like(batch['decoder_loss_weights'])
  with pytest.raises(ValueError, match='no target token'):
    training.evaluate_gate(CONFIG, params, random_gate(SHAPE), batches)
  with pytest.raises(ValueError, match='no target token'):
    training.fit_temperatures(CONFIG, params, batches)


def test_gates_of_other_models_are_refused(params):
  wider = dataclasses.replace(CONFIG, num_decoder_layers=6)
  with pytest.raises(ValueError, match='layer_bias of the gate has shape'):
    training.evaluate_gate(wider, params, random_gate(SHAPE), BATCHES)
  with pytest.raises(ValueError, match='num_decoder_layers = 1'):
    training.gate_stage(
      dataclasses.replace(CONFIG, num_decoder_layers=1), params, OPTIMIZER
    )


def test_the_first_answer_is_one_half():
  """Of a linear gate as well; hidden units differ from each other."""
  state = gate.init_gate_state(CONFIG, OPTIMIZER, shape=ALL, seed=1)
  judge = training.gate_of(state.params)
  assert (judge.out == 0).all() and (judge.bias == 0).all()
  assert len(np.unique(judge.state)) == judge.state.size
  linear = LINEAR.init(CONFIG, jax.random.key(0))
  assert all((array == 0).all() for array in linear.values())


# Temperatures.


@pytest.mark.parametrize(
  'of', [pytest.param('last_layer', marks=pytest.mark.slow), 'targets']
)
def test_temperatures_never_make_tokens_less_likely(params, of):
  fitted = training.fit_temperatures(CONFIG, params, BATCHES, of=of)
  before, after = np.array(fitted.before), np.array(fitted.after)
  assert (after <= before).all() and (after < before - 1e-3).any()
  assert len(fitted.temperatures) == 4
  if of == 'last_layer':
    assert fitted.temperatures[-1] == 1.0
  tempered = exits.Tempered(exits.SoftmaxMargin(), fitted.temperatures)
  tempered.check(model.as_layered_decoder(CONFIG), 1, 1)
  # By hand, of one layer: nothing near the temperature found does better.
  found, losses = fitted.temperatures[0], []
  for temperature in (0.9 * found, found, 1.1 * found):
    total = count = 0.0
    for batch in BATCHES:
      logits = logits_of_exits(params, batch)
      tokens = np.asarray(batch['decoder_target_tokens'])
      if of == 'last_layer':
        tokens = logits[-1].argmax(axis=-1)
      logs = np.asarray(jax.nn.log_softmax(logits[0] / temperature))
      right = np.take_along_axis(logs, tokens[..., None], -1)[..., 0]
      total -= (right * batch['decoder_loss_weights']).sum()
      count += batch['decoder_loss_weights'].sum()
    losses.append(total / count)
  np.testing.assert_allclose(losses[1], fitted.after[0], rtol=1e-5)
  assert losses[1] <= losses[0]
  # What knows nothing of the targets is best off at the end of the grid.
  assert losses[1] <= losses[2] or found == max(temperatures.GRID)


@jax.jit
def logits_of_exits(params, batch):
  states = model.layer_states(
    CONFIG,
    params,
    batch['encoder_input_tokens'],
    batch['decoder_input_tokens'],
  )
  return model.output_logits(CONFIG, params, states)


def test_tokens_of_nobody_are_refused(params):
  with pytest.raises(ValueError, match="'gold'; give 'last_layer' or 'tar"):
    training.fit_temperatures(CONFIG, params, BATCHES, of='gold')
