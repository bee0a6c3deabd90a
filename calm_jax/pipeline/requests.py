"""Texts on their way into the decoder: encoded, grouped by length, batched.

Compiled shapes are few: sources are padded to the next of a few lengths, and
batches that are not full to a power of two. Which requests share a batch is
settled by the requests alone, so that an interrupted job meets the same batches
when it is started again.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from calm_jax.pipeline import token_choices
from calm_jax.tokenizer import BYTES, UNKNOWN_ID, Tokenizer, cut_input

TOO_LONG = ('refuse', 'truncate')
_SHORTEST = 16
# What transformers reads as one token each.
_SPECIAL = re.compile(r'<extra_id_\d+>|<pad>|</s>|<unk>')


@dataclasses.dataclass(frozen=True)
class Request:
  """One text, ready to be decoded.

  Attributes:
    number: which request it is, from 0; its noise depends on it.
    tokens: its ids, EOS included.
    warnings: what is wrong with it, in words.
    forced_prefix: ids that its output begins with.
  """

  number: int
  tokens: tuple[int, ...]
  warnings: tuple[str, ...] = ()
  forced_prefix: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class RequestBatch:
  """Requests that are decoded together.

  Attributes:
    requests: at most `num_rows`.
    num_rows: B, rows of the compiled shape; those left over repeat the first.
    length: S, what sources are padded to.
  """

  requests: tuple[Request, ...]
  num_rows: int
  length: int

  def _filled(self) -> list[Request]:
    missing = self.num_rows - len(self.requests)
    return [*self.requests, *[self.requests[0]] * missing]

  def inputs(self) -> np.ndarray:
    """Returns the padded sources, int32 [B, S]."""
    inputs = np.zeros((self.num_rows, self.length), np.int32)
    for row, request in enumerate(self._filled()):
      inputs[row, : len(request.tokens)] = request.tokens
    return inputs

  def forced_prefixes(self) -> np.ndarray | None:
    """Returns what outputs begin with, int32 [B, P]; None if none does."""
    rows = self._filled()
    width = max(len(row.forced_prefix) for row in rows)
    if not width:
      return None
    prefixes = np.zeros((self.num_rows, width), np.int32)
    for row, request in enumerate(rows):
      prefixes[row, : len(request.forced_prefix)] = request.forced_prefix
    return prefixes

  def keys(self, seed: int) -> jax.Array:
    """Returns what is drawn for each row, by its request's number: keys [B]."""
    numbers = np.array([row.number for row in self._filled()], np.uint32)
    fold_in = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return fold_in(jax.random.key(seed), numbers)


def encode(
  number: int,
  text: str,
  tokenizer: Tokenizer,
  *,
  name: str,
  prefix: str = '',
  input_length: int,
  max_length: int,
  too_long: str = 'refuse',
  forced_prefix: str | Sequence[int] = '',
) -> Request:
  """Encodes a text.

  Args:
    number: of the request.
    text: the text.
    tokenizer: the tokenizer.
    name: how errors call the text.
    prefix: put in front of the text.
    input_length: S, the most tokens, EOS included.
    max_length: T, the most tokens of an output.
    too_long: 'truncate' cuts what does not fit and warns (EOS stays), 'refuse'
      raises.
    forced_prefix: text or ids that the output begins with.

  Raises:
    ValueError: if the text is empty, or too long and refused; if no output can
      begin with the prefix.
  """
  if too_long not in TOO_LONG:
    raise ValueError(f'too_long is {too_long!r}; use one of {TOO_LONG}')
  if not isinstance(text, str):
    raise ValueError(f'{name} is {text!r}, no text')
  try:
    (prefix + text).encode('utf-8')
  except UnicodeEncodeError:
    raise ValueError(
      f'{name} holds half of a surrogate pair, which is no text'
    ) from None
  if not text.strip():
    raise ValueError(f'{name} is empty; give a text')
  tokens, warnings = tokenizer.encode(prefix + text), []
  if all(
    token == UNKNOWN_ID or not tokenizer.piece(token).strip('▁')
    for token in tokenizer.encode(text)
  ):
    warnings.append('nothing of it is in the vocabulary')
  warnings += _spelled_out(prefix + text, tokens, tokenizer)
  if len(tokens) + 1 > input_length:
    found = f'{len(tokens) + 1} tokens (end of sequence included)'
    if too_long == 'refuse':
      raise ValueError(
        f'{name} has {found}, this model was trained for '
        f"{input_length}; shorten it, or cut it with too_long='truncate'"
      )
    warnings.append(f'cut to {input_length} of {found}')
  whole = np.array([*tokens, tokenizer.eos_id], np.int32)
  return Request(
    number,
    tuple(cut_input(whole, input_length).tolist()),
    tuple(warnings),
    token_choices.prefix_tokens(
      forced_prefix, tokenizer, max_length=max_length
    ),
  )


def _spelled_out(
  text: str, tokens: Sequence[int], tokenizer: Tokenizer
) -> list[str]:
  """Returns warnings of special tokens in a text that the ids lack.

  transformers takes them for tokens wherever they stand; SentencePiece and
  seqio know sentinels behind a space only, and no other special token.
  """
  wanted = collections.Counter(_SPECIAL.findall(text))
  if not wanted:
    return []
  pieces = (tokenizer.piece(token).lstrip('▁') for token in tokens)
  missing = sorted((wanted - collections.Counter(pieces)).elements())
  if not missing:
    return []
  return [
    f'{" ".join(dict.fromkeys(missing))} is spelled out, letter by letter, and '
    'no special token: '
    + (
      'bytes have no sentinels'
      if tokenizer.name == BYTES
      else 'a sentinel of this vocabulary stands behind a space'
    )
  ]


def length_buckets(input_length: int) -> tuple[int, ...]:
  """Returns the lengths that sources are padded to, growing.

  >>> length_buckets(100)
  (16, 32, 64, 100)
  """
  buckets, length = [], _SHORTEST
  while length < input_length:
    buckets.append(length)
    length *= 2
  return (*buckets, input_length)


def batches(
  requests: Iterable[Request],
  batch_size: int,
  buckets: Sequence[int],
  *,
  window: int | None = None,
) -> Iterator[RequestBatch]:
  """Groups requests of similar length, reading them as needed.

  Args:
    requests: the requests; none is longer than the last bucket.
    batch_size: rows of a full batch.
    buckets: lengths, growing.
    window: no request waits while more than so many come after it, so that
      results can be put in order without holding all of them; None to wait for
      full batches.

  Yields:
    Batches; every request is in one.

  Raises:
    ValueError: if `batch_size` is not positive.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size is {batch_size}; it must be 1 or more')
  waiting: dict[int, list[tuple[int, Request]]] = {}

  def pop(length):
    taken = tuple(request for _, request in waiting.pop(length))
    num_rows = min(batch_size, 1 << (len(taken) - 1).bit_length())
    return RequestBatch(taken, num_rows, length)

  for place, request in enumerate(requests):
    length = next(size for size in buckets if len(request.tokens) <= size)
    waiting.setdefault(length, []).append((place, request))
    if len(waiting[length]) == batch_size:
      yield pop(length)
    if window is not None:
      for length in sorted(waiting):
        if waiting[length][0][0] <= place - window:
          yield pop(length)
  for length in sorted(waiting):
    yield pop(length)
