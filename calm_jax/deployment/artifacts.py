"""Artifacts on disk: a program, its parameters and their manifest.

A directory of three files: `program.jax_export`, `parameters.safetensors` (any
reader of safetensors reads it) and `manifest.json`. It gets its name once it is
complete.
"""

import datetime
import os
import shutil
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from calm_jax import checkpoints, decoding, quantisation, records
from calm_jax.array_types import Array
from calm_jax.checkpoints import safetensors_files, stored_tensors
from calm_jax.checkpoints.storage import Folder
from calm_jax.deployment import compatibility_window
from calm_jax.deployment.exported_decoder import ExportedDecoder
from calm_jax.deployment.fitting import check_parameters
from calm_jax.deployment.programs import ProgramSpec, lower_decoder
from calm_jax.interfaces import BoundDecoder
from calm_jax.records import provenance

PROGRAM_NAME = 'program.jax_export'
PARAMETERS_NAME = 'parameters.safetensors'
_LIBRARIES = ('jax', 'jaxlib', 'calm_jax')


def export_artifact(
  bound: BoundDecoder,
  directory: str | os.PathLike,
  spec: ProgramSpec,
  *,
  parameter_fingerprint: str | None = None,
  tokenizer_fingerprint: str | None = None,
  certificate: Mapping[str, Any] | None = None,
  context: Mapping[str, Any] | None = None,
) -> records.ExportManifest:
  """Exports a decoder into a directory.

  Args:
    bound: the decoder with its parameters, on no mesh. `WhileDepthLoop` is the
      portable depth loop.
    directory: must not be there yet.
    spec: what to export.
    parameter_fingerprint: of the parameters as a checkpoint holds them, which
      is what certificates name; of the bound ones if None.
    tokenizer_fingerprint: of the tokenizer that makes its inputs.
    certificate: of one that holds for all this, at least its 'threshold'.
    context: whatever else users of the artifact should know, as JSON.

  Raises:
    FileExistsError: if the directory is there already.
    ValueError: naming what cannot be exported.
  """
  directory = os.path.abspath(os.path.expanduser(directory))
  check_free(directory)
  exported, parameters = lower_decoder(bound, spec)
  if parameter_fingerprint is None:
    parameter_fingerprint = checkpoints.parameter_fingerprint(bound.params)
  unfinished = f'{directory}.unfinished-{os.getpid()}'
  try:
    os.makedirs(unfinished)
    with open(os.path.join(unfinished, PROGRAM_NAME), 'wb') as file:
      file.write(exported.serialize())
    _write_parameters(
      os.path.join(unfinished, PARAMETERS_NAME),
      parameters,
      stored_tensors.DTYPES
      if bound.weights is None
      else stored_tensors.WITH_INT8,
    )
    manifest = records.ExportManifest(
      program=records.describe_file(os.path.join(unfinished, PROGRAM_NAME)),
      parameters=records.describe_file(
        os.path.join(unfinished, PARAMETERS_NAME)
      ),
      **_facts(exported, bound, spec),
      parameter_fingerprint=parameter_fingerprint,
      tokenizer_fingerprint=tokenizer_fingerprint,
      certificate=None if certificate is None else dict(certificate),
      context=dict(context or {}),
    )
    records.write_export_manifest(unfinished, manifest)
    os.rename(unfinished, directory)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  return manifest


def load_artifact(directory: str | os.PathLike) -> ExportedDecoder:
  """Reads an exported decoder; nothing is compiled before it is called.

  Raises:
    FileNotFoundError: if there is none, or a file of it is missing.
    ValueError: if a file is cut, altered or of another artifact, the program
      is for other platforms than this process's, this jax cannot run it, or
      the parameters are not what it takes.
  """
  directory = os.path.abspath(os.path.expanduser(directory))
  manifest = records.read_export_manifest(directory)
  past = compatibility_window.past_window(manifest.versions, manifest.created)
  if past is not None:
    warnings.warn(f'{directory}: {past}', stacklevel=2)
  exported = _read_program(directory, manifest)
  platform = jax.export.default_export_platform()
  if platform not in manifest.platforms:
    raise ValueError(
      f'{directory} was exported for {", ".join(manifest.platforms)}, this '
      f'process runs on {platform}; export it with this platform, or set '
      f'JAX_PLATFORMS={manifest.platforms[0]}'
    )
  tensors = safetensors_files.read_file(
    Folder.open(directory), PARAMETERS_NAME, stored_tensors.WITH_INT8
  )
  path = os.path.join(directory, PARAMETERS_NAME)
  check_parameters(path, tensors, exported, manifest.weights)
  parameters = {
    name: jnp.asarray(tensor.read()) for name, tensor in tensors.items()
  }
  return ExportedDecoder(manifest, exported, parameters)


