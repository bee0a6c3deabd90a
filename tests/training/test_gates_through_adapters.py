"""Gates of a model whose early layers are read through exit adapters."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import checkpoints, decoding, exits, model, runs, training
from calm_jax.checkpoints import trained_parts
from calm_jax.checkpoints.gate_adapters import READ_THROUGH
from calm_jax.exit_adapters import ExitAdapters
from calm_jax.training import gate_states

CONFIG = dataclasses.replace(
  training_cases.CONFIG, dropout_rate=0.0, num_decoder_layers=3
)
SIZE, T = CONFIG.embed_dim, 6
# One object for all runs, so that each step is compiled once.
OPTIMIZER = training.adamw(0.02)
SHAPE = training.GateShape(hidden_units=4)
BATCHES = [training_cases.batch(seed) for seed in (1, 2)]


def random_adapters(seed, num_exits=2):
  """Adapters that change much and say nothing in particular."""
  rng = np.random.default_rng(seed)
  shapes = ((SIZE,), (SIZE, 3), (3, SIZE))
  scale, down, up = (rng.normal(size=(num_exits, *shape)) for shape in shapes)
  return ExitAdapters(
    *(array.astype(np.float32) for array in (1.0 + scale / 2.0, down, up))
  )


ADAPTERS = random_adapters(0)
_RANDOM = np.random.default_rng(7)
# Reads all that there is; each of them weighs something.
GATE = exits.Gate(
  layer_bias=jnp.array([[0.3], [-0.2]]),
  bias=jnp.zeros((1,)),
  state=jnp.asarray(_RANDOM.normal(size=(1, SIZE, 1)) / 6.0, jnp.float32),
  previous=jnp.asarray(_RANDOM.normal(size=(1, SIZE, 1)) / 6.0, jnp.float32),
  logits=jnp.array([[[2.0], [-3.0], [1.5]]]),
)


def random_params(config):
  """Sure of some tokens, and made without a program."""
  shapes = jax.eval_shape(lambda: model.init_params(config, jax.random.key(0)))
  rng = np.random.default_rng(5)

  def fill(shape):
    if len(shape.shape) == 1:
      return np.ones(shape.shape, np.float32)
    return rng.normal(size=shape.shape).astype(np.float32) / 4.0

  tree = jax.tree.map(fill, shapes)
  tree['decoder']['logits_dense']['kernel'] *= 4.0
  return tree


@pytest.fixture(scope='module')
def params():
  return random_params(CONFIG)


@jax.jit
def exact_states(params, batch, adapters):
  return gate_states.exact_states(CONFIG, params, batch, adapters=adapters)


@jax.jit
def full_model(params, batch):
  """Returns the states of all layers, and the tokens of the last one."""
  states = model.layer_states(
    CONFIG,
    params,
    batch['encoder_input_tokens'],
    batch['decoder_input_tokens'],
  )
  return states, model.output_logits(CONFIG, params, states[-1]).argmax(-1)


def same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_layers_say_what_the_readout_of_a_decode_reads(params):
  """Of adapted states; the states, and the last layer, are what they were."""
  batch = BATCHES[0]
  through = exact_states(params, batch, ADAPTERS)
  plain = exact_states(params, batch, None)
  same(through.hidden, plain.hidden)
  same(through.previous_hidden, plain.previous_hidden)
  same(through.cross_entropies[2], plain.cross_entropies[2])
  assert (through.consistent != plain.consistent).any()
  states, tokens = full_model(params, batch)
  bound = decoding.bind(model.as_layered_decoder(CONFIG), params)
  readout = decoding.AdaptedVocabulary(ADAPTERS)
  for layer in range(2):
    hidden = states[layer].reshape(-1, SIZE)
    active = jnp.ones(len(hidden), bool)
    _, reading = readout.step(
      None, bound, hidden=hidden, layer=layer, first=True, active=active
    )
    features = exits.features_of(reading.logits)
    np.testing.assert_allclose(
      through.features[layer].reshape(-1, 3), features, atol=1e-5
    )
    of_tokens = tokens.reshape(-1)
    agrees = reading.logits.argmax(-1) == of_tokens
    same(through.consistent[layer].reshape(-1), agrees)
    logs = np.asarray(jax.nn.log_softmax(reading.logits))
    np.testing.assert_allclose(
      through.cross_entropies[layer].reshape(-1),
      -logs[np.arange(len(logs)), of_tokens],
      rtol=1e-4,
    )


@pytest.mark.slow
def test_a_gate_sees_in_decoding_what_it_was_trained_on(params):
  """Logit features as well, teacher forced with the tokens of a decode."""
  inputs, threshold = BATCHES[0]['encoder_input_tokens'], 0.7
  policy = decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(GATE, threshold),
    cache_fill=decoding.CatchUp((2,)),
    readout=decoding.AdaptedVocabulary(ADAPTERS),
  )
  bound = decoding.bind(model.as_layered_decoder(CONFIG), params)
  with jax.default_matmul_precision('highest'):
    result = decoding.generate(bound, inputs, policy=policy, max_length=T)
  result = jax.tree.map(np.asarray, result)
  tokens, decoded = result.tokens, result.exit_layers > 0
  batch = {
    'encoder_input_tokens': inputs,
    'decoder_target_tokens': tokens,
    'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
    'decoder_loss_weights': decoded.astype(np.float32),
  }
  examples = exact_states(params, batch, ADAPTERS)
  confidences = np.asarray(jax.nn.sigmoid(examples.scores(GATE)))
  stops = np.concatenate([confidences >= threshold, tokens[None] > -1])
  expected = stops.argmax(axis=0) + 1
  assert set(np.unique(result.exit_layers[decoded])) == {1, 2, 3}
  np.testing.assert_array_equal(result.exit_layers[decoded], expected[decoded])

  early = decoded & (expected < 3)
  at_exit = np.minimum(expected, 2)[None] - 1
  met, agrees = (
    np.take_along_axis(np.asarray(array), at_exit, axis=0)[0][early]
    for array in (confidences, examples.consistent)
  )
  np.testing.assert_allclose(result.confidences[early], met, atol=1e-4)
  # And what it says there is what the label was about.
  said = tokens == full_model(params, batch)[1]
  np.testing.assert_array_equal(said[early], agrees)
  assert 0 < agrees.mean() < 1


@pytest.mark.slow
def test_a_gate_is_measured_through_them(params):
  """As `evaluate_exit_adapters` counts, and not as without."""
  measured, plain = (
    training.evaluate_gate(CONFIG, params, GATE, BATCHES, adapters=adapters)
    for adapters in (ADAPTERS, None)
  )
  agreement = training.evaluate_exit_adapters(CONFIG, params, ADAPTERS, BATCHES)
  np.testing.assert_allclose(
    [layer.agreement for layer in measured.layers],
    agreement.rates()[1],
    rtol=1e-6,
  )
  for one, other in zip(measured.layers, plain.layers, strict=True):
    assert one.agreement != other.agreement
  margins = [
    [depth for depth in one.depths if depth.measure == 'softmax margin']
    for one in (measured, plain)
  ]
  assert margins[0] != margins[1]


def train(params, model_dir, *, adapters=ADAPTERS, num_steps=2, **changes):
  return training.train(
    training.gate_stage(
      CONFIG, params, OPTIMIZER, shape=SHAPE, adapters=adapters, **changes
    ),
    lambda skip: (training_cases.batch(n % 3) for n in itertools.count(skip)),
    plan=training.Plan(num_steps=num_steps, log_every=100),
    model_dir=training.gate_directory(model_dir),
  )


def save_adapters(model_dir, params, adapters, name='exit_adapters'):
  """Saves them as `training.exit_adapter_stage` does."""
  checkpoints.save(
    training.exit_adapter_directory(model_dir, name),
    1,
    params={'exit_adapters': dataclasses.asdict(adapters)},
    config=CONFIG,
    context=trained_parts.backbone_context(params),
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory, params):
  """A run with two sets of adapters, and a gate beside one of them."""
  folder = tmp_path_factory.mktemp('run')
  checkpoints.save(folder, 7, params=params, config=CONFIG)
  save_adapters(folder, params, ADAPTERS)
  save_adapters(folder, params, random_adapters(1), 'others')
  before = jax.tree.map(np.array, (params, ADAPTERS))
  train(params, folder)
  same(before, (params, ADAPTERS))
  return folder


@pytest.mark.slow
def test_a_gate_goes_with_the_adapters_it_was_trained_beside(folder, params):
  path = checkpoints.find_checkpoint(folder / 'gate')
  noted = checkpoints.read_metadata(path)['context'][READ_THROUGH]
  path = checkpoints.find_checkpoint(folder / 'exit_adapters')
  assert noted == checkpoints.read_metadata(path)['parameter_fingerprint']
  gate = runs.load_gate(folder, exit_adapters='exit_adapters')
  assert gate.state.shape == (1, SIZE, 4)
  for given, error, words in (
    (None, ValueError, f'read through adapters {noted}, but no adapters are'),
    ('others', ValueError, f'through adapters {noted}, but .*others holds'),
    ('gate', ValueError, 'gate holds .*: give exit_adapters, the folder of'),
    ('nowhere', FileNotFoundError, 'no set of exit adapters in .*nowhere; giv'),
  ):
    with pytest.raises(error, match=words):
      runs.load_gate(folder, exit_adapters=given)
  for adapters in (random_adapters(1), None):
    with pytest.raises(ValueError, match=f'{READ_THROUGH}: expected'):
      train(params, folder, adapters=adapters)
  assert train(params, folder, num_steps=3).step == 3


def test_a_gate_of_layers_as_they_are_is_no_gate_of_adapted_ones(
  tmp_path, params
):
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  save_adapters(tmp_path, params, ADAPTERS)
  checkpoints.save(
    training.gate_directory(tmp_path),
    1,
    params={'gate': SHAPE.init(CONFIG, jax.random.key(0))},
    config=CONFIG,
    context=trained_parts.backbone_context(params),
  )
  assert runs.load_gate(tmp_path) is not None
  with pytest.raises(ValueError, match='are read as they are, but .*holds'):
    runs.load_gate(tmp_path, exit_adapters='exit_adapters')


def test_adapters_of_other_models_are_refused(params):
  for other in (ExitAdapters.identity(4, SIZE), ExitAdapters.identity(3, 8)):
    words = r'for this decoder of 3 layers they are \[2, 16\]'
    with pytest.raises(ValueError, match=words):
      training.gate_stage(CONFIG, params, OPTIMIZER, adapters=other)
    with pytest.raises(ValueError, match=words):
      training.evaluate_gate(CONFIG, params, GATE, BATCHES, adapters=other)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('target', 'states'), [('consistency', 'exact'), ('cost_aware', 'own_exits')]
)
def test_what_a_gate_learns_is_what_adapted_layers_say(params, target, states):
  """The loss falls below that of knowing nothing, on what it learnt from."""
  stage = training.gate_stage(
    CONFIG,
    params,
    OPTIMIZER,
    target=target,
    states=states,
    adapters=ADAPTERS,
  )
  state, losses = stage.init(None), []
  for _ in range(60):
    state, metrics = stage.step(
      state, stage.check_batch(BATCHES[0]), stage.constants
    )
    losses.append(float(metrics.loss))
  assert losses[-1] < 0.9 * losses[0]
  examples = exact_states(params, BATCHES[0], ADAPTERS)
  labels = np.asarray(training.get_gate_target(target).labels(examples))
  of_targets = BATCHES[0]['decoder_loss_weights'] > 0
  scores = np.asarray(examples.scores(training.gate_of(state.params)))
  right = (scores > 0) == labels
  assert right[:, of_targets].mean() > 0.7


@pytest.mark.slow
def test_its_own_exits_leave_raw_states_behind():
  """Adapters change what is read, and no K/V of a gate that reads no logits."""
  shared = jnp.zeros((1, 1))
  gate = dataclasses.replace(GATE, layer_bias=shared, logits=None)
  # The third layer is the first that sees exits of earlier tokens.
  config = dataclasses.replace(CONFIG, num_decoder_layers=4)
  params, adapters = random_params(config), random_adapters(0, num_exits=3)
  look = jax.jit(functools.partial(gate_states.own_exit_states, config))
  key = jax.random.key(0)
  plain, through = (
    look(params, BATCHES[0], gate, key, these) for these in (None, adapters)
  )
  same(through.hidden, plain.hidden)
  assert (jnp.abs(through.features - plain.features) > 1e-2).any()
  exact = gate_states.exact_states(config, params, BATCHES[0])
  assert (jnp.abs(through.hidden - exact.hidden) > 1e-3).any()
