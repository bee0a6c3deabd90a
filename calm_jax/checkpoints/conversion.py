"""From any format that is read to any that is written, checked by reading back.

Parameters pass one at a time (our own form and T5X's Orbax are written by
Orbax, which wants all of them). What was written is opened again and compared
by checksum, tensor by tensor, before it gets its name.
"""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from calm_jax.checkpoints import (
  agreement,
  directories,
  huggingface,
  huggingface_companions,
  native,
  parameter_names,
  stored_tensors,
  t5x,
  t5x_orbax,
  t5x_tree,
)
from calm_jax.checkpoints.fingerprints import fingerprint_of, tensor_checksum
from calm_jax.checkpoints.formats import open_checkpoint
from calm_jax.checkpoints.loading import check_finite
from calm_jax.checkpoints.storage import is_url
from calm_jax.checkpoints.stored_checkpoint import StoredCheckpoint
from calm_jax.checkpoints.stored_tensors import DTYPES, StoredTensor
from calm_jax.model.config import T5Config
from calm_jax.tokenizer import Tokenizer

FORMATS = ('calm_jax', 't5x', 't5x_orbax', 'huggingface')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """What to write.

  Attributes:
    format: one of `FORMATS`.
    dtype: 'float32', 'bfloat16' or 'float16'; None keeps every tensor's own.
      Our own form is float32 whatever this says.
    stacked: stack layers as T5X's `scan_layers` does; T5X's formats only.
    model_type: 't5' or 'mt5', for Hugging Face's config.json.
    max_file_bytes: Hugging Face's files are divided above this size.
    tokenizer: whose files lie beside weights written for Hugging Face; what
      the source has itself if None.
    context: what our own form says the parameters depend on; see
      `CheckpointWriter.save`.
    allow_nonfinite: write NaN and infinity all the same.
  """

  format: str
  dtype: str | None = None
  stacked: bool = False
  model_type: str = 't5'
  max_file_bytes: int = 5 * 10**9
  tokenizer: Tokenizer | None = None
  context: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  allow_nonfinite: bool = False

  def __post_init__(self):
    if self.format not in FORMATS:
      raise ValueError(f'format must be in {FORMATS}, got {self.format!r}')
    if self.dtype is not None and self.dtype not in DTYPES:
      raise ValueError(
        f'dtype must be in {sorted(DTYPES)} or None, got {self.dtype!r}'
      )
    if self.stacked and self.format not in ('t5x', 't5x_orbax'):
      raise ValueError(
        f'only t5x and t5x_orbax have stacked layers, not {self.format}'
      )
    if self.format == 'calm_jax' and self.dtype not in (None, 'float32'):
      raise ValueError(
        f'our own form keeps float32 parameters, not {self.dtype}; activations '
        "are computed in another dtype by T5Config(dtype='bfloat16')"
      )


class Converted(NamedTuple):
  """What `convert` returns.

  Attributes:
    path: what was written.
    fingerprint: of its parameters; see `parameter_fingerprint`.
    num_tensors: parameters compared by reading back.
    num_bytes: their bytes as written.
    notes: what was found, left aside or assumed on the way, in sentences.
  """

  path: str
  fingerprint: str
  num_tensors: int
  num_bytes: int
  notes: tuple[str, ...] = ()


def convert(
  source: StoredCheckpoint, path: str | os.PathLike, target: Target
) -> Converted:
  """Writes an opened checkpoint in another format.

  Args:
    source: from `open_checkpoint`, or `from_params`.
    path: a local directory. Hugging Face's folder is made there; of the other
      formats, `checkpoint_<step>` in it.
    target: what to write.

  Raises:
    FileExistsError: if that is there already.
    ValueError: if a parameter is damaged or not finite, the format cannot hold
      the model, or what was read back differs; nothing is left then.
  """
  destination = destination_of(source, path, target)
  os.makedirs(os.path.dirname(destination), exist_ok=True)
  read: dict[str, str] = {}
  written: dict[str, str] = {}
  passing = dataclasses.replace(
    source,
    tensors={
      name: _passing(source.path, name, tensor, target, read, written)
      for name, tensor in source.tensors.items()
    },
  )
  # Hidden, so that nobody takes it for a checkpoint; a name that T5X knows,
  # because Orbax looks at it.
  unfinished = os.path.join(
    os.path.dirname(destination), f'.unfinished-{os.getpid()}'
  )
  try:
    made = _write(passing, unfinished, target)
    notes = _write_companions(made, source, target)
    _check_source(source, read)
    _check_written(made, written, source.config)
    os.rename(made, destination)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  return Converted(
    destination,
    fingerprint_of(written),
    len(written),
    sum(tensor.nbytes for tensor in passing.tensors.values()),
    (*source.notes, *notes),
  )


def destination_of(
  source: StoredCheckpoint, path: str | os.PathLike, target: Target
) -> str:
  """Returns what `convert` would make.

  Raises:
    FileExistsError: if it is there already.
    ValueError: if the path is a URL.
  """
  path = os.fspath(path)
  if is_url(path):
    raise ValueError(
      f'cannot write to {path}: write to a local directory and copy it, for '
      'example with gcloud storage cp -r'
    )
  path = os.path.abspath(path)
  if target.format != 'huggingface':
    path = directories.checkpoint_path(path, source.step)
  if os.path.lexists(path):
    raise FileExistsError(
      f'{path} is there already; give another directory, or remove it'
    )
  return path


