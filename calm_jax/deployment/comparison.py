"""An exported decoder held against the decoder that it was made of."""

import dataclasses

import jax
import numpy as np

from calm_jax import decoding
from calm_jax.deployment.exported_decoder import ExportedDecoder
from calm_jax.deployment.programs import ProgramSpec
from calm_jax.interfaces import BoundDecoder


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What came out of decoding the same inputs both ways.

  Attributes:
    num_tokens: tokens decoded by the original, all thresholds together.
    different_tokens: places where the other token was emitted.
    different_exit_layers: places where another exit was taken.
  """

  num_tokens: int
  different_tokens: int
  different_exit_layers: int

  @property
  def equal(self) -> bool:
    """Whether nothing differs."""
    return not (self.different_tokens or self.different_exit_layers)


def compare_with_decoder(
  bound: BoundDecoder,
  exported: ExportedDecoder,
  spec: ProgramSpec,
  *,
  thresholds: tuple[float, ...] = (1.0, 0.5),
  batch_size: int = 2,
  seed: int = 0,
) -> Comparison:
  """Decodes random inputs with both, by greedy choice or the same draws.

  Args:
    bound: what it was made of.
    exported: the artifact, loaded.
    spec: what was exported.
    thresholds: in [0, 1]; left out where the policy has none.
    batch_size: B.
    seed: of the inputs, and of the sampler if it draws.
  """
  random = np.random.default_rng(seed)
  shape = (batch_size, spec.source_length)
  inputs = random.integers(1, bound.vocab_size, shape).astype(np.int32)
  count = tokens = layers = 0
  for threshold in thresholds if spec.has_threshold else (None,):
    found = exported(
      inputs,
      threshold=threshold,
      seed=None if spec.sampler.deterministic else seed,
    )
    wanted = _decode(bound, inputs, spec, threshold, seed)
    count += int(wanted.lengths.sum())
    tokens += int((found['tokens'] != np.asarray(wanted.tokens)).sum())
    layers += int((found['exit_layers'] != wanted.exit_layers).sum())
  return Comparison(count, tokens, layers)


def _decode(bound, inputs, spec, threshold, seed) -> decoding.DecodeResult:
  """Decodes as the exported program should."""
  policy = spec.policy
  if threshold is not None:
    policy = decoding.with_setting(policy, threshold)
  return decoding.generate(
    bound,
    inputs,
    policy=policy,
    sampler=spec.sampler,
    rng=None if spec.sampler.deterministic else jax.random.key(seed),
    max_length=spec.max_length,
    eos_id=spec.eos_id,
  )
