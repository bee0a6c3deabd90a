"""Decodes batches of a dataset under one policy and keeps what came out.

The batches are plain NumPy dictionaries, so nothing here knows where they come
from. Their rows are decoded in batches of the same shapes, made up anew of the
rows that no store holds yet; places left over in the last one are filled with a
harmless input and dropped. Of several processes each decodes its share, on its
own devices, and all get the whole result. Every policy of one structure uses
the same compiled decoder: only numbers (thresholds) change between them.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import decoding, exits, interfaces
from calm_jax.evaluation.compile_clock import compile_seconds
from calm_jax.evaluation.decode_progress import DecodeProgress
from calm_jax.evaluation.decode_store import (
  ENCODER_FIELD,
  DecodeStore,
  rows_of,
)
from calm_jax.evaluation.decoded_dataset import (
  CollectedRows,
  DecodedDataset,
  Input,
  example_id,
)
from calm_jax.processes import collectives

Batch = Mapping[str, Any]
PolicyForBatch = Callable[[np.ndarray], decoding.ComputePolicy]


def decode_dataset(
  bound: interfaces.BoundDecoder,
  batches: Iterable[Batch],
  *,
  detokenize: Callable[[Sequence[int]], str],
  max_length: int,
  policy: decoding.ComputePolicy | interfaces.ExitRule | None = None,
  policy_for_batch: PolicyForBatch | None = None,
  sampler: Any = None,
  eos_id: int = 1,
  suppressed_tokens: Sequence[int] = (),
  rng: jax.Array | None = None,
  share: collectives.Share | None = None,
  store: DecodeStore | None = None,
  progress: Callable[[str], None] | None = None,
  progress_seconds: float = 10.0,
) -> DecodedDataset:
  """Decodes every input of the batches.

  Args:
    bound: the decoder with its parameters. Its mesh is of this process's
      devices, if there are several processes.
    batches: dictionaries with `encoder_input_tokens` int [B, S] (0 is padding)
      and, where known, `num_valid` (rows from there on only fill the batch up)
      and the lists `inputs_text` and `references` (texts per row; without
      them, `targets_text` stands in). Batches of one shape compile once.
    detokenize: ids without padding and without EOS -> text.
    max_length: T, the most tokens to decode, EOS included.
    policy: the policy of every batch, or an exit rule alone; a plain full-depth
      decode if neither this nor `policy_for_batch` is given.
    policy_for_batch: instead, a policy per batch, for rules that hold per-row
      data: it gets int [B], the place of each row in the result.
    sampler: as in `decoding.generate`; greedy by default.
    eos_id: the id that ends a sequence.
    suppressed_tokens: ids that are never said.
    rng: a key, for samplers that draw; input r of the data draws from
      fold_in(rng, r), however the data are cut into batches.
    share: the inputs that this process decodes, `collectives.Share.here()`
      where several processes decode the same batches; all if None.
    store: rows that it holds are not decoded, the others are added to it. It
      must be of this very way of decoding.
    progress: gets a line to print now and then.
    progress_seconds: at least so long between two lines.

  Returns:
    The outputs in the order of the inputs.

  Raises:
    ValueError: if there are no inputs, an input is empty, both a policy and
      `policy_for_batch` are given, or a store and what differs by row.
  """
  if policy is not None and policy_for_batch is not None:
    raise ValueError('give policy or policy_for_batch, not both.')
  if policy_for_batch is None:
    policy = decoding.as_policy(policy)
  if store is not None and (policy_for_batch is not None or rng is not None):
    raise ValueError(
      'a store finds rows by their input alone; leave it out with '
      'policy_for_batch or rng'
    )
  share = collectives.Share() if share is None else share

  def decode(inputs, rows):
    result = decoding.generate(
      bound,
      inputs,
      policy=policy if policy is not None else policy_for_batch(rows),
      sampler=sampler,
      max_length=max_length,
      eos_id=eos_id,
      suppressed_tokens=suppressed_tokens or None,
      rng=_request_keys(rng, rows),
    )
    return jax.device_get(result)

  collected = CollectedRows(
    detokenize,
    eos_id,
    bound.num_layers,
    share,
    getattr(bound.decoder.encoder, 'num_layers', None),
  )
  line = DecodeProgress(
    progress, _num_inputs(batches, share), seconds_between=progress_seconds
  )
  pending: dict[tuple[int, int], list[Input]] = {}
  for batch in batches:
    for row in valid_rows(batch, collected.num_inputs):
      collected.expect(row)
      if not share.holds(row.place):
        continue
      if store is not None and row.key in store:
        collected.add([row], store[row.key])
        line.found_one()
        continue
      waiting = pending.setdefault(row.batch_shape, [])
      waiting.append(row)
      if len(waiting) == row.batch_shape[0]:
        _decode_rows(decode, waiting, collected, store, line)
        waiting.clear()
  for waiting in pending.values():
    if waiting:
      _decode_rows(decode, waiting, collected, store, line)
  if not collected.num_inputs:
    raise ValueError('there is nothing to decode: the batches hold no inputs.')
  decoded = collected.finish()
  failed = int(np.isnan(decoded.scores).sum())
  if failed and progress is not None:
    progress(
      f'warning: {failed} of {decoded.num_examples} outputs end where logits '
      'were not finite; decode in float32, or look at the parameters'
    )
  return decoded


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
  base = dataclasses.replace(
    decoding.as_policy(policy), layer_plan=decoding.EveryLayer()
  )

  def policy_for_batch(rows: np.ndarray) -> decoding.ComputePolicy:
    rule = exits.OracleExit(full.tokens[rows])
    return dataclasses.replace(base, exit_rule=rule)

  return policy_for_batch


def valid_rows(batch: Batch, num_before: int) -> list[Input]:
  """Returns the rows of a batch that count."""
  inputs = np.asarray(batch['encoder_input_tokens'], dtype=np.int32)
  num_valid = num_valid_of(batch)
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
  texts = batch.get('inputs_text', [''] * num_valid)
  references = references_of(batch)
  return [
    Input(
      tokens=inputs[row],
      place=num_before + row,
      batch_shape=inputs.shape,
      example_id=example_id(inputs[row]),
      inputs_text=texts[row],
      references=references[row],
    )
    for row in range(num_valid)
  ]


def _num_inputs(
  batches: Iterable[Batch], share: collectives.Share
) -> int | None:
  """Returns how many inputs are this process's, where that is known."""
  if not isinstance(batches, Sequence):
    return None
  total = sum(map(num_valid_of, batches))
  return sum(map(share.holds, range(total)))


