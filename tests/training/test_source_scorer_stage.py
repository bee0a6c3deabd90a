"""Training a scorer of source positions, its gates, and what it comes to."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import checkpoints, decoding, model, runs, training
from calm_jax.source_scorer import SourceScorer
from calm_jax.training import source_gates, source_losses

CONFIG = dataclasses.replace(training_cases.CONFIG, num_decoder_layers=2)
D = CONFIG.embed_dim
# One object for all runs, so that each step is compiled once.
OPTIMIZER = training.adamw(0.05)
BUDGET = training.SourceBudget(share=0.5, anneal_steps=30)
BATCH = training_cases.batch(1)


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


def scorer_of_seed(seed=3):
  weights = np.random.default_rng(seed).normal(size=D).astype(np.float32)
  return SourceScorer(weights, np.float32(0.0))


SCORES = np.array([-9.0, -1.5, -0.3, 0.0, 0.3, 0.8, 3.0], np.float32)


@pytest.mark.parametrize('alpha', [1.0, 1.5, 2.0, 8.0])
def test_alpha_sigmoids(alpha):
  """Closed forms, the equation that they solve, and slopes by differences."""
  gates = np.asarray(gates_of(SCORES, alpha))
  known = {
    1.0: 1 / (1 + np.exp(-SCORES)),
    2.0: np.clip((1 + SCORES) / 2, 0, 1),
  }
  if alpha in known:
    np.testing.assert_allclose(gates, known[alpha], atol=1e-6)
  inside = (gates > 0) & (gates < 1)
  u = max(alpha - 1, 1e-6)
  p = gates[inside].astype(np.float64)
  solved = (p**u - (1 - p) ** u) / u
  np.testing.assert_allclose(solved, SCORES[inside], atol=1e-4)
  assert (gates[SCORES >= 1 / u] == 1).all()
  assert (gates[SCORES <= -1 / u] == 0).all()
  np.testing.assert_allclose(gates + gates_of(-SCORES, alpha), 1, atol=1e-6)
  step = 1e-3
  ends = [gates_of(SCORES + side * step, alpha) for side in (1, -1)]
  np.testing.assert_allclose(
    slopes_of(SCORES, alpha), (ends[0] - ends[1]) / (2 * step), 0.03, 3e-3
  )


gates_of = jax.jit(training.alpha_sigmoid)
slopes_of = jax.jit(jax.vmap(jax.grad(training.alpha_sigmoid), (0, None)))


def test_alpha_rises_along_half_a_cosine():
  alphas = [float(BUDGET.alpha(step)) for step in (0, 15, 30, 90)]
  np.testing.assert_allclose(alphas, [1.0, 4.5, 8.0, 8.0], rtol=1e-6)
  np.testing.assert_allclose(BUDGET.loss(0.7), 10 * 0.04, rtol=1e-5)


def test_biases_of_gates():
  scores = jnp.array([[-1.0, -2.0, 5.0], [-1.0, 2.0, 1.0]])
  gates = jnp.array([[0.0, 0.0, 1.0], [0.0, 0.5, 1.0]])
  mask = jnp.array([[True, True, False], [True, True, True]])
  bias = np.asarray(source_gates.gate_bias(gates, scores, mask))
  # The best token of the first row stays; its padding is masked elsewhere.
  np.testing.assert_allclose(
    bias, [[0.0, -1e10, 0.0], [-1e10, np.log(0.5), 0.0]], rtol=1e-6
  )


def train(params, model_dir, *, num_steps=6, name='source_scorer', **changes):
  return training.train(
    training.source_scorer_stage(
      CONFIG, params, OPTIMIZER, **{'budget': BUDGET, **changes}
    ),
    lambda skip: itertools.repeat(BATCH),
    plan=training.Plan(num_steps=num_steps, log_every=100),
    model_dir=training.source_scorer_directory(model_dir, name),
  )


@pytest.mark.slow
def test_a_scorer_learns_to_keep_its_share(params):
  """It starts from the whole model and ends near its share, still like it."""
  stage = training.source_scorer_stage(CONFIG, params, OPTIMIZER, budget=BUDGET)
  state, kept = stage.init(None), []
  batch = stage.check_batch(BATCH)
  for _ in range(60):
    state, metrics = stage.step(state, batch, params)
    kept.append(jax.device_get(metrics))
  first, last = kept[0], kept[-1]
  np.testing.assert_allclose(first.exits.losses[0], 0.0, atol=1e-5)
  assert first.exits.accuracies[0] == 1.0
  np.testing.assert_allclose(first.exits.accuracies[1], 0.880797, rtol=1e-5)
  assert abs(last.exits.accuracies[1] - BUDGET.share) < 0.15
  assert last.loss < first.loss
  scorer = training.source_scorer_of(state.params)
  assert np.std(scorer.weights) > 0.01


@pytest.mark.slow
def test_a_measurement_is_that_of_pruned_decodes(params):
  """What is measured at alpha = infinity is what decoding reads."""
  scorer = scorer_of_seed()
  measured = training.evaluate_source_scorer(
    CONFIG, params, scorer, [BATCH], shifts=(np.inf, 0.0, -100.0)
  )
  whole, some, best = measured.shifts
  assert (whole.beta_shift, whole.kept, whole.differing) == (None, 1.0, 0.0)
  assert abs(whole.divergence) < 1e-5 and whole.chance_differing == 0.0
  inputs = BATCH['encoder_input_tokens']
  assert measured.num_positions == (inputs > 0).sum()
  assert best.kept == pytest.approx(len(inputs) / measured.num_positions)
  bound = decoding.bind(model.as_layered_decoder(CONFIG), params)
  plan = decoding.PrunedSource(scorer, 99).check(bound.decoder, 1, 1)
  encoded = bound.encode(jnp.asarray(inputs))
  selected = bound.select_source(encoded, *plan.select(bound, encoded))
  assert some.kept == pytest.approx(
    float(selected.mask.sum()) / measured.num_positions
  )
  assert 0.1 < some.kept < 0.9
  # Teacher forced through the cache of what is selected.
  tokens = jnp.asarray(BATCH['decoder_input_tokens'])
  positions = jnp.arange(tokens.shape[1])
  said = []
  for source in (encoded, selected):
    cache = bound.start(source, tokens.shape[1])
    hidden = bound.embed(tokens, positions)
    for layer in range(CONFIG.num_decoder_layers):
      cache = bound.fill_layer(layer, hidden, positions, cache)
      hidden = bound.attend(layer, hidden, positions, cache)
      hidden = bound.feed_forward(layer, hidden)
    said.append(np.asarray(bound.logits(hidden)).argmax(axis=-1))
  weights = BATCH['decoder_loss_weights'] > 0
  differing = (said[0] != said[1])[weights].mean()
  assert some.differing == pytest.approx(differing, abs=1e-6)
  assert some.divergence > 0 and some.chance_divergence > 0


@pytest.mark.slow
def test_a_scorer_is_loaded_for_its_model_alone(tmp_path, params):
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  with pytest.raises(FileNotFoundError, match='train_source'):
    runs.load_source_scorer(tmp_path)
  result = train(params, tmp_path)
  jax.tree.map(
    np.testing.assert_array_equal,
    runs.load_source_scorer(tmp_path),
    training.source_scorer_of(result.params),
  )
  other = jax.tree.map(lambda leaf: leaf * 1.01, params)
  with pytest.raises(ValueError, match='backbone_parameters: expected'):
    train(other, tmp_path)
  cheaper = dataclasses.replace(BUDGET, price=1.0)
  with pytest.raises(ValueError, match='source_budget: expected'):
    train(params, tmp_path, budget=cheaper)
  path = checkpoints.save(tmp_path, 8, params=other, config=CONFIG)
  with pytest.raises(ValueError, match=f'trained for parameters .* but {path}'):
    runs.load_source_scorer(tmp_path)
  with pytest.raises(ValueError, match='is no gate'):
    runs.load_gate(tmp_path, name='source_scorer')


@pytest.mark.parametrize(
  ('bad', 'words'),
  [
    ({'share': 0.0}, 'share of SourceBudget is 0.0; give the share of source'),
    ({'share': 1.5}, 'share of SourceBudget is 1.5'),
    ({'share': float('nan')}, 'share of SourceBudget is nan'),
    ({'share': True}, 'share of SourceBudget is True'),
    ({'price': 0}, 'price of SourceBudget is 0; give a price above 0'),
    ({'price': float('inf')}, 'price of SourceBudget is inf'),
    ({'last_alpha': 0.5}, 'last_alpha of SourceBudget is 0.5; give the last'),
    ({'anneal_steps': 0}, 'anneal_steps 0 must be a whole number at least 1'),
  ],
)
def test_bad_budgets_are_refused(bad, words):
  with pytest.raises(ValueError, match=words):
    training.SourceBudget(**bad)


def test_what_cannot_be_trained_is_refused(params):
  ids = np.ones((8, 5), np.int32)
  packed = {**BATCH, 'encoder_segment_ids': ids, 'decoder_segment_ids': ids}
  with pytest.raises(ValueError, match='several requests in a row'):
    source_losses.check_source_batch(packed, CONFIG)
  for batches in ([], iter(())):
    with pytest.raises(ValueError, match='no target token'):
      training.evaluate_source_scorer(CONFIG, params, scorer_of_seed(), batches)
  wide = SourceScorer(np.ones(D + 1), 0.0)
  with pytest.raises(
    ValueError, match='weights of the source scorer has shape'
  ):
    training.evaluate_source_scorer(CONFIG, params, wide, [])
  inputs = BATCH['encoder_input_tokens']
  with pytest.raises(ValueError, match=r'source_bias must be \[B, S\]'):
    model.layer_states(
      CONFIG,
      params,
      inputs,
      BATCH['decoder_input_tokens'],
      source_bias=np.zeros(inputs.shape[1]),
    )
