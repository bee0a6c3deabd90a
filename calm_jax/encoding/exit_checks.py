"""Host checks of what lets rows leave an encoder."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.encoding.source_rows import Heads
from calm_jax.interfaces import ExitRule, LayeredEncoder, reads_source
from calm_jax.source_heads import SourceHeads


def check_rule(
  rule: Any,
  encoder: LayeredEncoder,
  heads: Heads | SourceHeads | None,
  batch_size: int,
) -> ExitRule:
  """Returns a rule for rows of an encoder, with its numbers as arrays.

  Args:
    rule: what is to be one.
    encoder: the encoder.
    heads: the heads, `as_pytree`; None for none.
    batch_size: B.

  Raises:
    TypeError: for what is no exit rule.
    ValueError: for bad numbers, for a rule that sees encoded sources, or reads
      logits where no heads make any, for heads that make none, and for a
      measure that says nothing before the last layer.
  """
  checks.check_no_class(rule, 'exit_rule of an encoder')
  if not isinstance(rule, ExitRule):
    raise TypeError(
      f'exit_rule of an encoder is {rule!r}; give an exit rule, such as '
      'exits.ConfidenceExit(exits.StateSimilarity(), 0.95)'
    )
  name = type(rule).__name__
  if reads_source(rule):
    raise ValueError(
      f'{name} sees encoded sources, which there are once the encoder has run; '
      'give a rule that reads layers, such as exits.ConfidenceExit('
      'exits.StateSimilarity(), 0.95)'
    )
  sizes: Any = encoder
  rule = rule.check(sizes, batch_size, 1)
  measure = getattr(rule, 'measure', None)
  first = getattr(measure, 'minimum_exit_layer', 1)
  if measure is not None and 1 < encoder.num_layers <= first:
    raise ValueError(
      f'{type(measure).__name__} says something from layer {first} on, and '
      f'this encoder has {encoder.num_layers}: no row could ever leave early. '
      'Take a measure that looks earlier, or a model with a deeper encoder'
    )
  # A function has no numbers to look at, only what it returns.
  check: Any = getattr(heads, 'check', None)
  if check is not None:
    check(encoder)
  if heads is not None and not isinstance(heads, SourceHeads):
    _check_heads(heads, encoder, batch_size)
  elif heads is None and rule.needs_logits:
    raise ValueError(
      f'{name} reads logits, and an encoder has none by itself: give '
      'heads(pooled, layer) -> [B, C], or a rule that reads states, such as '
      'exits.ConfidenceExit(exits.StateSimilarity(), 0.95)'
    )
  return rule


def _check_heads(
  heads: Heads, encoder: LayeredEncoder, batch_size: int
) -> None:
  """Raises ValueError for heads that make no logits of pooled states."""
  found = _logits_of(heads, encoder, batch_size)
  shape = getattr(found, 'shape', ())
  fits = len(shape) == 2 and shape[0] == batch_size and shape[1] >= 2
  if not fits or not jnp.issubdtype(found.dtype, jnp.floating):
    raise ValueError(
      f'heads make {found} of pooled states [{batch_size}, '
      f'{encoder.embed_dim}]; give logits in float, [{batch_size}, C], of at '
      'least 2 classes'
    )


def _logits_of(heads: Heads, encoder: LayeredEncoder, batch_size: int) -> Any:
  """Returns the form of what heads make of pooled states."""
  leaves, tree = jax.tree.flatten(heads)
  forms = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
  return _form_of(tree, forms, encoder, batch_size)


# Tracing heads takes as long as a layer takes for a row: once will do.
@functools.lru_cache(maxsize=64)
def _form_of(
  tree: Any, forms: tuple, encoder: LayeredEncoder, batch_size: int
) -> Any:
  """Returns the same for heads of a structure, with leaves of these forms."""
  heads = tree.unflatten(jax.ShapeDtypeStruct(*form) for form in forms)
  states = jax.ShapeDtypeStruct((batch_size, encoder.embed_dim), jnp.float32)
  layer = jax.ShapeDtypeStruct((), jnp.int32)
  return jax.eval_shape(
    lambda heads, states, layer: heads(states, layer), heads, states, layer
  )


def num_classes(
  heads: Heads | SourceHeads | None, encoder: LayeredEncoder
) -> int | None:
  """Returns C of heads that were checked; None without heads."""
  if heads is None:
    return None
  if isinstance(heads, SourceHeads):
    return heads.num_classes
  return _logits_of(heads, encoder, 1).shape[-1]


def as_pytree(heads: Any) -> Any:
  """Returns heads as an argument of a jitted function.

  Raises:
    ValueError: for what cannot be called.
  """
  if heads is None:
    return None
  if isinstance(heads, type) or not isinstance(heads, (Callable, SourceHeads)):
    raise ValueError(
      f'heads is {heads!r}; give an object or a function with '
      'heads(pooled, layer) -> [B, C]'
    )
  leaves = jax.tree.leaves(heads)
  if len(leaves) == 1 and leaves[0] is heads:
    heads = jax.tree_util.Partial(heads)
  found: Any = heads
  return found


def check_loop(loop: Any) -> None:
  """Raises TypeError for what is no loop over an encoder's layers."""
  if isinstance(loop, type) or not hasattr(loop, 'traced_layers'):
    raise TypeError(
      f'loop is {loop!r}; give encoding.UnrolledLayers(), '
      'encoding.CompactedLayers() or encoding.WhileLayers()'
    )
