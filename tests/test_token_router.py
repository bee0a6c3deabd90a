"""The token router: what it takes at a price, and what it refuses."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax.token_router import TokenRouter, price_of

ROUTER = cases.ROUTED_TWINS.router


def test_a_higher_price_never_takes_what_costs_more():
  rng = np.random.default_rng(0)
  scores = 3.0 * rng.normal(size=(200, 3)).astype('f4')
  costs = np.asarray(ROUTER.costs)
  thresholds = np.linspace(0.0, 1.0, 41, dtype=np.float32)
  taken = [
    np.asarray(ROUTER.choose(jnp.asarray(scores), price_of(one)))
    for one in thresholds
  ]
  spent = costs[np.stack(taken)]
  assert (np.diff(spent, axis=0) >= 0).all()
  # All three at the price of 0, the cheapest and the dearest at the ends.
  np.testing.assert_array_equal(taken[20], scores.argmax(axis=-1))
  assert set(taken[20]) == {0, 1, 2}
  assert set(taken[0]) == {0} and set(taken[-1]) == {1}


def test_scores_do_not_see_how_long_a_state_is():
  state = np.random.default_rng(1).normal(size=(5, 16)).astype('f4')
  scores = ROUTER.scores(state, 2)
  unit = state / np.linalg.norm(state, axis=-1, keepdims=True)
  np.testing.assert_allclose(scores, unit @ ROUTER.weights[2], atol=1e-4)
  np.testing.assert_allclose(
    scores, ROUTER.scores(100 * state, jnp.int32(2)), atol=1e-4
  )
  assert scores.dtype == jnp.float32 and ROUTER.products == 3


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'bias': np.zeros((3, 3))},
      r'bias of the token router has shape \[3, 3\]',
    ),
    ({'weights': np.zeros((4, 16, 2))}, r'\(4 layers of width 16, 3 options'),
    ({'costs': np.array([0.0, -1.0, 0.1])}, 'costs of the token router -1.0'),
    ({'bias': np.full((4, 3), np.nan)}, 'bias of the token router nan'),
    ({'weights': np.full((4, 16, 3), np.inf)}, 'weights of the token router'),
    # Times no price it would be NaN, which is never the least.
    ({'costs': np.array([0.0, np.inf, 0.1])}, 'costs of the token router inf'),
  ],
)
def test_what_makes_no_sense_is_refused(changes, message):
  router: TokenRouter = dataclasses.replace(ROUTER, **changes)
  with pytest.raises(ValueError, match=message):
    router.check(cases.decoder(), 3)
