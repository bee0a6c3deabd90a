"""What the choices of a router of small twins keep, beside blind ones."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks, model, records
from calm_jax.array_types import Array, Params
from calm_jax.small_twins import OPTIONS, SmallTwins
from calm_jax.token_router import TokenRouter
from calm_jax.training import step as step_lib
from calm_jax.training import twin_router_losses
from calm_jax.training.twin_losses import TwinAgreement, twin_agreement

# Falling, as a calibration tries them; 1 is the full model.
THRESHOLDS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)


def evaluate_twin_router(
  config: model.T5Config,
  params: Params,
  twins: SmallTwins,
  router: TokenRouter,
  batches: Iterable[Mapping[str, Any]],
  *,
  thresholds: Sequence[float] = THRESHOLDS,
  seed: int = 0,
) -> tuple[records.RoutedBlocks, ...]:
  """Returns what a router's choices keep on a whole set, and chance's.

  Args:
    config: the model.
    params: its parameters.
    twins: its twins.
    router: trained beside them.
    batches: dicts of NumPy arrays with T5X's keys.
    thresholds: of `decoding.RoutedFeedForward`, in [0, 1].
    seed: of blind choices: by chance, each option as often in each layer.

  Raises:
    ValueError: if the twins or the router are of another model's shape, a batch
      is bad, or all hold no target token.
  """
  checks.check_thresholds(thresholds)
  decoder = model.as_layered_decoder(config)
  twins, router = twins.check(decoder), router.check(decoder, OPTIONS)
  batches = [step_lib.check_batch(batch, config) for batch in batches]
  if not any((batch['decoder_loss_weights'] > 0).any() for batch in batches):
    raise ValueError(
      f'the {len(batches)} batches that a router of small twins is measured on '
      'hold no target token: is the split empty, or the iterator used up?'
    )
  look = _make_look(config)
  rng, found = np.random.default_rng(seed), []
  for threshold in thresholds:
    given = jnp.float32(threshold)
    kept, taken = _sum(
      look(params, twins, router, batch, given) for batch in batches
    )
    blind, _ = _sum(
      _blind(config, params, twins, batch, taken, rng) for batch in batches
    )
    found.append(_as_record(threshold, router, kept, blind, taken))
  return tuple(found)


def _blind(
  config: model.T5Config,
  params: Params,
  twins: SmallTwins,
  batch: Mapping[str, Any],
  taken: np.ndarray,
  rng: np.random.Generator,
) -> tuple[TwinAgreement, Array]:
  """Returns sums of choices that are drawn, each as often in each layer."""
  shape = batch['decoder_input_tokens'].shape
  shares = taken / taken.sum(axis=1, keepdims=True)
  choices = np.stack(
    [rng.choice(OPTIONS, shape, p=of_layer) for of_layer in shares], axis=-1
  )
  count = _make_count(config)
  return count(params, twins, batch, choices.astype(np.int32)), jnp.zeros(())


def _sum(parts: Iterable[Any]) -> Any:
  """Returns sums over batches in float64."""
  return jax.tree.map(
    lambda *leaves: np.sum(leaves, axis=0, dtype=np.float64),
    *jax.device_get(list(parts)),
  )


def _as_record(
  threshold: float,
  router: TokenRouter,
  kept: TwinAgreement,
  blind: TwinAgreement,
  taken: np.ndarray,
) -> records.RoutedBlocks:
  """Returns the rates of sums."""
  options = taken.sum(axis=0) / taken.sum()
  none, own, twin = options.tolist()
  return records.RoutedBlocks(
    threshold=float(threshold),
    cost=float(options @ np.asarray(router.costs, np.float64)),
    none=none,
    own=own,
    twin=twin,
    divergence=float(kept.divergence / kept.num_tokens),
    agreement=float(kept.right / kept.num_tokens),
    blind_divergence=float(blind.divergence / blind.num_tokens),
    blind_agreement=float(blind.right / blind.num_tokens),
  )


@functools.lru_cache(maxsize=8)
def _make_look(config: model.T5Config) -> Callable[..., Any]:
  """Returns the jitted routed agreement at a threshold."""

  def look(params, twins, router, batch, threshold):
    choose = twin_router_losses.priced(router, threshold)
    return twin_router_losses.routed_agreement(
      config, params, twins, router, batch, choose
    )

  return jax.jit(look)


@functools.lru_cache(maxsize=8)
def _make_count(config: model.T5Config) -> Callable[..., TwinAgreement]:
  """Returns the jitted agreement with given choices."""
  return jax.jit(functools.partial(twin_agreement, config))
