"""What a trained router of small twins gives the labels of tokens."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import model, training
from calm_jax.benchmarks.controller_training import price_within
from calm_jax.small_twins import OPTIONS, SmallTwins
from calm_jax.token_router import TokenRouter


def router_scores(
  config: model.T5Config,
  params: Any,
  twins: SmallTwins,
  router: TokenRouter,
  batches: Sequence[Mapping[str, Any]],
  budgets: Sequence[float],
) -> list[float]:
  """Returns mean log-probabilities of tokens' labels under budgets, in nats.

  Each at the lowest price by which the same tokens cost at most so much; of
  their labels the price knows nothing.

  Args:
    config: the model.
    params: its parameters.
    twins: its twins.
    router: trained beside them.
    batches: with T5X's keys, not packed, with target tokens.
    budgets: mean feed-forward blocks of a token, in the model's.
  """
  router = router.check(model.as_layered_decoder(config), OPTIONS)
  look = jax.jit(functools.partial(_scores, config))

  def at(price):
    """Returns the mean log-probability and the mean cost."""
    given = jnp.float32(price)
    found = [
      look(params, twins, router, dict(batch), given) for batch in batches
    ]
    scores, blocks, tokens = np.sum(jax.device_get(found), axis=0)
    return float(scores / tokens), float(blocks / tokens)

  prices = (price_within(lambda one: at(one)[1], budget) for budget in budgets)
  return [at(price)[0] for price, _ in prices]


def _scores(config, params, twins, router, batch, price):
  """Returns sums over tokens: log-probabilities, blocks, tokens."""
  blocks = []

  def route(layer, hidden):
    choice = router.choose(router.scores(hidden, layer), price)
    blocks.append(router.costs[choice])
    return choice, None

  states = training.routed_states(config, params, twins, batch, route)
  logs = jax.nn.log_softmax(model.output_logits(config, params, states[-1]))
  labels = batch['decoder_target_tokens'][..., None]
  logs = jnp.take_along_axis(logs, labels, axis=-1)[..., 0]
  weights = jnp.asarray(batch['decoder_loss_weights'] > 0, jnp.float32)
  spent = sum(blocks[1:], blocks[0])
  return jnp.stack(
    [(logs * weights).sum(), (spent * weights).sum(), weights.sum()]
  )
