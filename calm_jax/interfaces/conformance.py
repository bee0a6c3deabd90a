"""Tries a decoder function by function, and says in words what is wrong.

For whoever takes a model of his own apart: what a decode would only show as
tokens that are off is found here one function at a time, on random tokens and
small shapes. Every function gets states that the ones before it made.
"""

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.context_conformance import check_context
from calm_jax.interfaces.encoder_conformance import check_encoder
from calm_jax.interfaces.layered_decoder import LayeredDecoder
from calm_jax.interfaces.source_conformance import check_source_parts
from calm_jax.interfaces.trial import BY_ROW, ONE_BY_ONE, Trial


def check_decoder(
  decoder: LayeredDecoder,
  params: PyTree,
  *,
  batch_size: int = 3,
  source_length: int = 5,
  max_length: int = 4,
  tolerance: float | None = None,
  seed: int = 0,
) -> None:
  """Checks on the host that a decoder keeps what its protocols promise.

  Shapes and dtypes; that nothing later changes what was before (causality);
  that filling twice is filling once, and fills nothing else; that a row alone
  is the row among others; that P positions at once are P positions one by one;
  that rows can be taken, and rows of the output matrix read; that an encoder
  which is taken apart says what the whole one does. For both layouts
  of the parameters that `prepare` makes, with a traced `layer` and with Python
  ints. Functions are compiled, as they are in a decode.

  Args:
    decoder: the decoder.
    params: its parameters, not prepared.
    batch_size: B, at least 2.
    source_length: S, at least 2.
    max_length: T, at least 2.
    tolerance: how far numbers may lie apart that are computed in other shapes,
      as a share of the largest; by the decoder's dtype if None.
    seed: of the tokens.

  Raises:
    ValueError: naming the function, its fault and what to do.
  """
  sizes = dict(
    batch_size=batch_size, source_length=source_length, max_length=max_length
  )
  for name, size in sizes.items():
    if size < 2:
      raise ValueError(
        f'{name} is {size}; give at least 2, or nothing is shown'
      )
  if tolerance is None:
    tolerance = 1e-4 if jnp.finfo(decoder.dtype).bits >= 32 else 3e-2
  _check_hashable(decoder)
  with jax.default_matmul_precision('highest'):
    for traced_layers in (True, False):
      trial = Trial.make(
        decoder, params, traced_layers, tolerance=tolerance, seed=seed, **sizes
      )
      _check_prepare(trial)
      _check_functions(trial)


def _check_hashable(decoder: LayeredDecoder) -> None:
  try:
    hash(decoder)
  except TypeError as error:
    raise ValueError(
      f'the decoder cannot be hashed ({error}), so no program could be found '
      'again; let it hold functions and numbers, and arrays be parameters'
    ) from error


def _check_prepare(trial: Trial) -> None:
  again = trial.call('prepare', traced_layers=trial.traced_layers)
  trial.same_form(
    'prepare',
    again,
    trial.params,
    'what it made, given to it once more, comes back in another form',
    'return prepared parameters as they are',
  )
  trial.equal(
    'prepare',
    again,
    trial.params,
    'what it made, given to it once more, comes back with other numbers',
    'return prepared parameters as they are',
  )


def _check_functions(trial: Trial) -> None:
  """Walks through a decode of T given tokens, every function on its way."""
  encoded = trial.call('encode', trial.inputs)
  trial.leads_with_rows('encode', encoded)
  trial.rows_alone('encode', encoded, trial.inputs)
  if trial.decoder.pool_source is not None:
    _check_pool_source(trial, encoded)
  check_source_parts(trial, encoded)
  if trial.decoder.encoder is not None:
    check_encoder(trial, encoded)
  cache = trial.call('start', encoded, trial.max_length)
  trial.leads_with_rows('start', cache)
  trial.rows_alone('start', cache, encoded, trial.max_length)
  hidden = trial.call('embed', trial.tokens, trial.positions)
  trial.is_state('embed', hidden)
  trial.rows_alone('embed', hidden, trial.tokens, trial.positions)
  trial.positions_agree('embed', hidden, trial.tokens, trial.positions)
  for layer in range(trial.decoder.num_layers):
    filled = _check_fill(trial, layer, hidden, cache)
    attended = _check_attend(trial, layer, hidden, cache, filled)
    hidden = trial.call('feed_forward', layer, attended)
    trial.is_state('feed_forward', hidden)
    trial.rows_alone('feed_forward', hidden, layer, attended)
    trial.positions_agree('feed_forward', hidden, layer, attended)
    cache = filled
  _check_take_rows(trial, cache)
  _check_logits(trial, hidden)


