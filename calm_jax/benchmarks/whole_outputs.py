"""The outputs of all inputs of a token file, decoded in batches of one size."""

from collections.abc import Sequence

import jax
import numpy as np

from calm_jax import decoding, interfaces
from calm_jax.benchmarks import token_inputs

_BATCH_SIZE = 16


def decode_all(
  bound: interfaces.BoundDecoder,
  sources: Sequence[np.ndarray],
  policy: decoding.ComputePolicy,
  max_length: int,
  *,
  suppressed_tokens: Sequence[int] = (),
  sampler: decoding.Sampler | None = None,
  num_samples: int | None = None,
  rng: jax.Array | None = None,
) -> decoding.DecodeResult:
  """Returns the outputs of all sources, on the host, [N, T] each.

  Args:
    bound: the decoder with its parameters.
    sources: N inputs, token ids with EOS.
    policy: decodes them.
    max_length: T.
    suppressed_tokens: ids that are never said.
    sampler: how tokens are chosen; greedily if None.
    num_samples: K, outputs per source, [N, K, T] each; one if None.
    rng: a key, for samplers that draw; source r draws from fold_in(rng, r).
  """
  parts = []
  for number, part in enumerate(fixed_batches(sources)):
    keys = None
    if rng is not None:
      rows = np.arange(len(part)) + number * len(part)
      keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, rows)
    result = jax.device_get(
      decoding.generate(
        bound,
        part,
        policy=policy,
        max_length=max_length,
        suppressed_tokens=suppressed_tokens or None,
        sampler=sampler,
        num_samples=num_samples,
        rng=keys,
      )
    )
    parts.append(result)
  joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
  return jax.tree.map(lambda leaf: leaf[: len(sources)], joined)


def fixed_batches(sources: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Returns sources as batches of one shape, for which one program serves.

  What is missing of the last batch is filled with its last input.
  """
  padded = token_inputs.whole_batches(sources, len(sources))[0]
  parts = []
  for first in range(0, len(padded), _BATCH_SIZE):
    part = padded[first : first + _BATCH_SIZE]
    parts.append(part[np.minimum(np.arange(_BATCH_SIZE), len(part) - 1)])
  return parts
