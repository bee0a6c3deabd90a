"""A decoder on trial: random tokens, and what may be said of its answers."""

import dataclasses
import functools
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.layered_decoder import LayeredDecoder

# What is a Python int in programs: places of arguments behind the parameters.
_STATIC = {
  'start': (2,),
  'start_few': (2,),
  'start_layers': (2, 3),
  'output_block': (2,),
}
_WITHOUT_PARAMS = (
  'take_rows',
  'pool_source',
  'source_states',
  'select_source',
)
_OF_A_LAYER = ('fill_layer', 'attend', 'feed_forward')

# Faults and remedies.
ONE_BY_ONE = (
  'P positions at once are not P positions one by one',
  'compute every position by itself, without those behind it',
)
BY_ROW = (
  'with positions [B, P] that differ by row, other numbers come out',
  'take the positions of every row by themselves',
)


@dataclasses.dataclass(frozen=True)
class Trial:
  """A decoder with what its functions are tried on.

  Attributes:
    decoder: the decoder.
    params: its parameters, prepared.
    traced_layers: for which layout.
    inputs: int32 [B, S], with padding in the first row.
    tokens: int32 [B, T].
    tolerance: how far numbers may lie apart, as a share of the largest.
  """

  decoder: LayeredDecoder
  params: PyTree
  traced_layers: bool
  inputs: Array
  tokens: Array
  tolerance: float

  @classmethod
  def make(
    cls,
    decoder: LayeredDecoder,
    params: PyTree,
    traced_layers: bool,
    *,
    batch_size: int,
    source_length: int,
    max_length: int,
    tolerance: float,
    seed: int,
  ) -> Self:
    """Prepares the parameters and draws the tokens."""
    rng = np.random.default_rng(seed)
    inputs, tokens = (
      rng.integers(1, decoder.vocab_size, (batch_size, length), np.int32)
      for length in (source_length, max_length)
    )
    inputs[0, -1] = 0
    inputs, tokens = jnp.asarray(inputs), jnp.asarray(tokens)
    unprepared = cls(decoder, params, traced_layers, inputs, tokens, tolerance)
    prepared = unprepared.call('prepare', traced_layers=traced_layers)
    return dataclasses.replace(unprepared, params=prepared)

  @property
  def max_length(self) -> int:
    """T."""
    return self.tokens.shape[1]

  @functools.cached_property
  def positions(self) -> Array:
    """Int32 [T], all of them."""
    return jnp.arange(self.max_length)

  def call(self, name: str, *arguments: Any, **options: Any) -> Any:
    """Calls a function of the decoder; its errors come with its name."""
    function = getattr(self.decoder, name)
    if name != 'prepare':
      static = _STATIC.get(name, ())
      if name in _OF_A_LAYER and not self.traced_layers:
        static = (1,)
      function = jax.jit(function, static_argnums=static)
    if name not in _WITHOUT_PARAMS:
      arguments = (self.params, *arguments)
    try:
      return function(*arguments, **options)
    except Exception as error:
      shapes = ', '.join(
        f'{list(jnp.shape(argument))}'
        if isinstance(argument, (jax.Array, np.ndarray))
        else type(argument).__name__
        for argument in arguments
      )
      raise ValueError(
        f'{name} fails with {type(error).__name__}: {error}; it was called '
        f'with {shapes}'
      ) from error

  def fault(self, name: str, what: str, remedy: str) -> ValueError:
    """Returns the error that names a function and its fault."""
    layout = f'prepare(params, traced_layers={self.traced_layers})'
    return ValueError(f'{name}: {what} (after {layout}); {remedy}')

  def equal(
    self, name: str, found: PyTree, expected: PyTree, what: str, remedy: str
  ) -> None:
    """Raises the fault unless two trees hold the same numbers, nearly."""
    pairs = jax.tree.leaves(found), jax.tree.leaves(expected)
    if len(pairs[0]) != len(pairs[1]) or not all(map(self._close, *pairs)):
      raise self.fault(name, what, remedy)

  def same_form(
    self, name: str, found: PyTree, expected: PyTree, what: str, remedy: str
  ) -> None:
    """Raises the fault unless two trees agree but for their numbers."""
    forms = [
      (jax.tree.structure(tree), [*map(_form, jax.tree.leaves(tree))])
      for tree in (found, expected)
    ]
    if forms[0] != forms[1]:
      raise self.fault(name, what, remedy)

  def has_form(
    self, name: str, array: Array, shape: tuple[int, ...], dtype: Any, of: str
  ) -> None:
    """Raises the fault unless an array has this shape and dtype, and no NaN."""
    found = _form(array)
    if found != (shape, jnp.dtype(dtype)):
      raise self.fault(
        name,
        f'returns {found[1].name}{list(found[0])} {of}'.rstrip(),
        f'return {jnp.dtype(dtype).name}{list(shape)}',
      )
    if jnp.isnan(array).any():
      raise self.fault(
        name,
        'returns numbers that are NaN',
        'give parameters that are numbers, and keep masked sums finite',
      )

  def is_state(self, name: str, array: Array) -> None:
    """Raises the fault unless an array is of states, [B, T, D] in `dtype`."""
    shape = (*self.tokens.shape, self.decoder.embed_dim)
    self.has_form(name, array, shape, self.decoder.dtype, '')

  def leads_with_rows(self, name: str, tree: PyTree) -> None:
    """Raises the fault unless every leaf leads with B."""
    rows = len(self.inputs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      if jnp.shape(leaf)[:1] != (rows,):
        raise self.fault(
          name,
          f'the leaf {jax.tree_util.keystr(path)} has shape '
          f'{list(jnp.shape(leaf))} and does not lead with the {rows} rows',
          'put the batch axis first, so that rows can be taken',
        )

  def rows_alone(self, name: str, whole: PyTree, *arguments: Any) -> None:
    """Raises the fault unless every row alone is the row among others.

    Args:
      name: the function.
      whole: what it said of all rows.
      *arguments: its arguments; all lead with B but numbers and `positions`.
    """

    def cut(argument, row):
      if argument is self.positions or isinstance(argument, int):
        return argument
      return jax.tree.map(lambda leaf: leaf[row : row + 1], argument)

    for row in range(len(self.inputs)):
      self.equal(
        name,
        self.call(name, *(cut(argument, row) for argument in arguments)),
        cut(whole, row),
        f'row {row} alone is not row {row} among {len(self.inputs)}',
        'let no row look at another one: mind sums and axes over the batch',
      )

  def positions_agree(
    self,
    name: str,
    whole: Array,
    *arguments: Any,
    cache: tuple[PyTree, ...] = (),
  ) -> None:
    """Raises the fault unless positions one by one are those among all T.

    Every row is at a position of its own, as in slots that were refilled.

    Args:
      name: the function.
      whole: what it said of all positions, [B, T, ...].
      *arguments: its arguments, [B, T, ...] but for numbers and `positions`.
      cache: its last argument, if it takes the cache.
    """

    def agree(places):
      given = (self.at(argument, places) for argument in arguments)
      found = self.call(name, *given, *cache)
      return self._close(found, self.at(whole, places))

    rows = jnp.arange(len(self.inputs))[:, None]
    for place in range(self.max_length):
      if agree((rows + place) % self.max_length):
        continue
      if agree(jnp.full_like(rows, place)):
        raise self.fault(name, *BY_ROW)
      raise self.fault(name, *ONE_BY_ONE)

  def at(self, argument: Any, places: Array) -> Any:
    """Takes what [B, T, ...] holds at places int32 [B, 1]; numbers stay."""
    if isinstance(argument, int):
      return argument
    if argument is self.positions:
      return places
    places = places.reshape(*places.shape, *[1] * (argument.ndim - 2))
    return jnp.take_along_axis(argument, places, axis=1)

  def mix_rows(self, where: Array, new: PyTree, old: PyTree) -> PyTree:
    """Returns the leaves of `new` in rows where bool [B] holds, else `old`."""

    def mix(new, old):
      return jnp.where(where.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(mix, new, old)

  def _close(self, one: Array, other: Array) -> bool:
    found, expected = np.asarray(one), np.asarray(other)
    if found.shape != expected.shape:
      return False
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return np.allclose(
      found, expected, rtol=0.0, atol=self.tolerance * scale, equal_nan=True
    )


def _form(leaf: Array) -> tuple[tuple[int, ...], np.dtype]:
  return jnp.shape(leaf), jnp.result_type(leaf)