def check_free(directory: str | os.PathLike) -> None:
  """Raises FileExistsError if there is something where an artifact would go."""
  if os.path.lexists(directory):
    raise FileExistsError(
      f'{directory} is there already; give another directory, or remove it'
    )


def _write_parameters(
  path: str, parameters: Mapping[str, Array], dtypes: Mapping[str, np.dtype]
) -> None:
  """Writes arrays by name, one of them in host memory at a time."""
  for name, array in parameters.items():
    if array.dtype.name not in dtypes:
      raise ValueError(
        f'parameter {name} has dtype {array.dtype.name}; an artifact holds '
        f'{", ".join(dtypes)}. Cast it, or make it a constant '
        'of the decoder'
      )
  tensors = {
    name: stored_tensors.in_memory(name, array)
    for name, array in parameters.items()
  }
  safetensors_files.write_file(path, stored_tensors.aligned(tensors))


def _facts(
  exported: jax.export.Exported, bound: BoundDecoder, spec: ProgramSpec
) -> dict[str, Any]:
  """Returns what a manifest says of a program."""
  (_, inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
  outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
  now = datetime.datetime.now(datetime.UTC)
  ends = compatibility_window.end_of_window(jax.__version__, now.date())
  return dict(
    inputs=_specs(inputs),
    outputs=_specs(outputs),
    platforms=tuple(exported.platforms),
    calling_convention=exported.calling_convention_version,
    versions=provenance.versions(*_LIBRARIES),
    created=now.isoformat(timespec='seconds'),
    window_ends=ends.isoformat(),
    num_layers=bound.num_layers,
    vocab_size=bound.vocab_size,
    eos_id=spec.eos_id,
    source_length=spec.source_length,
    max_length=spec.max_length,
    dtype=np.dtype(bound.decoder.dtype).name,
    weights=quantisation.describe_weights(bound.weights),
    depth_loop=type(bound.depth_loop).__name__,
    policy=decoding.describe(spec.policy),
    sampler=decoding.describe(spec.sampler),
    full_at_one=decoding.is_full_at_one(spec.policy),
  )


def _specs(arrays: Mapping[str, Any]) -> dict[str, records.ArraySpec]:
  return {
    name: records.ArraySpec(
      tuple(
        size if isinstance(size, int) else str(size) for size in array.shape
      ),
      array.dtype.name,
    )
    for name, array in arrays.items()
  }


def _read_program(
  directory: str, manifest: records.ExportManifest
) -> jax.export.Exported:
  """Reads the program, which this jax must be able to run."""
  path = os.path.join(directory, PROGRAM_NAME)
  about = (
    f'{path} was written by jax {manifest.versions.get("jax")}, this is jax '
    f'{jax.__version__}'
  )
  remedy = (
    'jax reads programs of the 6 months before it and the 3 weeks after it: '
    'export again with a jax that fits, or install the jax that wrote it'
  )
  low = jax.export.minimum_supported_calling_convention_version
  high = jax.export.maximum_supported_calling_convention_version
  if not low <= manifest.calling_convention <= high:
    raise ValueError(
      f'{about}, which knows the calling conventions {low} to {high} and not '
      f'{manifest.calling_convention}; {remedy}'
    )
  with open(path, 'rb') as file:
    data = file.read()
  try:
    exported = jax.export.deserialize(bytearray(data))
    # Parses the StableHLO, which otherwise only the first call would do.
    exported.mlir_module()
  except Exception as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ValueError(
      f'{about}, which cannot read it ({reason}); {remedy}'
    ) from error
  return exported
