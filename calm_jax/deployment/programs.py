"""A whole decode as one exported function of plain dicts of arrays.

The function is `(parameters, inputs) -> outputs`. Parameters are an argument
and not constants: a program that held them would hold hundreds of megabytes
once in its text and once more when compiled, and could not share them between
batch sizes. All three are dicts of arrays by name, so that nothing of this
package is needed to call it. The batch size is a symbol; the source length is a
number, because the encoder's relative positions are worked out while tracing.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from calm_jax import checks, decoding
from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import BoundDecoder

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
# Of a DecodeResult, what a program returns.
_OUTPUTS = ('tokens', 'exit_layers', 'confidences', 'scores', 'lengths')


@dataclasses.dataclass(frozen=True)
class ProgramSpec:
  """What is to be exported.

  Attributes:
    source_length: S, tokens of an input.
    max_length: T, the most tokens of an output.
    policy: what is computed for each token; given as an exit rule alone, it
      becomes a policy. The value of its threshold, where it has one, does not
      matter: that is an input of the program.
    sampler: how tokens are chosen. One that draws takes a seed as an input.
    eos_id: the token that ends an output; -1 if none does.
    platforms: out of `PLATFORMS`.
  """

  source_length: int
  max_length: int
  policy: decoding.ComputePolicy = decoding.ComputePolicy()
  sampler: decoding.Sampler = decoding.Greedy()
  eos_id: int = 1
  platforms: tuple[str, ...] = ('cpu', 'cuda', 'tpu')

  def __post_init__(self):
    object.__setattr__(self, 'policy', decoding.as_policy(self.policy))
    object.__setattr__(self, 'sampler', decoding.as_sampler(self.sampler))

  def check(self) -> None:
    """Raises ValueError, naming what cannot be exported.

    What depends on the model is checked when the program is traced.
    """
    checks.check_whole(self.source_length, 'source_length', low=1)
    checks.check_whole(self.max_length, 'max_length', low=1)
    unknown = [name for name in self.platforms if name not in PLATFORMS]
    if unknown or not self.platforms:
      raise ValueError(
        f'platforms {list(self.platforms)}: give one or more of '
        f"{', '.join(PLATFORMS)} (JAX's 'gpu' is 'cuda' or 'rocm')"
      )

  @property
  def has_threshold(self) -> bool:
    """Whether the program takes a threshold."""
    return hasattr(self.policy.exit_rule, 'threshold')

  def input_shapes(self, batch_size: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the program's inputs for a batch size, a number or a symbol."""
    shapes = {
      'tokens': jax.ShapeDtypeStruct(
        (batch_size, self.source_length), jnp.int32
      )
    }
    if self.has_threshold:
      shapes['threshold'] = jax.ShapeDtypeStruct((), jnp.float32)
    if not self.sampler.deterministic:
      shapes['seed'] = jax.ShapeDtypeStruct((), jnp.uint32)
    return shapes


def named_leaves(params: PyTree) -> dict[str, Array]:
  """Returns the arrays of a tree by their paths, 'layers/mlp/wo/kernel'.

  Raises:
    ValueError: if two arrays have one name.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  named = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }
  if len(named) != len(leaves):
    raise ValueError(
      'two parameters have the same name once their path is written with '
      'slashes; rename one of them'
    )
  return named


def lower_decoder(
  bound: BoundDecoder, spec: ProgramSpec
) -> tuple[jax.export.Exported, dict[str, Array]]:
  """Lowers a decode for every platform; nothing is compiled or run.

  Args:
    bound: the decoder with its parameters, on no mesh. `WhileDepthLoop` is the
      portable depth loop.
    spec: what to export.

  Returns:
    The program and the parameters that it takes, by name.

  Raises:
    ValueError: naming what cannot be exported.
  """
  spec.check()
  if bound.mesh is not None:
    raise ValueError(
      'a program is exported for one device, and this decoder is bound to a '
      'mesh; bind it without'
    )
  if decoding.is_for_batches(bound.depth_loop):
    raise ValueError(
      f'a program is exported for batches of any size, and {bound.depth_loop} '
      'is another one for each; bind with decoding.WhileDepthLoop()'
    )
  named = named_leaves(bound.params)
  function = decode_function(jax.tree.structure(bound), tuple(named), spec)
  (batch_size,) = jax.export.symbolic_shape('b')
  exported = jax.export.export(jax.jit(function), platforms=spec.platforms)(
    {
      name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
      for name, leaf in named.items()
    },
    spec.input_shapes(batch_size),
  )
  return exported, named


def decode_function(
  structure: Any,
  names: Sequence[str],
  spec: ProgramSpec,
) -> Callable[[Mapping[str, Array], Mapping[str, Array]], dict[str, Array]]:
  """Returns the function that is exported.

  Args:
    structure: the tree structure of the bound decoder.
    names: of its parameters, in the tree's order (a dict's is another one).
    spec: what to export.
  """

  def decode(parameters, inputs):
    bound = jax.tree.unflatten(structure, [parameters[name] for name in names])
    policy, rng = spec.policy, None
    if spec.has_threshold:
      policy = decoding.with_setting(policy, inputs['threshold'])
    if not spec.sampler.deterministic:
      rng = jax.random.key(inputs['seed'])
    result = decoding.generate(
      bound,
      inputs['tokens'],
      policy=policy,
      sampler=spec.sampler,
      rng=rng,
      max_length=spec.max_length,
      eos_id=spec.eos_id,
    )
    return {name: getattr(result, name) for name in _OUTPUTS}

  return decode
