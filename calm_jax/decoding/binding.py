"""A decoder and its parameters, bound together once for all that decodes.

What travels through decoding, evaluation and export is a `BoundDecoder`: the
parameters lie as the depth loop wants them, and on the mesh if there is one.
"""

import functools
from collections.abc import Callable

import jax

from calm_jax import checks, sharding
from calm_jax.array_types import PyTree
from calm_jax.decoding.depth_loops import UnrolledDepthLoop, WhileDepthLoop
from calm_jax.interfaces import BoundDecoder, DepthLoop, LayeredDecoder
from calm_jax.quantisation import Int8Weights, as_weights, is_quantised


def bind(
  decoder: LayeredDecoder,
  params: PyTree,
  *,
  depth_loop: DepthLoop | None = None,
  mesh: jax.sharding.Mesh | None = None,
  weights: Int8Weights | str | None = None,
) -> BoundDecoder:
  """Returns a decoder with its parameters, laid out for decoding.

  Args:
    decoder: the model, taken apart.
    params: its parameters, prepared or not, or their shapes
      (`jax.ShapeDtypeStruct`), which is enough for `compile_decode`.
    depth_loop: how layers are looped over; `default_depth_loop()` if None.
    mesh: from `sharding.make_mesh`: the rows of a batch are shared out over its
      axis 'data', whose parts decode without talking to each other and stop by
      themselves, and parameters over 'model'. With several processes, each
      gives the whole batch.
    weights: 'int8', or which matrices are brought to 8 bits
      (`quantisation.Int8Weights`); None for all in float. Outputs are then
      those of another model, near to this one, and so is the full model.

  Raises:
    TypeError: for a decoder that is bound already.
    ValueError: for another kind of mesh, parameters that are not the decoder's,
      or weights that it cannot have.
  """
  if isinstance(decoder, BoundDecoder):
    raise TypeError(
      'this decoder is bound already; pass it on as it is, or bind its '
      '.decoder and the parameters anew'
    )
  if mesh is not None and not sharding.is_row_mesh(mesh):
    raise ValueError(
      f'mesh must come from sharding.make_mesh, got {mesh!r}: its axes are '
      'data and model'
    )
  if depth_loop is None:
    depth_loop = default_depth_loop(params)
  weights = as_weights(weights)
  leaves = jax.tree.leaves(params)
  prepare = _layout_of(decoder, params, depth_loop, weights)
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
    params = jax.eval_shape(prepare, params)
  else:
    params = prepare(params)
    if mesh is not None and all(map(checks.is_concrete, leaves)):
      params = sharding.place_params(params, mesh)
  return BoundDecoder(params, decoder, depth_loop, mesh, weights)


def _layout_of(
  decoder: LayeredDecoder,
  params: PyTree,
  depth_loop: DepthLoop,
  weights: Int8Weights | None,
) -> Callable[[PyTree], PyTree]:
  """Returns what lays parameters out.

  Raises:
    ValueError: for weights that the decoder cannot have, or others than the
      parameters have.
  """
  prepare = functools.partial(
    decoder.prepare, traced_layers=depth_loop.traced_layers
  )
  nodes = jax.tree.leaves(params, is_leaf=is_quantised)
  if any(map(is_quantised, nodes)):
    if weights is None:
      raise ValueError(
        'these parameters hold matrices in 8 bits: bind them with the weights '
        "that they were made with, weights='int8'"
      )
    return prepare
  if weights is None:
    return prepare
  quantise = decoder.quantise
  if quantise is None:
    raise ValueError(
      "this decoder has no function `quantise`, which weights='int8' takes; "
      'bind it without weights'
    )
  return lambda params: prepare(quantise(params, weights))


def check_bound(bound: BoundDecoder) -> None:
  """Raises TypeError, saying what to do, for what is no bound decoder."""
  if not isinstance(bound, BoundDecoder):
    raise TypeError(
      f'expected a bound decoder, got {type(bound).__name__}; make one of a '
      'decoder and its parameters: decoding.bind(decoder, params)'
    )


def default_depth_loop(params: PyTree = None) -> DepthLoop:
  """Returns the depth loop for prepared parameters, or for this backend.

  On CPU indexing stacked weights copies each layer's weights at every step, so
  it is the unrolled loop; elsewhere the reference.

  Args:
    params: prepared parameters decide by their layout; anything else does not.
  """
  traced_layers = getattr(params, 'traced_layers', None)
  if traced_layers is None:
    traced_layers = jax.default_backend() != 'cpu'
  return WhileDepthLoop() if traced_layers else UnrolledDepthLoop()
