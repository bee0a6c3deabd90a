"""What outputs depend on besides their inputs, as one record.

The same object names stored decodes, certificates, exported programs and
evaluations, and says whether what one of them promises holds for another.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from calm_jax.records.json_files import to_jsonable

# What may differ, and is said where it does.
TOLD = (
  'backend',
  'matmul_precision',
  'xla_flags',
  'depth_loop',
  'batch_shape',
  'versions',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingContext:
  """Everything that a decode depends on, apart from its inputs and seed.

  None stands for what is not known, which is neither equal nor different. Of
  two decodes the fields down to `dtype` must be equal for a statement about the
  one to hold for the other.

  Attributes:
    parameters: fingerprint of the parameter tree.
    tokenizer: fingerprint of the tokenizer.
    policy: names and numbers of the policy, without those of the setting.
    sampler: name and numbers of the sampler.
    prefix: what is put in front of every input.
    inputs_cut: what becomes of inputs that are too long: a name.
    input_length: S, the longest input in tokens, EOS included.
    max_length: T, the most tokens of an output, EOS included.
    suppressed_tokens: ids that are never said.
    weights: 'float', or which matrices are in 8 bits.
    dtype: of activations.
    backend: what computed: 'cpu', 'gpu', 'tpu'.
    matmul_precision: JAX's default matmul precision, '' for the backend's own.
    xla_flags: flags that XLA was given.
    depth_loop: how layers are looped over.
    batch_shape: [B, S] of what was decoded together.
    versions: library -> version.
  """

  parameters: str | None = None
  tokenizer: str | None = None
  policy: Mapping[str, Any] | None = None
  sampler: Mapping[str, Any] | None = None
  prefix: str | None = None
  inputs_cut: str | None = None
  input_length: int | None = None
  max_length: int | None = None
  suppressed_tokens: tuple[int, ...] | None = ()
  weights: str | Mapping[str, Any] | None = None
  dtype: str | None = None
  backend: str | None = None
  matmul_precision: str | None = None
  xla_flags: str | None = None
  depth_loop: str | None = None
  batch_shape: tuple[int, ...] | None = None
  versions: Mapping[str, str] | None = None

  @classmethod
  def read(cls, content: Mapping[str, Any]) -> 'DecodingContext':
    """Returns the context that is written down in a certificate, or elsewhere.

    Args:
      content: what `write` returned, with whatever else beside it. Fields that
        are not there are unknown, as calm_jax 0.1.0 wrote fewer.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    found = {name: content[name] for name in names & content.keys()}
    # Before there were others.
    if 'dtype' in found:
      found.setdefault('weights', 'float')
    for name in ('suppressed_tokens', 'batch_shape'):
      if found.get(name) is not None:
        found[name] = tuple(found[name])
    if 'input_length' not in found and found.get('batch_shape'):
      found['input_length'] = found['batch_shape'][1]
    return cls(**found)

  def write(self) -> dict[str, Any]:
    """Returns what is known, as plain JSON values."""
    return {
      name: value
      for name, value in to_jsonable(self).items()
      if value is not None
    }

  def at_output_length(self, max_length: int | None) -> 'DecodingContext':
    """Returns the context with every length that its policy left open.

    A threshold or budget without one follows the decode; see
    `decoding.at_output_length`.

    Args:
      max_length: T of the decode; None where it is not known.
    """
    if max_length is None or self.policy is None:
      return self
    policy = _at_output_length(self.policy, max_length)
    return dataclasses.replace(self, policy=policy)

  def differences(
    self, actual: 'DecodingContext', *, made: str = 'certified'
  ) -> 'Differences':
    """Compares this context with that of another decode.

    Args:
      actual: of the decode that is to be covered.
      made: what was done in this context, as a participle.
    """
    breaking, told = [], []
    for field in dataclasses.fields(self):
      name = field.name
      here, there = (to_jsonable(getattr(c, name)) for c in (self, actual))
      if here == there:
        continue
      if here is None or there is None:
        if name not in TOLD:
          told.append(_unknown(name, here, there, made))
        continue
      for part, one, other in _parts(name, here, there):
        line = f'{part}: {made} for {one!r}, got {other!r}'
        (told if name in TOLD else breaking).append(line)
    return Differences(tuple(breaking), tuple(told))


@dataclasses.dataclass(frozen=True)
class Differences:
  """How two contexts differ, in words.

  Attributes:
    breaking: what keeps statements about the one from holding for the other.
    told: what a reader should know and judge.
  """

  breaking: tuple[str, ...] = ()
  told: tuple[str, ...] = ()

  def and_breaking(self, line: str) -> 'Differences':
    """Returns these and one more that breaks."""
    return dataclasses.replace(self, breaking=(*self.breaking, line))


def setting_in_words(setting: Any) -> str:
  """Writes a setting for readers.

  >>> setting_in_words(0.8), setting_in_words({'readout.num_blocks': 32})
  ('threshold 0.8', 'readout.num_blocks 32')
  """
  if setting == {}:
    return 'the policy as it stands'
  if isinstance(setting, dict):
    return ', '.join(f'{name} {value}' for name, value in setting.items())
  if isinstance(setting, (int, float)):
    return f'threshold {setting:g}'
  return str(setting)


def _at_output_length(described: Any, max_length: int) -> Any:
  """Fills in the length of a described policy, where it is None."""
  if not isinstance(described, Mapping):
    return described
  if described.get('type') == 'PerPosition':
    return int(described['layers'] * max_length)
  filled = {
    # A source is one position to the rule by which it leaves the encoder.
    name: _at_output_length(value, 1 if name == 'encoder_exit' else max_length)
    for name, value in described.items()
  }
  if filled.get('max_length', ...) is None:
    filled['max_length'] = max_length
  return filled


def _unknown(name: str, here: Any, there: Any, made: str) -> str:
  """Says that one side does not know a field."""
  if here is None:
    return f'{name}: not said for which it was {made}, got {there!r}'
  return f'{name}: {made} for {here!r}, not known here'


def _parts(name: str, one: Any, other: Any) -> list[tuple[str, Any, Any]]:
  """Returns the parts of two values that differ, by their paths."""
  both = isinstance(one, dict) and isinstance(other, dict)
  if not both or one.get('type') != other.get('type'):
    return [(name, one, other)]
  parts = []
  for key in dict.fromkeys([*one, *other]):
    if one.get(key) != other.get(key):
      parts += _parts(f'{name}.{key}', one.get(key), other.get(key))
  return parts
