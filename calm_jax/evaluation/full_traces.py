"""Calibration for next to nothing: outputs that follow from the full model's.

With exact K/V (`CatchUp`) an early-exit output equals the full model's until an
exit says another token, and up to there all its exits follow from ONE pass over
the full model's output, at any threshold. So a grid of thresholds takes one
such pass; an output in which nothing changes is not decoded at all, another one
from behind its first changed token on.
"""

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
from calm_jax.evaluation.decode_store import FIELDS, DecodeStore
from calm_jax.evaluation.decoded_dataset import DecodedDataset, Input
from calm_jax.evaluation.threshold_reuse import unchanged_lengths
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


class FullTraces:
  """What every exit says of the full model's outputs, once for all thresholds.

  Outputs are run when something is first wanted of them. Each process has those
  of its own rows.
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
    self._traces: dict[int, decoding.Trace] = {}
    self._seconds = 0.0

  def total_seconds(self) -> float:
    """Returns the time that traces took, of all processes; all must call it."""
    mine = np.float64(self._seconds).tobytes()
    return sum(
      float(np.frombuffer(theirs)[0]) for theirs in self._share.gather(mine)
    )

  def fill(
    self,
    store: DecodeStore,
    policy: decoding.ComputePolicy,
    earlier: DecodedDataset | None = None,
  ) -> None:
    """Puts into a store what follows, and decodes what changes behind that.

    Rows that hang on the last digits of a number are left to be decoded.

    Args:
      store: of decodes under `policy`; rows that it holds are let alone.
      policy: this policy at another threshold; nothing follows for others.
      earlier: a decode at thresholds that are not lower at any position. An
        output that left the full model's before goes on from where it leaves
        this one.
    """
    if decoding.describe(policy) != decoding.describe(self._policy):
      return
    rows = [row for row in self._inputs if row.key not in store]
    if not rows:
      return
    self._run([row for row in rows if row.place not in self._traces])
    max_length = self._options['max_length']
    thresholds = np.asarray(policy.exit_rule.thresholds(max_length))
    places = [row.place for row in rows]
    followed = following.follow(
      jax.tree.map(
        lambda *traces: np.stack(traces),
        *[self._traces[place] for place in places],
      ),
      self._full.tokens[places],
      self._full.lengths[places],
      thresholds,
      eos_id=self._options['eos_id'],
    )
    prefix = followed.prefix
    ended = np.flatnonzero(followed.ended)
    self._derive(store, [rows[i] for i in ended], followed, ended)
    if earlier is not None:
      prefix = _longer(prefix, earlier, places, policy)
    going = np.flatnonzero(~followed.ended & ~followed.unsure)
    # What takes long with what takes long, as far as that is known.
    left = (self._full.lengths[places] - prefix.lengths)[going]
    going = going[np.argsort(left, kind='stable')]
    continued = self._continue(
      store, [rows[i] for i in going], _taken(prefix, going), policy, thresholds
    )
    self._say(
      f'of {len(rows)} outputs {ended.size} follow from the full model, '
      f'{continued} went on from where they change, '
      f'{len(rows) - ended.size - continued} are to be decoded'
    )

  def _derive(
    self,
    store: DecodeStore,
    rows: list[Input],
    followed: following.Followed,
    ended: np.ndarray,
  ) -> None:
    """Keeps outputs that follow to their ends."""
    arrays = {
      **vars(_taken(followed.prefix, ended)),
      'scores': followed.scores[ended],
      'seconds': np.zeros(len(rows), np.float64),
    }
    store.add([row.key for row in rows], arrays)

  def _continue(
    self,
    store: DecodeStore,
    rows: list[Input],
    prefix: decoding.Prefix,
    policy: decoding.ComputePolicy,
    thresholds: np.ndarray,
  ) -> int:
    """Decodes outputs from where they stop following; returns how many."""
    done, kept = 0, 0
    for part, size in _in_batches(rows, self._bound.mesh):
      clock = _Clock()
      places = _filled(range(done, done + len(part)), size)
      state = self._start(part, size, policy)
      state = decoding.resume(state, _taken(prefix, np.array(places)))
      result = jax.device_get(decoding.finish(decoding.advance(state)))
      seconds = clock.seconds()
      arrays = {
        name: np.asarray(getattr(result, name))[: len(part)]
        for name in FIELDS
        if name != 'seconds'
      }
      before = prefix.lengths[done : done + len(part)]
      doubtful = following.is_close(
        arrays, before, thresholds, num_layers=self._bound.num_layers
      )
      good = np.flatnonzero(~doubtful & ~np.isnan(arrays['scores']))
      done += len(part)
      kept += good.size
      if not good.size:
        self._seconds += seconds
        continue
      arrays = {name: array[good] for name, array in arrays.items()}
      arrays['seconds'] = np.full(good.size, seconds / good.size)
      store.add([part[i].key for i in good], arrays)
    return kept

  def _run(self, rows: list[Input]) -> None:
    """Looks at every exit of the full outputs of rows."""
    # Long ones with long ones: a batch takes as long as its longest.
    rows = sorted(rows, key=lambda row: self._full.lengths[row.place])
    for part, size in _in_batches(rows, self._bound.mesh):
      clock = _Clock()
      places = [row.place for row in _filled(part, size)]
      state = self._start(part, size, self._policy)
      trace = decoding.trace(
        state, self._full.tokens[places], self._full.lengths[places]
      )
      trace = jax.device_get(trace)
      self._seconds += clock.seconds()
      for number, row in enumerate(part):
        self._traces[row.place] = jax.tree.map(
          lambda leaf, number=number: leaf[number], trace
        )

  def _start(
    self, rows: list[Input], size: int, policy: decoding.ComputePolicy
  ) -> decoding.DecodeState:
    """Starts a decode of rows, filled up to a size."""
    inputs = np.stack([row.tokens for row in _filled(rows, size)])
    return decoding.start(self._bound, inputs, policy=policy, **self._options)


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


def _taken(prefix: decoding.Prefix, rows: np.ndarray) -> decoding.Prefix:
  """Returns the prefixes of rows [n]."""
  return jax.tree.map(lambda leaf: leaf[rows], prefix)


def _longer(
  prefix: decoding.Prefix,
  earlier: DecodedDataset,
  places: Sequence[int],
  policy: decoding.ComputePolicy,
) -> decoding.Prefix:
  """Returns prefixes of rows, or those of an earlier decode that are longer."""
  unchanged = unchanged_lengths(earlier, policy)[places]
  # Rows that do not change at all are for `take_over`.
  longer = (unchanged > prefix.lengths) & (unchanged < earlier.lengths[places])
  lengths = np.where(longer, unchanged, prefix.lengths)
  kept = np.arange(earlier.tokens.shape[1]) < lengths[:, None]
  nothing = {
    'tokens': 0,
    'exit_layers': -1,
    'confidences': np.float32(np.nan),
    'rejected_confidences': np.float32(-np.inf),
  }
  arrays = {
    name: np.where(
      longer[:, None],
      np.where(kept, getattr(earlier, name)[places], empty),
      getattr(prefix, name),
    )
    for name, empty in nothing.items()
  }
  return decoding.Prefix(lengths=lengths.astype(np.int32), **arrays)


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
