"""Straight-through choices: drawn as probable as said, learnt as a mixture."""

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax.training import hard_choices


def test_options_are_drawn_as_probable_as_their_scores_say():
  scores = jnp.log(jnp.array([0.2, 0.5, 0.3]))
  uniform = np.random.default_rng(0).uniform(size=(4000, 3)).astype('f4')
  uniform[0] = 0.0
  for temperature, expected in (
    (1.0, [0.2, 0.5, 0.3]),
    (0.5, np.array([0.04, 0.25, 0.09]) / 0.38),
  ):
    choice, shares = hard_choices.draw(scores, uniform, temperature)
    found = np.bincount(choice, minlength=3) / len(choice)
    np.testing.assert_allclose(found, expected, atol=0.03)
    np.testing.assert_allclose(shares.sum(axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(shares.argmax(axis=-1), choice)


def test_what_is_taken_is_one_option_and_slopes_are_the_mixtures():
  rng = np.random.default_rng(1)
  options = list(rng.normal(size=(3, 4, 2)).astype('f4'))
  shares = rng.dirichlet(np.ones(3), size=4).astype('f4')
  choice, weights = np.array([2, 0, 1, 1]), rng.normal(size=(4, 2))

  def taken(shares, options):
    return hard_choices.take(options, choice, shares)

  expected = np.stack(options)[choice, np.arange(4)]
  np.testing.assert_array_equal(taken(shares, options), expected)
  np.testing.assert_array_equal(taken(None, options), expected)
  of_shares, of_options = jax.grad(
    lambda *given: (weights * taken(*given)).sum(), argnums=(0, 1)
  )(shares, options)
  mixture = np.einsum('otd,td->to', np.stack(options), weights)
  np.testing.assert_allclose(of_shares, mixture, rtol=1e-5)
  # What ran learns as if nothing had been chosen, the rest not at all.
  for number, slope in enumerate(of_options):
    ran = (choice == number)[:, None] * weights
    np.testing.assert_allclose(slope, ran, rtol=1e-5)
