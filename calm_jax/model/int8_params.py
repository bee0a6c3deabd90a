"""T5's parameters with matrices in 8 bits, under T5X's names.

A matrix 'kernel' becomes 'int8', an `Int8Matrix`. All functions of the model
take such a tree, teacher forcing as well: it is what decoding must agree with.
"""

from collections.abc import Iterator

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array, Params
from calm_jax.model.config import T5Config
from calm_jax.quantisation import Int8Matrix, Int8Weights

# Where the output matrix is, of tied models as well.
OUTPUT = 'decoder/logits_dense'


def quantise_params(
  config: T5Config, params: Params, weights: Int8Weights
) -> Params:
  """Returns a parameter tree whose matrices are in 8 bits, as far as told.

  A tied model gets an output matrix beside its input table, which stays.

  Args:
    config: the model's shape.
    params: T5X's tree, float; matrices in 8 bits stay as they are.
    weights: which matrices.

  Raises:
    ValueError: for matrices that hold what is no finite number, naming them,
      and for expressions to keep by that match none.
  """
  found = dict(_matrices('', params))
  if config.tied_embeddings and OUTPUT not in found:
    table = params['token_embedder']['embedding']
    found[OUTPUT] = {'kernel': jnp.swapaxes(jnp.asarray(table), 0, 1)}
  _check_kept(weights, list(found))
  changed = params
  for path, node in found.items():
    if 'kernel' in node and weights.takes(path):
      matrix = _quantise(path, node['kernel'])
      changed = _replaced(changed, path.split('/'), {'int8': matrix})
  return changed


def _matrices(path: str, node: Params) -> Iterator[tuple[str, Params]]:
  """Yields the places of all matrices, with what is there."""
  if not isinstance(node, dict):
    return
  if 'kernel' in node or 'int8' in node:
    yield path, node
    return
  for name, child in node.items():
    yield from _matrices(f'{path}/{name}'.removeprefix('/'), child)


def _quantise(path: str, kernel: Array) -> Int8Matrix:
  # Not known while a program is traced, of parameters that it holds either.
  finite = jnp.isfinite(kernel).all()
  if checks.is_concrete(finite) and not finite:
    raise ValueError(
      f'{path} holds numbers that are not finite, which 8 bits cannot stand '
      'for; repair the checkpoint, or keep it in float: '
      f'Int8Weights(keep=({path!r},))'
    )
  return Int8Matrix.of(kernel)


def _check_kept(weights: Int8Weights, paths: list[str]) -> None:
  for pattern in weights.keep:
    only = Int8Weights(encoder=True, keep=(pattern,))
    if all(map(only.takes, paths)):
      raise ValueError(
        f'keep holds {pattern!r}, which matches no matrix; there are '
        f'{", ".join(sorted(paths)[:4])} and {max(0, len(paths) - 4)} more'
      )


def _replaced(tree: Params, path: list[str], node: Params) -> Params:
  """Returns a tree with another node at a path."""
  name, *rest = path
  child = _replaced(tree.get(name, {}), rest, node) if rest else node
  return {**tree, name: child}
