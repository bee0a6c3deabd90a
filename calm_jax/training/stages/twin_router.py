"""A router of a frozen model's small twins: which block runs for a token.

The model's parameters and its twins go into the step as they are and never come
out; the training state holds {'twin_router': {'weights', 'bias', 'costs'}}, the
arrays of `token_router.TokenRouter`, and the optimizer's slots for these.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.checkpoints import router_twins, trained_parts
from calm_jax.small_twins import NONE, OPTIONS, OWN, TWIN, SmallTwins
from calm_jax.token_router import TokenRouter
from calm_jax.training import losses, twin_router_losses
from calm_jax.training import step as step_lib
from calm_jax.training.forward import Draws
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.stage import Stage
from calm_jax.training.state import StepMetrics, TrainState
from calm_jax.training.twin_routing import TwinRouting

_KEY = trained_parts.TWIN_ROUTER.key
# Of twins beside the model's parameters, which have no such name.
_TWINS = trained_parts.SMALL_TWINS.key


def twin_router_stage(
  config: model.T5Config,
  params: Params,
  twins: SmallTwins,
  optimizer: Optimizer,
  *,
  routing: TwinRouting | None = None,
  seed: int = 0,
) -> Stage:
  """Returns the training of a router between a frozen model's blocks and twins.

  As in Duo-LLM (arXiv 2410.10846): one linear map per layer says which of none,
  the own block and the twin runs at a token, and the squared distance of its
  mean cost, over all layers together, from the budget is a part of the loss.
  The other is the Kullback-Leibler divergence of the last layer's distribution
  from the model's own, per target token; targets only say after which tokens.
  The directory is `twin_router_directory` of the model's; `twin_router_of`
  finds the router in the parameters of the result.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    twins: its twins (`runs.load_twins`), which do as well.
    optimizer: from `training.adamw` or `training.adafactor`.
    routing: what its choices are to cost, and whether it sees states;
      `TwinRouting()` if None.
    seed: of what is drawn.
  """
  routing = TwinRouting() if routing is None else routing
  # Their fingerprint is that of the arrays as they were given.
  checked = twins.check(model.as_layered_decoder(config))
  return Stage(
    config=config,
    optimizer=optimizer,
    init=lambda _: init_twin_router_state(config, twins, optimizer, seed=seed),
    step=make_twin_router_step(config, optimizer, routing),
    check_batch=functools.partial(step_lib.check_batch, config=config),
    constants={**params, _TWINS: checked},
    context={
      'twin_routing': repr(routing),
      **trained_parts.backbone_context(params),
      **router_twins.twins_context(twins),
    },
    title=f'a router of {config.num_decoder_layers} small twins, share '
    f'{routing.share:g}',
    inside=True,
  )


def twin_router_directory(
  model_dir: str | os.PathLike, name: str = _KEY
) -> str:
  """Returns the directory of a router of twins in that of their model.

  Raises:
    ValueError: for a folder that is the model's or elsewhere.
  """
  return trained_parts.part_directory(model_dir, name)


def twin_router_of(tree: Params) -> TokenRouter:
  """Returns the router of a parameter tree {'twin_router': {...}}."""
  return TokenRouter(**tree[_KEY])


def init_twin_router_state(
  config: model.T5Config, twins: SmallTwins, optimizer: Optimizer, *, seed: int
) -> TrainState:
  """Returns the state at step 0: all options are as probable, everywhere."""
  layers = config.num_decoder_layers
  costs = {NONE: 0.0, OWN: 1.0, TWIN: twins.hidden_units / config.mlp_dim}
  params = {
    _KEY: {
      'weights': jnp.zeros((layers, config.embed_dim, OPTIONS), jnp.float32),
      'bias': jnp.zeros((layers, OPTIONS), jnp.float32),
      'costs': jnp.array([costs[n] for n in range(OPTIONS)], jnp.float32),
    }
  }
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.transformation.init(params),
    rng=jax.random.key(seed),
  )


@functools.lru_cache(maxsize=8)
def make_twin_router_step(
  config: model.T5Config,
  optimizer: Optimizer,
  routing: TwinRouting,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Returns the jitted `(state, batch, frozen) -> (state, metrics)`.

  It donates the state; `frozen`, the model's parameters with 'small_twins'
  beside them, is only read. In the metrics `exits` have two entries: the
  divergence from the model in nats per token and the share of its tokens; what
  missing the budget costs, and the mean cost.
  """

  def twin_router_step(state, batch, frozen):
    params = {name: frozen[name] for name in frozen if name != _TWINS}
    rows, length = batch['decoder_input_tokens'].shape
    draws = Draws.of_step(state.rng, state.step, jnp.arange(rows))
    choose = twin_router_losses.drawn(
      draws,
      (length, config.num_decoder_layers),
      routing.temperature(state.step),
    )

    def loss_of(tree):
      router = twin_router_of(tree)
      found, taken = twin_router_losses.routed_agreement(
        config, params, frozen[_TWINS], router, batch, choose
      )
      cost = twin_router_losses.mean_cost(router, taken)
      apart, right = found.rates()
      parts = jnp.stack([apart, routing.loss(cost)])
      return parts.sum(), (parts, jnp.stack([right, cost]), found.num_tokens)

    (loss, (parts, shares, num_tokens)), gradients = jax.value_and_grad(
      loss_of, has_aux=True
    )(state.params)
    if not routing.reads_states:
      weights = jnp.zeros_like(gradients[_KEY]['weights'])
      gradients = {_KEY: {**gradients[_KEY], 'weights': weights}}
    costs = state.params[_KEY]['costs']
    state = state.after(optimizer.transformation, gradients)
    # Whatever an optimizer does to what has no slope.
    tree = {_KEY: {**state.params[_KEY], 'costs': costs}}
    return dataclasses.replace(state, params=tree), StepMetrics(
      loss=loss,
      exits=losses.ExitMetrics(
        losses=parts, accuracies=shares, num_tokens=num_tokens
      ),
      gradient_norm=optax.global_norm(gradients),
    )

  return jax.jit(twin_router_step, donate_argnums=0)