def _check_pool_source(trial: Trial, encoded: PyTree) -> None:
  name, inputs = 'pool_source', trial.inputs
  found = trial.call(name, encoded)
  if not isinstance(found, tuple) or len(found) != 2:
    raise trial.fault(
      name,
      f'returns {type(found).__name__}',
      'return mean states [B, D] and lengths [B]',
    )
  pooled, lengths = found
  shape = (len(inputs), trial.decoder.embed_dim)
  trial.has_form(name, pooled, shape, jnp.float32, 'of mean states')
  trial.has_form(name, lengths, shape[:1], jnp.int32, 'of lengths')
  trial.equal(
    name,
    lengths,
    (inputs != 0).sum(axis=1),
    f'of sources of {(inputs != 0).sum(axis=1).tolist()} tokens the lengths '
    f'are {lengths.tolist()}',
    'count the tokens that are not 0',
  )
  trial.rows_alone(name, found, encoded)
  padded = trial.call('encode', jnp.pad(inputs, ((0, 0), (0, 2))))
  trial.equal(
    name,
    trial.call(name, padded),
    found,
    'with more padding behind the sources, other numbers come out',
    'take the mean over the tokens that are not padding',
  )


def _check_fill(
  trial: Trial, layer: int, hidden: Array, cache: PyTree
) -> PyTree:
  """Returns the cache with the layer's K/V of all positions."""
  name, positions = 'fill_layer', trial.positions
  filled = trial.call(name, layer, hidden, positions, cache)
  trial.same_form(
    name,
    filled,
    cache,
    'the cache that comes back has another form than the one given',
    'write into its arrays; keep their shapes and dtypes',
  )
  trial.rows_alone(name, filled, layer, hidden, positions, cache)
  trial.equal(
    name,
    trial.call(name, layer, hidden, positions, filled),
    filled,
    'filling the same positions twice is not filling them once',
    'set the K/V of a position, whatever stood there',
  )
  rows, length = jnp.arange(len(hidden))[:, None], trial.max_length

  def fill_one_by_one(places_of):
    one_by_one = cache
    for place in range(length):
      places = places_of(place)
      states = trial.at(hidden, places)
      one_by_one = trial.call(name, layer, states, places, one_by_one)
    return one_by_one

  for places_of, fault in (
    (lambda place: jnp.full_like(rows, place), ONE_BY_ONE),
    # Every row somewhere else, as in slots that were refilled.
    (lambda place: (rows + place) % length, BY_ROW),
  ):
    trial.equal(name, fill_one_by_one(places_of), filled, *fault)
  first = jnp.zeros_like(rows)
  for where, expected in (
    (rows[:, 0] < 0, cache),
    (rows[:, 0] < 1, trial.mix_rows(rows[:, 0] < 1, filled, cache)),
    (jnp.broadcast_to(positions < 0, hidden.shape[:2]), cache),
    (
      jnp.broadcast_to(positions < 1, hidden.shape[:2]),
      trial.call(name, layer, trial.at(hidden, first), first, cache),
    ),
  ):
    trial.equal(
      name,
      trial.call(name, layer, hidden, positions, cache, where),
      expected,
      f'`where` of shape {list(where.shape)} is not what is filled',
      'leave the rows or positions alone where it does not hold',
    )
  return filled


