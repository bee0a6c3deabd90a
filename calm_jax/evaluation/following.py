"""What a threshold does to outputs whose exits have all been looked at.

NumPy alone. A trace says the confidence and the token of every exit of every
position of an output, given the tokens before. A row exits where its confidence
reaches the threshold, and follows the output until it says another token, that
one included. Where a number is so close to another that two programs may order
them differently, nothing is concluded.
"""

import dataclasses

import jax
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
    tokens: int32 [N, T], what they say as far as they follow, 0 behind it.
    lengths: int32 [N], how many tokens that is.
    exit_layers: int32 [N, T], in 1..L; -1 behind that.
    ended: bool [N], whether that is all of the output.
    unsure: bool [N], whether it goes no further because of numbers that are too
      close to each other, so that the row is to be decoded.
    trace: what was followed, [N, T, L].
  """

  tokens: np.ndarray
  lengths: np.ndarray
  exit_layers: np.ndarray
  ended: np.ndarray
  unsure: np.ndarray
  trace: Trace

  def take(self, which: np.ndarray) -> 'Followed':
    """Returns those at `which`."""
    fields = {
      field.name: getattr(self, field.name)[which]
      for field in dataclasses.fields(self)
      if field.name != 'trace'
    }
    trace = jax.tree.map(lambda leaf: leaf[which], self.trace)
    return Followed(**fields, trace=trace)

  def rows(self) -> dict[str, np.ndarray]:
    """Returns fields of `DecodeResult` for the tokens that follow."""
    kept = self.exit_layers > 0
    exits = np.maximum(self.exit_layers - 1, 0)
    layers = np.arange(self.trace.confidences.shape[-1])
    rejected = np.where(
      layers < exits[..., None],
      np.nan_to_num(self.trace.confidences, nan=-np.inf),
      -np.inf,
    ).max(axis=-1)
    confidences = _at(exits, self.trace.confidences)
    log_probabilities = _at(exits, self.trace.log_probabilities)
    return dict(
      lengths=self.lengths,
      tokens=self.tokens,
      exit_layers=self.exit_layers,
      confidences=np.where(kept, confidences, np.nan).astype(np.float32),
      rejected_confidences=np.where(kept, rejected, -np.inf).astype(np.float32),
      scores=np.where(kept, log_probabilities, 0.0).sum(
        axis=1, dtype=np.float32
      ),
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
    confidences = _at(exits, trace.confidences)
    sure = (exits == last) | (confidences > thresholds + _CONFIDENCE_ROUNDING)
    sure &= _at(exits, trace.leads) > _LOGIT_ROUNDING
  sure &= np.isfinite(_at(exits, trace.log_probabilities))
  tokens = _at(exits, trace.tokens)
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
  return Followed(
    tokens=tokens.astype(np.int32),
    lengths=followed.astype(np.int32),
    exit_layers=np.where(kept, exits + 1, -1).astype(np.int32),
    ended=~unsure & (same | is_ended),
    unsure=unsure,
    trace=trace,
  )


def work_of(
  exit_layers: np.ndarray,
  looks: np.ndarray,
  *,
  vocab_size: int,
  extra_products: np.ndarray,
) -> np.ndarray:
  """Returns the ledger that a decode with `CatchUp` keeps of such exits.

  Args:
    exit_layers: int32 [N, T], -1 where nothing is decoded.
    looks: bool [L], layers after which states are read out into logits; all
      False for a rule that needs none, which reads exit states.
    vocab_size: V.
    extra_products: int [L], what a read after each layer takes besides.

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
  if looks.any():
    reads = runs & (looks | (layers == len(looks) - 1))
  else:
    reads = exit_layers[..., None] == layers + 1
  checks = reads.sum(axis=(1, 2))
  columns = dict(
    attention=attention,
    feed_forward=attention,
    caught_up=ran - attention,
    fills=attention,
    projections=ran,
    checks=checks,
    outputs=checks * vocab_size,
    extra_products=(reads * extra_products).sum(axis=(1, 2)),
  )
  nothing = np.zeros(len(exit_layers), np.int64)
  return np.stack([columns.get(name, nothing) for name in WORK], axis=1)


def _at(exits: np.ndarray, array: np.ndarray) -> np.ndarray:
  """Returns what an array [N, T, L] holds at exits [N, T]."""
  return np.take_along_axis(array, exits[..., None], axis=-1)[..., 0]


def _first(where: np.ndarray) -> np.ndarray:
  """Returns the first position of each row [N, T] where it holds; T if none."""
  found = where.argmax(axis=1)
  return np.where(where.any(axis=1), found, where.shape[1])
