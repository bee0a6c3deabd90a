"""Leaving parameters as they are, chosen by the names of their paths.

An optimizer with frozen parameters keeps no slots for them, and a training step
takes no gradient by them: what lies before the first trained parameter is not
run backwards at all.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import TypeVar

import jax
import optax

from calm_jax.array_types import Params, PyTree
from calm_jax.training.optimizer import Optimizer

Tree = TypeVar('Tree')


def freeze(optimizer: Optimizer, patterns: Sequence[str]) -> Optimizer:
  """Returns the optimizer with parameters frozen, weight decay included.

  A parameter is frozen if one of the patterns matches the whole of its path:
  'encoder/.*' is the encoder, '.*/layers_[0-3]/.*' the first four layers of
  both stacks, '.*_norm/scale' every norm. Whole, because 'encoder' is also part
  of 'decoder/layers_0/encoder_decoder_attention'.

  Patterns are compared with the parameters when the optimizer is initialised;
  that raises a ValueError for a pattern that matches nothing, and if nothing is
  left to train.

  Args:
    optimizer: from `adafactor` or `adamw`. Its bound on the gradient's global
      norm then counts the trained parameters only.
    patterns: regular expressions; none leave the optimizer as it is.

  Raises:
    ValueError: if a pattern is no regular expression, or the optimizer has
      frozen parameters already.
  """
  if isinstance(patterns, str):
    raise ValueError(
      'patterns must be a list of regular expressions, got the string '
      f'{patterns!r}: write [{patterns!r}]'
    )
  patterns = tuple(patterns)
  for pattern in patterns:
    try:
      re.compile(pattern)
    except (re.error, TypeError) as error:
      raise ValueError(
        f'{pattern!r} in patterns is not a regular expression: {error}'
      ) from None
  if not patterns:
    return optimizer
  if optimizer.frozen:
    raise ValueError(
      f'the optimizer freezes {list(optimizer.frozen)} already; give all '
      'patterns in one call of freeze'
    )

  def labels(params):
    return jax.tree.map(
      lambda frozen: 'frozen' if frozen else 'trained',
      frozen_leaves(patterns, params),
    )

  return dataclasses.replace(
    optimizer,
    transformation=optax.partition(
      {'trained': optimizer.transformation, 'frozen': optax.set_to_zero()},
      labels,
    ),
    frozen=patterns,
  )


def frozen_leaves(patterns: Sequence[str], params: Params) -> PyTree:
  """Returns the tree of bools that says which parameters are frozen.

  Raises:
    ValueError: for a pattern that matches no path, or if all match.
  """
  paths = jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator='/'),
    params,
  )
  names = jax.tree.leaves(paths)
  for pattern in patterns:
    if not any(re.fullmatch(pattern, name) for name in names):
      shown = names[:: max(1, len(names) // 5)][:6]
      raise ValueError(
        f'no parameter to freeze matches {pattern!r} as a whole; paths look '
        f'like {shown} ({len(names)} in all)'
      )
  frozen = jax.tree.map(
    lambda name: any(re.fullmatch(pattern, name) for pattern in patterns),
    paths,
  )
  if all(jax.tree.leaves(frozen)):
    raise ValueError(
      f'{list(patterns)} freeze all {len(names)} parameters: nothing would be '
      'trained'
    )
  return frozen


def without_gradient(patterns: Sequence[str], params: Tree) -> Tree:
  """Returns the parameters, the frozen ones as constants to differentiation."""
  if not patterns:
    return params
  return jax.tree.map(
    lambda frozen, leaf: jax.lax.stop_gradient(leaf) if frozen else leaf,
    frozen_leaves(patterns, params),
    params,
  )


def apply_updates(
  patterns: Sequence[str], params: Tree, updates: PyTree
) -> Tree:
  """Returns params + updates; frozen ones keep every bit (-0 + 0 is +0)."""
  updated = optax.apply_updates(params, updates)
  if not patterns:
    return updated
  return jax.tree.map(
    lambda frozen, old, new: old if frozen else new,
    frozen_leaves(patterns, params),
    params,
    updated,
  )