def _check_attend(
  trial: Trial, layer: int, hidden: Array, cache: PyTree, filled: PyTree
) -> Array:
  """Returns the states after the layer's attention."""
  name, positions = 'attend', trial.positions
  attended = trial.call(name, layer, hidden, positions, filled)
  trial.is_state(name, attended)
  half = trial.max_length // 2
  later = jnp.where((positions >= half)[:, None], hidden + 1, hidden)
  changed = trial.call('fill_layer', layer, later, positions, cache)
  trial.equal(
    name,
    trial.call(name, layer, later, positions, changed)[:, :half],
    attended[:, :half],
    'a later position changes what an earlier one reads',
    'mask the cache behind the position of each query',
  )
  trial.rows_alone(name, attended, layer, hidden, positions, filled)
  trial.positions_agree(
    name, attended, layer, hidden, positions, cache=(filled,)
  )
  if trial.decoder.accepts_context:
    check_context(trial, layer, hidden, cache, attended)
  _check_starts(trial, layer, hidden, attended)
  return attended


def _check_starts(
  trial: Trial, layer: int, hidden: Array, attended: Array
) -> None:
  """Holds the other ways of making a cache against `start`.

  Args:
    trial: the decoder on trial.
    layer: a layer.
    hidden: the states [B, T, D] that enter it.
    attended: the states after its attention, of `start`'s cache.
  """
  for name, extra, remedy in (
    ('start_few', (), 'make a cache that says the same'),
    ('start_layers', ((layer,),), 'make all that the layers given read'),
  ):
    if getattr(trial.decoder, name) is None:
      continue
    encoded = trial.call('encode', trial.inputs)
    cache = trial.call(name, encoded, trial.max_length, *extra)
    cache = trial.call('fill_layer', layer, hidden, trial.positions, cache)
    trial.equal(
      name,
      trial.call('attend', layer, hidden, trial.positions, cache),
      attended,
      'from its cache other states come out than from that of start',
      f'{remedy}, or leave {name} None',
    )


def _check_take_rows(trial: Trial, cache: PyTree) -> None:
  rows = jnp.array([len(trial.inputs) - 1, 0, 0])
  taken = trial.call('take_rows', cache, rows)
  trial.equal(
    'take_rows',
    taken,
    jax.tree.map(lambda leaf: leaf[rows], cache),
    f'rows {rows.tolist()} of the cache are not what comes back',
    'take the rows of every leaf: leaf[rows]',
  )


def _check_logits(trial: Trial, hidden: Array) -> None:
  """Checks all that reads states out."""
  size, width = trial.decoder.vocab_size, trial.decoder.embed_dim
  logits = trial.call('logits', hidden)
  trial.has_form(
    'logits', logits, (*hidden.shape[:2], size), jnp.float32, 'of all tokens'
  )
  trial.rows_alone('logits', logits, hidden)
  trial.positions_agree('logits', logits, hidden)
  states, logits = hidden[:, 0], logits[:, 0]
  trial.equal(
    'logits',
    trial.call('logits', states),
    logits,
    'states [B, D] read otherwise than states [B, P, D]',
    'let all axes but the last one be of the batch',
  )
  ids = trial.tokens[:, ::-1]
  weights = trial.call('output_rows', ids)
  trial.has_form(
    'output_rows', weights, (*ids.shape, width), trial.decoder.dtype, ''
  )
  trial.equal(
    'output_rows',
    trial.call('logits', states, weights),
    jnp.take_along_axis(logits, ids, axis=1),
    'logits over its rows are not those of the tokens',
    'give the rows of the output matrix that `logits` multiplies by, and let '
    '`logits` read weights [B, C, D] and [C, D]',
  )
  if trial.decoder.output_block is None:
    return
  first, count = size // 3, max(1, size // 2)
  block = trial.call('output_block', first, count)
  trial.has_form('output_block', block, (count, width), trial.decoder.dtype, '')
  trial.equal(
    'output_block',
    trial.call('logits', states, block),
    logits[:, first : first + count],
    f'logits over {count} rows from {first} on are not those of the tokens',
    'give neighbouring rows of the output matrix, and let `logits` read '
    'weights [B, C, D] and [C, D]',
  )
