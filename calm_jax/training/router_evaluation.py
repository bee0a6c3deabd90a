"""What a router's depths lose, beside the same mean depth for everybody.

One pass over the batches, teacher forced with what the full model says.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks, model, records
from calm_jax.array_types import Params
from calm_jax.exits import Router
from calm_jax.training import router_labels

# Falling, as a calibration tries them; 1 is the full model.
THRESHOLDS = (1.0, *(place / 20 for place in range(19, 0, -1)))


@dataclasses.dataclass(frozen=True)
class RouterMeasurement:
  """A router on a set of requests; see `records.RouterEvaluation`.

  Attributes:
    num_requests: N.
    num_tokens: of their outputs.
    depths: at falling thresholds.
    differing: mean share of tokens that differ at depths 1..L.
    kept: share of requests that depths 1..L keep.
    needed_layers: mean of the smallest depths that keep the requests.
  """

  num_requests: int
  num_tokens: int
  depths: tuple[records.RoutedDepths, ...]
  differing: tuple[float, ...]
  kept: tuple[float, ...]
  needed_layers: float


def evaluate_router(
  config: model.T5Config,
  params: Params,
  router: Router,
  batches: Iterable[Mapping[str, Any]],
  *,
  slack: float = 0.05,
  thresholds: Sequence[float] = THRESHOLDS,
) -> RouterMeasurement:
  """Returns what a router comes to on a whole set, and what chance does.

  Args:
    config: the model.
    params: its parameters.
    router: the router.
    batches: dicts of NumPy arrays with T5X's keys; targets are what the full
      model says.
    slack: as for `router_stage`.
    thresholds: of `RoutedExit`, in [0, 1].

  Raises:
    ValueError: if the router is of another model's shape, a batch is bad, or
      all hold no target token.
  """
  checks.check_thresholds(thresholds)
  slack = router_labels.check_slack(slack)
  router = router.check(model.as_layered_decoder(config))
  look, parts = _make_look(config, slack), []
  for batch in batches:
    batch = router_labels.check_router_batch(batch, config)
    found = jax.device_get(look(params, router, batch))
    parts.append([array[found[-1] > 0] for array in found])
  if not sum(len(part[-1]) for part in parts):
    raise ValueError(
      f'the {len(parts)} validation batches of the router hold no target '
      'token: is the split empty, or the iterator used up?'
    )
  confidences, differing, needed, tokens = (
    np.concatenate(arrays) for arrays in zip(*parts, strict=True)
  )
  kept = np.arange(1, differing.shape[1] + 1) >= needed[:, None]
  return RouterMeasurement(
    num_requests=len(tokens),
    num_tokens=int(tokens.sum()),
    depths=tuple(
      _at_threshold(threshold, confidences, differing, kept)
      for threshold in thresholds
    ),
    differing=tuple(map(float, differing.mean(axis=0))),
    kept=tuple(map(float, kept.mean(axis=0))),
    needed_layers=float(needed.mean()),
  )


def _at_threshold(
  threshold: float,
  confidences: np.ndarray,
  differing: np.ndarray,
  kept: np.ndarray,
) -> records.RoutedDepths:
  """Returns what depths at a threshold lose; arrays are [N, L]."""
  reached = confidences >= (np.inf if threshold >= 1.0 else threshold)
  # The last layer ends every request.
  reached[:, -1] = True
  depths = reached.argmax(axis=1)
  mean, places = float(depths.mean()), np.arange(differing.shape[1])
  rows = np.arange(len(depths))
  return records.RoutedDepths(
    threshold=float(threshold),
    mean_layers=mean + 1,
    differing=float(differing[rows, depths].mean()),
    kept=float(kept[rows, depths].mean()),
    uniform_differing=float(np.interp(mean, places, differing.mean(axis=0))),
    uniform_kept=float(np.interp(mean, places, kept.mean(axis=0))),
  )


@functools.lru_cache(maxsize=8)
def _make_look(config: model.T5Config, slack: float) -> Callable[..., Any]:
  """Returns the jitted `(params, router, batch) -> arrays`.

  Confidences [B, L], shares of tokens that differ [B, L], layers needed [B] and
  tokens [B].
  """

  def look(params, router, batch):
    examples = router_labels.router_examples(config, params, batch)
    tokens = examples.tokens
    return (
      router.confidences(examples.pooled, examples.lengths),
      (examples.differing / jnp.maximum(tokens, 1.0)).T,
      1 + examples.needs_more(slack).sum(axis=0),
      tokens,
    )

  return jax.jit(look)
