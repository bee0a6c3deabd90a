"""Tries how a decoder reads K/V in other places; a part of `check_decoder`."""

import jax.numpy as jnp

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.slot_views import CachedPositions
from calm_jax.interfaces.trial import Trial


def check_context(
  trial: Trial, layer: int, hidden: Array, cache: PyTree, attended: Array
) -> None:
  """Raises the fault of a decoder that says `accepts_context`.

  Args:
    trial: the decoder on trial.
    layer: the layer.
    hidden: [B, T, D], what enters it.
    cache: in which its K/V are not made.
    attended: [B, T, D], after its attention, every position in its own place.
  """
  name, length = 'attend', trial.max_length
  rows = jnp.arange(len(hidden))[:, None]
  # Backwards, and every row begins elsewhere.
  held = (rows - jnp.arange(length)) % length
  moved = cache
  for place in range(length):
    states = trial.at(hidden, held[:, place : place + 1])
    places = jnp.full_like(rows, place)
    moved = trial.call('fill_layer', layer, states, places, moved)

  def read(cache, held):
    context = CachedPositions(held)
    return trial.call(
      name, layer, hidden, trial.positions, cache, context=context
    )

  trial.equal(
    name,
    read(moved, held),
    attended,
    'K/V in other places than their positions are read otherwise, though the '
    'decoder says accepts_context',
    'take positions of keys from CachedPositions, or leave it False',
  )
  # The first position goes; the others read themselves at least.
  hidden_away = jnp.where(held == 0, -1, held)
  first = jnp.argmin(held, axis=1)[:, None]
  other = trial.call('fill_layer', layer, hidden[:, :1] + 1, first, moved)
  trial.equal(
    name,
    read(other, hidden_away)[:, 1:],
    read(moved, hidden_away)[:, 1:],
    'what lies in a place whose position is negative is read',
    'mask the places where CachedPositions is negative',
  )
  each = jnp.broadcast_to(held[:, None], (*hidden.shape[:2], length))
  trial.equal(
    name,
    read(moved, jnp.where(each > trial.positions[..., None], -1, each)),
    attended,
    'places given by query, [B, P, C], are read otherwise',
    'mask for each query the places that are negative for it',
  )
