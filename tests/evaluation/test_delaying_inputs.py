"""Inputs made to delay exits: what they keep and what they reach."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import encoding_cases
from cases import policy_cases as cases

from calm_jax import decoding, encoding, evaluation
from calm_jax.encoder_heads import EncoderHeads

TOKEN_IDS = np.arange(5, 20)
SOURCES = [
  np.array([*np.random.default_rng(size).choice(TOKEN_IDS, size), 1])
  for size in (3, 6, 4)
]
# Tokens 5..14 are words; 15..19 go on with the word before them.
WORDS = (np.arange(20) > 4) & (np.arange(20) < 15)
CONTINUES = np.arange(20) >= 15
ANYTHING = evaluation.AnyTokens(TOKEN_IDS)


def assert_shaped(inputs):
  assert [len(i) for i in inputs] == [len(s) for s in SOURCES]
  for made in inputs:
    assert made[-1] == 1 and np.isin(made[:-1], TOKEN_IDS).all()


def test_random_and_shuffled_tokens():
  made = evaluation.random_inputs(SOURCES, TOKEN_IDS, seed=3)
  assert_shaped(made)
  for one, other in zip(
    made, evaluation.random_inputs(SOURCES, TOKEN_IDS, seed=3), strict=True
  ):
    np.testing.assert_array_equal(one, other)
  shuffled = evaluation.shuffled_inputs(SOURCES, seed=3)
  assert_shaped(shuffled)
  for one, source in zip(shuffled, SOURCES, strict=True):
    np.testing.assert_array_equal(np.sort(one), np.sort(source))
  assert any((a != b).any() for a, b in zip(shuffled, SOURCES, strict=True))


def decoded(inputs):
  """An input is its own output; `search` costs are of it."""
  tokens = np.zeros((len(inputs), 9), int)
  for row, made in enumerate(inputs):
    tokens[row, : len(made)] = made
  return types.SimpleNamespace(tokens=tokens, exit_layers=tokens)


def mean_token(found):
  tokens = np.where(found.tokens > 1, found.tokens, 0)
  return tokens.sum(axis=1) / (tokens > 0).sum(axis=1)


def run(search, cost=mean_token, decode=decoded, sources=SOURCES, **options):
  options = {'num_rounds': 60, 'variants': 4, 'seed': 0, **options}
  return evaluation.delayed_inputs(sources, search, decode, cost, **options)


AT_RANDOM = evaluation.RandomSearch(ANYTHING)


def test_the_search_climbs_and_counts_its_trials():
  calls = []

  def decode(inputs):
    calls.append(len(inputs))
    return decoded(inputs)

  found = run(AT_RANDOM, decode=decode)
  assert calls == [3] + 60 * [12]
  assert_shaped(found)
  # The dearest input there is repeats the last token.
  assert all(made[:-1].min() >= 17 for made in found)
  for one, other in zip(found, run(AT_RANDOM), strict=True):
    np.testing.assert_array_equal(one, other)
  other = run(AT_RANDOM, seed=1, num_rounds=3)
  fewer = run(AT_RANDOM, num_rounds=3)
  assert any((a != b).any() for a, b in zip(fewer, other, strict=True))
  # Sources are not written to.
  assert mean_token(decoded(SOURCES)).max() < 17


def slopes(climbs):
  """Token 19 is the steepest way, and the first place the steepest of all."""
  return [-np.ones((len(climb.best), 1)) for climb in climbs]


def guided(edits, evaluations=2):
  table = np.arange(20.0)[:, None]
  return evaluation.GradientGuided(edits, slopes, table, evaluations)


def test_gradients_go_straight_there_at_the_same_price():
  calls = []

  def decode(inputs):
    calls.append(len(inputs))
    return decoded(inputs)

  found = run(guided(ANYTHING), decode=decode, num_rounds=6)
  assert calls == [3] + 6 * [6]
  assert_shaped(found)
  # As many rounds as the longest input has tokens, and each was the best one.
  assert all((made[:-1] == 19).all() for made in found)
  at_random = run(AT_RANDOM, num_rounds=6)
  assert mean_token(decoded(at_random)).mean() < 18


def test_nothing_is_tried_twice():
  """Where nothing helps, every trial is another one, until none is left."""
  tried = []

  def decode(inputs):
    tried.extend(made.tobytes() for made in inputs)
    return decoded(inputs)

  few = evaluation.AnyTokens(np.array([5, 6, 7]))
  nowhere = np.zeros(len(SOURCES[0]))
  real = [np.array([5, 6, 1])]
  run(
    guided(few),
    lambda found: nowhere[: len(found.tokens)],
    decode,
    real,
    num_rounds=2,
  )
  assert tried[0] == real[0].tobytes()
  # Two places with two other tokens each.
  assert len(set(tried)) == 5 and len(tried) == 5


def few_words(**changes):
  return evaluation.FewWords(WORDS, CONTINUES, **changes)


def test_few_words_become_words():
  real = np.array([5, 6, 15, 7, 3, 8, 9, 10, 1])
  edits = few_words(keep=1, share=0.01, least=2)
  # 5 stays, 6 goes on with 15, and 3 is no word.
  np.testing.assert_array_equal(edits.places(real, real), [3, 5, 6, 7])
  now = real.copy()
  now[5] = 11
  # A word once, and two words at most.
  np.testing.assert_array_equal(edits.places(real, now), [3, 6, 7])
  now[3] = 12
  assert not edits.places(real, now).size
  np.testing.assert_array_equal(edits.choices(7), np.arange(5, 15))
  for search in (evaluation.RandomSearch(edits), guided(edits)):
    (found,) = run(search, sources=[real], num_rounds=20)
    assert (found != real).sum() == 2
    assert WORDS[found[found != real]].all()


def test_neighbours_are_the_nearest_words():
  angles = np.linspace(0, 2, 20)
  table = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  near = evaluation.nearest_words(table, WORDS, 2)
  assert near.shape == (20, 2)
  assert set(near[9]) == {8, 10} and list(near[19]) == [14, 13]
  np.testing.assert_array_equal(few_words(neighbours=near).choices(9), near[9])
  with pytest.raises(ValueError, match='neighbours 10 must be .* 1..9'):
    evaluation.nearest_words(table, WORDS, 10)


@pytest.mark.parametrize('rounds', [0, 5])
def test_what_costs_no_more_is_not_taken(rounds):
  found = run(
    AT_RANDOM, lambda found: np.ones(len(found.tokens)), num_rounds=rounds
  )
  for made, source in zip(found, SOURCES, strict=True):
    np.testing.assert_array_equal(made, source)


@pytest.mark.parametrize(
  'refused, message',
  [
    (lambda: run(AT_RANDOM, num_rounds=-1), 'num_rounds -1'),
    (lambda: run(AT_RANDOM, variants=0), 'variants 0'),
    (lambda: run(guided(ANYTHING), variants=2), 'give at least 3'),
    (
      lambda: run(AT_RANDOM, sources=[SOURCES[0], np.array([1])]),
      'input 1 has 1 tokens',
    ),
    (lambda: guided(ANYTHING, -1), 'evaluations -1'),
    (lambda: few_words(share=0.0), 'share 0.0 must be'),
    (lambda: few_words(least=0), 'least 0'),
    (lambda: few_words(keep=-1), 'keep -1'),
    (
      lambda: evaluation.FewWords(WORDS & False, CONTINUES),
      'fewer than two tokens that are words',
    ),
    (
      lambda: evaluation.DelayLoss(disagreement=1.5).check(),
      'disagreement 1.5 is outside',
    ),
  ],
)
def test_bad_searches_are_refused(refused, message):
  with pytest.raises(ValueError, match=message):
    refused()


def test_the_loss_of_an_exit_by_hand():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]))
  loss = evaluation.DelayLoss(disagreement=0.75, before=0.1, growth=1.2)

  def at(layer, last_best, exit_layers=(2, 2)):
    best, value = loss.at(
      layer, logits, jnp.array(last_best), jnp.array(exit_layers), 5
    )
    assert best.tolist() == [0, 0]
    return float(value)

  even = -np.log([0.5, 0.3, 0.2]).mean() / 4
  stays, turns = even - 0.75 * np.log(0.5), even - 0.75 * np.log(0.3)
  # Where the exit before says the same, another token is drawn to.
  assert at(1, (0, 2)) == pytest.approx(turns + stays, rel=1e-5)
  assert at(0, (-1, -1)) == pytest.approx(0.1 * 2 * stays, rel=1e-5)
  assert at(3, (1, 1)) == pytest.approx(1.2**2 * 2 * stays, rel=1e-5)
  # Rows without an exit, and the last layer, count for nothing.
  assert at(1, (2, 2), (2, -1)) == pytest.approx(stays, rel=1e-5)
  assert at(4, (1, 1)) == 0


def assert_slopes(gradients, total, hidden, mask):
  """Gradients say what a small step changes; padding and mates do not."""
  step = 3e-3 * np.random.default_rng(5).normal(size=hidden.shape)
  step = jnp.asarray(step * np.asarray(mask)[..., None], jnp.float32)
  change = (total(hidden + step) - total(hidden - step)) / 2
  said = float((gradients * step).sum())
  assert abs(said) > 1e-5
  assert said == pytest.approx(float(change), rel=0.05)
  assert not np.asarray(gradients)[~np.asarray(mask)].any()


@pytest.mark.slow
def test_gradients_of_an_encoder_are_those_of_its_loss():
  encoder, params = encoding_cases.ENCODER, encoding_cases.params()
  kernel = np.random.default_rng(1).normal(size=(4, 16, 3)).astype('f4')
  heads = EncoderHeads(kernel=kernel, bias=np.zeros((4, 3), 'f4'))
  inputs = encoding_cases.inputs()
  exit_layers = np.array([1, 2, 3, 1, 2, 3], np.int32)
  loss = evaluation.DelayLoss()
  gradients = evaluation.encoder_exit_gradients(
    encoder, params, heads, inputs, exit_layers, loss
  )
  prepared = encoder.prepare(params)
  hidden, mask = encoder.embed(prepared, inputs)

  @jax.jit
  def total(hidden):
    layers = encoding.layers_from(encoder, prepared, hidden, mask, heads)
    best, lost = jnp.full(6, -1), 0.0
    for layer in range(4):
      best, of_exit = loss.at(layer, layers.logits[layer], best, exit_layers, 4)
      lost += of_exit
    return lost

  assert_slopes(gradients, total, hidden, mask)
  table = evaluation.embedding_table(encoder, params)
  np.testing.assert_array_equal(table[inputs], hidden)


@pytest.mark.slow
def test_gradients_of_tokens_follow_their_outputs():
  """A row's gradients are its own, and those of its loss by its source."""
  bound = cases.bound(decoding.UnrolledDepthLoop())
  inputs = np.asarray(cases.inputs())
  outputs = np.array([[7, 9, 4, 0], [5, 5, 6, 4]] * 2, np.int32)
  exit_layers = np.array([[1, 2, 3, -1], [2, 1, 1, 4]] * 2, np.int32)
  loss = evaluation.DelayLoss()

  def gradients(exit_layers):
    return np.asarray(
      evaluation.token_exit_gradients(bound, inputs, outputs, exit_layers, loss)
    )

  found = gradients(exit_layers)
  assert found.shape == (*inputs.shape, cases.CONFIG.embed_dim)
  assert np.isfinite(found).all()
  assert (np.abs(found).max(axis=-1) > 0).sum() >= (inputs > 0).sum()
  exit_layers = exit_layers.copy()
  exit_layers[0] = -1
  fewer = gradients(exit_layers)
  assert not fewer[0].any()
  np.testing.assert_array_equal(fewer[1:], found[1:])
