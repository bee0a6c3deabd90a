"""A run's parameters with matrices in 8 bits, made once and kept beside it."""

import dataclasses
import logging
import os

import jax

from calm_jax import checkpoints, decoding, model, quantisation
from calm_jax.array_types import Params
from calm_jax.quantisation import Int8Weights
from calm_jax.runs.loading import LoadedRun, load_run, run_of_checkpoint

_LOGGER = logging.getLogger(__name__)


def int8_params(
  run: LoadedRun, weights: Int8Weights | str | None = 'int8'
) -> Params:
  """Returns the parameters that a run is bound with.

  `decoding.bind(decoder, runs.int8_params(run, weights), weights=weights)`
  binds what `decoding.bind(decoder, run.params, weights=weights)` does. They
  are read from the file beside the run if it fits (see
  `checkpoints.load_int8`), else made and written there. Where nothing can be
  written that is said, and they are made each time.

  Args:
    run: a loaded run.
    weights: which matrices are in 8 bits; None or 'float' for none, which
      returns the run's own.

  Raises:
    ValueError: for parameters that are in 8 bits already, in another way, or
      cannot be.
  """
  weights = quantisation.as_weights(weights)
  if weights == run.weights:
    return run.params
  if run.weights is not None or weights is None:
    raise ValueError(
      f'this run was loaded with weights {run.weights}, which do not become '
      f'{weights or "float"}; load it with runs.load_run'
    )
  checkpoint = _own_checkpoint(run)
  if checkpoint is not None:
    try:
      return checkpoints.load_int8(checkpoint, weights).params
    except FileNotFoundError:
      pass
    except ValueError as error:
      _LOGGER.warning('%s', error)
  decoder = model.as_layered_decoder(run.config)
  assert decoder.quantise is not None
  params = decoder.quantise(run.params, weights)
  if checkpoint is not None and jax.process_index() == 0:
    _keep(checkpoint, params, weights)
  return params


def load_int8(
  path: str | os.PathLike,
  weights: Int8Weights | str = 'int8',
  *,
  allow_nonfinite: bool = False,
) -> LoadedRun:
  """Loads a run with matrices in 8 bits, without the float ones in memory.

  They are read from the file that `int8_params` writes. Where there is none
  that fits, the run is loaded once in float, and the file written.

  Args:
    path: as for `load_run`.
    weights: which matrices.
    allow_nonfinite: load what stays in float even if it is not finite.

  Returns:
    The run with `params` in 8 bits: bind them with `weights=run.weights`.

  Raises:
    FileNotFoundError, ValueError: as `load_run`, or for float weights.
  """
  kept = quantisation.as_weights(weights)
  if kept is None:
    raise ValueError(f'weights is {weights!r}: load these with runs.load_run')
  # Once: training may be writing others.
  checkpoint = checkpoints.find_checkpoint(path)
  try:
    found = checkpoints.load_int8(checkpoint, kept)
  except (FileNotFoundError, ValueError):
    # What was wrong is said where they are made again.
    run = load_run(checkpoint, allow_nonfinite=allow_nonfinite)
    params, fingerprint = int8_params(run, kept), run.fingerprint
  else:
    run = run_of_checkpoint(path, found, allow_nonfinite=allow_nonfinite)
    params = found.params
    fingerprint = found.metadata['parameter_fingerprint']
  return dataclasses.replace(
    run,
    params=params,
    checkpoint=checkpoint,
    weights=kept,
    float_fingerprint=fingerprint,
  )


def load_first_layers(
  model_dir: str | os.PathLike,
  *,
  layers: int = 2,
  weights: Int8Weights | str = 'int8',
) -> decoding.FirstLayers:
  """Loads a run's first layers in 8 bits, which draft for the run itself.

  Args:
    model_dir: a run directory.
    layers: how many of them a draft runs.
    weights: which matrices are in 8 bits.

  Raises:
    FileNotFoundError, ValueError: as `load_int8`.
  """
  run = load_int8(model_dir, weights)
  decoder = model.as_layered_decoder(run.config)
  bound = decoding.bind(decoder, run.params, weights=run.weights)
  return decoding.FirstLayers(bound, layers)


def _own_checkpoint(run: LoadedRun) -> str | None:
  """Returns the checkpoint of a run's parameters, if one holds just these."""
  if run.checkpoint is None:
    return None
  try:
    metadata = checkpoints.read_metadata(run.checkpoint)
  except ValueError:
    # Training has replaced it by a later one.
    return None
  same = metadata.get('parameter_fingerprint') == run.fingerprint
  return run.checkpoint if same else None


def _keep(checkpoint: str, params: Params, weights: Int8Weights) -> None:
  """Writes parameters beside their checkpoint, if that can be."""
  metadata = checkpoints.read_metadata(checkpoint)
  try:
    path = checkpoints.save_int8(
      checkpoint,
      params,
      weights,
      fingerprint=metadata['parameter_fingerprint'],
    )
  except OSError as error:
    _LOGGER.warning(
      'matrices in 8 bits are not kept beside %s (%s): they are made anew by '
      'every job. Make it writable to keep them',
      checkpoint,
      error,
    )
    return
  _LOGGER.info('kept matrices in 8 bits in %s', path)
