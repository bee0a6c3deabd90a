"""What comes out of a `TextGenerator`: texts, token by token."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from calm_jax.decoding import DecodeResult
from calm_jax.pipeline.requests import RequestBatch
from calm_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class GeneratedText:
  """One output.

  Attributes:
    text: the output.
    tokens: its vocabulary ids, EOS included.
    pieces: the same as the tokenizer writes them.
    spans: which characters [start, end) of `text` each token stands for: all
      bytes of a character for all of it, EOS for none.
    exit_layers: layers used by each token, 1..L.
    confidences: confidence of each token at its exit, NaN where not looked at.
    score: sum of the tokens' log-probabilities.
    prefix_length: how many tokens were forced, the first ones; they run all
      layers by decree, so that means over layers leave them out.
    certified: whether a certificate covers how this was decoded (by the full
      model, where it certified nothing).
    warnings: what was wrong with the input and did not keep it from being
      decoded, in words.
    error: why the output ends where it does, in words, where what the model
      computed was not finite; None elsewhere. No certificate covers it.
    encoder_exit_layer: encoder layers that the input ran, 1..L_enc; None where
      all run for all.
  """

  text: str
  tokens: tuple[int, ...]
  pieces: tuple[str, ...]
  spans: tuple[tuple[int, int], ...]
  exit_layers: tuple[int, ...]
  confidences: tuple[float, ...]
  score: float
  prefix_length: int
  certified: bool
  warnings: tuple[str, ...] = ()
  error: str | None = None
  encoder_exit_layer: int | None = None

  @property
  def chosen_layers(self) -> tuple[int, ...]:
    """The exit layers of the tokens that the model chose."""
    return self.exit_layers[self.prefix_length :]


@dataclasses.dataclass(frozen=True)
class StreamedToken:
  """One token, as soon as it is decoded.

  Attributes:
    token: its vocabulary id.
    piece: the same as the tokenizer writes it.
    text: what it adds to the output; a character of several bytes comes with
      its last one. Together these are the output.
    exit_layer: layers used, 1..L.
    confidence: confidence at the exit, NaN where not looked at.
  """

  token: int
  piece: str
  text: str
  exit_layer: int
  confidence: float


def generated_texts(
  result: DecodeResult,
  batch: RequestBatch,
  tokenizer: Tokenizer,
  *,
  certified: bool,
  error_of: Callable[[int, DecodeResult], str | None],
) -> list[list[GeneratedText]]:
  """Returns the outputs of each request of a batch.

  Args:
    result: the batch decoded, with an axis of samples, on the host.
    batch: the batch.
    tokenizer: the tokenizer.
    certified: whether a certificate covers outputs that are not forced to begin
      with something.
    error_of: says where one output [T] of a row failed, None if it did not.
  """

  def text_of(row, request, sample):
    one = jax.tree.map(lambda leaf: leaf[row, sample], result)
    error = error_of(row, one)
    return _generated_text(
      one,
      tokenizer,
      certified=certified and not request.forced_prefix and error is None,
      warnings=request.warnings,
      error=error,
    )

  samples = range(result.lengths.shape[1])
  return [
    [text_of(row, request, sample) for sample in samples]
    for row, request in enumerate(batch.requests)
  ]


def _generated_text(
  result: DecodeResult, tokenizer: Tokenizer, **others: Any
) -> GeneratedText:
  """Returns one output of a result whose leaves are [T] and []."""
  length = int(result.lengths)
  encoder_layers = result.encoder_exit_layers
  tokens = [int(token) for token in result.tokens[:length]]
  return GeneratedText(
    text=tokenizer.decode(tokens),
    tokens=tuple(tokens),
    pieces=tuple(tokenizer.pieces(tokens)),
    spans=tuple(tokenizer.spans(tokens)),
    exit_layers=tuple(int(x) for x in result.exit_layers[:length]),
    confidences=tuple(float(x) for x in result.confidences[:length]),
    score=float(result.scores),
    prefix_length=int(result.prefix_lengths),
    encoder_exit_layer=None if encoder_layers is None else int(encoder_layers),
    **others,
  )
