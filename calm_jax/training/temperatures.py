"""One temperature per exit, fitted to held-out tokens (arXiv 2004.07453)."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.training import step as step_lib

# Powers of 2 from 1/8 to 8, 1 among them; neighbours are 5 % apart.
GRID = tuple(2.0 ** (step / 14) for step in range(-42, 43))


@dataclasses.dataclass(frozen=True)
class FittedTemperatures:
  """Temperatures for `exits.Tempered`, and what they are worth.

  Attributes:
    temperatures: L numbers; that of the last layer, which ends every token, is
      1 where tokens are the last layer's own.
    before: L negative log-likelihoods in nats per token, at temperature 1.
    after: those at the temperatures found; none is larger.
  """

  temperatures: tuple[float, ...]
  before: tuple[float, ...]
  after: tuple[float, ...]


def fit_temperatures(
  config: model.T5Config,
  params: Params,
  batches: Iterable[Mapping[str, Any]],
  *,
  of: str = 'last_layer',
) -> FittedTemperatures:
  """Finds the temperature of every exit at which tokens are likeliest.

  A search over `GRID`, the same for all exits, in one pass: the negative
  log-likelihood is convex in 1 / T.

  Args:
    config: the model.
    params: its parameters.
    batches: dicts of NumPy arrays with T5X's keys, teacher forced. Not those
      that certify the policy.
    of: whose tokens: 'last_layer', what the full model says there, so that
      confidences speak of agreeing with it; or 'targets', the references.

  Raises:
    ValueError: for another `of`, a bad batch, or batches without a target.
  """
  if of not in ('last_layer', 'targets'):
    raise ValueError(f"of is {of!r}; give 'last_layer' or 'targets'")
  measure = _make_measure(config, of)
  losses, tokens = 0.0, 0.0
  for batch in batches:
    batch = step_lib.check_batch(batch, config)
    part = jax.device_get(measure(params, batch))
    losses = losses + part.astype(np.float64)
    tokens += float(np.sum(batch['decoder_loss_weights']))
  if not tokens > 0:
    raise ValueError('the batches hold no target token to fit temperatures to')
  losses = losses / tokens
  at_one = GRID.index(1.0)
  best = losses.argmin(axis=1)
  if of == 'last_layer':
    # Any lower one makes its own tokens likelier.
    best[-1] = at_one
  rows = np.arange(len(best))
  return FittedTemperatures(
    temperatures=tuple(GRID[index] for index in best),
    before=tuple(losses[:, at_one].tolist()),
    after=tuple(losses[rows, best].tolist()),
  )


@functools.lru_cache(maxsize=8)
def _make_measure(config: model.T5Config, of: str) -> Callable[..., Any]:
  """Returns the jitted `(params, batch) -> sums of losses [L, grid]`."""

  def measure(params, batch):
    states = step_lib.batch_states(config, params, batch)
    weights = batch['decoder_loss_weights'].astype(jnp.float32)
    tokens = batch['decoder_target_tokens']
    if of == 'last_layer':
      last = model.output_logits(config, params, states[-1])
      tokens = last.argmax(axis=-1)

    def of_exit(hidden):
      logits = model.output_logits(config, params, hidden)
      right = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]

      def at(temperature):
        total = jax.nn.logsumexp(logits / temperature, axis=-1)
        return ((total - right / temperature) * weights).sum()

      return jax.lax.map(at, jnp.array(GRID, jnp.float32))

    return jax.lax.map(of_exit, states)

  return jax.jit(measure)
