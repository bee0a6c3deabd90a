"""Token controllers: what they run, their control, and a run end to end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import text_cases

from calm_jax import checkpoints, model, records, training
from calm_jax.benchmarks import (
  controller_rows,
  controller_training,
  controllers,
  measured_rows,
  token_controllers,
)
from calm_jax.benchmarks.controller_rows import Judge, RowSums
from calm_jax.tokenizer import ByteTokenizer, vocabulary_context

CONFIG = dataclasses.replace(
  text_cases.CONFIG, num_decoder_layers=5, dropout_rate=0.0
)
L, V = 5, CONFIG.vocab_size
PLAN = controller_training.ControllerPlan(num_steps=60)


def batch(seed=0, rows=6, length=5):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, V, (rows, length)).astype(np.int32)
  weights = np.ones(tokens.shape, np.float32)
  weights[0, 2:] = 0.0
  return {
    'encoder_input_tokens': tokens,
    'decoder_target_tokens': tokens,
    'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
    'decoder_loss_weights': weights,
  }


@pytest.fixture(scope='module')
def params():
  return model.init_params(CONFIG, jax.random.key(0))


def some_controller(seed=0):
  rng = np.random.default_rng(seed)
  untrained = controllers.untrained(CONFIG, 0.5)
  drawn = rng.normal(size=untrained.weights.shape).astype('f4')
  return controllers.pinned(
    dataclasses.replace(untrained, weights=jnp.asarray(drawn))
  )


def test_the_control_comes_to_the_route_of_its_scores():
  found = controllers.untrained(CONFIG, 0.25)
  share = jax.nn.softmax(found.bias)[..., controllers.RUN]
  np.testing.assert_allclose(share, 0.25, rtol=1e-5)
  bias = np.zeros((L, 2), 'f4')
  bias[:, 1] = [-9.0, 0.1, -0.2, 0.3, -9.0]
  found = dataclasses.replace(found, bias=jnp.asarray(bias))
  assert controllers.best_route(found, 3) == (0, 3, 4)
  assert controllers.best_route(found, 4) == (0, 1, 3, 4)


def test_the_price_of_a_budget_is_the_lowest_that_keeps_it():
  steps = np.array([-3.0, 0.5, 2.0])

  def cost_of(price):
    return 2.0 + float((steps > price).sum())

  for budget, edge in ((4.0, -3.0), (3.5, 0.5), (3.0, 0.5), (2.0, 2.0)):
    price, found = controller_training.price_within(cost_of, budget)
    assert found == cost_of(price) <= budget
    assert edge <= price < edge + 0.01


def sums(*nats):
  ones = np.ones(len(nats))
  return RowSums(np.array(nats), 2.0 * ones, 6.0 * ones)


def test_the_gain_of_the_state_has_the_error_of_its_rows():
  assert sums(3.0, 5.0).loss == 2.0 and sums(3.0, 5.0).mean_layers == 3.0
  fixed = [sums(3.0, 5.0), sums(3.0, 7.0)]
  found = [sums(2.0, 4.0), sums(2.0, 4.0)]
  gain, error = controller_rows._gain(fixed, found)
  # Rows gain 1 and 2 on the mean of the seeds, of 2 labels each.
  assert gain == pytest.approx(0.75)
  assert error == pytest.approx(np.sqrt(0.5) / 4)


@pytest.mark.slow
def test_a_route_is_the_model_with_its_layers_masked(params):
  """K/V of what is left out are of what enters; states are the model's own."""
  given, judge = batch(), Judge(CONFIG, params, [batch()])
  for route in ((0, 2, 4), (1, 3), tuple(range(L))):
    mask = np.isin(np.arange(L), route)[None, None]
    states = model.layer_states(
      CONFIG,
      params,
      given['encoder_input_tokens'],
      given['decoder_input_tokens'],
      layer_mask=np.broadcast_to(mask, (6, 5, L)),
    )
    logs = jax.nn.log_softmax(model.output_logits(CONFIG, params, states[-1]))
    labels = given['decoder_target_tokens'][..., None]
    nats = -np.take_along_axis(np.asarray(logs), labels, axis=-1)[..., 0]
    weights = given['decoder_loss_weights']
    found = judge.of_route(route)
    np.testing.assert_allclose(
      found.nats, (nats * weights).sum(axis=1), rtol=1e-5
    )
    np.testing.assert_array_equal(found.tokens, weights.sum(axis=1))
    assert found.mean_layers == len(route)


