"""Is the shallow exit right where it is confident? FREE's two exits, compared.

Given outputs are run through all layers, teacher forced, and after layer E one
asks how confident it is, and whether it would say the token that the last layer
says. With `decoding.CatchUp` a decode by these two exits sees the same
confidences for as long as its tokens are those outputs' (law 10).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from calm_jax import calibration, checks, exits, interfaces
from calm_jax.array_types import Array
from calm_jax.decoding import suppression
from calm_jax.evaluation import teacher_forcing
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.exits.candidates import first_best


@dataclasses.dataclass(frozen=True, eq=False)
class ShallowAgreement:
  """What a shallow exit says of M tokens, beside the last layer.

  Attributes:
    confidences: float32 [M], in [0, 1].
    agrees: bool [M], whether both would say the same token.
  """

  confidences: np.ndarray
  agrees: np.ndarray


def shallow_agreement(
  bound: interfaces.BoundDecoder,
  batches: Iterable[Batch],
  tokens: np.ndarray,
  *,
  exit_layer: int,
  measure: exits.Measure | None = None,
  suppressed_tokens: Sequence[int] = (),
) -> ShallowAgreement:
  """Returns confidence and agreement of an exit for every token of outputs.

  Args:
    bound: the decoder with its parameters.
    batches: as for `decode_dataset`; rows from `num_valid` on do not count.
    tokens: int [N, T], an output per input, 0 after its end: those of a full
      decode (`DecodedDataset.tokens`).
    exit_layer: E, from the first that the measure can speak about to L - 1.
    measure: of the confidence; `exits.SoftmaxMargin()` if None.
    suppressed_tokens: ids that are never said, as in the decode.

  Raises:
    ValueError: if sizes do not fit, inputs and outputs are not equally many, or
      there is no token.
  """
  tokens = np.asarray(tokens, dtype=np.int32)
  measure = exits.SoftmaxMargin() if measure is None else measure
  measure = measure.check(bound.decoder, len(tokens), tokens.shape[1])
  checks.check_whole(
    exit_layer,
    'exit_layer',
    low=measure.minimum_exit_layer,
    high=bound.num_layers - 1,
  )
  suppressed = suppression.checked_suppressed(
    suppressed_tokens, vocab_size=bound.vocab_size, eos_id=-1
  )
  found = []
  for inputs, outputs, counts in teacher_forcing.with_outputs(batches, tokens):
    pairs = _both_exits(
      bound, inputs, outputs, counts, exit_layer - 1, measure, suppressed
    )
    found.append([np.asarray(values)[counts] for values in pairs])
  if not sum(confidences.size for confidences, _ in found):
    raise ValueError('the outputs hold no tokens; give decoded ones')
  confidences, agrees = (
    np.concatenate(values) for values in zip(*found, strict=True)
  )
  return ShallowAgreement(confidences=confidences, agrees=agrees)


def free_threshold(
  bound: interfaces.BoundDecoder,
  batches: Iterable[Batch],
  tokens: np.ndarray,
  *,
  exit_layer: int,
  measure: exits.Measure | None = None,
  suppressed_tokens: Sequence[int] = (),
) -> float:
  """Returns FREE's threshold for an exit after layer E (arXiv 2310.05424).

  The rows that it is fitted to must not be among those that certify it, nor
  those of the test. Published, it is fitted to tokens of passes through the
  deep layers that took earlier ones along, and anew before each of the first
  300 outputs: it drifts, which no certificate covers. Here it is fitted once,
  to all tokens, and frozen (see `calibration.beta_mixture`).

  Args:
    bound: see `shallow_agreement`.
    batches: see `shallow_agreement`.
    tokens: see `shallow_agreement`.
    exit_layer: see `shallow_agreement`.
    measure: see `shallow_agreement`.
    suppressed_tokens: see `shallow_agreement`.

  Returns:
    One of 10 points from 0.3 to 0.9.

  Raises:
    ValueError: as `shallow_agreement` and `calibration.fit_beta_mixture`, or if
      confidences are not higher where the exits agree.
  """
  pairs = shallow_agreement(
    bound,
    batches,
    tokens,
    exit_layer=exit_layer,
    measure=measure,
    suppressed_tokens=suppressed_tokens,
  )
  mixture = calibration.fit_beta_mixture(pairs.confidences, pairs.agrees)
  return mixture.threshold()


@jax.jit
def _both_exits(
  bound: interfaces.BoundDecoder,
  inputs: Array,
  outputs: Array,
  counts: Array,
  exit_at: Array | int,
  measure: Any,
  suppressed: Array,
) -> tuple[Array, Array]:
  """Returns confidences float32 and agreement bool, [B, T] each.

  Args:
    bound: see `shallow_agreement`.
    inputs: int [B, S].
    outputs: int [B, T].
    counts: bool [B, T], the positions that count.
    exit_at: int [], the layer of the shallow exit, counted from 0.
    measure: of the confidence, checked.
    suppressed: bool [V], the ids that are never said.
  """
  shape = outputs.shape
  rows = jnp.arange(shape[0] * shape[1])

  def logits_of(hidden):
    return jnp.where(suppressed, -jnp.inf, bound.logits(hidden))

  def read(layer, before, hidden):
    logits = logits_of(hidden)
    view = interfaces.LayerView(
      layer=layer,
      positions=rows % shape[1],
      hidden=hidden.reshape(len(rows), -1),
      previous_hidden=before.reshape(len(rows), -1),
      logits=logits.reshape(len(rows), -1).astype(jnp.float32),
      token_ids=None,
      log_total=None,
      active=counts.reshape(-1),
    )
    confidences = measure.confidence(view).astype(jnp.float32)
    return confidences.reshape(shape), first_best(logits)

  def look(pair, layer, before, hidden):
    pair = lax.cond(
      layer == exit_at,
      lambda _: read(layer, before, hidden),
      lambda pair: pair,
      pair,
    )
    return pair, None

  nothing = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)
  last, (confidences, shallow), _ = teacher_forcing.run_layers(
    bound, inputs, outputs, look, nothing
  )
  return confidences, shallow == first_best(logits_of(last))
