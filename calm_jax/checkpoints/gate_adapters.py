"""Which exit adapters a gate was trained beside, and whether these are they.

A gate learns when the token that an exit says, as it is read, is the last
layer's. Read through other adapters, or through none, exits say other tokens,
and the gate would still answer.
"""

import os
from typing import Any

from calm_jax.array_types import PyTree
from calm_jax.checkpoints import directories, native
from calm_jax.checkpoints.fingerprints import parameter_fingerprint
from calm_jax.checkpoints.trained_parts import EXIT_ADAPTERS, GATE

READ_THROUGH = 'exit_adapter_parameters'


def adapters_context(adapters: PyTree | None) -> dict[str, Any]:
  """Returns what the context of a gate says of adapters.

  Their fingerprint is the one that their own checkpoint has.

  Args:
    adapters: `exit_adapters.AdaptsExits`; None for a gate without.
  """
  if adapters is None:
    return {}
  return {READ_THROUGH: parameter_fingerprint({EXIT_ADAPTERS.key: adapters})}


def check_read_through(
  model_dir: str | os.PathLike, gate: str, adapters: str | None
) -> None:
  """Checks that a gate was trained for exits read as they are going to be.

  Args:
    model_dir: the model's run directory.
    gate: the name of the gate's folder in it.
    adapters: that of the exit adapters; None where there are none.

  Raises:
    FileNotFoundError: if a folder is not there.
    ValueError: if the gate was trained beside others, or beside some where
      there are none, or the other way round.
  """
  gate_path = os.path.join(os.path.abspath(os.fspath(model_dir)), gate)
  wanted, found = _metadata(gate_path)['context'].get(READ_THROUGH), None
  given = 'no adapters are given'
  if adapters is not None:
    path = os.path.join(os.path.dirname(gate_path), adapters)
    if directories.latest_step(path) is None:
      raise FileNotFoundError(
        f'there is no {EXIT_ADAPTERS.title} in {path}; give the folder of what '
        f'the gate in {gate_path} was trained beside'
      )
    found = _metadata(path)['parameter_fingerprint']
    given = f'{path} holds {found}'
  if wanted != found:
    trained = 'as they are' if wanted is None else f'through adapters {wanted}'
    raise ValueError(
      f'the gate in {gate_path} was trained for exits that are read {trained}, '
      f'but {given}: give exit_adapters, the folder of those that it was '
      'trained beside (None without any), or another gate; '
      f'--gin.EXIT_ADAPTERS={adapters} makes {GATE.job} train one for these'
    )


def _metadata(path: str) -> dict[str, Any]:
  return native.read_metadata(directories.find_checkpoint(path))
