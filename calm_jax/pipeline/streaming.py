"""One text, token by token, while it is decoded."""

from collections.abc import Iterator

import jax

from calm_jax import decoding
from calm_jax.pipeline.generated_text import StreamedToken
from calm_jax.tokenizer import Tokenizer

# What a byte of an unfinished character reads as.
_REPLACEMENT = '\ufffd'


def stream_tokens(
  state: decoding.DecodeState, tokenizer: Tokenizer
) -> Iterator[StreamedToken]:
  """Yields the tokens of a decode of one row that was just started.

  Args:
    state: from `decoding.start`; it is used up.
    tokenizer: the tokenizer.

  Raises:
    ValueError: if the decode has several rows.
    FloatingPointError: where its logits are not finite, after the tokens that
      were.
  """
  if (num_rows := state.carry.alive.shape[0]) != 1:
    raise ValueError(
      f'a stream shows one output, this decode makes {num_rows}; use generate'
    )
  tokens: list[int] = []
  shown, alive = '', True
  while alive:
    state = decoding.advance(state, 1)
    alive = bool(state.carry.alive[0])
    result = jax.device_get(decoding.finish(state))
    place = len(tokens)
    if bool(result.failed[0]):
      raise FloatingPointError(
        f'the logits of position {place} are not finite (exit layer '
        f'{int(result.exit_layers[0, place])} of {state.bound.num_layers}): '
        'the output ends there'
      )
    tokens.append(int(result.tokens[0, place]))
    text = tokenizer.decode(tokens)
    if alive:
      # Perhaps the first bytes of a character; they are shown once it is clear
      # what they are.
      text = text.rstrip(_REPLACEMENT)
    yield StreamedToken(
      token=tokens[-1],
      piece=tokenizer.piece(tokens[-1]),
      text=text[len(shown) :],
      exit_layer=int(result.exit_layers[0, place]),
      confidence=float(result.confidences[0, place]),
    )
    shown = text
