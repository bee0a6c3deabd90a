"""Encoding with exits: rows leave an encoder one by one."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from numpy.typing import ArrayLike

from calm_jax.array_types import Array, PyTree
from calm_jax.encoding import exit_checks
from calm_jax.encoding.input_checks import check_inputs
from calm_jax.encoding.layer_loops import LayerLoop, UnrolledLayers
from calm_jax.encoding.source_rows import EncoderLayers, Heads, SourceRows
from calm_jax.exits import NeverExit
from calm_jax.interfaces import ExitRule, LayeredEncoder
from calm_jax.pytrees import register_pytree
from calm_jax.source_heads import SourceHeads


@register_pytree
@dataclasses.dataclass(frozen=True)
class EncodeResult:
  """Sources, and where they left the encoder.

  Attributes:
    encoded: the sources as `LayeredDecoder.encode` returns them, of each row
      the normed states of its exit layer.
    exit_layers: int32 [B], encoder layers used, 1..L.
    confidences: float32 [B], at the exit layer; NaN where the rule did not
      look.
    logits: float32 [B, C], of the heads at the exit layer; None without heads.
    computed: int32 scalar, the work: over the layers that ran, the rows that
      each ran for; at least the sum of the exit layers, at most B * L.
  """

  encoded: PyTree
  exit_layers: Array
  confidences: Array
  logits: Array | None
  computed: Array


def encode(
  encoder: LayeredEncoder,
  params: PyTree,
  inputs: ArrayLike,
  *,
  exit_rule: ExitRule | None = None,
  heads: Heads | SourceHeads | None = None,
  loop: LayerLoop | None = None,
) -> EncodeResult:
  """Encodes sources, each row until the exit rule lets it leave.

  The rule sees a row as it sees a token: `LayerView.hidden` is the mean over
  the row's tokens of what a decoder would read if it left here (for a T5 of
  normed states), `previous_hidden` that of the states that entered the layer,
  and positions are 0. With `NeverExit`, or a threshold of 1, it is the encoder.

  Args:
    encoder: the model's encoder, `model.as_layered_encoder(config)`.
    params: its parameters, or what `encoder.prepare` or `decoder.prepare` made
      of them. Prepare them once to call this often.
    inputs: int [B, S], 0 = padding on the right; one source per row.
    exit_rule: which rows leave; `NeverExit()` if None. Numbers are arguments of
      the program: another threshold compiles nothing.
    heads: `heads(pooled, layer)` -> [B, C], logits for rules that read some, a
      registered pytree, or a function without weights; or what reads whole
      sources, such as `label_words.LabelWords`.
    loop: `UnrolledLayers()` if None, `CompactedLayers()` for batches, or
      `WhileLayers()` over stacked layers.

  Raises:
    TypeError: for what is no exit rule, or a whole batch of training.
    ValueError: for bad inputs, numbers or heads, and for rules that need what
      an encoder has not.
  """
  if isinstance(inputs, Mapping):
    raise TypeError(
      'inputs is a batch; give its encoder_input_tokens. Packed rows, which '
      'hold several sources (encoder_segment_ids), have no exit of their own: '
      'give each source a row'
    )
  inputs = check_inputs(inputs, encoder.vocab_size)
  rule: ExitRule = NeverExit() if exit_rule is None else exit_rule
  loop = UnrolledLayers() if loop is None else loop
  exit_checks.check_loop(loop)
  heads = exit_checks.as_pytree(heads)
  rule = exit_checks.check_rule(rule, encoder, heads, len(inputs))
  return _encode(encoder, loop, params, inputs, rule, heads)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(encoder, loop, params, inputs, rule, heads) -> EncodeResult:
  state = rule.init(encoder, inputs.shape[0], 1)
  return run(encoder, params, inputs, state, rule, heads=heads, loop=loop)


def run(
  encoder: LayeredEncoder,
  params: PyTree,
  inputs: Array,
  state: PyTree,
  rule: ExitRule,
  *,
  heads: Heads | SourceHeads | None,
  loop: LayerLoop,
) -> EncodeResult:
  """What `encode` does once all is checked, inside a jitted function.

  Args:
    encoder: the encoder.
    params: of it, or of its decoder.
    inputs: int32 [B, S].
    state: `rule.init(encoder, B, 1)`.
    rule: the exit rule, checked.
    heads: a pytree, or None.
    loop: how layers are looped over.
  """
  prepare: Any = encoder.prepare
  params = prepare(params, traced_layers=loop.traced_layers)
  layers = EncoderLayers(
    encoder=encoder,
    params=params,
    shared=encoder.shared(params, inputs.shape[1]),
    exit_rule=rule,
    heads=heads,
  )
  classes = exit_checks.num_classes(heads, encoder)
  rows = SourceRows.start(*encoder.embed(params, inputs), state, classes)
  rows, computed = loop(layers, rows)
  return EncodeResult(
    encoded=encoder.finish(params, rows.hidden, rows.mask),
    exit_layers=rows.exit_layers,
    confidences=rows.confidences,
    logits=layers.logits(rows),
    computed=computed,
  )
