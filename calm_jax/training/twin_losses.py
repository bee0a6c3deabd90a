"""A frozen model with small twins: teacher forced, and how it agrees.

The model has never heard of twins. Its own pass runs, and what a decoder
layer's feed-forward block gives is replaced, position by position, by what was
chosen: the twin's, the block's own, or none.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.model import layers
from calm_jax.pytrees import register_pytree
from calm_jax.small_twins import OWN, TWIN, SmallTwins
from calm_jax.training import forward, losses
from calm_jax.training import step as step_lib
from calm_jax.training.forward import Draws
from calm_jax.training.teacher import Teacher


def chosen_states(
  config: model.T5Config,
  params: Params,
  twins: SmallTwins,
  batch: Mapping[str, Any],
  choices: Array,
) -> Array:
  """Returns the states after every layer, [L, B, T, D], with some twins.

  Args:
    config: the model.
    params: its parameters.
    twins: its twins.
    batch: a batch with T5X's keys, packed or not.
    choices: int32 [B, T, L] or what broadcasts to it: 0 for no feed-forward, 1
      for the layer's own, 2 for its twin.
  """

  def choose(run, args, kwargs, context):
    whole = isinstance(context.module, layers.DecoderLayer)
    if not whole or context.method_name != 'feed_forward':
      return run(*args, **kwargs)
    (hidden,) = args
    layer = int(context.module.name.removeprefix('layers_'))
    choice = choices[..., layer, None]
    fed = jnp.where(choice == OWN, run(hidden, **kwargs), hidden)
    return jnp.where(choice == TWIN, twins(hidden, layer), fed)

  with nn.intercept_methods(choose):
    return forward.batch_states(config, params, batch)


def draw_choices(
  draws: Draws, shape: tuple[int, int], *, twin_rate: float, none_rate: float
) -> Array:
  """Draws what runs at every position in every layer, int32 [B, T, L].

  Args:
    draws: what is drawn on.
    shape: (T, L).
    twin_rate: how probable a twin is where something runs.
    none_rate: how probable it is that nothing does.
  """
  drawn = draws.uniform('small_twins', shape)
  twin = drawn < none_rate + (1.0 - none_rate) * twin_rate
  return jnp.where(drawn < none_rate, 0, jnp.where(twin, TWIN, OWN))


@register_pytree
@dataclasses.dataclass(frozen=True)
class TwinAgreement:
  """Sums over target tokens.

  Attributes:
    num_tokens: float32 [], target tokens.
    divergence: float32 [], KL(the model || with twins) in nats.
    right: float32 [], tokens whose most probable one is the model's.
  """

  num_tokens: Array
  divergence: Array
  right: Array

  def rates(self) -> tuple[Array, Array]:
    """Returns divergence and agreement per token."""
    count = jnp.maximum(self.num_tokens, 1.0)
    return self.divergence / count, self.right / count


def twin_agreement(
  config: model.T5Config,
  params: Params,
  twins: SmallTwins,
  batch: Mapping[str, Any],
  choices: Array,
) -> TwinAgreement:
  """Returns how the model with some twins agrees with itself without.

  Args:
    config: the model.
    params: its parameters, frozen.
    twins: its twins.
    batch: a batch with T5X's keys, packed or not; targets are what the model
      itself says, or any text.
    choices: as for `chosen_states`.
  """
  whole = forward.batch_states(config, params, batch)[-1]
  whole = jax.lax.stop_gradient(model.output_logits(config, params, whole))
  chosen = chosen_states(config, params, twins, batch, choices)[-1]
  logits = model.output_logits(config, params, chosen)
  weights = batch['decoder_loss_weights'].astype(jnp.float32)
  apart = Teacher.of_logits(whole).distance(
    logits, jax.nn.logsumexp(logits, axis=-1)
  )
  same = logits.argmax(axis=-1) == whole.argmax(axis=-1)
  return TwinAgreement(
    weights.sum(), (apart * weights).sum(), (same * weights).sum()
  )


def metrics(agreement: TwinAgreement) -> losses.ExitMetrics:
  """Returns the divergence and agreement as those of a single exit."""
  apart, right = agreement.rates()
  return losses.ExitMetrics(
    losses=apart[None],
    accuracies=right[None],
    num_tokens=agreement.num_tokens,
  )


def evaluate_twins(
  config: model.T5Config,
  params: Params,
  twins: SmallTwins,
  batches: Iterable[Mapping[str, Any]],
  choices: tuple[int, ...],
) -> TwinAgreement:
  """Returns how the model agrees with itself, in float64, over a whole set.

  Args:
    config: the model.
    params: its parameters.
    twins: its twins.
    batches: dicts of NumPy arrays with T5X's keys.
    choices: [L], the same for all tokens; as for `decoding.ChosenFeedForward`.

  Raises:
    ValueError: if a batch is bad, or all hold no target token.
  """
  count = _make_count(config)
  chosen = np.array(choices, np.int32)[None, None]
  counts = jax.device_get(
    [
      count(params, twins, step_lib.check_batch(batch, config), chosen)
      for batch in batches
    ]
  )
  if not sum(part.num_tokens for part in counts) > 0:
    raise ValueError(
      f'the {len(counts)} batches that small twins are measured on hold no '
      'target token: is the split empty, or the iterator used up?'
    )
  return jax.tree.map(
    lambda *parts: np.sum(parts, axis=0, dtype=np.float64), *counts
  )


@functools.lru_cache(maxsize=8)
def _make_count(config: model.T5Config) -> Callable[..., TwinAgreement]:
  """Returns the jitted `twin_agreement` of a model."""
  return jax.jit(functools.partial(twin_agreement, config))