@pytest.mark.slow
def test_a_price_takes_layers_away(params):
  judge = Judge(CONFIG, params, [batch(), batch(1)])
  controller = some_controller()
  layers = [
    judge(controller, price).mean_layers for price in (-40.0, -0.3, 0.3, 40.0)
  ]
  assert layers[0] == L and layers[-1] == 2.0
  assert layers == sorted(layers, reverse=True)
  assert 2.0 < layers[2] < layers[1] < L


@pytest.mark.slow
def test_controllers_learn_what_they_may_see(params):
  """Labels that the full model gives, which some layers alone keep."""
  given = batch(rows=16)
  states = model.layer_states(
    CONFIG,
    params,
    given['encoder_input_tokens'],
    given['decoder_input_tokens'],
  )
  logits = model.output_logits(CONFIG, params, states[-1])
  labels = np.asarray(logits.argmax(axis=-1), np.int32)
  given = {**given, 'decoder_target_tokens': labels}
  judge = Judge(CONFIG, params, [given])

  def train(reads_states, seed):
    return controller_training.train_controller(
      CONFIG,
      params,
      iter([given] * PLAN.num_steps),
      PLAN,
      budget=3,
      reads_states=reads_states,
      seed=seed,
    )

  assert not np.asarray(train(False, 0).weights).any()
  row = controller_rows.row_of(
    train,
    judge,
    judge,
    run='toy',
    budget=3,
    num_layers=L,
    random_routes=3,
    seeds=[0, 1],
  )
  low, middle, high = row.random
  assert row.picked <= min(row.early_exit, row.uniform, low) + 1e-6
  assert low <= middle <= high
  assert {len(route) for route in row.fixed_routes} == {3}
  # Nothing stops it from being the first layers: the ends always run.
  assert all({0, L - 1} <= {*route} for route in row.fixed_routes)
  assert 2.0 < row.controller_layers <= 3.0 + 1e-6
  np.testing.assert_allclose(row.gain, row.fixed - row.controller, atol=1e-6)
  assert row.controller < row.fixed + 0.05
  with pytest.raises(ValueError, match='rows end after 1 of 60 steps'):
    controller_training.train_controller(
      CONFIG, params, [given], PLAN, budget=3, reads_states=True, seed=0
    )


@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path, capsys):
  params = model.init_params(CONFIG, jax.random.key(1))
  checkpoints.save(
    tmp_path / 'run',
    1,
    params=params,
    config=CONFIG,
    context={
      **vocabulary_context(ByteTokenizer(5)),
      'feature_lengths': {'inputs': 8, 'targets': 8},
    },
  )
  rng = np.random.default_rng(0)
  for name, rows in (('train', 20), ('test', 7)):
    training.write_npz(
      tmp_path / f'{name}.npz',
      [
        {'inputs': rng.integers(3, V, 5), 'targets': rng.integers(3, V, 4)}
        for _ in range(rows)
      ],
    )
  files = {
    '--run_dir': tmp_path / 'run',
    '--train': tmp_path / 'train.npz',
    '--tokens': tmp_path / 'test.npz',
  }

  def main(*more):
    given = [f'{flag}={path}' for flag, path in files.items()]
    token_controllers.main([*given, *more])

  main(
    '--num_seeds=2',
    '--steps=4',
    '--batch_size=4',
    '--num_inputs=6',
    '--random_routes=2',
    '--budgets=4,3',
    f'--output={tmp_path / "found.json"}',
  )
  said = capsys.readouterr()
  assert 'gain of the state' in said.out
  assert '3 layers, a controller that sees no state, seed 1' in said.err
  measured = measured_rows.read(tmp_path / 'found.json', records.ControllerRow)
  assert [row.budget for row in measured.rows] == [3.0, 4.0]
  assert measured.flags['num_inputs'] == 6
  assert all(len(row.fixed_routes) == 2 for row in measured.rows)
  for more, message in (
    (['--budgets=2'], r'budget 2 must be a whole number in 3\.\.4'),
    (['--budgets=x'], "budgets are 'x'; give whole numbers"),
    (['--steps=0'], 'num_steps 0 must be'),
    (['--price=nan'], 'price is nan; give one in'),
    ([f'--train={files["--tokens"]}'], 'judge by other rows than those'),
    (['--train=nowhere.npz'], 'nowhere.npz'),
  ):
    with pytest.raises(SystemExit, match=message):
      main(*more)
  with pytest.raises(SystemExit, match='give --run_dir, --train and --tokens'):
    token_controllers.main([])
