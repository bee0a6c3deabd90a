"""Decodes batches of a dataset under one policy and keeps what came out.

The batches are plain NumPy dictionaries, so nothing here knows where they come
from. Rows that only fill up the last batch are decoded with a harmless input
and dropped. Every policy of one structure uses the same compiled decoder: only
numbers (thresholds) change between them.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import decoding, exits, interfaces

Batch = Mapping[str, Any]
PolicyForBatch = Callable[[np.ndarray], decoding.ComputePolicy]


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedDataset:
  """What one policy made of N inputs.

  Attributes:
    tokens: int32 [N, T], EOS included, 0 after it.
    exit_layers: int32 [N, T], layers used in 1..L; -1 where never decoded.
    confidences: float32 [N, T], NaN where the rule did not look.
    scores: float32 [N], sum of the tokens' log-probabilities.
    lengths: int32 [N], decoded tokens, EOS included.
    texts: N detokenised outputs.
    inputs_text: N source texts ('' where the batches had none).
    references: N tuples of reference texts, possibly empty.
    example_ids: N hashes of the inputs' tokens.
    num_layers: L.
    seconds: wall clock of the whole decode, compilation included.
  """

  tokens: np.ndarray
  exit_layers: np.ndarray
  confidences: np.ndarray
  scores: np.ndarray
  lengths: np.ndarray
  texts: tuple[str, ...]
  inputs_text: tuple[str, ...]
  references: tuple[tuple[str, ...], ...]
  example_ids: tuple[str, ...]
  num_layers: int
  seconds: float

  @property
  def num_examples(self) -> int:
    """N."""
    return len(self.texts)

  @property
  def num_tokens(self) -> int:
    """Decoded tokens of all rows, EOS included."""
    return int(np.count_nonzero(self.exit_layers > 0))

  @property
  def mean_exit_layer(self) -> float:
    """Layers used per decoded token, in [1, L]; NaN if nothing was decoded."""
    decoded = self.exit_layers[self.exit_layers > 0]
    return float(decoded.mean()) if decoded.size else float('nan')

  def exit_layer_histogram(self) -> tuple[int, ...]:
    """Returns L counts: decoded tokens that left after layer 1, ..., L."""
    decoded = self.exit_layers[self.exit_layers > 0]
    counts = np.bincount(decoded, minlength=self.num_layers + 1)
    return tuple(int(count) for count in counts[1:])


def decode_dataset(
  decoder: interfaces.LayeredDecoder,
  params: Any,
  batches: Iterable[Batch],
  *,
  detokenize: Callable[[Sequence[int]], str],
  max_length: int,
  policy: decoding.ComputePolicy | None = None,
  policy_for_batch: PolicyForBatch | None = None,
  sampler: Any = None,
  eos_id: int = 1,
  rng: jax.Array | None = None,
  depth_loop: interfaces.DepthLoop | None = None,
  progress: Callable[[str], None] | None = None,
  progress_seconds: float = 10.0,
) -> DecodedDataset:
  """Decodes every input of the batches.

  Args:
    decoder: the decoder.
    params: its parameters, prepared or not.
    batches: dictionaries with `encoder_input_tokens` int [B, S] (0 is padding)
      and, where known, `num_valid` (rows from there on only fill the batch up)
      and the lists `inputs_text` and `references` (texts per row; without
      them, `targets_text` stands in). Batches of one shape compile once.
    detokenize: ids without padding and without EOS -> text.
    max_length: T, the most tokens to decode, EOS included.
    policy: the policy of every batch; a plain full-depth decode if neither this
      nor `policy_for_batch` is given.
    policy_for_batch: instead, a policy per batch, for rules that hold per-row
      data: it gets int [B], the place of each row in the result.
    sampler: as in `decoding.generate`; greedy by default.
    eos_id: the id that ends a sequence.
    rng: a key, for samplers that draw; input r of the data draws from
      fold_in(rng, r), however the data are cut into batches.
    depth_loop: as in `decoding.generate`.
    progress: gets a line to print now and then.
    progress_seconds: at least so long between two lines.

  Returns:
    The outputs in the order of the inputs.

  Raises:
    ValueError: if there are no inputs, an input is empty, or both a policy and
      `policy_for_batch` are given.
  """
  if policy is not None and policy_for_batch is not None:
    raise ValueError('give policy or policy_for_batch, not both.')
  if policy is None and policy_for_batch is None:
    policy = decoding.ComputePolicy()
  if depth_loop is None:
    depth_loop = decoding.default_depth_loop(params)
  # Laid out once here, or `generate` would do it for every batch.
  params = decoder.prepare(params, traced_layers=depth_loop.traced_layers)
  collected = _Collected(detokenize, eos_id, decoder.num_layers)
  line = _ProgressLine(progress, progress_seconds)
  start = time.perf_counter()
  for batch in batches:
    inputs, rows, num_valid = _fill_up(batch, collected.num_examples)
    result = decoding.generate(
      decoder,
      params,
      inputs,
      policy=policy if policy is not None else policy_for_batch(rows),
      sampler=sampler,
      max_length=max_length,
      eos_id=eos_id,
      rng=_request_keys(rng, rows),
      depth_loop=depth_loop,
    )
    collected.add(batch, inputs, jax.device_get(result), num_valid)
    line.update(collected)
  if not collected.num_examples:
    raise ValueError('there is nothing to decode: the batches hold no inputs.')
  return collected.finish(time.perf_counter() - start)


def oracle_policy(
  full: DecodedDataset, policy: decoding.ComputePolicy | None = None
) -> PolicyForBatch:
  """Makes `policy_for_batch` of the oracle that aims at a full decode's tokens.

  Args:
    full: the full model's decode of the same batches.
    policy: the other slots; the defaults if None.

  Returns:
    A function from the rows of a batch to the policy whose tokens exit at the
    first layer that agrees with the full model.
  """
  base = decoding.ComputePolicy() if policy is None else policy

  def policy_for_batch(rows: np.ndarray) -> decoding.ComputePolicy:
    rule = exits.OracleExit(full.tokens[rows])
    return dataclasses.replace(base, exit_rule=rule)

  return policy_for_batch


def example_id(tokens: np.ndarray) -> str:
  """Returns a hash of one input's ids [S] that padding does not change.

  >>> import numpy as np
  >>> a, b = np.array([5, 6, 1, 0]), np.array([5, 6, 1, 0, 0])
  >>> example_id(a) == example_id(b)
  True
  """
  nonzero = np.flatnonzero(tokens)
  trimmed = tokens[: nonzero[-1] + 1] if nonzero.size else tokens[:0]
  content = np.ascontiguousarray(trimmed, dtype='<i4').tobytes()
  return hashlib.sha256(content).hexdigest()[:16]


def _fill_up(
  batch: Batch, num_before: int
) -> tuple[np.ndarray, np.ndarray, int]:
  """Replaces the rows that only fill a batch up by its first row.

  An empty input is an error of the caller everywhere else, and decoding it
  would be wasted on whatever the model makes of nothing.

  Returns:
    Inputs int32 [B, S], the place of each row in the result int [B], and how
    many rows count.
  """
  inputs = np.asarray(batch['encoder_input_tokens'], dtype=np.int32)
  num_valid = int(batch.get('num_valid', len(inputs)))
  if not 1 <= num_valid <= len(inputs):
    raise ValueError(
      f'num_valid is {num_valid}, expected 1..{len(inputs)}, the rows of the '
      'batch.'
    )
  empty = np.flatnonzero(~inputs[:num_valid].any(axis=1))
  if empty.size:
    raise ValueError(
      f'input {num_before + int(empty[0])} is empty (all padding); leave it '
      'out of the batches, or lower num_valid if it only fills the batch up.'
    )
  rows = np.arange(len(inputs))
  rows[num_valid:] = 0
  return inputs[rows], num_before + rows, num_valid


def _request_keys(rng: jax.Array | None, rows: np.ndarray) -> jax.Array | None:
  """Returns one key per row that depends on its place in the data alone."""
  if rng is None:
    return None
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, rows)


def _references(batch: Batch, num_valid: int) -> list[tuple[str, ...]]:
  """Returns the reference texts of the rows that count."""
  if 'references' in batch:
    return [tuple(row) for row in batch['references'][:num_valid]]
  if 'targets_text' in batch:
    return [(text,) for text in batch['targets_text'][:num_valid]]
  return [()] * num_valid


class _Collected:
  """Gathers the rows of successive batches."""

  def __init__(self, detokenize, eos_id: int, num_layers: int):
    self._detokenize = detokenize
    self._eos_id = eos_id
    self._num_layers = num_layers
    self._arrays = {
      name: []
      for name in ('tokens', 'exit_layers', 'confidences', 'scores', 'lengths')
    }
    self._texts, self._inputs_text, self._references, self._ids = [], [], [], []

  @property
  def num_examples(self) -> int:
    return len(self._texts)

  def add(self, batch: Batch, inputs: np.ndarray, result, num_valid: int):
    """Keeps the first `num_valid` rows of a batch's result."""
    for name, parts in self._arrays.items():
      parts.append(np.asarray(getattr(result, name))[:num_valid])
    for tokens, length in zip(
      self._arrays['tokens'][-1], self._arrays['lengths'][-1], strict=True
    ):
      ids = tokens[:length].tolist()
      if ids and ids[-1] == self._eos_id:
        ids.pop()
      self._texts.append(self._detokenize(ids))
    texts = batch.get('inputs_text', [''] * num_valid)
    self._inputs_text.extend(texts[:num_valid])
    self._references.extend(_references(batch, num_valid))
    self._ids.extend(example_id(row) for row in inputs[:num_valid])

  def depth(self) -> tuple[int, float]:
    """Returns the tokens decoded so far and their mean exit layer."""
    counts = [part[part > 0] for part in self._arrays['exit_layers']]
    num_tokens = sum(part.size for part in counts)
    total = sum(int(part.sum()) for part in counts)
    return num_tokens, total / num_tokens if num_tokens else float('nan')

  def finish(self, seconds: float) -> DecodedDataset:
    """Joins the batches."""
    return DecodedDataset(
      **{name: np.concatenate(part) for name, part in self._arrays.items()},
      texts=tuple(self._texts),
      inputs_text=tuple(self._inputs_text),
      references=tuple(self._references),
      example_ids=tuple(self._ids),
      num_layers=self._num_layers,
      seconds=seconds,
    )


class _ProgressLine:
  """Says now and then how far a decode is."""

  def __init__(self, progress: Callable[[str], None] | None, seconds: float):
    self._progress = progress
    self._seconds = seconds
    self._start = self._last = time.perf_counter()

  def update(self, collected: _Collected) -> None:
    """Prints a line if the last one is old enough."""
    now = time.perf_counter()
    if self._progress is None or now - self._last < self._seconds:
      return
    self._last = now
    num_tokens, mean_exit_layer = collected.depth()
    self._progress(
      f'decoded {collected.num_examples} inputs in {now - self._start:.0f} s, '
      f'{1e3 * (now - self._start) / max(num_tokens, 1):.2f} ms per token, '
      f'mean exit layer {mean_exit_layer:.2f}'
    )
