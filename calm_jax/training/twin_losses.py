"""How a frozen model with small twins agrees with itself.

Its distribution at every target position is held against the one that it has
with its own feed-forwards, by the Kullback-Leibler divergence that training
takes down.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.pytrees import register_pytree
from calm_jax.small_twins import SmallTwins, check_choices
from calm_jax.training import forward, losses
from calm_jax.training import step as step_lib
from calm_jax.training.teacher import Teacher
from calm_jax.training.twin_states import chosen_states


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
  chosen = chosen_states(config, params, twins, batch, choices)[-1]
  return agreement_of(config, params, batch, chosen)


def agreement_of(
  config: model.T5Config,
  params: Params,
  batch: Mapping[str, Any],
  chosen: Array,
) -> TwinAgreement:
  """Returns how last states [B, T, D] with some twins agree with those without.

  Args:
    config: the model.
    params: its parameters, frozen.
    batch: as for `twin_agreement`.
    chosen: the states.
  """
  whole = forward.batch_states(config, params, batch)[-1]
  whole = jax.lax.stop_gradient(model.output_logits(config, params, whole))
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
    ValueError: if the twins or choices are for another model, a batch is bad,
      or all hold no target token.
  """
  decoder = model.as_layered_decoder(config)
  twins = twins.check(decoder)
  check_choices(choices, decoder.num_layers, 'choices of evaluate_twins')
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
