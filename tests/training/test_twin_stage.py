"""Training small twins of a frozen model, and where they are kept."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import checkpoints, decoding, model, runs, training
from calm_jax.small_twins import OWN, TWIN, SmallTwins
from calm_jax.training import twin_states
from calm_jax.training.forward import Draws

CONFIG = dataclasses.replace(training_cases.CONFIG, dropout_rate=0.0)
LAYERS = CONFIG.num_decoder_layers
OPTIMIZER = training.adamw(0.02)


@pytest.fixture(scope='module')
def params():
  return training_cases.random_params(CONFIG)


def stage(params):
  return training.twin_stage(
    CONFIG, params, OPTIMIZER, shape=training.TwinShape(hidden_units=4)
  )


def train(params, model_dir, batch, num_steps=80):
  return training.train(
    stage(params),
    lambda skip: itertools.repeat(batch),
    plan=training.Plan(num_steps=num_steps, log_every=20),
    model_dir=training.twin_directory(model_dir),
  )


def some_twins(units=4):
  rng = np.random.default_rng(1)
  size = CONFIG.embed_dim
  return SmallTwins(
    np.ones((LAYERS, size), 'f4'),
    rng.normal(size=(LAYERS, size, 2, units)).astype('f4'),
    rng.normal(size=(LAYERS, units, size)).astype('f4'),
  )


def test_what_is_drawn_is_as_probable_as_said():
  key = jax.random.key(0)
  draws = Draws.of_step(key, jnp.int32(3), jnp.arange(50))

  def drawn(draws, **rates):
    return np.asarray(twin_states.draw_choices(draws, (20, 6), **rates))

  choices = drawn(draws, twin_rate=0.75, none_rate=0.2)
  shares = np.bincount(choices.ravel()) / choices.size
  np.testing.assert_allclose(shares, [0.2, 0.2, 0.6], atol=0.03)
  # Tokens and layers are drawn each by itself, rows by their numbers.
  assert len({row.tobytes() for row in choices.reshape(-1, 6)}) > 200
  part = dataclasses.replace(draws, rows=draws.rows[7:9])
  one = drawn(part, twin_rate=0.75, none_rate=0.2)
  np.testing.assert_array_equal(one, choices[7:9])
  for rates, everywhere in (((1.0, 0.0), TWIN), ((0.0, 0.0), OWN)):
    rates = dict(zip(('twin_rate', 'none_rate'), rates, strict=True))
    assert (drawn(draws, **rates) == everywhere).all()


@pytest.mark.slow
def test_own_blocks_are_the_model_and_new_twins_are_none(params):
  """Teacher forced, packed or not, whatever twins there are."""
  batch = training_cases.batch(0)
  plain = training.chosen_states(
    CONFIG, params, some_twins(), batch, np.full((1, 1, LAYERS), OWN)
  )
  whole = model.layer_states(
    CONFIG,
    params,
    batch['encoder_input_tokens'],
    batch['decoder_input_tokens'],
  )
  np.testing.assert_array_equal(plain, whole)
  fresh = training.twins_of(stage(params).init(None).params)
  none, twin, other = (
    training.chosen_states(
      CONFIG, params, twins, batch, np.full((1, 1, LAYERS), choice)
    )
    for twins, choice in ((fresh, 0), (fresh, TWIN), (some_twins(), TWIN))
  )
  np.testing.assert_array_equal(none, twin)
  assert np.abs(np.asarray(other) - np.asarray(none)).max() > 0.1


@pytest.mark.slow
def test_trained_twins_stand_in_and_decode(tmp_path, params):
  """From training to decoding, through the files of a run."""
  batch = training_cases.batch(0)
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  before = jax.tree.map(np.array, params)
  result = train(params, tmp_path, batch)
  jax.tree.map(np.testing.assert_array_equal, before, params)
  twins = runs.load_twins(tmp_path)
  assert twins.hidden_units == 4 and twins.num_layers == LAYERS

  def agreement(these, choice):
    sums = training.evaluate_twins(
      CONFIG, params, these, [batch], (choice,) * LAYERS
    )
    return sums.rates()

  fresh = training.twins_of(stage(params).init(None).params)
  untrained, trained = agreement(fresh, TWIN), agreement(twins, TWIN)
  assert trained[0] < 0.7 * untrained[0]
  apart, right = agreement(twins, OWN)
  assert right == 1.0 and abs(apart) < 1e-6
  # On from where it stopped, to the bit, as if it had not.
  again = tmp_path / 'again'
  checkpoints.save(again, 7, params=params, config=CONFIG)
  train(params, again, batch, num_steps=40)
  resumed = train(params, again, batch)
  jax.tree.map(
    np.testing.assert_array_equal, resumed.params, dict(result.params)
  )
  plan = decoding.ChosenFeedForward((TWIN,) * LAYERS, twins)
  bound = decoding.bind(model.as_layered_decoder(CONFIG), params)
  found = decoding.generate(
    bound,
    batch['encoder_input_tokens'],
    policy=decoding.ComputePolicy(layer_plan=plan),
    max_length=6,
  )
  assert np.asarray(found.work.feed_forward).sum() == 0
  assert np.asarray(found.work.extra_products).sum() > 0


@pytest.mark.slow
def test_twins_of_other_parameters_are_refused(tmp_path, params):
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  with pytest.raises(FileNotFoundError, match='no set of small twins in'):
    runs.load_twins(tmp_path)
  train(params, tmp_path, training_cases.batch(0), num_steps=2)
  other = jax.tree.map(lambda leaf: leaf + 1.0, params)
  checkpoints.save(tmp_path, 8, params=other, config=CONFIG)
  with pytest.raises(ValueError, match='small twins in .* was trained for'):
    runs.load_twins(tmp_path)
  with pytest.raises(ValueError, match='backbone_parameters'):
    train(other, tmp_path, training_cases.batch(0), num_steps=4)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'hidden_units': 0}, 'hidden_units of small twins 0 must be'),
    ({'hidden_units': 2.5}, 'hidden_units of small twins 2.5 must be'),
    ({'twin_rate': 1.5}, 'twin_rate of small twins is 1.5; give a number in'),
    ({'twin_rate': float('nan')}, 'twin_rate of small twins is nan'),
    ({'none_rate': -0.1}, 'none_rate of small twins is -0.1'),
    ({'none_rate': '0.5'}, "none_rate of small twins is '0.5'"),
    ({'twin_rate': 0.0}, 'no twin ever runs'),
    ({'none_rate': 1.0}, 'no twin ever runs'),
  ],
)
def test_bad_numbers_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    training.TwinShape(**changes)


@pytest.mark.parametrize(
  ('layers', 'choices', 'message'),
  [
    (LAYERS, (1,) * (LAYERS + 1), 'choices of evaluate_twins is'),
    (LAYERS, (7,) * LAYERS, r'layer 0 \(0 none, 1 own, 2 twin\) 7'),
    (LAYERS + 1, (1,) * LAYERS, 'small twins'),
  ],
)
def test_what_is_of_another_model_is_refused(layers, choices, message):
  twins = some_twins()
  more = jax.tree.map(
    lambda leaf: jnp.concatenate([leaf, leaf[: layers - LAYERS]]), twins
  )
  with pytest.raises(ValueError, match=message):
    training.evaluate_twins(CONFIG, {}, more, [], choices)


def test_an_empty_split_is_refused():
  with pytest.raises(ValueError, match='the 0 batches that small twins'):
    training.evaluate_twins(CONFIG, {}, some_twins(), [], (1,) * LAYERS)
