"""What a program is to be made for, and what it would be, before it is made."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from calm_jax import decoding, quantisation
from calm_jax.deployment.programs import ProgramSpec, named_leaves
from calm_jax.interfaces import BoundDecoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramPlan:
  """Sizes and platforms of the program of a run.

  Attributes:
    source_length: S, tokens of an input; as trained if None.
    max_length: T, the most tokens of an output; as trained if None.
    platforms: out of `PLATFORMS`.
  """

  source_length: int | None = None
  max_length: int | None = None
  platforms: Sequence[str] = ('cpu', 'cuda', 'tpu')

  def spec(
    self,
    policy: decoding.ComputePolicy,
    *,
    sampler: decoding.Sampler,
    eos_id: int,
    feature_lengths: Mapping[str, int],
  ) -> ProgramSpec:
    """Returns what is to be exported, checked.

    Args:
      policy: what is computed for each token.
      sampler: how tokens are chosen.
      eos_id: the token that ends an output.
      feature_lengths: longest 'inputs' and 'targets' in tokens, as trained.

    Raises:
      ValueError: naming what cannot be exported.
    """
    source, target = self.source_length, self.max_length
    spec = ProgramSpec(
      source_length=feature_lengths['inputs'] if source is None else source,
      max_length=feature_lengths['targets'] if target is None else target,
      policy=policy,
      sampler=sampler,
      eos_id=eos_id,
      platforms=tuple(self.platforms),
    )
    spec.check()
    return spec


def describe_program(bound: BoundDecoder, spec: ProgramSpec) -> str:
  """Returns signature, sizes and platforms in lines of text.

  Args:
    bound: the decoder; shapes instead of parameters will do.
    spec: what is to be exported.
  """
  leaves = named_leaves(bound.params)
  size = sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values()
  )
  weights = quantisation.describe_weights(bound.weights)
  lines = [
    f'parameters: {len(leaves)} arrays, {size:,} bytes; weights: {weights}'
  ]
  for name, array in spec.input_shapes('b').items():
    shape = ', '.join(map(str, array.shape))
    lines.append(f'input {name}: {array.dtype.name}[{shape}]')
  return '\n'.join(
    [
      *lines,
      f'outputs: of up to {spec.max_length} tokens, for any batch size b',
      f'platforms: {", ".join(spec.platforms)}; '
      f'{type(bound.depth_loop).__name__}',
      f'policy: {decoding.describe(spec.policy)}',
      f'sampler: {decoding.describe(spec.sampler)}',
    ]
  )
