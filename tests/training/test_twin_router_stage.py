"""Training a router of small twins, and where it is kept."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from cases import training_cases

from calm_jax import checkpoints, decoding, model, runs, training
from calm_jax.checkpoints import trained_parts
from calm_jax.small_twins import OWN, SmallTwins

CONFIG = dataclasses.replace(training_cases.CONFIG, dropout_rate=0.0)
LAYERS = CONFIG.num_decoder_layers
OPTIMIZER = training.adamw(0.05, weight_decay=0.1)
ROUTING = training.TwinRouting(share=0.5, anneal_steps=60)
BATCH = training_cases.batch(0)


@pytest.fixture(scope='module')
def params():
  return training.init_train_state(CONFIG, OPTIMIZER).params


def some_twins(seed=1, units=4):
  rng = np.random.default_rng(seed)
  size = CONFIG.embed_dim
  return SmallTwins(
    np.ones((LAYERS, size), 'f4'),
    rng.normal(size=(LAYERS, size, 2, units)).astype('f4') / 3,
    rng.normal(size=(LAYERS, units, size)).astype('f4') / 3,
  )


def stage(params, twins, routing=ROUTING):
  return training.twin_router_stage(
    CONFIG, params, twins, OPTIMIZER, routing=routing
  )


def steps(params, routing, number=60):
  """Returns metrics of steps, and the router."""
  made = stage(params, some_twins(), routing)
  state, seen = made.init(None), []
  for _ in range(number):
    state, metrics = made.step(state, made.check_batch(BATCH), made.constants)
    seen.append(jax.device_get(metrics))
  return seen, training.twin_router_of(state.params)


@pytest.mark.slow
def test_it_comes_to_its_budget_and_keeps_more_than_chance(params):
  seen, router = steps(params, ROUTING)
  first, last = seen[0], seen[-1]
  np.testing.assert_allclose(first.loss, first.exits.losses.sum(), rtol=1e-5)
  cost = last.exits.accuracies[1]
  assert abs(cost - 0.5) < 0.1
  np.testing.assert_allclose(
    last.exits.losses[1], 10.0 * (cost - 0.5) ** 2, rtol=1e-3, atol=1e-6
  )
  # Decay has left them alone.
  np.testing.assert_array_equal(router.costs, [0.0, 1.0, 4 / CONFIG.mlp_dim])
  twins = some_twins()
  found = training.evaluate_twin_router(CONFIG, params, twins, router, [BATCH])
  full, middle = found[0], next(one for one in found if one.threshold == 0.5)
  assert (full.own, full.cost, full.agreement) == (1.0, 1.0, 1.0)
  assert abs(full.divergence) < 1e-6 and abs(full.blind_divergence) < 1e-6
  assert 0.2 < middle.cost < 0.8
  # Of all that lies between everything and nothing.
  kept, blind = (
    sum(getattr(one, name) for one in found)
    for name in ('divergence', 'blind_divergence')
  )
  assert kept < 0.9 * blind
  for one in found:
    np.testing.assert_allclose(one.none + one.own + one.twin, 1.0)
    np.testing.assert_allclose(one.cost, one.own + one.twin * router.costs[2])


@pytest.mark.slow
def test_the_control_sees_no_state(params):
  control = dataclasses.replace(ROUTING, reads_states=False)
  _, router = steps(params, control, 20)
  assert not np.asarray(router.weights).any()
  assert np.asarray(router.bias).std() > 0.1


@pytest.mark.slow
def test_a_measurement_is_that_of_decodes(params):
  """Thresholds are what decoding does, after the model's own tokens."""
  _, router = steps(params, ROUTING, 20)
  twins = some_twins()
  bound = decoding.bind(model.as_layered_decoder(CONFIG), params)
  length = BATCH['decoder_input_tokens'].shape[1]

  def decoded(policy, **options):
    return decoding.generate(
      bound,
      BATCH['encoder_input_tokens'],
      policy=policy,
      max_length=length,
      eos_id=-1,
      **options,
    )

  tokens = np.asarray(decoded(decoding.ComputePolicy()).tokens)
  batch = {
    'encoder_input_tokens': BATCH['encoder_input_tokens'],
    'decoder_target_tokens': tokens,
    'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
    'decoder_loss_weights': np.ones(tokens.shape, np.float32),
  }
  (found,) = training.evaluate_twin_router(
    CONFIG, params, twins, router, [batch], thresholds=[0.4]
  )
  plan = decoding.RoutedFeedForward(router, 0.4, twins)
  work = decoded(
    decoding.ComputePolicy(layer_plan=plan), forced_prefix=tokens
  ).work
  choices = tokens.size * LAYERS
  own = np.asarray(work.feed_forward).sum() / choices
  np.testing.assert_allclose(found.own, own, atol=1e-6)
  extra = np.asarray(work.extra_products).sum() - choices * router.products
  np.testing.assert_allclose(
    found.twin, extra / twins.products / choices, atol=1e-6
  )


