"""How far exits are from the last layer, as they are read through adapters.

The frozen model is teacher and judge: at every target position an exit's
distribution is held against the last layer's, by the Kullback-Leibler
divergence that training takes down. The logits of one exit are in memory at a
time, beside the last layer's, forward and backward: an exit's adapter is a part
of no other exit's loss.
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
from calm_jax.exit_adapters import AdaptsExits
from calm_jax.pytrees import register_pytree
from calm_jax.training import step as step_lib
from calm_jax.training.teacher import Teacher


@register_pytree
@dataclasses.dataclass(frozen=True)
class ExitAgreement:
  """Sums over target tokens, at each exit but the last.

  Attributes:
    num_tokens: float32 [], target tokens.
    divergence: float32 [L-1], KL(last layer || exit) in nats.
    right: float32 [L-1], tokens whose most probable one is the last layer's.
  """

  num_tokens: Array
  divergence: Array
  right: Array

  def rates(self) -> tuple[Array, Array]:
    """Returns divergence and agreement per token, [L-1] each."""
    num_tokens = jnp.maximum(self.num_tokens, 1.0)
    return self.divergence / num_tokens, self.right / num_tokens


def agreement_and_gradients(
  config: model.T5Config,
  params: Params,
  adapters: AdaptsExits,
  batch: Mapping[str, Any],
  *,
  with_gradients: bool = True,
) -> tuple[ExitAgreement, AdaptsExits | None]:
  """Returns how exits agree, and the gradient of the loss by the adapters.

  The loss is the divergence per token, mean over exits.

  Args:
    config: the model.
    params: its parameters, frozen.
    adapters: the adapters.
    batch: a batch with T5X's keys, packed or not; targets are what the model
      itself says, or any text.
    with_gradients: False for None in their place.
  """
  states = step_lib.batch_states(config, params, batch)
  weights = batch['decoder_loss_weights'].astype(jnp.float32)
  num_tokens = weights.sum()
  count = jnp.maximum(num_tokens, 1.0) * (config.num_decoder_layers - 1)
  last = model.output_logits(config, params, states[-1])
  teacher = Teacher.of_logits(last)
  best = last.argmax(axis=-1)

  def of_exit(own, hidden):
    logits = model.output_logits(config, params, own.adapt(hidden))
    apart = teacher.distance(logits, jax.nn.logsumexp(logits, axis=-1))
    divergence = (apart * weights).sum()
    right = ((logits.argmax(axis=-1) == best) * weights).sum()
    return divergence / count, (divergence, right)

  def judge(exit_inputs):
    if not with_gradients:
      return of_exit(*exit_inputs)[1], None
    (_, sums), own = jax.value_and_grad(of_exit, has_aux=True)(*exit_inputs)
    return sums, own

  # A loop, so that XLA is not free to hold the logits of several exits.
  (divergence, right), gradients = jax.lax.map(judge, (adapters, states[:-1]))
  return ExitAgreement(num_tokens, divergence, right), gradients


def evaluate_exit_adapters(
  config: model.T5Config,
  params: Params,
  adapters: AdaptsExits,
  batches: Iterable[Mapping[str, Any]],
) -> ExitAgreement:
  """Returns how exits agree over a whole set, in float64.

  Args:
    config: the model.
    params: its parameters.
    adapters: the adapters; `ExitAdapters.identity` for the model as it is.
    batches: dicts of NumPy arrays with T5X's keys.

  Raises:
    ValueError: if a batch is bad, or all hold no target token.
  """
  count = _make_count(config)
  counts = jax.device_get(
    [
      count(params, adapters, step_lib.check_batch(batch, config))
      for batch in batches
    ]
  )
  if not sum(part.num_tokens for part in counts) > 0:
    raise ValueError(
      f'the {len(counts)} batches that exit adapters are measured on hold no '
      'target token: is the split empty, or the iterator used up?'
    )
  return jax.tree.map(
    lambda *parts: np.sum(parts, axis=0, dtype=np.float64), *counts
  )


@functools.lru_cache(maxsize=8)
def _make_count(config: model.T5Config) -> Callable[..., ExitAgreement]:
  """Returns the jitted `(params, adapters, batch) -> ExitAgreement`."""

  def count(params, adapters, batch):
    return agreement_and_gradients(
      config, params, adapters, batch, with_gradients=False
    )[0]

  return jax.jit(count)
