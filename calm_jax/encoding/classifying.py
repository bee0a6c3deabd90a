"""Classifying with an encoder alone: leave at the first layer that is sure."""

import dataclasses

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.encoding.encoding import encode
from calm_jax.encoding.layer_loops import LayerLoop
from calm_jax.interfaces import ExitRule, LayeredEncoder
from calm_jax.pytrees import register_pytree
from calm_jax.source_heads import SourceHeads


@register_pytree
@dataclasses.dataclass(frozen=True)
class ClassifyResult:
  """Classes of inputs, and where these left the encoder.

  Attributes:
    classes: int32 [B], 0..C-1, the likeliest by the head of the exit layer.
    exit_layers: int32 [B], encoder layers used, 1..L.
    confidences: float32 [B], the rule's at the exit layer; NaN where it did not
      look.
    logits: float32 [B, C], of the head of the exit layer.
    computed: int32 scalar, over the layers that ran, the rows that each ran
      for.
  """

  classes: Array
  exit_layers: Array
  confidences: Array
  logits: Array
  computed: Array


@jax.jit
def _likeliest(logits: Array) -> Array:
  return logits.argmax(axis=-1).astype(jnp.int32)


def classify(
  encoder: LayeredEncoder,
  params: PyTree,
  inputs: ArrayLike,
  heads: EncoderHeads | SourceHeads,
  *,
  exit_rule: ExitRule | None = None,
  loop: LayerLoop | None = None,
) -> ClassifyResult:
  """Returns the class of every input, as soon as the exit rule lets it leave.

  Rules read the heads' logits: `exits.SoftmaxMaximum`, `exits.Tempered` around
  it, `exits.PatienceExit`, a gate. At a threshold of 1, or without a rule, the
  last layer's head says it.

  Args:
    encoder: the model's encoder, `model.as_layered_encoder(config)`.
    params: its parameters; prepare them once to call this often, as for
      `encode`.
    inputs: int [B, S], 0 = padding on the right; one input per row.
    heads: of its layers, as `runs.load_encoder_heads` has them, or words of
      the decoder, `label_words.LabelWords`.
    exit_rule: which rows leave; `NeverExit()` if None. Another threshold
      compiles nothing.
    loop: as for `encode`.

  Raises:
    TypeError: as `encode`, and for heads that do not know their classes, such
      as a function.
    ValueError: as `encode`, and for heads of another encoder.
  """
  checks.check_no_class(heads, 'heads')
  if not hasattr(heads, 'check'):
    raise TypeError(
      f'heads is {heads!r}; give those of runs.load_encoder_heads, or '
      'label_words.LabelWords. encoding.encode takes a function'
    )
  result = encode(
    encoder,
    params,
    inputs,
    exit_rule=exit_rule,
    heads=heads.check(encoder),
    loop=loop,
  )
  assert result.logits is not None
  return ClassifyResult(
    classes=_likeliest(result.logits),
    exit_layers=result.exit_layers,
    confidences=result.confidences,
    logits=result.logits,
    computed=result.computed,
  )
