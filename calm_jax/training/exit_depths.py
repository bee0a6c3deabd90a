"""Mean exit layers of a measure where few tokens may disagree. NumPy alone."""

from collections.abc import Sequence

import numpy as np

from calm_jax import records

# A threshold of 1 never exits.
_BELOW_ONE = np.nextafter(np.float32(1.0), np.float32(0.0))


def exit_depths(
  measure: str,
  confidences: np.ndarray,
  consistent: np.ndarray,
  allowed: Sequence[float],
  *,
  strictly: bool = False,
) -> tuple[records.MeasureDepth, ...]:
  """Returns the earliest exits of one threshold for all layers and tokens.

  A token leaves at the first layer whose confidence reaches the threshold, or
  at the last one. All thresholds below 1 are tried that tell any two outcomes
  apart, and that of 1, which holds everything.

  Args:
    measure: its name.
    confidences: float [L-1, N], of every layer but the last.
    consistent: bool [L-1, N], where a layer says the last layer's token.
    allowed: shares of tokens that may differ from the last layer's, in [0, 1].
    strictly: whether a confidence must exceed the threshold, as
      `exits.QuantileExit` wants it; `exits.ConfidenceExit` does not.

  Raises:
    ValueError: if there are no tokens, or a confidence is no number.
  """
  if not confidences.size:
    raise ValueError('there are no tokens: give batches that hold some')
  if not np.isfinite(confidences).all():
    raise ValueError(
      f'a confidence of {measure} is not finite; is the model, or the gate?'
    )
  thresholds, layers, wrong = _curve(
    confidences.astype(np.float32), consistent, strictly
  )
  depths = []
  for share in allowed:
    # The first point leaves nothing early, and is always allowed.
    within = np.where(wrong <= share, layers, np.inf)
    best = int(within.argmin())
    depths.append(
      records.MeasureDepth(
        measure=measure,
        allowed=float(share),
        threshold=float(thresholds[best]),
        mean_exit_layer=float(layers[best]),
        disagreement=float(wrong[best]),
      )
    )
  return tuple(depths)


def _curve(confidences, consistent, strictly):
  """Returns thresholds, falling from 1, mean layers and disagreement there.

  As the threshold falls a token leaves at the layers that hold its record so
  far, the last of them first.
  """
  exits, tokens = confidences.shape
  capped = confidences if strictly else np.minimum(confidences, _BELOW_ONE)
  highest = np.maximum.accumulate(capped, axis=0)
  records_at = np.ones(capped.shape, bool)
  # Nothing is below 0 that a confidence of 0 could exceed.
  records_at[0] = capped[0] > 0 if strictly else True
  records_at[1:] = capped[1:] > highest[:-1]
  # What a token comes from when it begins to leave at one of its records.
  later_layer = np.full(tokens, exits + 1)
  later_wrong = np.zeros(tokens, np.int64)
  wrong = (~consistent).astype(np.int64)
  layer_steps = np.zeros(capped.shape, np.int64)
  wrong_steps = np.zeros(capped.shape, np.int64)
  for i in reversed(range(exits)):
    here = records_at[i]
    layer_steps[i] = np.where(here, i + 1 - later_layer, 0)
    wrong_steps[i] = np.where(here, wrong[i] - later_wrong, 0)
    later_layer = np.where(here, i + 1, later_layer)
    later_wrong = np.where(here, wrong[i], later_wrong)
  values = capped[records_at]
  order = np.argsort(-values, kind='stable')
  values = values[order]
  layers = (exits + 1) * tokens + np.cumsum(layer_steps[records_at][order])
  mistakes = np.cumsum(wrong_steps[records_at][order])
  # Of equal confidences all are taken, or none.
  last = np.append(values[1:] < values[:-1], True)[: len(values)]
  thresholds = values[last]
  if strictly:
    thresholds = np.nextafter(thresholds, np.float32(0.0))
  return (
    np.append(1.0, thresholds),
    np.append(exits + 1.0, layers[last] / tokens),
    np.append(0.0, mistakes[last] / tokens),
  )


def oracle_layers(consistent: np.ndarray) -> tuple[float, float]:
  """Returns the mean first layer that agrees, and that all agree from.

  Args:
    consistent: bool [L-1, N]; the last layer agrees with itself.
  """
  everything = np.concatenate([consistent, np.ones_like(consistent[:1])])
  first = everything.argmax(axis=0) + 1
  apart_last = np.flip(~everything, axis=0).argmax(axis=0)
  apart = (~everything).any(axis=0)
  settled = np.where(apart, len(everything) - apart_last + 1, 1)
  return float(first.mean()), float(settled.mean())