def _decode_rows(decode, rows: list[Input], collected, store, line) -> None:
  """Decodes up to B inputs as one batch, keeps them and says how far it is.

  Places that are left over hold the first input again: an empty one would be an
  error everywhere else, and what the model makes of nothing a waste.
  """
  size = rows[0].batch_shape[0]
  filled = [*rows, *[rows[0]] * (size - len(rows))]
  start, compiled = time.perf_counter(), compile_seconds()
  result = decode(
    np.stack([row.tokens for row in filled]),
    np.array([row.place for row in filled]),
  )
  seconds = time.perf_counter() - start - (compile_seconds() - compiled)
  arrays = {name: of[: len(rows)] for name, of in rows_of(result).items()}
  arrays['seconds'] = np.full(len(rows), max(seconds, 1e-9) / len(rows))
  if store is not None:
    store.add([row.key for row in rows], arrays)
  collected.add(rows, arrays)
  exit_layers = arrays['exit_layers'][arrays['exit_layers'] > 0]
  line.update(
    len(rows),
    exit_layers.size,
    exit_layers.tolist(),
    arrays.get(ENCODER_FIELD, ()),
  )


def _request_keys(rng: jax.Array | None, rows: np.ndarray) -> jax.Array | None:
  """Returns one key per row that depends on its place in the data alone."""
  if rng is None:
    return None
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, rows)


def num_valid_of(batch: Batch) -> int:
  """Returns how many rows count; those from there on only fill it up."""
  return int(batch.get('num_valid', len(batch['encoder_input_tokens'])))


def references_of(batch: Batch) -> list[tuple[str, ...]]:
  """Returns the reference texts of the rows that count."""
  num_valid = num_valid_of(batch)
  if 'references' in batch:
    return [tuple(row) for row in batch['references'][:num_valid]]
  if 'targets_text' in batch:
    return [(text,) for text in batch['targets_text'][:num_valid]]
  return [()] * num_valid
