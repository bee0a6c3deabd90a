"""Training token controllers of a frozen model, and the price of a budget."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks, model, training
from calm_jax.array_types import Params
from calm_jax.benchmarks import controllers
from calm_jax.token_router import TokenRouter
from calm_jax.training import hard_choices, source_gates

Batches = Iterable[Mapping[str, Any]]
# Prices between which the one of a budget is sought, and how often halved.
_PRICES = (-40.0, 40.0)
_HALVINGS = 16


@dataclasses.dataclass(frozen=True)
class ControllerPlan:
  """How a controller is trained.

  Attributes:
    num_steps: steps.
    learning_rate: of Adam, constant.
    price: of (mean layers / L - budget / L)^2, beside nats per label.
    last_temperature: of the choices that are drawn; it falls from 1.
  """

  num_steps: int = 300
  learning_rate: float = 0.03
  price: float = 30.0
  last_temperature: float = 0.1

  def __post_init__(self):
    """Raises ValueError, naming what nothing can be trained by."""
    checks.check_whole(self.num_steps, 'num_steps', low=1)
    for name, high in (
      ('learning_rate', 1e3),
      ('price', 1e9),
      ('last_temperature', 1.0),
    ):
      value = getattr(self, name)
      # Written as a negation, so that NaN is refused.
      if not 0.0 < value <= high:
        raise ValueError(f'{name} is {value}; give one in (0, {high:g}]')


def train_controller(
  config: model.T5Config,
  params: Params,
  batches: Batches,
  plan: ControllerPlan,
  *,
  budget: int,
  reads_states: bool,
  seed: int,
) -> TokenRouter:
  """Returns a controller trained for the labels of batches under a budget.

  The loss is the cross-entropy of the labels, and the squared distance of the
  mean layers of a token from the budget at a price: so a controller and its
  control come out at the same budget, where a price of layers alone, as the
  paper has it, would leave each its own.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    batches: at least `plan.num_steps` of them, with T5X's keys, not packed.
    plan: how it is trained.
    budget: layers that a token may have on the mean, in 3..L-1.
    reads_states: False for the fixed control: the same with a constant input.
    seed: of what is drawn.

  Raises:
    ValueError: for a budget that leaves no choice.
  """
  layers = config.num_decoder_layers
  checks.check_whole(budget, 'budget of controllers', low=3, high=layers - 1)
  controller = controllers.untrained(config, (budget - 2) / (layers - 2))
  optimizer, step = _make_step(config, plan)
  tree = {'weights': controller.weights, 'bias': controller.bias}
  state = training.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=tree,
    opt_state=optimizer.transformation.init(tree),
    rng=jax.random.key(seed),
  )
  given = jnp.float32(budget / layers), jnp.float32(reads_states)
  for _, batch in zip(range(plan.num_steps), batches, strict=False):
    state = step(state, dict(batch), params, *given)
  if int(state.step) < plan.num_steps:
    raise ValueError(
      f'the training rows end after {int(state.step)} of {plan.num_steps} '
      'steps; give an iterator that repeats them'
    )
  trained = TokenRouter(**state.params, costs=controller.costs)
  return controllers.pinned(trained)


def price_within(
  cost_of: Callable[[float], float], budget: float
) -> tuple[float, float]:
  """Returns the lowest price found whose mean cost is within a budget.

  Args:
    cost_of: from a price to a mean cost, which hardly rises with it.
    budget: at most such a cost.

  Returns:
    The price and its cost.
  """
  low, high = _PRICES
  cost = cost_of(high)
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    found = cost_of(middle)
    if found <= budget:
      high, cost = middle, found
    else:
      low = middle
  return high, cost


@functools.lru_cache(maxsize=4)
def _make_step(
  config: model.T5Config, plan: ControllerPlan
) -> tuple[training.Optimizer, Callable[..., training.TrainState]]:
  """Returns Adam, and the jitted `(state, batch, params, share, reads)` step.

  One program for all budgets, and for the control, whose `reads` is 0.
  """
  optimizer = training.adamw(plan.learning_rate)
  costs = np.array([0.0, 1.0], np.float32)

  def step(state, batch, params, share, reads):
    key = jax.random.fold_in(state.rng, state.step)
    weights = jnp.asarray(batch['decoder_loss_weights'] > 0, jnp.float32)
    tokens = jnp.maximum(weights.sum(), 1.0)
    temperature = source_gates.annealed_alpha(
      state.step, plan.num_steps, plan.last_temperature
    )

    def choose(scores, layer):
      uniform = jax.random.uniform(jax.random.fold_in(key, layer), scores.shape)
      choice, shares = hard_choices.draw(scores, uniform, temperature)
      runs = jax.nn.softmax(scores / temperature)[..., controllers.RUN]
      return choice, shares, runs

    def loss_of(tree):
      controller = controllers.pinned(
        TokenRouter(tree['weights'] * reads, tree['bias'], costs)
      )
      states, runs = controllers.controlled_states(
        config, params, controller, batch, choose
      )
      apart = controllers.label_losses(config, params, states, batch)
      used = (runs * weights).sum() / (tokens * config.num_decoder_layers)
      return (apart * weights).sum() / tokens + plan.price * jnp.square(
        used - share
      )

    gradients = jax.grad(loss_of)(state.params)
    return state.after(optimizer.transformation, gradients)

  return optimizer, jax.jit(step, donate_argnums=0)