@pytest.mark.slow
def test_it_is_kept_beside_its_twins(tmp_path, params):
  """Resumed to the bit, and refused beside other twins or parameters."""
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  twins = some_twins()

  def save_twins(name, twins):
    arrays = {
      field: getattr(twins, field) for field in ('scale', 'gates', 'out')
    }
    checkpoints.save(
      tmp_path / name,
      1,
      params={'small_twins': arrays},
      config=CONFIG,
      context=trained_parts.backbone_context(params),
    )

  def train(name, num_steps):
    return training.train(
      stage(params, runs.load_twins(tmp_path)),
      lambda skip: itertools.repeat(BATCH),
      plan=training.Plan(num_steps=num_steps, log_every=20),
      model_dir=training.twin_router_directory(tmp_path, name),
    )

  save_twins('small_twins', twins)
  save_twins('others', some_twins(seed=2))
  with pytest.raises(FileNotFoundError, match='no router of small twins in'):
    runs.load_twin_router(tmp_path)
  whole = train('twin_router', 6)
  train('again', 3)
  jax.tree.map(
    np.testing.assert_array_equal,
    dict(train('again', 6).params),
    dict(whole.params),
  )
  router = runs.load_twin_router(tmp_path)
  np.testing.assert_array_equal(
    router.bias, whole.params['twin_router']['bias']
  )
  with pytest.raises(ValueError, match='beside twins .*/others holds'):
    runs.load_twin_router(tmp_path, twins='others')
  with pytest.raises(FileNotFoundError, match='no set of small twins in'):
    runs.load_twin_router(tmp_path, twins='nowhere')
  # The parts of a folder that is no run are not what is missing.
  with pytest.raises(FileNotFoundError, match=r'no checkpoint at .*bare'):
    runs.load_twins(tmp_path / 'bare')
  other = jax.tree.map(lambda leaf: leaf + 1.0, params)
  checkpoints.save(tmp_path, 8, params=other, config=CONFIG)
  with pytest.raises(ValueError, match='router of small twins in .* was trai'):
    runs.load_twin_router(tmp_path)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'share': 0.0}, 'share of TwinRouting is 0.0; give the share'),
    ({'share': 1.1}, 'share of TwinRouting is 1.1'),
    ({'share': float('nan')}, 'share of TwinRouting is nan'),
    ({'price': '10'}, "price of TwinRouting is '10'; give a price above 0"),
    ({'last_temperature': 2.0}, 'last_temperature of TwinRouting is 2.0'),
    ({'anneal_steps': 0}, 'anneal_steps 0 must be'),
    ({'reads_states': 1}, 'reads_states of TwinRouting is 1; give True'),
  ],
)
def test_bad_numbers_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    training.TwinRouting(**changes)


def test_an_empty_split_and_twins_of_another_model_are_refused():
  some = {'weights': np.ones(2)}
  router = training.twin_router_of(stage(some, some_twins()).init(None).params)
  with pytest.raises(ValueError, match='the 0 batches that a router of small'):
    training.evaluate_twin_router(CONFIG, {}, some_twins(), router, [])
  narrow = dataclasses.replace(some_twins(), scale=np.ones((LAYERS, 3), 'f4'))
  with pytest.raises(ValueError, match='the small twins have shapes scale'):
    stage(some, narrow)
  assert OWN == 1 and router.costs[OWN] == 1.0


@pytest.mark.parametrize('threshold', [-0.1, 2, float('nan'), True])
def test_thresholds_of_measurements_are_checked(threshold):
  with pytest.raises(ValueError, match=r'threshold .* is outside \[0, 1\]'):
    training.evaluate_twin_router(
      CONFIG, {}, None, None, [], thresholds=(0.5, threshold)
    )
  with pytest.raises(ValueError, match=r'threshold .* is outside \[0, 1\]'):
    training.evaluate_router(CONFIG, {}, None, [], thresholds=(threshold,))
