"""What a threshold does to outputs whose exits have all been looked at.

NumPy alone. A trace says the confidence and the token of every exit of every
position of an output, given the tokens before. A row exits where its confidence
reaches the threshold, and follows the output until it says another token, that
one included. Where a number is so close to another that two programs may order
them differently, nothing is concluded.
"""

import dataclasses

import numpy as np

from calm_jax.decoding import Trace
from calm_jax.evaluation.decode_store import WORK

# A block of positions and one position after the other differ in the last bits.
_CONFIDENCE_ROUNDING = 1e-5
_LOGIT_ROUNDING = 1e-4


@dataclasses.dataclass(frozen=True, eq=False)
class Followed:
  """How far N outputs follow from a trace.

  Attributes:
    rows: fields of `DecodeResult` for their first tokens, as far as they
      follow, [N, ...] each.
    ended: bool [N], whether that is all of the output.
    unsure: bool [N], whether it goes no further because of numbers that are too
      close to each other, so that the row is to be decoded.
  """

  rows: dict[str, np.ndarray]
  ended: np.ndarray
  unsure: np.ndarray

  def take(self, which: np.ndarray) -> 'Followed':
    """Returns those at `which`."""
    return Followed(
      rows={name: array[which] for name, array in self.rows.items()},
      ended=self.ended[which],
      unsure=self.unsure[which],
    )


def follow(
  trace: Trace,
  outputs: np.ndarray,
  lengths: np.ndarray,
  thresholds: np.ndarray,
  *,
  eos_id: int,
) -> Followed:
  """Follows outputs under thresholds for as long as a trace says how.

  Args:
    trace: of the outputs, NumPy arrays [N, T, L].
    outputs: int32 [N, T], the tokens that were traced.
    lengths: int32 [N], how many of them count.
    thresholds: float32 [T], of every position.
    eos_id: the token that ends a row.
  """
  last = trace.confidences.shape[-1] - 1
  limits = thresholds[:, None]
  with np.errstate(invalid='ignore'):
    reached = trace.confidences >= limits - _CONFIDENCE_ROUNDING
    # The last layer ends every row.
    reached[..., last] = True
    exits = reached.argmax(axis=-1)

    def at_exit(array):
      return np.take_along_axis(array, exits[..., None], axis=-1)[..., 0]

    confidences = at_exit(trace.confidences)
    sure = (exits == last) | (confidences > thresholds + _CONFIDENCE_ROUNDING)
    sure &= at_exit(trace.leads) > _LOGIT_ROUNDING
  log_probabilities = at_exit(trace.log_probabilities)
  sure &= np.isfinite(log_probabilities)
  tokens = at_exit(trace.tokens)
  counts = np.arange(outputs.shape[1]) < lengths[:, None]
  first_unsure = _first(~sure & counts)
  first_other = _first((tokens != outputs) & counts)
  unsure = first_unsure <= first_other
  unsure &= first_unsure < lengths
  followed = np.minimum(np.minimum(first_unsure, first_other + 1), lengths)
  kept = np.arange(outputs.shape[1]) < followed[:, None]
  tokens = np.where(kept, tokens, 0)
  same = (first_other >= lengths) & ~unsure
  said_last = np.take_along_axis(
    tokens, np.maximum(followed - 1, 0)[:, None], axis=1
  )[:, 0]
  full = followed == outputs.shape[1]
  is_ended = (followed > 0) & ((said_last == eos_id) | full)
  rejected = np.where(
    np.arange(last + 1) < exits[..., None],
    np.nan_to_num(trace.confidences, nan=-np.inf),
    -np.inf,
  ).max(axis=-1)
  return Followed(
    rows=dict(
      lengths=followed.astype(np.int32),
      tokens=tokens.astype(np.int32),
      exit_layers=np.where(kept, exits + 1, -1).astype(np.int32),
      confidences=np.where(kept, confidences, np.nan).astype(np.float32),
      rejected_confidences=np.where(kept, rejected, -np.inf).astype(np.float32),
      scores=np.where(kept, log_probabilities, 0.0).sum(
        axis=1, dtype=np.float32
      ),
    ),
    ended=~unsure & (same | is_ended),
    unsure=unsure,
  )


def work_of(
  exit_layers: np.ndarray, looks: np.ndarray, *, vocab_size: int
) -> np.ndarray:
  """Returns the ledger that a decode with `CatchUp` keeps of such exits.

  Args:
    exit_layers: int32 [N, T], -1 where nothing is decoded.
    looks: bool [L], layers after which states are read out into logits; all
      False for a rule that needs none, which reads exit states.
    vocab_size: V.

  Returns:
    int64 [N, columns], sums over the positions of each row, in the order of
    `interfaces.Work`.
  """
  layers = np.arange(len(looks))
  runs = exit_layers[..., None] > layers
  attention = runs.sum(axis=(1, 2))
  # A row that runs a layer takes along all of its positions that lack it.
  ends = np.arange(1, exit_layers.shape[1] + 1)[:, None]
  ran = np.where(runs, ends, 0).max(axis=1).sum(axis=1)
  checks = (runs & looks).sum(axis=(1, 2))
  if looks.any():
    checks += (runs[..., -1] & ~looks[-1]).sum(axis=1)
  else:
    checks = runs[..., 0].sum(axis=1)
  columns = dict(
    attention=attention,
    feed_forward=attention,
    caught_up=ran - attention,
    fills=attention,
    projections=ran,
    checks=checks,
    outputs=checks * vocab_size,
  )
  nothing = np.zeros(len(exit_layers), np.int64)
  return np.stack([columns.get(name, nothing) for name in WORK], axis=1)


def _first(where: np.ndarray) -> np.ndarray:
  """Returns the first position of each row [N, T] where it holds; T if none."""
  found = where.argmax(axis=1)
  return np.where(where.any(axis=1), found, where.shape[1])
