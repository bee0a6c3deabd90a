"""Training gates of a decoder's own past, and what they come to."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import checkpoints, decoding, model, runs, training
from calm_jax.context_gates import ContextGates
from calm_jax.training import context_losses, context_states

CONFIG = dataclasses.replace(training_cases.CONFIG, num_decoder_layers=2)
D, L = CONFIG.embed_dim, 2
# One object for all runs, so that each step is compiled once.
OPTIMIZER = training.adamw(0.05)
PRICE = training.ContextPrice(price=1.0, anneal_steps=30)
BATCH = training_cases.batch(1)
T = BATCH['decoder_input_tokens'].shape[1]


@pytest.fixture(scope='module')
def params():
  return training_cases.random_params(CONFIG)


def gates_of_seed(seed=3, size=2):
  rng = np.random.default_rng(seed)
  sides = rng.normal(size=(2, L, D, size)).astype(np.float32) / 3.0
  return ContextGates(*sides, np.full((L,), -0.25, np.float32))


def test_keep_is_the_product_of_gates():
  gates = np.random.default_rng(2).uniform(size=(2, 4, 4)).astype(np.float32)
  gates[0, 2, 1] = 0.0
  bias, keep = map(np.asarray, context_states.keep_bias(jnp.asarray(gates)))
  for row, i, j in np.ndindex(2, 4, 4):
    if j <= i:
      product = np.prod(gates[row, j + 1 : i + 1, j])
      np.testing.assert_allclose(keep[row, i, j], product, rtol=1e-5)
      expected = np.log(product) if product else -1e10
      np.testing.assert_allclose(bias[row, i, j], expected, rtol=1e-5)
  # Once shut, shut for good.
  assert keep[0, 3, 1] == 0 and gates[0, 3, 1] > 0
  slopes = jax.grad(lambda gates: context_states.keep_bias(gates)[1].sum())
  assert np.isfinite(slopes(jnp.asarray(gates))).all()


def train(params, model_dir, *, num_steps=6, name='context_gates', **changes):
  options = {'price': PRICE, 'size': 2, **changes}
  return training.train(
    training.context_gate_stage(CONFIG, params, OPTIMIZER, **options),
    lambda skip: itertools.repeat(BATCH),
    plan=training.Plan(num_steps=num_steps, log_every=100),
    model_dir=training.context_gate_directory(model_dir, name),
  )


@pytest.mark.slow
def test_gates_learn_to_keep_less(params):
  """At first all score 5; at a price that rises they keep less."""
  stage = training.context_gate_stage(
    CONFIG, params, OPTIMIZER, price=PRICE, size=2
  )
  state, seen = stage.init(None), []
  batch = stage.check_batch(BATCH)
  for _ in range(40):
    state, metrics = stage.step(state, batch, params)
    seen.append(jax.device_get(metrics))
  first, last = seen[0], seen[-1]
  # All gates are 1 / (1 + exp(-5)) at first; of distances 1, 2, ... a power.
  lengths = (BATCH['decoder_loss_weights'] > 0).sum(axis=1)
  powers = [
    0.9933071 ** (i - j) for n in lengths for i in range(n) for j in range(i)
  ]
  np.testing.assert_allclose(
    first.exits.accuracies[1], np.mean(powers), rtol=1e-4
  )
  assert first.exits.losses[0] > 0
  np.testing.assert_allclose(first.loss, first.exits.losses.sum(), rtol=1e-5)
  assert last.exits.accuracies[1] < 0.8 * first.exits.accuracies[1]
  # Nothing is paid at first, and at last less than for keeping all.
  assert first.exits.losses[1] == 0
  kept = last.exits.accuracies[1]
  np.testing.assert_allclose(
    last.exits.losses[1], PRICE.price * kept, rtol=1e-5
  )
  assert last.loss < PRICE.price
  gates = training.context_gates_of(state.params)
  assert np.std(gates.queries) > 0.01


@pytest.mark.slow
def test_a_measurement_is_that_of_pruned_decodes(params):
  """What is measured under hard gates is what decoding says and holds."""
  gates = gates_of_seed()
  bound = decoding.bind(model.as_layered_decoder(CONFIG), params)
  inputs = BATCH['encoder_input_tokens']
  state = decoding.start(
    bound,
    inputs,
    policy=decoding.ComputePolicy(layer_plan=decoding.PrunedContext(gates)),
    max_length=T,
    eos_id=-1,
  )
  state = decoding.advance(state)
  tokens = np.asarray(decoding.finish(state).tokens)
  batch = {
    'encoder_input_tokens': inputs,
    'decoder_target_tokens': tokens,
    'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
    'decoder_loss_weights': np.ones(tokens.shape, np.float32),
  }
  whole, some, none = training.evaluate_context_gates(
    CONFIG, params, gates, [batch, batch], shifts=(np.inf, 0.0, -100.0)
  ).shifts
  assert (whole.beta_shift, whole.kept, whole.most) == (None, 1.0, T)
  assert whole.differing == whole.window_differing == 0.0
  assert abs(whole.divergence) < 1e-5 and abs(whole.window_divergence) < 1e-5
  assert (none.kept, none.most) == (0.0, 1)
  # Nothing but itself: the window is the same then.
  assert none.divergence == pytest.approx(none.window_divergence, rel=1e-5)
  assert 0.1 < some.kept < 0.9 and some.divergence > 0
  assert some.window_divergence != pytest.approx(some.divergence, rel=1e-3)
  assert some.most == decoding.context_use(state).most.max()
  # What the full model says after the tokens of the pruned decode.
  states = model.layer_states(
    CONFIG, params, inputs, batch['decoder_input_tokens']
  )
  said = model.output_logits(CONFIG, params, states[-1]).argmax(axis=-1)
  assert some.differing == pytest.approx(
    float((said != tokens).mean()), abs=1e-6
  )
  assert some.differing > 0


@pytest.mark.slow
def test_gates_are_loaded_for_their_model_alone(tmp_path, params):
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  with pytest.raises(FileNotFoundError, match='train_context'):
    runs.load_context_gates(tmp_path)
  result = train(params, tmp_path)
  jax.tree.map(
    np.testing.assert_array_equal,
    runs.load_context_gates(tmp_path),
    training.context_gates_of(result.params),
  )
  other = jax.tree.map(lambda leaf: leaf * 1.01, params)
  with pytest.raises(ValueError, match='backbone_parameters: expected'):
    train(other, tmp_path)
  cheaper = dataclasses.replace(PRICE, price=0.1)
  with pytest.raises(ValueError, match='context_price: expected'):
    train(params, tmp_path, price=cheaper)
  path = checkpoints.save(tmp_path, 8, params=other, config=CONFIG)
  with pytest.raises(ValueError, match=f'trained for parameters .* but {path}'):
    runs.load_context_gates(tmp_path)


@pytest.mark.parametrize(
  ('bad', 'words'),
  [
    ({'price': -1}, 'price of ContextPrice is -1; give a price of 0 or more'),
    ({'price': float('nan')}, 'price of ContextPrice is nan'),
    ({'price': True}, 'price of ContextPrice is True'),
    ({'last_alpha': 0.5}, 'last_alpha of ContextPrice is 0.5; give the last'),
    ({'anneal_steps': 0}, 'anneal_steps 0 must be a whole number at least 1'),
  ],
)
def test_bad_prices_are_refused(bad, words):
  with pytest.raises(ValueError, match=words):
    training.ContextPrice(**bad)


def test_what_cannot_be_trained_is_refused(params):
  ids = np.ones((8, 5), np.int32)
  packed = {**BATCH, 'encoder_segment_ids': ids, 'decoder_segment_ids': ids}
  with pytest.raises(ValueError, match='several requests in a row'):
    context_losses.check_context_batch(packed, CONFIG)
  with pytest.raises(ValueError, match='no target token'):
    training.evaluate_context_gates(CONFIG, params, gates_of_seed(), [])
  deeper = ContextGates(np.ones((3, D, 2)), np.ones((3, D, 2)), np.ones(3))
  with pytest.raises(ValueError, match='for this decoder of 2 layers they are'):
    training.evaluate_context_gates(CONFIG, params, deeper, [])
  with pytest.raises(ValueError, match='size of context gates 0 must be'):
    training.context_gate_stage(CONFIG, params, OPTIMIZER, size=0)
