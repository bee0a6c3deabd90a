"""Which rows a lower threshold decodes differently, known without decoding.

Early exit at a threshold sees confidences layer by layer and goes on at those
below it. At a lower threshold a row runs exactly as before unless one of the
confidences that it went on at now reaches the threshold of its position; those
that it stopped at still do. So a walk down a grid of thresholds decodes a row
again only where something between two settings was seen.
"""

import jax
import numpy as np

from calm_jax import decoding
from calm_jax.evaluation.decode_store import DecodeStore, row_key
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.processes import collectives

_ROUNDING = 1e-6


def says_of_lower(policy: decoding.ComputePolicy) -> bool:
  """Whether decodes at one threshold say something of those at lower ones.

  The number must be that of the exit rule, which has thresholds: what another
  encoder layer, or another layer plan, makes of a row nobody has seen.

  Args:
    policy: the policy, at any threshold.
  """
  path = decoding.threshold_path(policy) or ''
  return path.startswith('exit_rule') and hasattr(
    policy.exit_rule, 'thresholds'
  )


def changed_rows(
  earlier: DecodedDataset, policy: decoding.ComputePolicy
) -> np.ndarray:
  """Returns the rows that may decode differently under `policy`, bool [N].

  Args:
    earlier: a decode under the same policy at thresholds that are not lower at
      any position; the caller answers for that.
    policy: its exit rule has thresholds (a `ConfidenceExit`), the same for all
      rows.

  Raises:
    ValueError: if it has none.
  """
  rule = policy.exit_rule
  if not hasattr(rule, 'thresholds'):
    raise ValueError(
      f'{type(rule).__name__} has no thresholds, so nothing follows from one '
      'of its decodes for another'
    )
  max_length = earlier.tokens.shape[1]
  thresholds = np.asarray(jax.device_get(rule.thresholds(max_length)))
  # A compiled program may round a threshold's last digit the other way; a row
  # decoded again for nothing costs less than one that should have been.
  near = thresholds - _ROUNDING
  return (earlier.rejected_confidences >= near).any(axis=1)


def take_over(
  store: DecodeStore,
  earlier: DecodedDataset,
  policy: decoding.ComputePolicy,
  *,
  share: collectives.Share | None = None,
) -> int:
  """Puts the rows of an earlier decode that stay the same into a store.

  Args:
    store: of decodes under `policy`.
    earlier: see `changed_rows`.
    policy: see `changed_rows`.
    share: the rows to take, of several processes; all if None.

  Returns:
    How many of them rows stay the same.
  """
  share = collectives.Share() if share is None else share
  unchanged = ~changed_rows(earlier, policy)
  same = np.flatnonzero(unchanged & share.holds(np.arange(len(unchanged))))
  rows = {
    name: np.asarray(getattr(earlier, name))[same]
    for name in store.fields
    if name != 'seconds'
  }
  rows['seconds'] = np.zeros(same.size, np.float64)
  keys = [
    row_key(earlier.example_ids[i], earlier.batch_shapes[i]) for i in same
  ]
  store.add(keys, rows)
  return same.size
