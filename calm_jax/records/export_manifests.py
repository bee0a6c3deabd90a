"""What an exported decoder is: the manifest beside its program and parameters.

A manifest names its files by their hashes and itself carries a checksum, so
that a cut file, a file of another artifact and an edit by hand are found before
anything runs. Reading it needs no JAX.
"""

import dataclasses
import hashlib
import json
import os
from typing import Any

from calm_jax.records.decoding_contexts import DecodingContext
from calm_jax.records.json_files import (
  FORMAT_VERSION,
  from_jsonable,
  read_json,
  to_jsonable,
  write_json,
)

MANIFEST_NAME = 'manifest.json'
_FORMAT = 'calm_jax.export'
# Files are hashed in pieces of this size.
_BLOCK_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class ArtifactFile:
  """A file of an artifact.

  Attributes:
    name: in the artifact's directory.
    num_bytes: its size.
    sha256: of its content, in hexadecimal.
  """

  name: str
  num_bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class ArraySpec:
  """An array of the program's signature.

  Attributes:
    shape: sizes; 'b' is the batch size, which any call chooses.
    dtype: NumPy's name.
  """

  shape: tuple[Any, ...]
  dtype: str


@dataclasses.dataclass(frozen=True)
class ExportManifest:
  """All that is to be known of an exported decoder.

  Attributes:
    program: the file of the serialised program.
    parameters: the file of its first argument.
    inputs: its second argument, by name: tokens int32 [b, S], 0 = padding, and,
      where the policy has one, threshold float32 in [0, 1]; where the sampler
      draws, seed uint32.
    outputs: what it returns, by name, each with a leading b.
    platforms: what it was lowered for, in JAX's names.
    calling_convention: jax.export's, which a process must support.
    versions: of what exported it.
    created: when, in UTC.
    num_layers: L.
    vocab_size: V; tokens are in [0, V).
    eos_id: the token that ends an output, -1 if none does.
    source_length: S, tokens of an input.
    max_length: T, the most tokens of an output.
    dtype: of activations and matrices.
    depth_loop: how the program walks the layers.
    policy: what is computed for each token, without the threshold's value.
    sampler: how tokens are chosen.
    parameter_fingerprint: of the parameter tree, as certificates name it.
    tokenizer_fingerprint: of the tokenizer, None if it has none.
    certificate: threshold, tolerance, error_rate, statement and context of the
      certificate that holds for all this, and its promises where there are
      several; None if none does.
    context: whatever else the exporting job knows, such as the prefix of texts.
    full_at_one: whether threshold 1 is the full model; None where not said.
    window_ends: the last day, YYYY-MM-DD, whose jax is promised to read the
      program; None where an earlier calm_jax exported it.
    weights: 'float', or which matrices are in 8 bits.
    format_version: of this schema.
  """

  program: ArtifactFile
  parameters: ArtifactFile
  inputs: dict[str, ArraySpec]
  outputs: dict[str, ArraySpec]
  platforms: tuple[str, ...]
  calling_convention: int
  versions: dict[str, str]
  created: str
  num_layers: int
  vocab_size: int
  eos_id: int
  source_length: int
  max_length: int
  dtype: str
  depth_loop: str
  policy: dict[str, Any]
  sampler: dict[str, Any]
  parameter_fingerprint: str
  tokenizer_fingerprint: str | None = None
  certificate: dict[str, Any] | None = None
  context: dict[str, Any] = dataclasses.field(default_factory=dict)
  full_at_one: bool | None = None
  window_ends: str | None = None
  weights: Any = 'float'
  format_version: int = FORMAT_VERSION

  @property
  def decoding(self) -> DecodingContext:
    """What its outputs depend on."""
    return DecodingContext(
      parameters=self.parameter_fingerprint,
      tokenizer=self.tokenizer_fingerprint,
      policy=self.policy,
      sampler=self.sampler,
      prefix=self.context.get('prefix'),
      input_length=self.source_length,
      max_length=self.max_length,
      weights=self.weights,
      dtype=self.dtype,
      depth_loop=self.depth_loop,
    )

  @property
  def at_one(self) -> str:
    """What a threshold of 1 is, in words."""
    if not self.full_at_one:
      return 'never to exit'
    in_8_bits = '' if self.weights == 'float' else ' with weights in 8 bits'
    return f'the full model{in_8_bits}'


def describe_file(path: str | os.PathLike) -> ArtifactFile:
  """Returns a file's name, size and hash."""
  digest = hashlib.sha256()
  with open(path, 'rb') as file:
    while block := file.read(_BLOCK_BYTES):
      digest.update(block)
  size = os.path.getsize(path)
  return ArtifactFile(
    os.path.basename(os.fspath(path)), size, digest.hexdigest()
  )


def write_export_manifest(
  directory: str | os.PathLike, manifest: ExportManifest
) -> None:
  """Writes a manifest with its checksum into an artifact's directory."""
  content = {'format': _FORMAT, **to_jsonable(manifest)}
  content['checksum'] = _checksum(content)
  write_json(os.path.join(directory, MANIFEST_NAME), content)


def read_export_manifest(directory: str | os.PathLike) -> ExportManifest:
  """Reads the manifest of an artifact and checks its files against it.

  Raises:
    FileNotFoundError: if there is no artifact, or a file of it is missing.
    ValueError: if the manifest was edited or is of another version, or a file
      is cut, altered or of another artifact.
  """
  directory = os.fspath(directory)
  path = os.path.join(directory, MANIFEST_NAME)
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f'there is no exported decoder in {directory} (no {MANIFEST_NAME}); '
      'python -m calm_jax.cli.export writes one'
    )
  content = read_json(path)
  if not isinstance(content, dict) or content.get('format') != _FORMAT:
    raise ValueError(f'{path} is not the manifest of an exported decoder')
  if content.get('format_version') != FORMAT_VERSION:
    raise ValueError(
      f'{path} has format version {content.get("format_version")!r}, this '
      f'calm_jax reads {FORMAT_VERSION}; export again, or install the calm_jax '
      f'that wrote it ({content.get("versions", {}).get("calm_jax")})'
    )
  if content.pop('checksum', None) != _checksum(content):
    raise ValueError(
      f'{path} does not match its checksum: it was edited or damaged. It '
      'describes the program and cannot change it; export again'
    )
  manifest = from_jsonable(ExportManifest, content, where=path)
  for file in (manifest.program, manifest.parameters):
    _check_file(directory, file)
  return manifest


def _check_file(directory: str, expected: ArtifactFile) -> None:
  """Raises unless the file is the one that the manifest was written for."""
  # A name only: a manifest must not make anybody read another folder.
  path = os.path.join(directory, os.path.basename(expected.name))
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f'{path} is missing; copy the whole directory of the artifact'
    )
  size = os.path.getsize(path)
  if size != expected.num_bytes:
    raise ValueError(
      f'{path} has {size:,} bytes, its manifest says {expected.num_bytes:,}: '
      'it is cut or of another artifact; copy the whole directory again'
    )
  if (found := describe_file(path).sha256) != expected.sha256:
    raise ValueError(
      f'{path} has SHA-256 {found[:16]}..., its manifest says '
      f'{expected.sha256[:16]}...: it is damaged or of another artifact; copy '
      'the whole directory again'
    )


def _checksum(content: dict[str, Any]) -> str:
  """Returns a checksum over the content, whatever the order of its keys."""
  text = json.dumps(content, sort_keys=True, allow_nan=False)
  return 'sha256:' + hashlib.sha256(text.encode()).hexdigest()
