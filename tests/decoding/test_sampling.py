"""Samplers: the distribution sampled from, and keys that follow requests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calm_jax.decoding import sampling

LOGITS = np.log(np.array([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]]))


def transformed(sampler, logits=LOGITS):
  sampler = sampler.check(logits.shape[-1])
  return np.asarray(jax.nn.softmax(sampler.transform(jnp.asarray(logits))))


def test_greedy_says_the_best_and_scores_the_softmax():
  logits = jnp.asarray(LOGITS, jnp.float32)
  tokens, scores = sampling.choose(sampling.Greedy(), logits)
  np.testing.assert_array_equal(tokens, [0, 3])
  np.testing.assert_allclose(scores, np.log([0.5, 0.4]), rtol=1e-6)


@pytest.mark.parametrize(
  'sampler',
  [
    sampling.Temperature(1e-37),
    sampling.TopK(2, temperature=1e-37),
    sampling.Nucleus(0.9, temperature=1e-37),
  ],
)
def test_a_tiny_temperature_is_greedy_and_overflows_nothing(sampler):
  sampler = sampler.check(3)
  tokens, scores = sampling.choose(
    sampler,
    jnp.array([[50.0, 1.0, -4.0]], jnp.float32),
    token_ids=None,
    keys=jax.random.split(jax.random.key(0), 1),
  )
  assert tokens.tolist() == [0] and scores.tolist() == [0.0]


def test_temperature_sharpens_and_flattens():
  probabilities = np.exp(LOGITS)
  np.testing.assert_allclose(
    transformed(sampling.Temperature(0.5)),
    probabilities**2 / (probabilities**2).sum(axis=-1, keepdims=True),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    transformed(sampling.Temperature(1.0)), probabilities, rtol=1e-5
  )


@pytest.mark.parametrize('k', [1, 2, 4])
def test_top_k_keeps_k(k):
  result = transformed(sampling.TopK(k))
  np.testing.assert_array_equal((result > 0).sum(axis=-1), k)
  np.testing.assert_allclose(result.sum(axis=-1), 1.0, rtol=1e-6)
  tied = transformed(sampling.TopK(2), np.zeros((1, 5)))
  np.testing.assert_allclose(tied, [[0.5, 0.5, 0, 0, 0]])


@pytest.mark.parametrize(
  ('top_p', 'kept'),
  [(0.3, [1, 1]), (0.45, [1, 2]), (0.6, [2, 2]), (0.9, [3, 3]), (1.0, [4, 4])],
)
def test_nucleus_is_the_smallest_set_that_reaches_top_p(top_p, kept):
  result = transformed(sampling.Nucleus(top_p))
  np.testing.assert_array_equal((result > 0).sum(axis=-1), kept)


def test_nucleus_of_everything_keeps_the_tail():
  logits = np.random.default_rng(0).normal(size=(3, 5000), scale=4.0)
  result = transformed(sampling.Nucleus(1.0), logits)
  np.testing.assert_allclose(result, jax.nn.softmax(logits), rtol=1e-4)


@pytest.mark.parametrize(
  'sampler',
  [
    sampling.Temperature(1.5),
    sampling.TopK(3, temperature=0.7),
    sampling.Nucleus(0.7),
  ],
)
def test_draws_follow_the_distribution(sampler):
  """Frequencies within 5 standard errors; outside the support never."""
  draws = 8000
  sampler = sampler.check(4)
  expected = transformed(sampler)[0]
  logits = jnp.broadcast_to(LOGITS[0], (draws, 4))
  keys = jax.random.split(jax.random.key(1), draws)
  tokens, scores = sampling.choose(sampler, logits, keys=keys)
  frequencies = np.bincount(tokens, minlength=4) / draws
  errors = np.sqrt(expected * (1 - expected) / draws)
  assert (np.abs(frequencies - expected) <= 5 * errors).all()
  np.testing.assert_allclose(np.exp(scores), expected[tokens], rtol=1e-5)


def test_candidates_are_mapped_to_their_ids():
  ids = jnp.array([[7, 5, 3, 1], [6, 4, 2, 0]])
  tokens, scores = sampling.choose(
    sampling.Greedy(), jnp.asarray(LOGITS), token_ids=ids
  )
  np.testing.assert_array_equal(tokens, [7, 0])
  np.testing.assert_allclose(scores, np.log([0.5, 0.4]), rtol=1e-5)


def data(keys):
  return np.asarray(jax.random.key_data(keys))


def test_one_key_gives_each_request_its_own():
  key = jax.random.key(4)
  keys = sampling.request_keys(key, 3)
  expected = [data(jax.random.fold_in(key, row)) for row in range(3)]
  np.testing.assert_array_equal(data(keys), expected)
  raw = sampling.request_keys(jax.random.PRNGKey(4), 3)
  np.testing.assert_array_equal(data(raw), expected)
  np.testing.assert_array_equal(data(sampling.request_keys(keys, 3)), expected)
  own = sampling.request_keys(jax.random.key_data(keys), 3)
  np.testing.assert_array_equal(data(own), expected)


def test_noise_is_request_then_position_then_sample():
  keys = sampling.request_keys(jax.random.key(4), 2)
  draw = sampling.draw_keys(keys, jnp.array([5, 9]), jnp.array([0, 3]))
  for row, position, sample in ((0, 5, 0), (1, 9, 3)):
    expected = jax.random.fold_in(
      jax.random.fold_in(keys[row], position), sample
    )
    np.testing.assert_array_equal(data(draw[row]), data(expected))


@pytest.mark.parametrize(
  ('sampler', 'message'),
  [
    (sampling.Temperature(0.0), r'temperature 0.0 .*Greedy\(\)'),
    (sampling.Temperature(-1.0), 'temperature -1.0'),
    (sampling.Temperature(float('inf')), 'temperature inf'),
    (sampling.TopK(0), 'k 0 must'),
    (sampling.TopK(5), r'k 5 must .* 1..4'),
    (sampling.TopK(2.0), 'k 2.0 must'),
    (sampling.Nucleus(0.0), 'top_p 0.0'),
    (sampling.Nucleus(1.5), 'top_p 1.5'),
  ],
)
def test_bad_samplers_are_refused(sampler, message):
  with pytest.raises(ValueError, match=message):
    sampler.check(4)


@pytest.mark.parametrize(
  ('rng', 'message'),
  [
    (jax.random.split(jax.random.key(0), 2), r'\[2\]'),
    (np.int32(3), 'int32'),
    (np.float32(3.0), 'float32'),
  ],
)
def test_bad_keys_are_refused(rng, message):
  with pytest.raises(ValueError, match=message):
    sampling.request_keys(rng, 3)
