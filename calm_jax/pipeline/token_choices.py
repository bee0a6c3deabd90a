"""Tokens of an output that a user names: what it begins with, what it lacks.

Outputs are made of tokens and users think in text, so both are looked up in the
vocabulary here, and what it has no token for is refused.
"""

from collections.abc import Sequence

from calm_jax.tokenizer import UNKNOWN_ID, Tokenizer


def prefix_tokens(
  text: str | Sequence[int], tokenizer: Tokenizer, *, max_length: int
) -> tuple[int, ...]:
  """Returns the ids that an output which begins with a text begins with.

  Args:
    text: the text, or its ids; nothing is forced if it is empty.
    tokenizer: the tokenizer.
    max_length: T, the most tokens of an output.

  Raises:
    ValueError: if the vocabulary lacks part of the text, or it is longer than
      outputs are.
  """
  if isinstance(text, (list, tuple)) and all(type(t) is int for t in text):
    tokens = tuple(text)
  elif isinstance(text, str):
    tokens = tuple(tokenizer.encode(text))
  else:
    raise ValueError(f"the forced prefix is {text!r}, no text; '' is none")
  if isinstance(text, str) and UNKNOWN_ID in tokens:
    raise ValueError(
      f'the forced prefix {text!r} holds what the vocabulary lacks: its pieces '
      f'are {tokenizer.pieces(tokens)}; no output can begin with it'
    )
  if len(tokens) > max_length:
    raise ValueError(
      f'the forced prefix {text!r} has {len(tokens)} tokens, and outputs at '
      f'most {max_length}; shorten it'
    )
  return tokens


def token_ids(
  tokens: Sequence[int | str] | int | str,
  tokenizer: Tokenizer,
  *,
  vocab_size: int,
) -> tuple[int, ...]:
  """Returns tokens as ids, ascending, each once.

  Args:
    tokens: ids, or pieces as the tokenizer writes them ('\u2581the' opens a
      word, 'the' goes on with one); or one of them.
    tokenizer: the tokenizer.
    vocab_size: V, ids of the model, which may have more than the tokenizer.

  Raises:
    ValueError: naming an id or a piece that there is not.
  """
  if isinstance(tokens, (int, str)):
    tokens = [tokens]
  wanted = {token for token in tokens if isinstance(token, str)}
  found: dict[str, list[int]] = {}
  for token in range(tokenizer.vocab_size) if wanted else ():
    if (piece := tokenizer.piece(token)) in wanted:
      found.setdefault(piece, []).append(token)
  ids = set()
  for token in tokens:
    if isinstance(token, str):
      if token not in found:
        made_of = tokenizer.pieces(tokenizer.encode(token))
        raise ValueError(
          f'no token is {token!r}; as a text it is {made_of}. Name the pieces '
          "as outputs show them ('\u2581' opens a word), or ids"
        )
      ids.update(found[token])
    elif isinstance(token, bool) or not isinstance(token, int):
      raise ValueError(f'{token!r} is no token: give ids or pieces')
    elif not 0 <= token < vocab_size:
      raise ValueError(
        f'there is no token {token}: this model has the ids 0 to '
        f'{vocab_size - 1}'
      )
    else:
      ids.add(token)
  return tuple(sorted(ids))
