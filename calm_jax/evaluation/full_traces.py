"""Calibration for next to nothing: outputs that follow from known ones.

With exact K/V (`CatchUp`) an early-exit output equals the full model's until an
exit says another token, and up to there all its exits follow from ONE pass over
the full model's output, at any threshold. So a grid of thresholds takes one
such pass; an output in which nothing changes is not decoded at all, another one
from behind its first changed token on. What its exits say there holds for any
threshold, too: no token is decoded twice behind the same tokens.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import decoding, exits, interfaces, sharding
from calm_jax.evaluation import following
from calm_jax.evaluation.compile_clock import compile_seconds
from calm_jax.evaluation.decode_dataset import Batch, valid_rows
from calm_jax.evaluation.decode_store import DecodeStore
from calm_jax.evaluation.decoded_dataset import DecodedDataset, Input
from calm_jax.processes import collectives


def follows_from_full(
  bound: interfaces.BoundDecoder, policy: decoding.ComputePolicy
) -> bool:
  """Whether greedy outputs under a policy follow from the full model's.

  They do where K/V are exact, every layer runs, the exit rule compares a
  measure of the present state with a threshold, the same for all rows, and
  logits are over the whole vocabulary; no draft is checked. Numbers must be
  those of float32, too: otherwise a block of positions and one position after
  the other say different tokens too often.

  Args:
    bound: the decoder with its parameters.
    policy: the policy, at any threshold.
  """
  rule = policy.exit_rule
  return (
    isinstance(policy.cache_fill, decoding.CatchUp)
    and isinstance(policy.layer_plan, decoding.EveryLayer)
    and isinstance(policy.readout, decoding.FullVocabulary)
    and not policy.verifies
    and isinstance(rule, exits.ConfidenceExit)
    and not any(map(jnp.ndim, jax.tree.leaves(rule.threshold)))
    and _is_float32(bound)
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _Known:
  """An output of a row whose exits have been looked at.

  Attributes:
    tokens: int32 [T].
    length: how many of them count.
    trace: of them, [T, L].
  """

  tokens: np.ndarray
  length: int
  trace: decoding.Trace


class FullTraces:
  """What every exit says of known outputs, once for all thresholds.

  The full model's are known from the beginning, and run when something is first
  wanted of them; others as thresholds say them. Each process has those of its
  own rows.
  """

  def __init__(
    self,
    bound: interfaces.BoundDecoder,
    batches: Sequence[Batch],
    full: DecodedDataset,
    policy: decoding.ComputePolicy,
    *,
    max_length: int,
    eos_id: int,
    suppressed_tokens: Sequence[int] = (),
    share: collectives.Share | None = None,
    progress: Callable[[str], None] | None = None,
  ):
    """Runs nothing yet.

    Args:
      bound: the decoder with its parameters.
      batches: as for `decode_dataset`.
      full: the full model's decode of them.
      policy: at any threshold, one that `follows_from_full`.
      max_length: T, the most tokens of an output, EOS included.
      eos_id: the id that ends a sequence.
      suppressed_tokens: ids that are never said.
      share: the inputs that this process decodes; all if None.
      progress: gets a line per threshold.
    """
    self._bound, self._full, self._policy = bound, full, policy
    self._options = dict(
      max_length=max_length,
      eos_id=eos_id,
      suppressed_tokens=tuple(suppressed_tokens) or None,
    )
    self._share = collectives.Share() if share is None else share
    self._say = progress if progress is not None else lambda line: None
    inputs: list[Input] = []
    for batch in batches:
      inputs.extend(valid_rows(batch, len(inputs)))
    # One whose logits were not finite is decoded wherever it is asked for.
    self._inputs = [
      row
      for row in inputs
      if self._share.holds(row.place) and not np.isnan(full.scores[row.place])
    ]
    self._known: dict[int, list[_Known]] = {}
    self._seconds = 0.0

  def total_seconds(self) -> float:
    """Returns the time that traces took, of all processes; all must call it."""
    mine = np.float64(self._seconds).tobytes()
    return sum(
      float(np.frombuffer(theirs)[0]) for theirs in self._share.gather(mine)
    )

  def fill(self, store: DecodeStore, policy: decoding.ComputePolicy) -> None:
    """Puts into a store what follows, and decodes what changes behind that.

    Rows that hang on the last digits of a number are left to be decoded.

    Args:
      store: of decodes under `policy`; rows that it holds are let alone.
      policy: this policy at another threshold; nothing follows for others.
    """
    if decoding.describe(policy) != decoding.describe(self._policy):
      return
    rows = [row for row in self._inputs if row.key not in store]
    if not rows:
      return
    self._run([row for row in rows if row.place not in self._known])
    max_length = self._options['max_length']
    rule: Any = policy.exit_rule
    thresholds = np.asarray(jax.device_get(rule.thresholds(max_length)))
    known = [known for row in rows for known in self._known[row.place]]
    owner = np.repeat(
      np.arange(len(rows)), [len(self._known[row.place]) for row in rows]
    )
    followed = self._follow(known, thresholds)
    # Of each row the output that it follows furthest, to its end if it does.
    far = 2 * followed.rows['lengths'] + followed.ended
    order = np.lexsort((far, owner))
    best = order[np.r_[owner[order][1:] != owner[order][:-1], True]]
    ended = followed.ended[best]
    self._keep(store, rows, followed, np.flatnonzero(ended), best[ended])
    going = np.flatnonzero(~ended & ~followed.unsure[best])
    lengths = followed.rows['lengths'][best]
    # What takes long with what takes long, as far as that is known.
    full_lengths = self._full.lengths[[row.place for row in rows]]
    going = going[np.argsort((full_lengths - lengths)[going], kind='stable')]
    continued = 0
    for part, size in _in_batches([rows[i] for i in going], self._bound.mesh):
      these, going = going[: len(part)], going[len(part) :]
      from_ = best[these]
      continued += self._extend(
        store,
        part,
        size,
        [known[i] for i in from_],
        followed.rows['tokens'][from_],
        lengths[these],
        thresholds,
      )
    self._say(
      f'of {len(rows)} outputs {int(ended.sum())} follow from known ones, '
      f'{continued} went on from their first other token, '
      f'{len(rows) - int(ended.sum()) - continued} are to be decoded'
    )

  def _follow(
    self, known: Sequence[_Known], thresholds: np.ndarray
  ) -> following.Followed:
    """Follows known outputs under thresholds [T]."""
    return following.follow(
      jax.tree.map(
        lambda *traces: np.stack(traces), *[entry.trace for entry in known]
      ),
      np.stack([entry.tokens for entry in known]),
      np.array([entry.length for entry in known]),
      thresholds,
      eos_id=self._options['eos_id'],
    )

  def _keep(
    self,
    store: DecodeStore,
    rows: Sequence[Input],
    followed: following.Followed,
    which: np.ndarray,
    best: np.ndarray,
    seconds: float = 0.0,
  ) -> None:
    """Keeps some of the rows, those at `best` of what was followed."""
    if not which.size:
      return
    arrays = {name: array[best] for name, array in followed.rows.items()}
    rule, last = self._policy.exit_rule, self._bound.num_layers - 1
    looks = np.array([rule.looks(layer) for layer in range(last + 1)])
    arrays['work'] = following.work_of(
      arrays['exit_layers'],
      looks & rule.needs_logits,
      vocab_size=self._bound.vocab_size,
    )
    arrays['seconds'] = np.full(which.size, seconds / which.size)
    store.add([rows[i].key for i in which], arrays)

  def _extend(
    self,
    store: DecodeStore,
    rows: list[Input],
    size: int,
    known: Sequence[_Known],
    tokens: np.ndarray,
    lengths: np.ndarray,
    thresholds: np.ndarray,
  ) -> int:
    """Decodes rows of a batch from where they leave what is known of them.

    Args:
      store: gets them.
      rows: the rows.
      size: of the batch.
      known: the outputs that they follow.
      tokens: int32 [n, T], what they say up to the first other token.
      lengths: int32 [n], how many tokens that is.
      thresholds: float32 [T].

    Returns:
      How many of them do not hang on the last digits of a number.
    """
    clock = _Clock()
    filled = np.array(_filled(range(len(rows)), size))
    found = decoding.extend(
      self._start(rows, size), tokens[filled], lengths[filled], thresholds
    )
    said, new_lengths, trace = jax.device_get(found)
    seconds = clock.seconds()
    new = []
    for number, (row, parent) in enumerate(zip(rows, known, strict=True)):
      before = np.arange(tokens.shape[1])[:, None] < lengths[number]
      joined = jax.tree.map(
        lambda old, leaf, number=number, before=before: np.where(
          before, old, leaf[number]
        ),
        parent.trace,
        trace,
      )
      new.append(_Known(said[number], int(new_lengths[number]), joined))
      self._known[row.place].append(new[-1])
    followed = self._follow(new, thresholds)
    good = np.flatnonzero(followed.ended)
    self._keep(store, rows, followed, good, good, seconds)
    if not good.size:
      self._seconds += seconds
    return good.size

  def _run(self, rows: list[Input]) -> None:
    """Looks at every exit of the full outputs of rows."""
    # Long ones with long ones: a batch takes as long as its longest.
    rows = sorted(rows, key=lambda row: self._full.lengths[row.place])
    for part, size in _in_batches(rows, self._bound.mesh):
      clock = _Clock()
      places = [row.place for row in _filled(part, size)]
      tokens, lengths = self._full.tokens, self._full.lengths
      trace = decoding.trace(
        self._start(part, size), tokens[places], lengths[places]
      )
      trace = jax.device_get(trace)
      self._seconds += clock.seconds()
      for number, row in enumerate(part):
        of_row = jax.tree.map(lambda leaf, number=number: leaf[number], trace)
        self._known[row.place] = [
          _Known(tokens[row.place], int(lengths[row.place]), of_row)
        ]

  def _start(self, rows: list[Input], size: int) -> decoding.DecodeState:
    """Starts a decode of rows, filled up to a size."""
    inputs = np.stack([row.tokens for row in _filled(rows, size)])
    return decoding.start(
      self._bound, inputs, policy=self._policy, **self._options
    )


class _Clock:
  """Seconds since it was made, compilation left out."""

  def __init__(self):
    self._start, self._compiled = time.perf_counter(), compile_seconds()

  def seconds(self) -> float:
    compiled = compile_seconds() - self._compiled
    return max(time.perf_counter() - self._start - compiled, 1e-9)


def _is_float32(bound: interfaces.BoundDecoder) -> bool:
  """Whether products of matrices have the digits of float32."""
  precision = str(jax.config.jax_default_matmul_precision or '')
  exact = precision in ('highest', 'float32')
  on_cpu = jax.default_backend() == 'cpu' and precision in ('', 'default')
  return jnp.finfo(bound.decoder.dtype).bits >= 32 and (exact or on_cpu)


def _filled(rows: Sequence[Any], size: int) -> list[Any]:
  """Returns rows with the first one again in the places that are left over."""
  return [*rows, *[rows[0]] * (size - len(rows))]


def _in_batches(
  rows: Sequence[Input], mesh: jax.sharding.Mesh | None
) -> Iterator[tuple[list[Input], int]]:
  """Yields rows in batches of their shapes, and of what size to make these.

  What is left over goes into batches of a quarter, if one or two hold it:
  another size is another program, but a batch takes as long as its size.
  """
  parts = 1 if mesh is None else mesh.shape[sharding.DATA]
  by_shape: dict[tuple[int, int], list[Input]] = {}
  for row in rows:
    by_shape.setdefault(row.batch_shape, []).append(row)
  for (size, _), waiting in by_shape.items():
    quarter = size // 4
    if not quarter or quarter % parts:
      quarter = size
    while waiting:
      now = size if len(waiting) > 2 * quarter else quarter
      yield waiting[:now], now
      waiting = waiting[now:]