def from_params(params, config, *, step: int = 0) -> StoredCheckpoint:
  """Returns parameters in memory as a checkpoint, to be written by `convert`.

  Args:
    params: a tree of arrays, NumPy's or JAX's.
    config: the model's configuration.
    step: training steps taken.

  Raises:
    ValueError: if the tree is not the configuration's.
  """
  tensors = {
    name: stored_tensors.in_memory(name, leaf)
    for name, leaf in parameter_names.flattened(params).items()
  }
  t5x_tree.check_parameters('the parameter tree', tensors, config)
  return StoredCheckpoint('memory', 'memory', config, tensors, step)


def mapping(source: StoredCheckpoint, target: Target) -> list[tuple[str, ...]]:
  """Returns what would be renamed to what, for people to read.

  Returns:
    Rows of (name in the source, our name, name in the target, shape of ours,
    dtype written).
  """
  return [
    (
      source.tensors[parameter.name].name,
      parameter.name,
      _name_in(parameter, target),
      ' x '.join(map(str, parameter.shape)),
      _dtype(source.tensors[parameter.name], target).name,
    )
    for parameter in parameter_names.parameters(source.config)
  ]


def _name_in(parameter: parameter_names.Parameter, target: Target) -> str:
  row = parameter.row
  if target.format == 'huggingface':
    return parameter.huggingface + (' (transposed)' if row.transposed else '')
  if target.stacked and row.stacked:
    layer = ':' if parameter.layer is None else parameter.layer
    return f'{row.stacked}[:, {layer}]'
  return parameter.name


def _dtype(tensor: StoredTensor, target: Target) -> np.dtype:
  if target.format == 'calm_jax':
    return DTYPES['float32']
  return tensor.dtype if target.dtype is None else DTYPES[target.dtype]


def _passing(
  path, name, tensor, target: Target, read: dict, written: dict
) -> StoredTensor:
  """Returns a tensor that is checked, cast and remembered when it is read."""
  dtype = _dtype(tensor, target)

  def fetch(index):
    block = tensor.read(index)
    if not target.allow_nonfinite:
      check_finite(path, name, block)
    if block.shape != tensor.shape:
      raise AssertionError(f'{tensor} should pass whole, not as {block.shape}')
    read[name] = tensor_checksum(block)
    if dtype == block.dtype:
      written[name] = read[name]
      return block
    # What becomes infinite is refused right below.
    with np.errstate(over='ignore'):
      block = block.astype(dtype)
    if not target.allow_nonfinite:
      check_finite(f'{path}, cast to {dtype.name},', name, block)
    written[name] = tensor_checksum(block)
    return block

  return dataclasses.replace(tensor, dtype=dtype, fetch=fetch)


def _write(source: StoredCheckpoint, folder: str, target: Target) -> str:
  """Writes into a new folder and returns what was made, there or below."""
  if target.format == 'calm_jax':
    return native.save(
      folder,
      source.step,
      params=parameter_names.nested(
        {name: tensor.read() for name, tensor in source.tensors.items()}
      ),
      config=source.config,
      # T5X restores a step with the parameters.
      train_state={'step': np.int32(source.step)},
      context={**target.context, **source.generation.write()},
    )
  if target.format == 't5x_orbax':
    made = directories.checkpoint_path(folder, source.step)
    t5x_orbax.write_checkpoint(made, source, stacked=target.stacked)
    return made
  os.makedirs(folder)
  if target.format == 't5x':
    t5x.write_checkpoint(folder, source, stacked=target.stacked)
  else:
    huggingface.write_folder(
      folder,
      source,
      model_type=target.model_type,
      max_file_bytes=target.max_file_bytes,
    )
  return folder


def _write_companions(
  path: str, source: StoredCheckpoint, target: Target
) -> tuple[str, ...]:
  """Writes what else the format has; returns what to say of it."""
  if target.format == 'huggingface':
    return huggingface_companions.write_companions(
      path, source, target.tokenizer
    )
  rules = source.generation
  if target.format == 'calm_jax':
    return ()
  if rules.suppressed_tokens or rules.forced_prefix:
    return (
      f'This form does not keep how outputs are generated: give suppressed_'
      f'tokens {list(rules.suppressed_tokens)} and forced_prefix '
      f'{list(rules.forced_prefix)} when decoding.',
    )
  return ()


def _check_source(source: StoredCheckpoint, read: Mapping[str, str]) -> None:
  saved = source.metadata.get('parameter_fingerprint')
  if saved is not None and saved != (found := fingerprint_of(read)):
    raise ValueError(
      f'the parameters of {source.path} have the fingerprint {found}, and were '
      f'saved with {saved}: the files were altered'
    )


def _check_written(
  path: str, written: Mapping[str, str], config: T5Config
) -> None:
  """Opens what was written and compares configurations and every tensor.

  Raises:
    ValueError: naming those that differ.
  """
  back = open_checkpoint(path)
  agreement.check_config(path, back.config, config)
  differing = [
    name
    for name in sorted({*back.tensors, *written})
    if name not in back.tensors
    or tensor_checksum(back.tensors[name].read()) != written.get(name)
  ]
  if differing:
    raise ValueError(
      f'{len(differing)} parameters read back from {path} are not what was '
      f'written, {differing[0]} for one; is the disk sound?'
    )
