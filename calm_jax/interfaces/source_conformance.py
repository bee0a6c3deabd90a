"""Tries what a decoder offers to source plans; a part of `check_decoder`."""

import jax.numpy as jnp

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.trial import Trial


def check_source_parts(trial: Trial, encoded: PyTree) -> None:
  """Raises the fault of a function that a source plan would call.

  Args:
    trial: the decoder on trial.
    encoded: its encoded sources.
  """
  if trial.decoder.source_states is not None:
    _check_source_states(trial, encoded)
  if trial.decoder.select_source is not None:
    _check_select_source(trial, encoded)


def _check_source_states(trial: Trial, encoded: PyTree) -> None:
  name, inputs = 'source_states', trial.inputs
  found = trial.call(name, encoded)
  if not isinstance(found, tuple) or len(found) != 2:
    raise trial.fault(
      name,
      f'returns {type(found).__name__}',
      'return states [B, S, D] and which of them are of tokens [B, S]',
    )
  states, mask = found
  shape = (*inputs.shape, trial.decoder.embed_dim)
  trial.has_form(name, states, shape, trial.decoder.dtype, 'of states')
  trial.has_form(name, mask, inputs.shape, bool, 'of tokens')
  trial.equal(
    name,
    mask,
    inputs != 0,
    'says of other positions than those of tokens that they are',
    'return False where inputs are 0 and True elsewhere',
  )
  trial.rows_alone(name, found, encoded)


def _check_select_source(trial: Trial, encoded: PyTree) -> None:
  name, (rows, length) = 'select_source', trial.inputs.shape
  places = jnp.broadcast_to(jnp.arange(length), (rows, length))
  everywhere = jnp.ones((rows, length), bool)
  whole = trial.call(name, encoded, places, everywhere)
  trial.leads_with_rows(name, whole)
  trial.equal(
    name,
    _reads(trial, whole),
    _reads(trial, encoded),
    'of sources with all of their positions other states are read',
    'keep every position whose `valid` is True, and padding as padding',
  )
  # The last position goes; of the last row, the first is carried along unread.
  read = everywhere.at[:, -1].set(False).at[-1, 0].set(length == 2)
  kept, valid = places[:, -2::-1], read[:, -2::-1]
  some = trial.call(name, encoded, kept, valid)
  trial.rows_alone(name, some, encoded, kept, valid)
  masked = trial.call(name, encoded, places, read)
  trial.equal(
    name,
    _reads(trial, some),
    _reads(trial, masked),
    'what is left out is not what is not valid',
    'gather positions [B, C], and let nothing be read where `valid` is False',
  )


def _reads(trial: Trial, encoded: PyTree) -> Array:
  """Returns the states after the first layer's attention to sources."""
  cache = trial.call('start', encoded, trial.max_length)
  hidden = trial.call('embed', trial.tokens, trial.positions)
  cache = trial.call('fill_layer', 0, hidden, trial.positions, cache)
  return trial.call('attend', 0, hidden, trial.positions, cache)
