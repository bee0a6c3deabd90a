"""Calibration for next to nothing: outputs that follow from known ones.

With exact K/V (`CatchUp`) an early-exit output equals the full model's until an
exit says another token, and up to there all its exits follow from looking at
all exits of the full model's output, at any threshold. So a grid of thresholds
takes the full model once; an output in which nothing changes is not decoded at
all, another one from behind its first changed token on. What its exits say
there holds for any threshold, too: no token is decoded twice behind the same
tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import decoding, interfaces
from calm_jax.evaluation import following, row_batches
from calm_jax.evaluation.changed_rows import ChangedRows
from calm_jax.evaluation.compile_clock import CompiledClock
from calm_jax.evaluation.decode_dataset import Batch, valid_rows
from calm_jax.evaluation.decode_progress import DecodeProgress
from calm_jax.evaluation.decode_store import DecodeStore
from calm_jax.evaluation.decoded_dataset import DecodedDataset, Input
from calm_jax.evaluation.known_outputs import KnownOutputs
from calm_jax.processes import collectives

# Places of a batch that are left over hold rows of so many coming thresholds.
_AHEAD = 3


class FullTraces:
  """What every exit says of known outputs, once for all thresholds.

  The full model's are known first; others as thresholds say them. Each process
  has those of its own rows.
  """

  def __init__(
    self,
    bound: interfaces.BoundDecoder,
    batches: Sequence[Batch],
    policy: decoding.ComputePolicy,
    *,
    max_length: int,
    eos_id: int,
    suppressed_tokens: Sequence[int] = (),
    coming: Sequence[decoding.ComputePolicy] = (),
    share: collectives.Share | None = None,
    progress: Callable[[str], None] | None = None,
  ):
    """Runs nothing yet.

    Args:
      bound: the decoder with its parameters.
      batches: as for `decode_dataset`.
      policy: at any threshold, one that `follows_from_full`.
      max_length: T, the most tokens of an output, EOS included.
      eos_id: the id that ends a sequence.
      suppressed_tokens: ids that are never said.
      coming: the policies that will be asked for, in their order, as far as
        that is known.
      share: the inputs that this process decodes; all if None.
      progress: gets a line per threshold.
    """
    self._bound, self._policy, self._max_length = bound, policy, max_length
    self._share = collectives.Share() if share is None else share
    self._progress = progress
    self._batches = row_batches.RowBatches(
      bound,
      policy,
      max_length=max_length,
      eos_id=eos_id,
      suppressed_tokens=suppressed_tokens,
    )
    inputs: list[Input] = []
    for batch in batches:
      inputs.extend(valid_rows(batch, len(inputs)))
    self._inputs = [row for row in inputs if self._share.holds(row.place)]
    self._full: DecodedDataset | None = None
    self._known = KnownOutputs(eos_id)
    self._coming = [
      self._thresholds(policy) for policy in coming if self._is_of(policy)
    ]
    self._seconds = 0.0

  def total_seconds(self) -> float:
    """Returns the time that traces took, of all processes; all must call it."""
    mine = np.float64(self._seconds).tobytes()
    return sum(
      float(np.frombuffer(theirs)[0]) for theirs in self._share.gather(mine)
    )

  def decode_full(self, store: DecodeStore) -> None:
    """Decodes the full model's outputs, and looks at all exits on the way.

    Outputs that hang on the last digits of a number are left to be decoded.

    Args:
      store: of the full model's decodes; rows that it holds are let alone.
    """
    rows = [row for row in self._inputs if row.key not in store]
    line = DecodeProgress(
      self._progress,
      len(self._inputs),
      there=len(self._inputs) - len(rows),
      seconds_between=10.0,
    )
    never = np.full(self._max_length, np.inf, np.float32)
    # Short inputs together: their outputs tend to be short, too.
    sizes = np.array([np.count_nonzero(row.tokens) for row in rows], int)
    for places, _ in row_batches.batches_of(rows, sizes):
      clock = CompiledClock()
      part = [rows[place] for place in places]
      nothing = np.zeros((len(part), self._max_length), np.int32)
      found = self._batches.extend(
        part, nothing, nothing[:, 0], np.broadcast_to(never, nothing.shape)
      )
      numbers = self._known.add([row.place for row in part], *found)
      followed = self._known.follow(numbers, never)
      good = np.flatnonzero(followed.ended)
      rule = decoding.full_model(self._policy).exit_rule
      good_rows = [part[i] for i in good]
      self._keep(store, good_rows, followed.take(good), rule, clock)
      exit_layers = followed.exit_layers[followed.exit_layers > 0]
      line.update(len(part), exit_layers.size, exit_layers.tolist())

  def know(self, full: DecodedDataset) -> None:
    """Takes the full model's outputs; before anything follows from them."""
    self._full = full
    # One whose logits were not finite is decoded wherever it is asked for.
    self._inputs = [
      row for row in self._inputs if not np.isnan(full.scores[row.place])
    ]

  def fill(self, store: DecodeStore, policy: decoding.ComputePolicy) -> None:
    """Puts into a store what follows, and decodes what changes behind that.

    Rows that hang on the last digits of a number are left to be decoded.

    Args:
      store: of decodes under `policy`; rows that it holds are let alone.
      policy: this policy at another threshold; nothing follows for others.
    """
    rows = [row for row in self._inputs if row.key not in store]
    if not rows or not self._is_of(policy):
      return
    clock = CompiledClock()
    self._look_at_full([row for row in rows if row.place not in self._known])
    rule, thresholds = policy.exit_rule, self._thresholds(policy)
    places = [row.place for row in rows]
    furthest = self._known.follow_furthest(places, thresholds)
    ended = np.flatnonzero(furthest.followed.ended)
    self._keep(
      store, [rows[i] for i in ended], furthest.followed.take(ended), rule
    )
    changed = self._changed(rows, furthest, thresholds)
    continued = 0
    if changed.rows:
      numbers = self._extend(self._with_coming(changed, thresholds))
      followed = self._known.follow(numbers[: len(changed.rows)], thresholds)
      good = np.flatnonzero(followed.ended)
      continued = good.size
      good_rows = [changed.rows[i] for i in good]
      self._keep(store, good_rows, followed.take(good), rule, clock)
    if not continued:
      self._seconds += clock.seconds()
    if self._progress is not None:
      self._progress(
        f'of {len(rows)} outputs {ended.size} follow from known ones, '
        f'{continued} went on from their first other token, '
        f'{len(rows) - ended.size - continued} are to be decoded'
      )

  def _is_of(self, policy: decoding.ComputePolicy) -> bool:
    """Whether a policy is this one at some threshold."""
    return decoding.describe(policy) == decoding.describe(self._policy)

  def _thresholds(self, policy: decoding.ComputePolicy) -> np.ndarray:
    """Returns the thresholds of all positions, float32 [T]."""
    rule: Any = policy.exit_rule
    return np.asarray(jax.device_get(rule.thresholds(self._max_length)))

  def _look_at_full(self, rows: list[Input]) -> None:
    """Looks at every exit of the full outputs of rows."""
    if not rows:
      return
    places = [row.place for row in rows]
    tokens, lengths = self._full.tokens[places], self._full.lengths[places]
    trace = self._batches.trace(rows, tokens, lengths)
    self._known.add(places, tokens, lengths, trace)

  def _changed(self, rows, furthest, thresholds) -> ChangedRows:
    """Returns the rows that say another token than all known outputs."""
    going, followed = furthest.going, furthest.followed
    shape = going.size, self._max_length
    return ChangedRows(
      [rows[i] for i in going],
      furthest.outputs[going],
      followed.tokens[going],
      followed.lengths[going],
      np.broadcast_to(thresholds, shape),
    )

  def _with_coming(
    self, changed: ChangedRows, thresholds: np.ndarray
  ) -> ChangedRows:
    """Fills batches up with rows that change at coming thresholds."""
    spare: dict[tuple[int, int], int] = {}
    for row in changed.rows:
      left = spare.get(row.batch_shape, 0) or row.batch_shape[0]
      spare[row.batch_shape] = left - 1
    known = set(changed.keys())
    for coming in self._after(thresholds):
      if not any(spare.values()):
        break
      rows = [row for row in self._inputs if spare.get(row.batch_shape)]
      rows = [row for row in rows if row.place in self._known]
      furthest = self._known.follow_furthest(
        [row.place for row in rows], coming
      )
      found, taken = self._changed(rows, furthest, coming), []
      for i, key in enumerate(found.keys()):
        shape = found.rows[i].batch_shape
        if key not in known and spare[shape]:
          spare[shape] -= 1
          known.add(key)
          taken.append(i)
      changed = changed.plus(found.take(taken))
    return changed

  def _after(self, thresholds: np.ndarray) -> list[np.ndarray]:
    """Returns the thresholds that are asked for next, as far as is known."""
    for number, coming in enumerate(self._coming, 1):
      if np.array_equal(coming, thresholds):
        return self._coming[number : number + _AHEAD]
    return []

  def _extend(self, changed: ChangedRows) -> np.ndarray:
    """Decodes rows from where they changed; returns their outputs' numbers."""
    tokens, lengths, trace = self._batches.extend(
      changed.rows, changed.tokens, changed.lengths, changed.thresholds
    )
    before = np.arange(self._max_length) < changed.lengths[:, None]
    trace = jax.tree.map(
      lambda old, new: np.where(before[..., None], old, new),
      self._known.trace_of(changed.parents),
      trace,
    )
    places = [row.place for row in changed.rows]
    return self._known.add(places, tokens, lengths, trace)

  def _keep(
    self,
    store: DecodeStore,
    rows: Sequence[Input],
    followed: following.Followed,
    rule: Any,
    clock: CompiledClock | None = None,
  ) -> None:
    """Keeps rows that follow to their end; they took what a clock says."""
    if not rows:
      return
    num_layers = self._bound.num_layers
    looks = np.array([rule.looks(layer) for layer in range(num_layers)])
    kept = followed.rows()
    if not looks.any():
      for name, nothing in (
        ('confidences', np.nan),
        ('rejected_confidences', -np.inf),
      ):
        kept[name] = np.full_like(kept[name], nothing)
    extra = self._policy.readout.extra_products
    work = following.work_of(
      followed.exit_layers,
      looks & rule.needs_logits,
      vocab_size=self._bound.vocab_size,
      extra_products=np.array([extra(layer) for layer in range(num_layers)]),
    )
    seconds = 0.0 if clock is None else clock.seconds() / len(rows)
    store.add(
      [row.key for row in rows],
      {
        **kept,
        'work': work,
        'seconds': np.full(len(rows), seconds),
      },
    )
