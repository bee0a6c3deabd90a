"""Rows of a running decode, given to other requests.

`advance` needs no two rows at the same position, so a row whose sequence has
ended can be taken over by a new request while its neighbours go on: continuous
batching with a fixed number of slots. `decode_queue` does that for a stream of
requests, inside a few compiled shapes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.decoding import starting, token_loop
from calm_jax.decoding.states import Carry, DecodeResult, DecodeState
from calm_jax.interfaces import BoundDecoder


def refill(
  state: DecodeState, slots: ArrayLike, new: DecodeState
) -> DecodeState:
  """Gives rows of a decode to the requests of one that was just started.

  Args:
    state: a decode under way; its carry is donated.
    slots: int [n], the requests (a row each, or as many as there are samples
      or beams) to give away, all different.
    new: a decode of n requests, started with the same bound decoder, policy,
      sampler and lengths; with a forced prefix if the other has one.

  Raises:
    ValueError: if the two decodes do not go together.
  """
  for holders, names in (
    ((state.bound, new.bound), ('decoder', 'depth_loop', 'mesh')),
    ((state, new), ('eos_id', 'num_samples')),
  ):
    for name in names:
      here, there = (getattr(holder, name) for holder in holders)
      if here != there:
        raise ValueError(
          f'the decodes differ in {name}; start both with the same arguments'
        )
  for name in ('sampler', 'policy'):
    here, there = (
      jax.tree.structure(getattr(one, name)) for one in (state, new)
    )
    if here != there:
      raise ValueError(
        f'the decodes differ in {name} (forced prefixes and suppressed tokens '
        'count as such); start both with the same arguments'
      )
  here, there = (
    [leaf.shape[1:] for leaf in jax.tree.leaves(one.carry)]
    for one in (state, new)
  )
  if here != there:
    raise ValueError(
      'the decodes differ in the lengths of sources or outputs; pad sources to '
      'one length and give one max_length'
    )
  rows = jnp.asarray(_rows_of(slots, state), jnp.int32)
  carry = _put_rows(state.carry, rows, new.carry)
  return dataclasses.replace(state, carry=carry)


@functools.partial(jax.jit, donate_argnames=('carry',))
def _put_rows(carry: Carry, rows: Array, new: Carry) -> Carry:
  return jax.tree.map(
    lambda leaf, values: leaf.at[rows].set(values, unique_indices=True),
    carry,
    new,
  )


def _rows_of(requests: ArrayLike, state: DecodeState) -> Array | np.ndarray:
  """Returns the rows of requests [n], int [n * rows per request]."""
  if not isinstance(requests, jax.Array):
    requests = np.asarray(requests)
  first = requests[:, None] * state.rows_per_request
  return (first + np.arange(state.rows_per_request)).reshape(-1)


def decode_queue(
  bound: BoundDecoder,
  requests: Iterable[Sequence[int]],
  *,
  num_slots: int,
  source_length: int,
  steps: int = 8,
  refill_at: int | None = None,
  rng: Array | None = None,
  watch: Callable[[Mapping[int, int]], None] | None = None,
  **options: Any,
) -> Iterator[tuple[int, DecodeResult]]:
  """Decodes a stream of requests in slots that are refilled as rows end.

  Every result is that of the request alone (law 1b), whatever shared the slots
  with it. Compiled shapes: one step program for all slots, and an encoder and a
  refill for every power of two up to their number.

  Args:
    bound: the decoder with its parameters, of `bind`.
    requests: source token ids, at most `source_length` each; read as needed.
    num_slots: B, requests decoded together.
    source_length: S, what sources are padded to.
    steps: tokens between two looks for rows that have ended. Fewer keep slots
      full, more look less often.
    refill_at: how many slots must be free before new requests are started;
      a quarter of them if None. Fewer keep slots full, more encode together.
    rng: one key, for samplers that draw: request r gets fold_in(rng, r).
    watch: called after every look with the requests in the slots, those that
      have just ended among them, and how many tokens each has; the most of its
      rows if it has several.
    **options: `policy`, `sampler`, `max_length`, `eos_id`, `num_samples` and
      `suppressed_tokens` as for `generate`. Numbers of the policy must not
      differ by row.

  Yields:
    The number of the request and its result, without a batch axis, as they are
    ready.

  Raises:
    ValueError: for a request that is empty or too long, naming it, for a
      forced prefix, or as `generate`.
  """
  if options.get('forced_prefix') is not None:
    raise ValueError(
      'forced_prefix has a row for each input of a batch, and a queue makes up '
      'batches as slots come free; use start and refill, or generate'
    )
  checks.check_whole(num_slots, 'num_slots', low=1)
  checks.check_whole(steps, 'steps', low=1)
  if refill_at is None:
    refill_at = max(1, num_slots // 4)
  checks.check_whole(refill_at, 'refill_at', low=1, high=num_slots)

  def begin(rows: list[tuple[int, np.ndarray]]) -> DecodeState:
    keys = None
    if rng is not None:
      keys = jnp.stack([jax.random.fold_in(rng, number) for number, _ in rows])
    sources = np.stack([source for _, source in rows])
    return starting.start(bound, sources, rng=keys, **options)

  queue = _padded(requests, source_length)
  slots = _Slots(num_slots)
  state, waiting = None, True
  while True:
    free = slots.free()
    if waiting and (len(free) >= refill_at or len(free) == num_slots):
      rows, waiting = _take(queue, len(free))
      for part in _powers_of_two(rows):
        taken, free = free[: len(part)], free[len(part) :]
        started = begin(part)
        if state is None:
          state = _spread(started, num_slots, taken)
        else:
          state = refill(state, np.array(taken), started)
        slots.occupy(taken, [number for number, _ in part])
    if state is None or not slots.occupied():
      return
    state = token_loop.advance(state, steps)
    if watch is not None:
      watch(slots.lengths(state))
    yield from slots.harvest(state)


class _Slots:
  """Which request sits in which slot."""

  def __init__(self, number: int):
    self._number = number
    self._requests: dict[int, int] = {}

  def free(self) -> list[int]:
    return [s for s in range(self._number) if s not in self._requests]

  def occupied(self) -> list[int]:
    return sorted(self._requests)

  def occupy(self, slots: Sequence[int], requests: Sequence[int]) -> None:
    self._requests.update(zip(slots, requests, strict=True))

  def lengths(self, state: DecodeState) -> dict[int, int]:
    """Returns request -> how many tokens it has."""
    positions = np.asarray(state.carry.positions)
    most = positions.reshape(-1, state.rows_per_request).max(axis=1)
    return {
      request: int(most[slot]) for slot, request in self._requests.items()
    }

  def harvest(self, state: DecodeState) -> Iterator[tuple[int, DecodeResult]]:
    """Yields what has ended and frees its slots."""
    alive = np.asarray(state.carry.alive).reshape(-1, state.rows_per_request)
    ended = [slot for slot in self.occupied() if not alive[slot].any()]
    if not ended:
      return
    result = jax.device_get(token_loop.finish(state))
    for slot in ended:
      request = self._requests.pop(slot)
      yield request, jax.tree.map(lambda leaf, slot=slot: leaf[slot], result)


def _padded(requests, length: int) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (number, int32 [S]) of the requests."""
  for number, request in enumerate(requests):
    source = np.asarray(request, np.int32)
    if source.ndim != 1 or not 1 <= len(source) <= length:
      raise ValueError(
        f'request {number} has shape {list(source.shape)}; give 1 to {length} '
        'token ids, or a larger source_length'
      )
    yield number, np.pad(source, (0, length - len(source)))


def _take(queue: Iterator, number: int) -> tuple[list, bool]:
  """Returns up to so many of the queue, and whether there may be more."""
  rows = []
  for row in queue:
    rows.append(row)
    if len(rows) == number:
      break
  return rows, len(rows) == number


def _powers_of_two(rows: list) -> Iterator[list]:
  """Yields the rows in parts whose sizes are powers of two, large ones first.

  >>> [len(part) for part in _powers_of_two(list(range(7)))]
  [4, 2, 1]
  """
  while rows:
    size = 1 << (len(rows).bit_length() - 1)
    yield rows[:size]
    rows = rows[size:]


def _spread(
  started: DecodeState, num_slots: int, taken: Sequence[int]
) -> DecodeState:
  """Returns a decode of all slots with what was started in the taken ones."""
  requests = np.zeros(num_slots, np.int32)
  requests[list(taken)] = np.arange(len(taken))
  rows = _rows_of(requests, started)
  held = np.isin(np.arange(num_slots), list(taken))
  held = np.repeat(held, started.rows_per_request)
  carry = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), started.carry)
  # The others are copies of a request, and have ended.
  carry = dataclasses.replace(carry, alive=carry.alive & held)
  return dataclasses.replace(started, carry=carry)
