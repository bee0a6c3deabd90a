"""What comes out of a `TextGenerator`: texts, token by token."""

import dataclasses
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
) -> list[list[GeneratedText]]:
  """Returns the outputs of each request of a batch.

  Args:
    result: the batch decoded, with an axis of samples, on the host.
    batch: the batch.
    tokenizer: the tokenizer.
    certified: whether a certificate covers outputs that are not forced to begin
      with something.
  """
  return [
    [
      _generated_text(
        jax.tree.map(lambda leaf, place=(row, sample): leaf[place], result),
        tokenizer,
        certified=certified and not request.forced_prefix,
        warnings=request.warnings,
      )
      for sample in range(result.lengths.shape[1])
    ]
    for row, request in enumerate(batch.requests)
  ]


def _generated_text(
  result: DecodeResult, tokenizer: Tokenizer, **others: Any
) -> GeneratedText:
  """Returns one output of a result whose leaves are [T] and []."""
  length = int(result.lengths)
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
    **others,
  )
