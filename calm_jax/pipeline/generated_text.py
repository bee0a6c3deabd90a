"""What comes out of a `TextGenerator`: texts, token by token."""

import dataclasses

from calm_jax.decoding import DecodeResult
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
  certified: bool
  warnings: tuple[str, ...] = ()


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
  tokenizer: Tokenizer,
  *,
  certified: bool,
  warnings: tuple[str, ...] = (),
) -> list[GeneratedText]:
  """Returns the outputs of one request.

  Args:
    result: its n outputs, on the host: [n, T] and [n].
    tokenizer: the tokenizer.
    certified: whether a certificate covers them.
    warnings: what is to be said of the input.
  """
  texts = []
  for row, length in enumerate(result.lengths):
    tokens = [int(token) for token in result.tokens[row, :length]]
    texts.append(
      GeneratedText(
        text=tokenizer.decode(tokens),
        tokens=tuple(tokens),
        pieces=tuple(tokenizer.pieces(tokens)),
        spans=tuple(tokenizer.spans(tokens)),
        exit_layers=tuple(int(x) for x in result.exit_layers[row, :length]),
        confidences=tuple(float(x) for x in result.confidences[row, :length]),
        score=float(result.scores[row]),
        certified=certified,
        warnings=warnings,
      )
    )
  return texts
